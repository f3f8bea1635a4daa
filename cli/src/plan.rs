//! `godwit plan`: how nodes would be emptied, for people.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api;
use crate::kubeconfig::{Access, Kubeconfig};
use crate::output::Output;

const PLANS: &str = "/apis/godwit.io/v1alpha1/drainplans";
/// How often the plan is looked at until it is made.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Longest wait for a plan: a fleet of a thousand nodes takes seconds.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// A plan with other texts than these shows no times.
const NO_TIME: &str = "-";

/// Which nodes, and how.
#[derive(Debug, Args)]
pub struct Plan {
    /// Nodes to empty.
    #[arg(required = true, value_name = "NODE")]
    pub nodes: Vec<String>,
    /// All at once, and not in waves.
    #[arg(long)]
    pub together: bool,
    /// Most nodes that are closed at once [default: as many as the others have room for].
    #[arg(long, value_name = "NODES", conflicts_with = "together")]
    pub max_unavailable: Option<u32>,
    /// Label of nodes; a wave is of nodes with one value of it.
    #[arg(long, value_name = "LABEL", conflicts_with = "together")]
    pub failure_domain: Option<String>,
    /// Any one other node must be able to fail while nodes are empty.
    #[arg(long)]
    pub spare_nodes: bool,
    /// Say of each move why its target was chosen, and of each blocker what speaks against each node.
    #[arg(long)]
    pub explain: bool,
    /// Leave the plan there, to look at it again or to carry it out.
    #[arg(long)]
    pub keep: bool,
    /// File that says where the API is [default: KUBECONFIG, then ~/.kube/config].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: the current one].
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// Form of the output.
    #[arg(long, short, default_value = "text")]
    pub output: Output,
}

/// The DrainPlan of the API, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Made {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    inventory_revision: u64,
    moves_total: usize,
    waves_total: usize,
    blockers_total: usize,
    forecast: Forecast,
    nodes: Vec<Node>,
    moves: Vec<Move>,
    moves_not_shown: usize,
    blockers: Vec<Blocker>,
    blockers_not_shown: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Forecast {
    seconds: f64,
    earliest_seconds: f64,
    latest_seconds: f64,
    bytes: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Node {
    name: String,
    wave: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Move {
    order: usize,
    namespace: String,
    name: String,
    source: String,
    target: String,
    method: String,
    begins_seconds: Option<f64>,
    takes_seconds: Option<f64>,
    blackout_milliseconds: Option<f64>,
    converges: Option<bool>,
    why: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Blocker {
    node: String,
    namespace: String,
    name: String,
    message: String,
    remedy: String,
    verdicts: Vec<Verdict>,
    verdicts_not_shown: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Verdict {
    node: String,
    reasons: Vec<String>,
}

/// Makes a plan and answers what to tell the user of it.
///
/// # Errors
/// When the API refuses the plan or can't be asked, or no plan is made within a minute.
pub async fn plan(wanted: &Plan) -> anyhow::Result<String> {
    let config = Kubeconfig::load(wanted.kubeconfig.as_deref())?;
    let access = config.access(wanted.context.as_deref())?;
    let stored = api::create(&access, PLANS, &manifest(wanted)).await?;
    let stored: Made = serde_json::from_slice(&stored).context("understand the answer")?;
    let path = format!("{PLANS}/{}", stored.metadata.name);
    let shown = show(&access, &path, wanted).await;
    if !wanted.keep {
        let deleted = api::delete(&access, &path).await;
        // What kept the plan from being shown is the more important.
        let text = shown?;
        deleted.with_context(|| format!("delete drainplan {}", stored.metadata.name))?;
        return Ok(text);
    }
    let mut text = shown?;
    if wanted.output == Output::Text {
        let name = &stored.metadata.name;
        let _ = write!(
            text,
            "\n\ndrainplan {name} stays; look at it with kubectl get dp {name}"
        );
    }
    Ok(text)
}

fn manifest(wanted: &Plan) -> Value {
    let mut spec = json!({ "nodes": wanted.nodes });
    for (key, value) in [
        ("together", wanted.together.then_some(json!(true))),
        (
            "maxUnavailable",
            wanted.max_unavailable.map(|most| json!(most)),
        ),
        (
            "failureDomain",
            wanted.failure_domain.as_ref().map(|label| json!(label)),
        ),
        ("spareNodes", wanted.spare_nodes.then_some(json!(true))),
    ] {
        if let Some(value) = value {
            spec[key] = value;
        }
    }
    json!({
        "apiVersion": "godwit.io/v1alpha1",
        "kind": "DrainPlan",
        "metadata": { "generateName": "plan-" },
        "spec": spec,
    })
}

async fn show(access: &Access, path: &str, wanted: &Plan) -> anyhow::Result<String> {
    let until = Instant::now() + WAIT_MAX;
    loop {
        let body = api::get(access, path).await?;
        let made: Made = serde_json::from_slice(&body).context("understand the answer")?;
        if !made.status.phase.is_empty() {
            return Ok(match wanted.output {
                Output::Text => told(&made.status, wanted.explain),
                Output::Json => {
                    let whole: Value = serde_json::from_slice(&body)?;
                    format!("{whole:#}")
                }
            });
        }
        if Instant::now() > until {
            bail!("no plan was made within a minute; does the maintenance-service run?");
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// A table of the moves, the waves, the blockers, and a line that sums up.
fn told(status: &Status, explain: bool) -> String {
    let mut text = table(&status.moves, explain);
    // Writing to a string can't fail.
    if status.moves_not_shown > 0 {
        let _ = writeln!(text, "and {} more moves", status.moves_not_shown);
    }
    if !text.is_empty() {
        text.push('\n');
    }
    for wave in 1..=status.waves_total {
        let nodes = status.nodes.iter().filter(|node| node.wave == Some(wave));
        let nodes: Vec<&str> = nodes.map(|node| node.name.as_str()).collect();
        let _ = writeln!(text, "wave {wave}: {}", nodes.join(", "));
    }
    for blocker in &status.blockers {
        let what = match blocker.name.as_str() {
            "" => String::new(),
            name => format!(" {}/{name}", blocker.namespace),
        };
        let _ = writeln!(
            text,
            "blocker on {}:{what} {}",
            blocker.node, blocker.message
        );
        let _ = writeln!(text, "  remedy: {}", blocker.remedy);
        if explain {
            text.push_str(&verdicts(blocker));
        }
    }
    if status.blockers_not_shown > 0 {
        let _ = writeln!(text, "and {} more blockers", status.blockers_not_shown);
    }
    let forecast = &status.forecast;
    let _ = write!(
        text,
        "{}, {}: about {} ({} to {}), {} to send; inventory revision {}",
        counted(status.moves_total, "move"),
        counted(status.blockers_total, "blocker"),
        time(forecast.seconds),
        time(forecast.earliest_seconds),
        time(forecast.latest_seconds),
        size(forecast.bytes),
        status.inventory_revision,
    );
    text
}

/// A line for each node that doesn't take the machine.
fn verdicts(blocker: &Blocker) -> String {
    let mut text = String::new();
    for verdict in &blocker.verdicts {
        let _ = writeln!(text, "  {}: {}", verdict.node, verdict.reasons.join(", "));
    }
    if blocker.verdicts_not_shown > 0 {
        let _ = writeln!(text, "  and {} more nodes", blocker.verdicts_not_shown);
    }
    text
}

fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        many => format!("{many} {what}s"),
    }
}

/// The moves in columns, with a head; nothing when there are none.
fn table(moves: &[Move], explain: bool) -> String {
    if moves.is_empty() {
        return String::new();
    }
    let head = [
        "ORDER", "MACHINE", "FROM", "TO", "METHOD", "BEGINS", "TAKES", "BLACKOUT", "WHY",
    ];
    let mut rows: Vec<[String; 9]> = vec![head.map(str::to_owned)];
    rows.extend(moves.iter().map(row));
    let mut widths = [0; 9];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let shown = widths.len() - usize::from(!explain);
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).take(shown);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(line.join("   ").trim_end());
        text.push('\n');
    }
    text
}

fn row(one: &Move) -> [String; 9] {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| NO_TIME.to_owned());
    let takes = one.takes_seconds.map(|seconds| match one.converges {
        Some(false) => format!("{} or more", time(seconds)),
        Some(true) | None => time(seconds),
    });
    [
        one.order.to_string(),
        format!("{}/{}", one.namespace, one.name),
        one.source.clone(),
        one.target.clone(),
        one.method.clone(),
        or_none(
            one.begins_seconds
                .map(|seconds| format!("+{}", time(seconds))),
        ),
        or_none(takes),
        or_none(
            one.blackout_milliseconds
                .map(|millis| format!("{millis:.0} ms")),
        ),
        one.why.clone(),
    ]
}

/// Seconds as people say them.
fn time(seconds: f64) -> String {
    match seconds {
        short if short < 100.0 => format!("{short:.1} s"),
        long => format!("{:.0} min {:.0} s", (long / 60.0).floor(), long % 60.0),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "it is shown with one digit after the point"
)]
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_as_a_table_with_its_waves_and_blockers() {
        let status = json!({
            "phase": "Planned", "inventoryRevision": 42, "movesTotal": 3, "movesNotShown": 1,
            "wavesTotal": 2, "blockersTotal": 1,
            "forecast": {
                "seconds": 125.2, "earliestSeconds": 61.0, "latestSeconds": 250.4,
                "bytes": 3_221_225_472_u64,
            },
            "nodes": [{"name": "worker2", "wave": 1}, {"name": "worker1", "wave": 2}],
            "moves": [
                {"order": 1, "namespace": "default", "name": "vm1", "source": "worker2",
                 "target": "worker3", "method": "Live", "beginsSeconds": 0.0,
                 "takesSeconds": 9.4, "blackoutMilliseconds": 41.6, "converges": true},
                {"order": 2, "namespace": "default", "name": "a-longer-name",
                 "source": "worker1", "target": "worker2", "method": "Live",
                 "beginsSeconds": 9.4, "takesSeconds": 115.8, "blackoutMilliseconds": 100.0,
                 "converges": false},
            ],
            "blockers": [{"node": "worker1", "namespace": "default", "name": "stays",
                "reason": "EvictionStrategyNone", "message": "it stays", "remedy": "stop it"}],
        });
        let status: Status = serde_json::from_value(status).unwrap();
        let wanted = "\
ORDER   MACHINE                 FROM      TO        METHOD   BEGINS   TAKES                BLACKOUT
1       default/vm1             worker2   worker3   Live     +0.0 s   9.4 s                42 ms
2       default/a-longer-name   worker1   worker2   Live     +9.4 s   1 min 56 s or more   100 ms
and 1 more moves

wave 1: worker2
wave 2: worker1
blocker on worker1: default/stays it stays
  remedy: stop it
3 moves, 1 blocker: about 2 min 5 s (61.0 s to 4 min 10 s), 3.0 GiB to send; inventory revision 42";
        assert_eq!(told(&status, false), wanted);
    }

    #[test]
    fn a_plan_that_is_explained_says_why_of_each_move_and_node() {
        let status = json!({
            "phase": "Planned", "movesTotal": 1, "blockersTotal": 1,
            "moves": [{"order": 1, "namespace": "default", "name": "vm1", "source": "worker2",
                "target": "worker3", "method": "Live", "why": "91 points, worker4 is next with 80"}],
            "blockers": [{"node": "worker1", "namespace": "default", "name": "big",
                "message": "0/2 nodes are available.", "remedy": "make room",
                "verdicts": [{"node": "worker4", "reasons": ["Insufficient memory"]}],
                "verdictsNotShown": 7}],
        });
        let status: Status = serde_json::from_value(status).unwrap();
        let text = told(&status, true);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("BLACKOUT   WHY"), "{text}");
        assert!(lines[1].ends_with("-          91 points, worker4 is next with 80"));
        let verdicts = ["  worker4: Insufficient memory", "  and 7 more nodes"];
        assert_eq!(lines[5..7], verdicts, "{text}");
    }
}
