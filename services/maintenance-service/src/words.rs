//! Longer texts for people: what stands in the way of a drain.

use std::time::Duration;

use serde_json::Value;

use crate::json::seconds;
use crate::look::Guest;

/// Machines named in one line.
const NAMED_MAX: usize = 5;

/// Why a machine is not asked to leave at once.
pub(crate) fn back_off(guest: &Guest, pause: Duration) -> String {
    let often = match guest.machine.failures {
        1 => "once".to_owned(),
        failures => format!("{failures} times"),
    };
    let Some(failed) = &guest.failed else {
        return format!("evacuation failed {often}");
    };
    let next = seconds(failed.at + pause);
    format!(
        "evacuation failed {often}, next attempt at {next}; last failure: {}",
        failed.message
    )
}

/// A count of machines with its verb.
pub(crate) fn machines(count: usize) -> String {
    match count {
        1 => "1 machine is".to_owned(),
        count => format!("{count} machines are"),
    }
}

/// What stands in the way, in one line; empty when nothing does.
pub(crate) fn last_error(blockers: &[Value], waiting: &[Value]) -> String {
    let all: Vec<String> = blockers
        .iter()
        .chain(waiting)
        .map(|entry| {
            let word = |key: &str| entry[key].as_str().unwrap_or_default();
            format!(
                "{}/{}: {}",
                word("namespace"),
                word("name"),
                word("message")
            )
        })
        .collect();
    let named = all.len().min(NAMED_MAX);
    let mut line = all[..named].join("; ");
    if all.len() > named {
        line.push_str(&format!("; and {} more", all.len() - named));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_names_a_few_and_counts_the_rest() {
        let entry = |name: usize| json!({ "namespace": "default", "name": format!("vm{name}"), "message": "stays" });
        let blockers: Vec<Value> = (1..=4).map(entry).collect();
        let waiting: Vec<Value> = (5..=7).map(entry).collect();
        assert_eq!(last_error(&[], &[]), "");
        assert_eq!(last_error(&blockers[..1], &[]), "default/vm1: stays");
        let line = last_error(&blockers, &waiting);
        assert!(line.ends_with("default/vm5: stays; and 2 more"), "{line}");
    }
}
