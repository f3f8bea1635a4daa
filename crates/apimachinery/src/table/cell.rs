//! One value as a cell, by the type of its column, as kube-apiserver does for custom kinds.

use jiff::Timestamp;
use serde_json::Value;

use super::human_age;
use crate::kind::ColumnType;

pub(super) fn print(kind: ColumnType, value: Option<&Value>, now: Timestamp) -> Value {
    let Some(value) = value else {
        return Value::Null;
    };
    match kind {
        ColumnType::String => string(value),
        ColumnType::Integer => integer(value),
        ColumnType::Number if value.is_number() => value.clone(),
        ColumnType::Boolean if value.is_boolean() => value.clone(),
        ColumnType::Number | ColumnType::Boolean => Value::Null,
        ColumnType::Date => date(value, now),
    }
}

fn string(value: &Value) -> Value {
    match value {
        Value::Null | Value::String(_) => value.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Value::String(value.to_string())
        }
    }
}

fn integer(value: &Value) -> Value {
    if value.is_i64() || value.is_u64() {
        return value.clone();
    }
    // A fraction is cut off; beyond 2^63 the cast saturates, which is as wrong as any answer.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "cutting off is what is wanted"
    )]
    let whole = value.as_f64().map(|number| number as i64);
    whole.map_or(Value::Null, Value::from)
}

fn date(value: &Value, now: Timestamp) -> Value {
    let text = match value.as_str() {
        None => return Value::Null,
        Some("") => "<unknown>".to_owned(),
        Some(text) => match text.parse() {
            Ok(since) => human_age(since, now),
            Err(_) => "<invalid>".to_owned(),
        },
    };
    Value::String(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_follow_the_type_of_their_column() {
        let now = "2026-01-01T00:00:00Z".parse().expect("time");
        let cell = |kind, value: Value| print(kind, Some(&value), now);
        assert_eq!(cell(ColumnType::String, json!(true)), json!("true"));
        assert_eq!(
            cell(ColumnType::String, json!({"a": 1})),
            json!("{\"a\":1}")
        );
        assert_eq!(cell(ColumnType::Integer, json!(2.7)), json!(2));
        assert_eq!(cell(ColumnType::Integer, json!("2")), Value::Null);
        assert_eq!(
            cell(ColumnType::Date, json!("2025-12-31T23:59:00Z")),
            json!("60s")
        );
        assert_eq!(
            cell(ColumnType::Date, json!("yesterday")),
            json!("<invalid>")
        );
        assert_eq!(print(ColumnType::Date, None, now), Value::Null);
    }
}
