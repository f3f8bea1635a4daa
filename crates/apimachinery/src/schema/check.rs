//! Checking an object: unknown fields go, defaults come, wrong values are named.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{Schema, Type};
use crate::status::Cause;
use crate::trail::Trail;

/// What a check found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Paths of fields the schema doesn't know; they were removed.
    pub(crate) unknown: Vec<String>,
    /// Values that can't be accepted.
    pub(crate) causes: Vec<Cause>,
}

/// Most findings of each sort; more would help nobody.
const FINDINGS_MAX: usize = 50;

impl Schema {
    /// Removes unknown fields and needless nulls, fills in defaults, and collects what is wrong.
    pub(crate) fn settle(&self, object: &mut Value) -> Findings {
        let mut findings = Findings::default();
        self.node(object, &Trail::ROOT, &mut findings);
        findings
    }

    fn node(&self, value: &mut Value, trail: &Trail<'_>, findings: &mut Findings) {
        if value.is_null() && self.nullable {
            return;
        }
        if !self.accepts(value) {
            let expected = self.of.as_str();
            findings.refuse(|| Cause::type_invalid(&trail.text(), value, expected));
            return;
        }
        self.limits(value, trail, findings);
        match value {
            Value::Object(map) => self.object(map, trail, findings),
            Value::Array(list) => {
                let Some(items) = &self.items else {
                    return;
                };
                for (at, item) in list.iter_mut().enumerate() {
                    items.node(item, &trail.index(at), findings);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn object(&self, map: &mut Map<String, Value>, trail: &Trail<'_>, findings: &mut Findings) {
        // What takes anything says nothing about fields.
        let open = self.preserve || (self.of == Type::Any && self.properties.is_empty());
        map.retain(|key, value| {
            let declared = self.properties.get(key).or(self.additional.as_deref());
            match declared {
                // As when Go decodes it: null is the same as not saying anything.
                Some(schema) => !value.is_null() || schema.nullable,
                None if open => true,
                None => {
                    findings.drop_unknown(&trail.key(key));
                    false
                }
            }
        });
        for (key, schema) in &self.properties {
            if let (Some(default), false) = (&schema.default, map.contains_key(key)) {
                map.insert(key.clone(), default.clone());
            }
        }
        for key in &self.required {
            if !map.contains_key(key) {
                findings.refuse(|| Cause::required(&trail.key(key).text(), ""));
            }
        }
        for (key, value) in map.iter_mut() {
            if let Some(schema) = self.properties.get(key).or(self.additional.as_deref()) {
                schema.node(value, &trail.key(key), findings);
            }
        }
    }

    fn accepts(&self, value: &Value) -> bool {
        match self.of {
            Type::Any => true,
            Type::Object => value.is_object(),
            Type::Array => value.is_array(),
            Type::String => value.is_string(),
            Type::Integer => is_integer(value),
            Type::Number => value.is_number(),
            Type::Boolean => value.is_boolean(),
            Type::IntOrString => value.is_string() || is_integer(value),
        }
    }

    fn limits(&self, value: &Value, trail: &Trail<'_>, findings: &mut Findings) {
        if !self.one_of_values.is_empty() && !self.one_of_values.contains(value) {
            let supported: Vec<String> = self.one_of_values.iter().map(plain).collect();
            let supported: Vec<&str> = supported.iter().map(String::as_str).collect();
            findings.refuse(|| Cause::not_supported(&trail.text(), value, &supported));
        }
        if let Some(why) = self.broken_limit(value) {
            let path = trail.text();
            findings.refuse(|| Cause::invalid(&path, value, &format!("{path} in body {why}")));
        }
    }

    /// The first limit that `value` breaks, in words.
    fn broken_limit(&self, value: &Value) -> Option<String> {
        if let Some(number) = value.as_f64() {
            if let Some(minimum) = self.minimum.filter(|minimum| number < *minimum) {
                return Some(format!("should be greater than or equal to {minimum}"));
            }
            if let Some(maximum) = self.maximum.filter(|maximum| number > *maximum) {
                return Some(format!("should be less than or equal to {maximum}"));
            }
        }
        if let Some(text) = value.as_str() {
            let length = text.chars().count() as u64;
            if let Some(minimum) = self.min_length.filter(|minimum| length < *minimum) {
                return Some(format!("should be at least {minimum} chars long"));
            }
            if let Some(maximum) = self.max_length.filter(|maximum| length > *maximum) {
                return Some(format!("should be at most {maximum} chars long"));
            }
            if self.date_time && !is_date_time(text) {
                return Some(format!("must be of type date-time: {text:?}"));
            }
        }
        if let Some(list) = value.as_array() {
            let length = list.len() as u64;
            if let Some(minimum) = self.min_items.filter(|minimum| length < *minimum) {
                return Some(format!("should have at least {minimum} items"));
            }
            if let Some(maximum) = self.max_items.filter(|maximum| length > *maximum) {
                return Some(format!("should have at most {maximum} items"));
            }
        }
        None
    }
}

/// Whether `text` is a time of RFC 3339, with any fraction of a second.
fn is_date_time(text: &str) -> bool {
    let utc = text.strip_suffix('Z').map(|time| format!("{time}+00:00"));
    let text = utc.as_deref().unwrap_or(text);
    Timestamp::strptime("%Y-%m-%dT%H:%M:%S%.f%:z", text).is_ok()
}

impl Findings {
    fn drop_unknown(&mut self, trail: &Trail<'_>) {
        if self.unknown.len() < FINDINGS_MAX {
            self.unknown.push(trail.text());
        }
    }

    fn refuse(&mut self, cause: impl FnOnce() -> Cause) {
        if self.causes.len() < FINDINGS_MAX {
            self.causes.push(cause());
        }
    }
}

impl Type {
    fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::IntOrString => "integer or string",
        }
    }
}

/// As Kubernetes reads integers into its types: neither `1.0` nor what 64 bits with a sign can't hold.
fn is_integer(value: &Value) -> bool {
    value.is_i64()
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::compile;
    use super::*;

    fn settle(schema: &Value, mut object: Value) -> (Value, Findings) {
        let findings = compile(schema).expect("schema").settle(&mut object);
        (object, findings)
    }

    #[test]
    fn unknown_fields_are_removed_and_named() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "array", "items": {"type": "object", "properties": {"b": {}}}},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }});
        let (object, findings) = settle(
            &schema,
            json!({"a": [{"b": 1, "c": 2}], "x": 1, "open": {"y": 1}}),
        );
        assert_eq!(object, json!({"a": [{"b": 1}], "open": {"y": 1}}));
        assert_eq!(findings.unknown, ["x", "a[0].c"]);
        assert!(findings.causes.is_empty());
    }

    #[test]
    fn defaults_come_before_required_and_nulls_go() {
        let schema = json!({"type": "object", "required": ["a", "b"], "properties": {
            "a": {"type": "integer", "default": 3}, "b": {"type": "string"}}});
        let (object, findings) = settle(&schema, json!({"b": null}));
        assert_eq!(object, json!({"a": 3}));
        assert_eq!(findings.causes, [Cause::required("b", "")]);
    }

    #[test]
    fn integers_have_no_point_and_fit_into_64_bits() {
        let schema = json!({"type": "integer"});
        for good in [json!(0), json!(-5), json!(i64::MAX), json!(i64::MIN)] {
            assert!(settle(&schema, good.clone()).1.causes.is_empty(), "{good}");
        }
        for bad in [json!(1.0), json!(u64::MAX), json!(-9.3e18), json!("1")] {
            assert!(!settle(&schema, bad.clone()).1.causes.is_empty(), "{bad}");
        }
    }

    #[test]
    fn times_are_those_of_rfc_3339() {
        let schema = json!({"type": "string", "format": "date-time"});
        for good in [
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:00:00.123456Z",
            "2026-12-31T23:59:59+02:00",
        ] {
            assert!(settle(&schema, json!(good)).1.causes.is_empty(), "{good}");
        }
        for bad in [
            "",
            "soon",
            "2026-01-01",
            "2026-01-01 00:00:00Z",
            "2026-02-30T00:00:00Z",
        ] {
            let causes = settle(&schema, json!(bad)).1.causes;
            assert_eq!(causes.len(), 1, "{bad}");
            assert!(causes[0].message.contains("must be of type date-time"));
        }
    }

    #[test]
    fn wrong_values_are_named_as_kube_apiserver_does() {
        let schema = json!({"type": "object", "properties": {
            "n": {"type": "integer", "minimum": 1}, "s": {"type": "string", "enum": ["x", "y"]},
            "p": {"x-kubernetes-int-or-string": true}}});
        let (_, findings) = settle(&schema, json!({"n": 0, "s": "z", "p": "50%"}));
        let messages: Vec<&str> = findings.causes.iter().map(|c| c.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "Invalid value: 0: n in body should be greater than or equal to 1",
                "Unsupported value: \"z\": supported values: \"x\", \"y\"",
            ]
        );
        let (_, findings) = settle(&schema, json!({"n": "1"}));
        assert_eq!(
            findings.causes[0].message,
            "Invalid value: \"string\": n in body must be of type integer: \"string\"",
        );
    }
}
