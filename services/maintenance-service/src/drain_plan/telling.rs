//! A plan as the status of its object tells it, and what differs between two of them. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use godwit_ledger::Object;
use godwit_model::maintenance::Method;
use godwit_model::placement::{RunnerUp, Shown};
use godwit_model::plan::{Departure, Move, NodeState, Span};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::carrying_out::Line;
use super::making::{Hindrance, Made};
use crate::json::{seconds, set, told as told_of};

/// Moves that are shown: with them an object is about half of what it may be.
pub(super) const MOVES_SHOWN_MAX: usize = 2000;
/// Blockers that are shown.
const BLOCKERS_SHOWN_MAX: usize = 500;
/// Nodes that are shown of each blocker, and of all together: with them an object is not too large.
const VERDICTS_SHOWN_MAX: usize = 50;
const VERDICTS_MAX: usize = 2000;

/// What is told of a plan that was made, but its phase and its conditions.
pub(super) fn told(made: &Made, (generation, now): (&Value, Timestamp)) -> Map<String, Value> {
    let moves: Vec<Value> = made
        .plan
        .departures()
        .enumerate()
        .map(|(at, (wave, one))| departure(made, (at + 1, wave), one))
        .collect();
    let mut verdicts_left = VERDICTS_MAX;
    let blockers = made.blockers.iter();
    let blockers: Vec<Value> = blockers
        .map(|one| hindrance(one, &mut verdicts_left))
        .collect();
    let bytes = made.plan.departures().map(|(_, one)| one.forecast.bytes.0);
    let bytes = bytes.fold(0_u64, u64::saturating_add);
    let nodes: Vec<Value> = made
        .nodes
        .iter()
        .map(|node| node_line(made, node.as_str()))
        .collect();
    let mut status = Map::new();
    for (key, value) in [
        ("observedGeneration", generation.clone()),
        ("inventoryRevision", json!(made.revision.0)),
        ("plannedAt", json!(seconds(now))),
        ("nodesTotal", json!(nodes.len())),
        ("movesTotal", json!(moves.len())),
        ("blockersTotal", json!(blockers.len())),
        ("wavesTotal", json!(made.plan.waves.len())),
        ("forecast", forecast(made.plan.span, bytes)),
        ("nodes", json!(nodes)),
    ] {
        status.insert(key.to_owned(), value);
    }
    list(
        &mut status,
        ("moves", "movesNotShown"),
        moves,
        MOVES_SHOWN_MAX,
    );
    let shutdowns = made
        .shutdowns
        .iter()
        .map(|(node, key)| json!({ "node": node, "namespace": key.namespace, "name": key.name }));
    set(
        &mut status,
        "shutdowns",
        shutdowns.take(BLOCKERS_SHOWN_MAX).collect(),
    );
    list(
        &mut status,
        ("blockers", "blockersNotShown"),
        blockers,
        BLOCKERS_SHOWN_MAX,
    );
    status
}

fn list(
    status: &mut Map<String, Value>,
    (shown, not_shown): (&str, &str),
    mut all: Vec<Value>,
    most: usize,
) {
    let rest = all.len().saturating_sub(most);
    all.truncate(most);
    status.insert(shown.to_owned(), Value::Array(all));
    if rest > 0 {
        status.insert(not_shown.to_owned(), json!(rest));
    }
}

fn forecast(span: Span, bytes: u64) -> Value {
    json!({
        "seconds": tenths(span.likely),
        "earliestSeconds": tenths(span.earliest),
        "latestSeconds": tenths(span.latest),
        "bytes": bytes,
    })
}

fn node_line(made: &Made, node: &str) -> Value {
    let waves = made.plan.waves.iter();
    let wave = waves
        .zip(1_u32..)
        .find(|(wave, _)| wave.nodes.iter().any(|one| one.as_str() == node));
    let mut line = json!({ "name": node, "state": NodeState::Waiting });
    if let Some((_, number)) = wave {
        line["wave"] = json!(number);
    }
    line
}

/// A restart has no copy, and a pause is as long as what is left needs: no forecast is told then.
fn departure(made: &Made, (order, wave): (usize, usize), one: &Departure) -> Value {
    let mover = made.movers.get(&one.way.machine);
    let method = mover.map_or(Method::Live, |mover| mover.method);
    let forecast = &one.forecast;
    let mut line = json!({
        "order": order,
        "namespace": mover.map(|mover| &mover.key.namespace),
        "name": mover.map(|mover| &mover.key.name),
        "source": one.way.source,
        "target": one.way.target,
        "wave": wave,
        "method": method.as_str(),
        "beginsSeconds": tenths(one.slot.begins),
        "why": why(&one.way),
    });
    if method.moves() {
        line["takesSeconds"] = json!(tenths(forecast.takes));
        line["atLeastSeconds"] = json!(tenths(forecast.at_least));
        line["atMostSeconds"] = json!(tenths(forecast.at_most));
        line["bytes"] = json!(forecast.bytes.0);
        line["converges"] = json!(forecast.converges);
    }
    if method == Method::Live {
        let blackout = forecast.blackout.saturating_mul(1000);
        line["blackoutMilliseconds"] = json!(tenths(blackout));
    }
    line
}

fn hindrance(one: &Hindrance, verdicts_left: &mut usize) -> Value {
    let mut line = json!({
        "node": one.node,
        "reason": one.reason,
        "message": one.message,
        "remedy": one.remedy,
    });
    if let Some(machine) = &one.machine {
        line["namespace"] = json!(machine.namespace);
        line["name"] = json!(machine.name);
    }
    if !one.verdicts.is_empty() {
        let shown = Shown::of(&one.verdicts, VERDICTS_SHOWN_MAX.min(*verdicts_left));
        *verdicts_left -= shown.verdicts.len();
        line["verdicts"] = json!(shown.verdicts);
        if shown.verdicts_not_shown > 0 {
            line["verdictsNotShown"] = json!(shown.verdicts_not_shown);
        }
    }
    line
}

/// Why a machine goes where it goes.
fn why(way: &Move) -> String {
    match &way.runner_up {
        Some(RunnerUp {
            node,
            points: [best, next],
        }) => format!("{best} points, {node} is next with {next}"),
        None => "no other node will do".to_owned(),
    }
}

/// Seconds with one digit after the point: nobody forecasts better.
fn tenths(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

/// The status of a plan of which `before` was begun, and whose rest was made anew as `rest`: waves
/// and orders go on from where they were, and times are counted from when the first wave began.
pub(super) fn merged(
    plan: &Object,
    before: &[Line],
    mut rest: Map<String, Value>,
    now: Timestamp,
) -> Map<String, Value> {
    let waves = before
        .iter()
        .filter_map(|line| line.wave)
        .max()
        .unwrap_or(0);
    let started = told_of(plan, "startedAt").as_str();
    let started: Timestamp = started.and_then(|time| time.parse().ok()).unwrap_or(now);
    let elapsed = now.duration_since(started).as_secs_f64().max(0.0).round();
    let begun = told_of(plan, "moves").as_array().into_iter().flatten();
    let mut moves: Vec<Value> = begun
        .filter(|one| {
            one["wave"]
                .as_u64()
                .is_some_and(|wave| wave <= count(waves))
        })
        .cloned()
        .collect();
    let (orders, added) = (moves.len(), number(&rest, "movesTotal"));
    for mut one in taken(&mut rest, "moves") {
        one["order"] = json!(one["order"].as_u64().unwrap_or(0) + count(orders));
        one["wave"] = json!(one["wave"].as_u64().unwrap_or(0) + count(waves));
        one["beginsSeconds"] = json!(one["beginsSeconds"].as_f64().unwrap_or(0.0) + elapsed);
        moves.push(one);
    }
    let mut nodes: Vec<Value> = before.iter().map(|line| json!(line)).collect();
    for mut line in taken(&mut rest, "nodes") {
        if let Some(wave) = line["wave"].as_u64() {
            line["wave"] = json!(wave + count(waves));
        }
        nodes.push(line);
    }
    for key in ["seconds", "earliestSeconds", "latestSeconds"] {
        let left = rest["forecast"][key].as_f64().unwrap_or(0.0);
        rest["forecast"][key] = json!(left + elapsed);
    }
    let total = count(orders) + added;
    let shown = count(moves.len().min(MOVES_SHOWN_MAX));
    let all_waves = number(&rest, "wavesTotal") + count(waves);
    moves.truncate(MOVES_SHOWN_MAX);
    for (key, value) in [
        ("startedAt", json!(seconds(started))),
        ("nodesTotal", json!(nodes.len())),
        ("nodes", json!(nodes)),
        ("movesTotal", json!(total)),
        ("moves", json!(moves)),
        ("movesNotShown", json!(total - shown)),
        ("wavesTotal", json!(all_waves)),
        ("conditions", told_of(plan, "conditions").clone()),
    ] {
        set(&mut rest, key, value);
    }
    rest
}

/// What the plan said before, without what was in the way of other nodes than `rest`: that is over.
pub(super) fn expected(plan: &Object, rest: &[String]) -> Value {
    let mut status = plan.status.clone().unwrap_or_default();
    if let Some(blockers) = status.get_mut("blockers").and_then(Value::as_array_mut) {
        blockers.retain(|blocker| rest.iter().any(|node| blocker["node"] == **node));
    }
    status
}

fn taken(status: &mut Map<String, Value>, list: &str) -> Vec<Value> {
    match status.remove(list) {
        Some(Value::Array(list)) => list,
        Some(_) | None => vec![],
    }
}

fn number(status: &Map<String, Value>, key: &str) -> u64 {
    status.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// How many moves, blockers and nodes are not the same in both, as far as they are shown; those
/// that are in one alone count, too. Times are no difference: they are forecasts.
pub(super) fn differences(before: &Value, after: &Value) -> usize {
    let lines = |status: &Value| -> BTreeSet<String> {
        let fields: [(&str, &[&str]); 4] = [
            ("moves", &["namespace", "name", "source", "target", "wave"]),
            ("blockers", &["node", "namespace", "name", "reason"]),
            ("shutdowns", &["node", "namespace", "name"]),
            ("nodes", &["name", "wave"]),
        ];
        let mut lines = BTreeSet::new();
        for (list, keys) in fields {
            for line in status[list].as_array().into_iter().flatten() {
                let words: Vec<&Value> = keys.iter().map(|key| &line[*key]).collect();
                lines.insert(json!([list, words]).to_string());
            }
        }
        lines
    };
    let (before, after) = (lines(before), lines(after));
    // A line that is another afterwards is one difference, not two.
    let (gone, new) = (
        before.difference(&after).count(),
        after.difference(&before).count(),
    );
    gone.max(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_elsewhere_is_one_difference_and_times_are_none() {
        let line = |name: &str, target: &str, takes: f64| {
            json!({"name": name, "source": "a", "target": target, "wave": 1,
                "takesSeconds": takes})
        };
        let before = json!({"moves": [line("vm1", "b", 1.0), line("vm2", "b", 1.0)]});
        let slower = json!({"moves": [line("vm1", "b", 9.0), line("vm2", "b", 1.0)]});
        assert_eq!(differences(&before, &slower), 0);
        let elsewhere = json!({"moves": [line("vm1", "c", 1.0), line("vm2", "b", 1.0)]});
        assert_eq!(differences(&before, &elsewhere), 1);
        let more = json!({
            "moves": [line("vm1", "b", 1.0), line("vm2", "b", 1.0), line("vm3", "b", 1.0)],
            "blockers": [{"node": "a", "name": "vm4", "reason": "EvictionStrategyNone"}],
        });
        assert_eq!(differences(&before, &more), 2);
        assert_eq!(differences(&more, &before), 2);
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let mut status = Map::new();
        list(
            &mut status,
            ("moves", "movesNotShown"),
            vec![json!(1); 5],
            3,
        );
        assert_eq!(status["moves"], json!([1, 1, 1]));
        assert_eq!(status["movesNotShown"], 2);
    }
}
