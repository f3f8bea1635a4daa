//! Two coordinators: one dies or freezes in the middle of a migration, the other goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use godwit_ledger::{JobRow, Ledger, LedgerConfig};
use godwit_model::JobId;
use godwit_testkit::lab::Process;
use godwit_testkit::postgres::Postgres;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fault_env::{Faults, MIGRATIONS, Place};
use crate::fault_guest::Guest;
use crate::lab_suite::say;

/// The coordinators of the lab.
pub(crate) const COORDINATORS: [&str; 2] = ["migration-coordinator", "migration-coordinator-2"];
/// Where the owner dies: after each of its writes and orders.
const PLACES: [&str; 10] = [
    "ledger.claim.after",
    "ledger.Pending-Placing.after",
    "ledger.Placing-Preparing.after",
    "order.PrepareTarget.after",
    "ledger.Preparing-Copying.after",
    "order.StartCopy.after",
    "ledger.Copying-SwitchAllowed.after",
    "order.AllowSwitchover.before",
    "ledger.SwitchAllowed-HandedOver.before",
    "ledger.SwitchAllowed-HandedOver.after",
];
/// Deaths at each place.
const TRIALS: usize = 5;

/// The ledger of the lab, to see who owns a job.
struct Eye<'a> {
    env: &'a Faults,
    ledger: Ledger,
}

impl<'a> Eye<'a> {
    fn open(env: &'a Faults) -> Result<Self> {
        let postgres = Postgres::start_detached(&env.lab().options().dir.join("pg"))?;
        let config = LedgerConfig {
            url: postgres.url("godwit"),
            connections_max: 1,
        };
        let ledger = env.block_on(Ledger::connect(config))?;
        Ok(Self { env, ledger })
    }

    fn job(&self, name: &str) -> Result<JobRow> {
        let object = self.env.get(&format!("{MIGRATIONS}/{name}"))?;
        let object = object.context("the migration is gone")?;
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        self.by_id(&JobId::parse(uid)?)
    }

    fn by_id(&self, id: &JobId) -> Result<JobRow> {
        let found = self.env.block_on(self.ledger.job(id))?;
        found.context("the ledger has no such job")
    }
}

/// `kill -9` of the owner in each phase, again and again: the other one gets the job, how soon is
/// measured, and a running copy is not begun again.
pub(crate) fn owners_die(env: &Faults) -> Result<()> {
    let guest = Guest::start(env, "passed-on", 81)?;
    let eye = Eye::open(env)?;
    let mut took = vec![];
    for trial in 0..TRIALS {
        for place in PLACES {
            env.ready()?;
            let job = format!("passed-{trial}-{}", took.len());
            let claimed = owner_dies(&eye, &guest, (&job, place))?;
            took.push(claimed);
        }
    }
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
    say(&format!(
        "takeover: {} trials, p50 {} ms, p99 {} ms, longest {} ms from kill -9 to the other's claim",
        took.len(),
        at(50).as_millis(),
        at(99).as_millis(),
        at(100).as_millis(),
    ));
    guest.judge()?;
    guest.remove(env)
}

/// One trial. Answers how long nobody had the job.
fn owner_dies(eye: &Eye, guest: &Guest, (job, place): (&str, &str)) -> Result<Duration> {
    let env = eye.env;
    let boots = guest.boots();
    let (from, to) = way(env, guest)?;
    let begun = Place::new(&from, "source.Copying.BeginCopy.after");
    let count = |at: &Place| -> Result<u64> {
        let places = env.places(&at.service)?;
        Ok(places.get(&at.name).map_or(0, |(count, _)| *count))
    };
    let copies = count(&begun)?;
    let places = COORDINATORS.map(|service| Place::new(service, place));
    for at in &places {
        env.arm(at, "pause")?;
    }
    env.migrate(job, &guest.name, &to)?;
    let owner = env.until(&format!("an owner at {place}"), || {
        Ok(places.iter().find(|at| env.held(at)))
    })?;
    for at in places.iter().filter(|at| *at != owner) {
        env.arm(at, "off")?;
    }
    let row = eye.job(job)?;
    let claimed = env.without(&owner.service, || {
        let killed = Instant::now();
        env.until("another owner", || {
            let now = eye.by_id(&row.id)?;
            // The old one's last write may be its end.
            Ok((now.epoch > row.epoch || now.state.is_final()).then(|| killed.elapsed()))
        })
    })?;
    env.until("the end of the migration", || env.ended(job))?;
    let ended = eye.by_id(&row.id)?;
    ensure!(
        ended.state.as_str() == "Succeeded",
        "{place}: {:?}",
        ended.failure
    );
    let copies = count(&begun)? - copies;
    ensure!(copies == 1, "{place}: the copy was begun {copies} times");
    guest.beats(env)?;
    ensure!(guest.boots() == boots, "{place}: the guest booted again");
    Ok(claimed)
}

/// Where the machine runs, and another worker.
pub(crate) fn way(env: &Faults, guest: &Guest) -> Result<(String, String)> {
    let from = env.until("the machine to run", || env.running_on(&guest.name))?;
    let to = if from == "worker1" {
        "worker2"
    } else {
        "worker1"
    };
    Ok((from, to.to_owned()))
}

/// The owner freezes before an order or a write, loses its lease, and thaws in the middle of the
/// call: what it does then is refused, on the host and in the ledger, and it steps down.
pub(crate) fn owner_freezes(env: &Faults) -> Result<()> {
    let guest = Guest::start(env, "frozen", 82)?;
    let eye = Eye::open(env)?;
    for (place, refusal) in [
        ("order.StartCopy.before", "order refused"),
        ("order.AllowSwitchover.before", "order refused"),
        ("order.PrepareTarget.after", "transition refused"),
    ] {
        env.ready()?;
        thaws(&eye, &guest, place, refusal)?;
        say(&format!(
            "frozen at {place}: refused and logged ({refusal}), stepped down"
        ));
    }
    guest.judge()?;
    guest.remove(env)
}

fn thaws(eye: &Eye, guest: &Guest, place: &str, refusal: &str) -> Result<()> {
    let env = eye.env;
    let (_, to) = way(env, guest)?;
    let job = place.replace('.', "-").to_lowercase();
    let places = COORDINATORS.map(|service| Place::new(service, place));
    for at in &places {
        env.arm(at, "pause")?;
    }
    env.migrate(&job, &guest.name, &to)?;
    let owner = env.until("an owner", || Ok(places.iter().find(|at| env.held(at))))?;
    for at in places.iter().filter(|at| *at != owner) {
        env.arm(at, "off")?;
    }
    let service = env.lab().service(&owner.service)?;
    let process: Process = service.process().context("the owner runs")?;
    let mark = std::fs::metadata(service.log())?.len();
    let row = eye.job(&job)?;
    signal(&process, Signal::SIGSTOP)?;
    // To its end, so that the hosts have heard of the new owner: until then they can't know better.
    let taken = env.until("the end of the migration, by another owner", || {
        let now = eye.by_id(&row.id)?;
        Ok((now.epoch > row.epoch && now.state.is_final()).then_some(()))
    });
    signal(&process, Signal::SIGCONT)?;
    taken?;
    // It goes on in the middle of the call.
    env.arm(owner, "off")?;
    env.until("the refusal in the log", || {
        let log = std::fs::read(service.log())?;
        let new = String::from_utf8_lossy(&log[usize::try_from(mark)?..]).into_owned();
        let refused = new.contains(refusal) && new.contains("job is somebody else's");
        Ok(refused.then_some(()))
    })?;
    guest.beats(env)
}

pub(crate) fn signal(process: &Process, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(process.pid), signal)?)
}
