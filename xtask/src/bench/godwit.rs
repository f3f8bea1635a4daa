//! Arm A: a move as a user asks for it, through the API.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use godwit_ledger::{Ledger, LedgerConfig, TransitionRow};
use godwit_model::JobId;
use godwit_testkit::api::{Api, Connection};
use godwit_testkit::lab::Lab;
use godwit_testkit::postgres::Postgres;
use serde_json::{Value, json};

use super::heartbeat::{Clock, Ear};
use super::report::{GodwitMove, Step, millis};

/// Where migrations are.
const MIGRATIONS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";
/// Longest move that is waited for.
const MOVE_MAX: Duration = Duration::from_secs(120);
/// Database of a lab.
const DATABASE: &str = "godwit";

/// The ledger of a running lab, to read what the services recorded.
pub(crate) async fn ledger(lab: &Lab) -> Result<Ledger> {
    let postgres = Postgres::start_detached(&lab.options().dir.join("pg"))?;
    let config = LedgerConfig {
        url: postgres.url(DATABASE),
        connections_max: 1,
    };
    Ok(Ledger::connect(config).await?)
}

/// Moves machines through the API.
pub(crate) struct Godwit<'a> {
    /// The API.
    pub(crate) api: &'a Api,
    /// A connection for requests.
    pub(crate) connection: Connection,
    /// What was recorded.
    pub(crate) ledger: &'a Ledger,
    /// Hears the machine.
    pub(crate) ear: &'a Ear,
    /// The instance that moves.
    pub(crate) vmi: &'a str,
}

/// When a move began and ended for its user, and what its object became.
pub(crate) struct Seen {
    clock: Clock,
    pub(crate) begin: Instant,
    accepted: Instant,
    pub(crate) end: Instant,
    object: Value,
}

impl Godwit<'_> {
    /// Moves the machine once; `settle` is how long its heartbeat is heard afterwards.
    pub(crate) async fn migrate(&mut self, name: &str, settle: Duration) -> Result<GodwitMove> {
        let seen = ask(self.api, &mut self.connection, (self.vmi, name)).await?;
        tokio::time::sleep(settle).await;
        let uid = seen.object["metadata"]["uid"].as_str().unwrap_or_default();
        let job = JobId::parse(uid)?;
        let row = self.ledger.job(&job).await?;
        let row = row.with_context(|| format!("{name} is not in the ledger"))?;
        let transitions = self.ledger.history(&job).await?;
        let micros = |key: &str| row.history[key].as_u64().map(Duration::from_micros);
        let moment = |key: &str| Some(seen.clock.moment(SystemTime::UNIX_EPOCH + micros(key)?));
        let switch = moment("stoppedAtUs").zip(moment("runningAtUs"));
        let silence = self
            .ear
            .judge((seen.begin, seen.end + settle / 2), switch)?;
        Ok(GodwitMove {
            total_ms: millis(seen.end - seen.begin),
            copy_ms: row.history["brownoutMs"].as_u64(),
            accepted_ms: millis(seen.accepted - seen.begin),
            blackout_ms: silence.blackout.map(millis),
            longest_gap_ms: millis(silence.longest),
            repeats: silence.repeats,
            recorded_blackout_ms: micros("blackoutUs").map(millis),
            stop_to_completed_ms: moment("stoppedAtUs")
                .zip(moment("completedAtUs"))
                .map(|(stopped, completed)| millis(completed - stopped)),
            completed_to_running_ms: moment("completedAtUs")
                .zip(moment("runningAtUs"))
                .map(|(completed, running)| millis(running - completed)),
            qemu_downtime_ms: row.history["qemuDowntimeMs"].as_u64(),
            bytes: row.history["bytes"].as_u64(),
            passes: row.history["passes"].as_u64(),
            steps: steps(&seen, &transitions),
        })
    }
}

/// Orders a move, and watches until it is done.
///
/// # Errors
/// When it fails, or doesn't end.
pub(crate) async fn ask(
    api: &Api,
    connection: &mut Connection,
    (vmi, name): (&str, &str),
) -> Result<Seen> {
    let seen = tokio::time::timeout(MOVE_MAX, order(api, connection, (vmi, name))).await;
    seen.with_context(|| format!("{name} does not end"))?
}

async fn order(api: &Api, connection: &mut Connection, (vmi, name): (&str, &str)) -> Result<Seen> {
    let path = format!("{MIGRATIONS}?fieldSelector=metadata.name={name}");
    let mut watch = api.watch(&path).await?;
    let order = json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstanceMigration",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "vmiName": vmi },
    });
    let done = |object: &Value| match object.pointer("/status/phase").and_then(Value::as_str) {
        Some("Succeeded") => Some(Ok(object.clone())),
        Some("Failed") => Some(Err(anyhow!("the migration failed: {}", object["status"]))),
        Some(_) | None => None,
    };
    let clock = Clock::now();
    let begin = Instant::now();
    let post = async {
        connection.post(MIGRATIONS, &order).await?;
        Ok::<Instant, anyhow::Error>(Instant::now())
    };
    let (accepted, (end, object)) = tokio::try_join!(post, watch.until(done))?;
    if end < begin {
        bail!("the watch spoke before the request");
    }
    Ok(Seen {
        clock,
        begin,
        accepted,
        end,
        object,
    })
}

/// How long the job was in each state, and how long the ways to the first and from the last took.
fn steps(seen: &Seen, transitions: &[TransitionRow]) -> Vec<Step> {
    let at = |row: &TransitionRow| seen.clock.moment(SystemTime::from(row.at));
    let step = |name: &str, from: Instant, to: Instant| Step {
        name: name.to_owned(),
        ms: millis(to.saturating_duration_since(from)),
    };
    let (Some(first), Some(last)) = (transitions.first(), transitions.last()) else {
        return vec![];
    };
    let mut steps = vec![step("request to Pending", seen.begin, at(first))];
    let between = transitions.windows(2);
    steps.extend(between.map(|pair| step(pair[0].to.as_str(), at(&pair[0]), at(&pair[1]))));
    steps.push(step("Succeeded to watch", at(last), seen.end));
    steps
}
