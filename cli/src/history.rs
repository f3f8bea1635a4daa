//! `godwit history`: all that became of a migration, for people.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::api;
use crate::kubeconfig::Kubeconfig;
use crate::output::Output;

/// Which migration.
#[derive(Debug, Args)]
pub struct History {
    /// Name of the VirtualMachineInstanceMigration, the newest of that name; or its UID.
    pub name: String,
    /// Its namespace [default: that of the context].
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
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

/// The MigrationHistory of the API, as far as it is shown.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Past {
    metadata: Metadata,
    migration: String,
    vmi: String,
    #[serde(default)]
    source: Option<String>,
    #[serde(default)]
    target: Option<String>,
    state: String,
    #[serde(default)]
    failure: Option<String>,
    requested_at: Timestamp,
    #[serde(default)]
    numbers: Map<String, Value>,
    transitions: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    namespace: String,
    uid: String,
}

#[derive(Debug, Deserialize)]
struct Step {
    to: String,
    actor: String,
    epoch: u64,
    time: Timestamp,
    reason: String,
}

/// Asks the API. Answers what to tell the user.
///
/// # Errors
/// When there is no such migration, or the API can't be asked.
pub async fn history(wanted: &History) -> anyhow::Result<String> {
    let config = Kubeconfig::load(wanted.kubeconfig.as_deref())?;
    let context = wanted.context.as_deref();
    let access = config.access(context)?;
    let namespace = match &wanted.namespace {
        Some(namespace) => namespace,
        None => config.namespace(context)?,
    };
    for word in [namespace, &wanted.name] {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        let is_name = !word.is_empty() && word.bytes().all(plain);
        ensure!(is_name, "{word:?} is no name");
    }
    let name = &wanted.name;
    let path = format!("/apis/godwit.io/v1alpha1/namespaces/{namespace}/migrationhistories/{name}");
    let body = api::get(&access, &path).await?;
    if wanted.output == Output::Json {
        let whole: Value = serde_json::from_slice(&body).context("understand the answer")?;
        return Ok(format!("{whole:#}"));
    }
    let past: Past = serde_json::from_slice(&body).context("understand the answer")?;
    Ok(told(&past))
}

/// A line that sums up, a line a step in columns, and a line a number.
fn told(past: &Past) -> String {
    let nowhere = || "nowhere".to_owned();
    let mut text = format!(
        "{}/{} ({}): {} from {} to {}, {}\n",
        past.metadata.namespace,
        past.migration,
        past.metadata.uid,
        past.vmi,
        past.source.clone().unwrap_or_else(nowhere),
        past.target.clone().unwrap_or_else(nowhere),
        past.state,
    );
    // Writing to a string can't fail.
    if let Some(failure) = &past.failure {
        let _ = writeln!(text, "{failure}");
    }
    let _ = writeln!(text, "requested {}\n", past.requested_at);
    let width = |column: fn(&Step) -> &str| {
        let widths = past.transitions.iter().map(|step| column(step).len());
        widths.max().unwrap_or_default()
    };
    let (states, actors) = (width(|step| &step.to), width(|step| &step.actor));
    for step in &past.transitions {
        let _ = writeln!(
            text,
            "{:>12}  {:states$}  {:actors$}  {:>3}  {}",
            since(step.time.duration_since(past.requested_at)),
            step.to,
            step.actor,
            step.epoch,
            step.reason,
        );
    }
    if !past.numbers.is_empty() {
        text.push('\n');
    }
    for (name, value) in &past.numbers {
        let (name, value) = number(name, value);
        let _ = writeln!(text, "{name:>18}  {value}");
    }
    text.trim_end().to_owned()
}

fn since(time: SignedDuration) -> String {
    format!("{:+.3} s", time.as_secs_f64())
}

/// A number in the unit that its name ends with.
fn number(name: &str, value: &Value) -> (String, String) {
    let count = value.as_u64();
    if let (Some(name), Some(micros)) = (name.strip_suffix("AtUs"), count) {
        let at = i64::try_from(micros).unwrap_or(i64::MAX);
        let at =
            Timestamp::from_microsecond(at).map_or_else(|_| at.to_string(), |at| at.to_string());
        return (format!("{name} at"), at);
    }
    if let (Some(name), Some(micros)) = (name.strip_suffix("Us"), count) {
        let (whole, rest) = (micros / 1000, micros % 1000);
        return (name.to_owned(), format!("{whole}.{rest:03} ms"));
    }
    if let (Some(name), Some(millis)) = (name.strip_suffix("Ms"), count) {
        return (name.to_owned(), format!("{millis} ms"));
    }
    (name.to_owned(), value.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_history_reads_as_a_story_with_its_numbers() {
        let past = json!({
            "metadata": {"namespace": "default", "uid": "u"},
            "migration": "move", "vmi": "vm1", "source": "worker1", "state": "Failed",
            "failure": "no node has room", "requestedAt": "2026-01-01T00:00:00.000000Z",
            "numbers": {"blackoutUs": 47_123, "brownoutMs": 600, "passes": 3,
                "stoppedAtUs": 1_767_225_600_500_000_u64},
            "transitions": [
                {"seq": 1, "to": "Pending", "actor": "request", "epoch": 0,
                 "time": "2026-01-01T00:00:00.000000Z", "reason": "requested"},
                {"seq": 2, "from": "Pending", "to": "Failed", "actor": "c-1", "epoch": 12,
                 "time": "2026-01-01T00:01:02.034567Z", "reason": "no room"},
            ],
        });
        let past: Past = serde_json::from_value(past).unwrap();
        let wanted = "\
default/move (u): vm1 from worker1 to nowhere, Failed
no node has room
requested 2026-01-01T00:00:00Z

    +0.000 s  Pending  request    0  requested
   +62.035 s  Failed   c-1       12  no room

          blackout  47.123 ms
          brownout  600 ms
            passes  3
        stopped at  2026-01-01T00:00:00.5Z";
        assert_eq!(told(&past), wanted);
    }
}
