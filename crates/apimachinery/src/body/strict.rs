//! JSON and YAML that remember which fields were written twice.

use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::status::Status;
use crate::trail::Trail;

/// A parsed body.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) value: Value,
    /// Paths of fields that stood more than once, the first [`DUPLICATES_MAX`]; the last one won.
    pub(crate) duplicates: Vec<String>,
}

/// Most values in one body; YAML aliases can make many out of few bytes.
const VALUES_MAX: usize = 500_000;
/// Most `[` and `{` that may be open at once in YAML, whether they are meant or stand in a text:
/// each costs the reader time at each word that follows.
const YAML_OPEN_MAX: usize = 512;
/// Most duplicates that are named; more would help nobody.
const DUPLICATES_MAX: usize = 50;

/// Reads JSON that nests no deeper than `depth`, nor than serde_json's own 127.
pub(crate) fn from_json(bytes: &[u8], depth: usize) -> Result<Decoded, Status> {
    let mut notes = Notes::of(depth);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Seed {
        trail: &Trail::ROOT,
        depth: 0,
        notes: &mut notes,
    };
    let value = seed.deserialize(&mut deserializer).and_then(|value| {
        deserializer.end()?;
        Ok(value)
    });
    let value = value.map_err(|error| unreadable(&error))?;
    Ok(Decoded {
        value,
        duplicates: notes.duplicates,
    })
}

/// Reads YAML that nests no deeper than `depth`.
pub(crate) fn from_yaml(bytes: &[u8], depth: usize) -> Result<Decoded, Status> {
    check_open(bytes)?;
    let mut notes = Notes::of(depth);
    let seed = Seed {
        trail: &Trail::ROOT,
        depth: 0,
        notes: &mut notes,
    };
    let deserializer = serde_yaml_ng::Deserializer::from_slice(bytes);
    let value = seed
        .deserialize(deserializer)
        .map_err(|error| unreadable(&error))?;
    Ok(Decoded {
        value,
        duplicates: notes.duplicates,
    })
}

fn check_open(bytes: &[u8]) -> Result<(), Status> {
    let mut open = 0_usize;
    for byte in bytes {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > YAML_OPEN_MAX {
            return Err(unreadable(&"nested too deeply"));
        }
    }
    Ok(())
}

fn unreadable(error: &dyn fmt::Display) -> Status {
    Status::bad_request(format!("the object provided is unrecognized: {error}"))
}

struct Seed<'a> {
    trail: &'a Trail<'a>,
    depth: usize,
    notes: &'a mut Notes,
}

/// What is learned on the way.
struct Notes {
    duplicates: Vec<String>,
    values: usize,
    depth_max: usize,
}

impl Notes {
    fn of(depth_max: usize) -> Self {
        Self {
            duplicates: Vec::new(),
            values: 0,
            depth_max,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        if self.depth > self.notes.depth_max {
            return Err(D::Error::custom("nested too deeply"));
        }
        self.notes.values += 1;
        if self.notes.values > VALUES_MAX {
            return Err(D::Error::custom("holds too many values"));
        }
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let seed = Seed {
                trail: &self.trail.index(list.len()),
                depth: self.depth + 1,
                notes: &mut *self.notes,
            };
            match seq.next_element_seed(seed)? {
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key_seed(Key)? {
            let trail = self.trail.key(&key);
            if out.contains_key(&key) && self.notes.duplicates.len() < DUPLICATES_MAX {
                self.notes.duplicates.push(trail.text());
            }
            let seed = Seed {
                trail: &trail,
                depth: self.depth + 1,
                notes: &mut *self.notes,
            };
            let value = map.next_value_seed(seed)?;
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

/// A key; YAML also has numbers and booleans there, which JSON spells out.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        from.deserialize_any(self)
    }
}

impl Visitor<'_> for Key {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }

    fn visit_bool<E>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_f64<E>(self, value: f64) -> Result<String, E> {
        Ok(value.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_written_twice_are_named_with_their_path() {
        let decoded =
            from_json(br#"{"spec":{"a":1,"a":2,"l":[{"b":1,"b":2}]}}"#, 127).expect("json");
        assert_eq!(decoded.value, json!({"spec": {"a": 2, "l": [{"b": 2}]}}));
        assert_eq!(decoded.duplicates, ["spec.a", "spec.l[0].b"]);
    }

    #[test]
    fn yaml_becomes_the_same_value() {
        let decoded = from_yaml(b"spec:\n  a: 1\n  on: true\n  1: x\n  a: 2\n", 127).expect("yaml");
        assert_eq!(
            decoded.value,
            json!({"spec": {"a": 2, "on": true, "1": "x"}})
        );
        assert_eq!(decoded.duplicates, ["spec.a"]);
    }

    #[test]
    fn rubbish_and_bottomless_nesting_are_refused() {
        assert!(from_json(b"{\"a\":1} x", 127).is_err());
        assert!(from_json("[".repeat(500).as_bytes(), 127).is_err());
        assert!(from_yaml("[".repeat(500).as_bytes(), 127).is_err());
        assert!(from_json(b"[[[1]]]", 3).is_ok());
        assert!(from_json(b"[[[1]]]", 2).is_err());
        assert!(from_yaml(b"[[[1]]]", 2).is_err());
        let mut bomb = "a: &a [1,2,3,4,5,6,7,8,9]\n".to_owned();
        for (from, to) in ["ab", "bc", "cd", "de", "ef", "fg"].map(|p| p.split_at(1)) {
            let items = vec![format!("*{from}"); 9].join(",");
            bomb.push_str(&format!("{to}: &{to} [{items}]\n"));
        }
        assert!(from_yaml(bomb.as_bytes(), 127).is_err());
    }
}
