//! The record as a status: as the model has it, with times as Kubernetes writes them, and what the
//! columns show.

use godwit_ledger::Object;
use godwit_model::rolling::{NodeState, Record};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::json::seconds;

/// Fields whose names end so are times.
const TIME: &str = "At";
/// Nodes that a column names.
const NAMED_MAX: usize = 4;

/// What is recorded; the beginning when nothing is.
///
/// # Errors
/// When somebody wrote what makes no sense.
pub(super) fn record(object: &Object) -> Result<Record, serde_json::Error> {
    let Some(status) = &object.status else {
        return Ok(Record::default());
    };
    let mut status = status.clone();
    times(&mut status, &|time| {
        let text = time.as_str()?;
        Some(json!(text.parse::<Timestamp>().ok()?.as_second()))
    });
    serde_json::from_value(status)
}

/// The status that says so.
pub(super) fn status(record: &Record) -> Map<String, Value> {
    let mut status = json!(record);
    times(&mut status, &|time| {
        let time = Timestamp::from_second(time.as_i64()?).ok()?;
        Some(json!(seconds(time)))
    });
    let of = |wanted: &dyn Fn(NodeState) -> bool| {
        let nodes = record.nodes.iter().filter(|node| wanted(node.state));
        nodes.map(|node| node.name.as_str()).collect::<Vec<_>>()
    };
    let mut current = of(&NodeState::is_under_way);
    let more = current.len().saturating_sub(NAMED_MAX);
    current.truncate(NAMED_MAX);
    let more = match more {
        0 => String::new(),
        more => format!(",+{more}"),
    };
    let mut map = match status {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    };
    map.insert("nodesTotal".to_owned(), json!(record.nodes.len()));
    let over = of(&NodeState::is_over).len();
    map.insert("nodesDone".to_owned(), json!(over));
    map.insert("current".to_owned(), json!(current.join(",") + &more));
    map
}

/// Applies `change` to all times within.
fn times(value: &mut Value, change: &dyn Fn(&Value) -> Option<Value>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                if key.ends_with(TIME)
                    && let Some(changed) = change(value)
                {
                    *value = changed;
                } else {
                    times(value, change);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| times(value, change)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
