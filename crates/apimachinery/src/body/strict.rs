//! JSON and YAML that remember which fields were written twice.

use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::status::Status;

/// A parsed body.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) value: Value,
    /// Paths of fields that stood more than once; the last one won.
    pub(crate) duplicates: Vec<String>,
}

/// Most values in one body; YAML aliases can make many out of few bytes.
const VALUES_MAX: usize = 500_000;
/// Deepest nesting that is read; serde_json has the same limit of its own.
const DEPTH_MAX: usize = 128;

pub(crate) fn from_json(bytes: &[u8]) -> Result<Decoded, Status> {
    let mut notes = Notes::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Seed {
        path: String::new(),
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

pub(crate) fn from_yaml(bytes: &[u8]) -> Result<Decoded, Status> {
    let mut notes = Notes::default();
    let seed = Seed {
        path: String::new(),
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

fn unreadable(error: &dyn fmt::Display) -> Status {
    Status::bad_request(format!("the object provided is unrecognized: {error}"))
}

struct Seed<'a> {
    path: String,
    depth: usize,
    notes: &'a mut Notes,
}

/// What is learned on the way.
#[derive(Default)]
struct Notes {
    duplicates: Vec<String>,
    values: usize,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        if self.depth > DEPTH_MAX {
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
            let path = format!("{}[{}]", self.path, list.len());
            let seed = Seed {
                path,
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
            let path = match self.path.as_str() {
                "" => key.clone(),
                above => format!("{above}.{key}"),
            };
            if out.contains_key(&key) {
                self.notes.duplicates.push(path.clone());
            }
            let seed = Seed {
                path,
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
        let decoded = from_json(br#"{"spec":{"a":1,"a":2,"l":[{"b":1,"b":2}]}}"#).expect("json");
        assert_eq!(decoded.value, json!({"spec": {"a": 2, "l": [{"b": 2}]}}));
        assert_eq!(decoded.duplicates, ["spec.a", "spec.l[0].b"]);
    }

    #[test]
    fn yaml_becomes_the_same_value() {
        let decoded = from_yaml(b"spec:\n  a: 1\n  on: true\n  1: x\n  a: 2\n").expect("yaml");
        assert_eq!(
            decoded.value,
            json!({"spec": {"a": 2, "on": true, "1": "x"}})
        );
        assert_eq!(decoded.duplicates, ["spec.a"]);
    }

    #[test]
    fn rubbish_and_bottomless_nesting_are_refused() {
        assert!(from_json(b"{\"a\":1} x").is_err());
        assert!(from_json("[".repeat(500).as_bytes()).is_err());
        assert!(from_yaml("[".repeat(500).as_bytes()).is_err());
        let mut bomb = "a: &a [1,2,3,4,5,6,7,8,9]\n".to_owned();
        for (from, to) in ["ab", "bc", "cd", "de", "ef", "fg"].map(|p| p.split_at(1)) {
            let items = vec![format!("*{from}"); 9].join(",");
            bomb.push_str(&format!("{to}: &{to} [{items}]\n"));
        }
        assert!(from_yaml(bomb.as_bytes()).is_err());
    }
}
