//! Every process killed before and after every durable step and message of a migration, every
//! link cut, stalled and parted at every state: one machine, moved back and forth through it all.
//!
//! The places are not listed here: one undisturbed run of each scenario finds them. So a step that
//! is added to the code is in the matrix the same day.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use godwit_testkit::lab::Process;
use serde_json::json;

use crate::fault_env::{Faults, MACHINES, MIGRATIONS, Place};
use crate::fault_guest::Guest;
use crate::lab_suite::say;

/// After so many the rest tells nothing new.
const FAILURES_MAX: usize = 5;
/// How often a place is looked for.
const ATTEMPTS: usize = 3;
/// Cases whose place may be passed by, by chance: more means that places are not come to any more.
const UNREACHED_MAX: usize = 12;
/// How long a link is bad. Longer than every retry, shorter than what ends a job.
const AWHILE: Duration = Duration::from_secs(2);
/// How long it takes that both ends of a stream were told that it is gone.
const CUT: Duration = Duration::from_millis(300);

/// Who takes part in a migration; which worker is the source changes with every move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Gateway,
    Scheduler,
    Coordinator,
    Source,
    Target,
}

impl Role {
    const ALL: [Self; 5] = [
        Self::Gateway,
        Self::Scheduler,
        Self::Coordinator,
        Self::Source,
        Self::Target,
    ];
}

/// What happens to the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Nothing: it succeeds.
    Moves,
    /// It is cancelled while memory is copied.
    CancelledCopying,
    /// It is cancelled when the source has stopped complete, and its proof is late.
    CancelledComplete,
}

impl Scenario {
    const ALL: [Self; 3] = [Self::Moves, Self::CancelledCopying, Self::CancelledComplete];
}

/// What is done at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Whoever comes there dies.
    Dies,
    /// Whoever comes there waits while another service is killed.
    Kills(Role),
    /// As before, but the migration is cancelled.
    Cancels,
    /// As before, but the virtual machine is deleted.
    DeletesMachine,
    /// As before, but the guest powers itself off.
    PowersOff,
    /// As before, but the source's QEMU.
    KillsSourceQemu,
    /// As before, but the target's QEMU.
    KillsTargetQemu,
    /// As before, but the stream between the QEMUs is reset.
    CutsStream,
    /// As before, but the stream between the QEMUs stands still for two seconds.
    StallsStream,
    /// As before, but two processes don't hear each other for two seconds.
    Parts(Role, Role),
}

/// One line of the matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Case {
    scenario: Scenario,
    role: Role,
    place: String,
    fault: Fault,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scenario, role, fault) = (self.scenario, self.role, self.fault);
        write!(f, "{scenario:?}: {role:?} {} {fault:?}", self.place)
    }
}

/// The way of one move.
#[derive(Debug, Clone)]
struct Way {
    from: String,
    to: String,
}

impl Way {
    fn of(env: &Faults, guest: &Guest) -> Result<Self> {
        let from = env.until("the machine to run", || env.running_on(&guest.name))?;
        let to = if from == "worker1" {
            "worker2"
        } else {
            "worker1"
        };
        Ok(Self {
            from,
            to: to.to_owned(),
        })
    }

    fn service(&self, role: Role) -> String {
        match role {
            Role::Gateway => "api-gateway".to_owned(),
            Role::Scheduler => "scheduler".to_owned(),
            Role::Coordinator => "migration-coordinator".to_owned(),
            Role::Source => self.from.clone(),
            Role::Target => self.to.clone(),
        }
    }

    fn place(&self, role: Role, name: &str) -> Place {
        Place {
            service: self.service(role),
            name: name.to_owned(),
        }
    }
}

/// Runs every case of the matrix; the error lists those that failed.
///
/// # Errors
/// The failed cases.
pub(crate) fn run(env: &Faults) -> Result<()> {
    let guest = Guest::start(env, "subject", 80)?;
    let mut failures = vec![];
    let (mut done, mut unreached) = (0, 0);
    for scenario in Scenario::ALL {
        let cases = chosen(discover(env, &guest, scenario)?);
        say(&format!("{scenario:?}: {} cases", cases.len()));
        for case in cases {
            let began = Instant::now();
            let outcome = until_reached(env, &guest, &case, done);
            done += 1;
            let took = began.elapsed().as_secs_f64();
            match outcome {
                Ok(Ended { phase, reached }) => {
                    unreached += usize::from(!reached);
                    let how = if reached { "" } else { " (place not reached)" };
                    say(&format!("  {took:5.1} s  {case}: {phase}{how}"));
                }
                Err(why) => {
                    say(&format!(
                        "  {took:5.1} s  {case}: FAILED: {why:#}\n{}",
                        env.situation()
                    ));
                    let kept = env.keep_logs(&format!("case-{done}"))?;
                    say(&format!("logs: {}", kept.display()));
                    failures.push(format!("{case}: {why:#}"));
                    ensure!(failures.len() < FAILURES_MAX, "{}", failures.join("\n"));
                    guest.recover(env)?;
                }
            }
        }
    }
    say(&format!(
        "{done} cases, {} failed, {unreached} at places not reached",
        failures.len()
    ));
    ensure!(done > 0, "no case was chosen");
    ensure!(
        unreached <= UNREACHED_MAX,
        "{unreached} places were not reached"
    );
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    guest.remove(env)
}

/// Those whose names hold all words of one of the `FAULTS`, or all.
fn chosen(cases: Vec<Case>) -> Vec<Case> {
    let wanted = std::env::var("FAULTS").unwrap_or_default();
    let matches = |case: &Case| {
        let name = case.to_string();
        wanted
            .split(',')
            .any(|words| words.split('+').all(|word| name.contains(word)))
    };
    cases.into_iter().filter(matches).collect()
}

/// Finds the places that a scenario reaches, and makes the cases of them.
fn discover(env: &Faults, guest: &Guest, scenario: Scenario) -> Result<Vec<Case>> {
    env.ready()?;
    limit_bandwidth(env, scenario)?;
    let way = Way::of(env, guest)?;
    let counts = |role| env.places(&way.service(role));
    let before: Result<Vec<_>> = Role::ALL.into_iter().map(counts).collect();
    let job = format!("discover-{scenario:?}").to_lowercase();
    let cancelled = act_out(env, guest, (scenario, &way, &job), &mut || Ok(()))?;
    let phase = settle(env, guest, &job)?;
    let as_meant = match scenario {
        Scenario::Moves => phase == "Succeeded",
        Scenario::CancelledCopying | Scenario::CancelledComplete => cancelled,
    };
    ensure!(as_meant, "{scenario:?} without a fault: {phase}");
    unharmed(env, guest)?;
    let mut cases = vec![];
    for (role, before) in Role::ALL.into_iter().zip(before?) {
        for (place, (count, _)) in env.places(&way.service(role))? {
            let old = before.get(&place).map_or(0, |(count, _)| *count);
            if count > old {
                cases.extend(at(scenario, role, &place));
            }
        }
    }
    Ok(cases)
}

/// The faults at one place.
fn at(scenario: Scenario, role: Role, place: &str) -> Vec<Case> {
    let mut faults = vec![Fault::Dies];
    let state =
        (role == Role::Coordinator && place.starts_with("ledger.") && place.ends_with(".after"))
            || (place.starts_with("source.") && place.ends_with(".before"))
            || (place.starts_with("target.") && place.ends_with(".before"));
    if scenario == Scenario::Moves && state {
        faults.extend([Fault::KillsSourceQemu, Fault::KillsTargetQemu]);
        faults.extend(
            Role::ALL
                .into_iter()
                .filter(|victim| *victim != role)
                .map(Fault::Kills),
        );
        faults.extend([Fault::CutsStream, Fault::StallsStream]);
    }
    if scenario == Scenario::Moves && state && role == Role::Coordinator {
        faults.extend([
            Fault::Parts(Role::Coordinator, Role::Source),
            Fault::Parts(Role::Coordinator, Role::Target),
            Fault::Parts(Role::Source, Role::Target),
            Fault::Parts(Role::Scheduler, Role::Target),
            Fault::Cancels,
            Fault::DeletesMachine,
            Fault::PowersOff,
        ]);
    }
    let case = |fault| Case {
        scenario,
        role,
        place: place.to_owned(),
        fault,
    };
    faults.into_iter().map(case).collect()
}

/// A copy that is to be cancelled must last.
fn limit_bandwidth(env: &Faults, scenario: Scenario) -> Result<()> {
    let limit = match scenario {
        Scenario::CancelledCopying => json!({ "bandwidthPerMigration": "24Mi" }),
        Scenario::Moves | Scenario::CancelledComplete => json!({ "bandwidthPerMigration": "0" }),
    };
    env.configure(&limit)
}

/// How a case ended.
struct Ended {
    /// Of its migration.
    phase: String,
    /// Whether the fault came to be.
    reached: bool,
}

/// Runs a case, and again when its place was not reached: several transitions may be one commit,
/// and then its place has another name.
fn until_reached(env: &Faults, guest: &Guest, case: &Case, number: usize) -> Result<Ended> {
    let mut ended = one(env, guest, case, &format!("case-{number}"))?;
    for attempt in 1..ATTEMPTS {
        if ended.reached {
            break;
        }
        ended = one(env, guest, case, &format!("case-{number}-{attempt}"))?;
    }
    Ok(ended)
}

/// One case: the scenario with its fault, then what must hold.
fn one(env: &Faults, guest: &Guest, case: &Case, job: &str) -> Result<Ended> {
    env.ready()?;
    let way = Way::of(env, guest)?;
    let place = way.place(case.role, &case.place);
    let before = guest.boots();
    let deaths = env.deaths(&place.service);
    env.arm(
        &place,
        if case.fault == Fault::Dies {
            "kill"
        } else {
            "pause"
        },
    )?;
    let mut strike = Strike {
        env,
        guest,
        job,
        way: &way,
        fault: case.fault,
        place: place.clone(),
        ends: None,
        struck: false,
    };
    let acted = act_out(env, guest, (case.scenario, &way, job), &mut || {
        strike.look()
    });
    strike.heal()?;
    let reached = if case.fault == Fault::Dies {
        env.deaths(&place.service) > deaths
    } else {
        strike.struck
    };
    // Not to be left armed for the next case, whatever happened.
    env.supervise()?;
    env.until("the place to be off", || Ok(env.arm(&place, "off").ok()))?;
    acted?;
    let phase = settle(env, guest, job)?;
    if !reached {
        unharmed(env, guest)?;
        return Ok(Ended { phase, reached });
    }
    match case.fault {
        Fault::KillsSourceQemu | Fault::KillsTargetQemu | Fault::PowersOff => {
            survived(env, guest)?;
        }
        Fault::DeletesMachine => {
            guest.gone(env)?;
            env.audit(0)?;
            guest.recover(env)?;
        }
        Fault::Dies
        | Fault::Kills(_)
        | Fault::Cancels
        | Fault::CutsStream
        | Fault::StallsStream
        | Fault::Parts(..) => {
            unharmed(env, guest)?;
            ensure!(guest.boots() == before, "the guest booted again");
        }
    }
    Ok(Ended { phase, reached })
}

/// Plays a scenario until its migration has ended. Answers whether it was cancelled.
fn act_out(
    env: &Faults,
    guest: &Guest,
    (scenario, way, job): (Scenario, &Way, &str),
    strike: &mut dyn FnMut() -> Result<()>,
) -> Result<bool> {
    let proof = way.place(Role::Source, "proof.sent.before");
    if scenario == Scenario::CancelledComplete {
        env.arm(&proof, "pause")?;
    }
    env.migrate(job, &guest.name, &way.to)?;
    let mut cancelled = false;
    let path = format!("{MIGRATIONS}/{job}");
    env.until("the end of the migration", || {
        strike()?;
        let due = match scenario {
            Scenario::Moves => false,
            Scenario::CancelledCopying => {
                let found = env.get(&path)?;
                found.is_some_and(|object| object["status"]["phase"] == "Running")
            }
            Scenario::CancelledComplete => env.held(&proof),
        };
        if due && !cancelled {
            cancelled = true;
            env.delete(&path)?;
        }
        Ok(env.ended(job)?.map(drop))
    })
    .with_context(|| job.to_owned())?;
    if scenario == Scenario::CancelledComplete {
        env.until("the proof's place to be off", || {
            Ok(env.arm(&proof, "off").ok())
        })?;
    }
    Ok(cancelled)
}

/// The machine runs, and nothing is left over.
fn unharmed(env: &Faults, guest: &Guest) -> Result<()> {
    guest.beats(env)?;
    env.audit(1)
}

/// The machine runs, or has crashed and waits for its next start, as a machine that crashes often
/// does. Then it is made anew for the next case.
fn survived(env: &Faults, guest: &Guest) -> Result<()> {
    if guest.runs(env)? {
        return unharmed(env, guest);
    }
    env.audit(0)?;
    guest.recover(env)
}

/// What must hold after every case. Answers how the migration ended.
fn settle(env: &Faults, guest: &Guest, job: &str) -> Result<String> {
    let (phase, object) = env
        .until("the end of the migration", || env.ended(job))
        .with_context(|| job.to_owned())?;
    if phase == "Failed" {
        let why = &object["status"]["migrationState"]["failureReason"];
        ensure!(
            why.as_str().is_some_and(|why| !why.is_empty()),
            "failed without a reason"
        );
    }
    guest.judge()?;
    Ok(phase)
}

/// A fault that begins, and that has to end.
struct Strike<'a> {
    env: &'a Faults,
    guest: &'a Guest,
    job: &'a str,
    way: &'a Way,
    fault: Fault,
    place: Place,
    ends: Option<Instant>,
    struck: bool,
}

impl Strike<'_> {
    /// Begins when somebody is held at the place, and ends in its time.
    fn look(&mut self) -> Result<()> {
        if self.ends.is_some_and(|ends| Instant::now() >= ends) {
            self.heal()?;
        }
        if self.struck || self.fault == Fault::Dies || !self.env.held(&self.place) {
            return Ok(());
        }
        self.struck = true;
        let lasts = self.begin()?;
        self.ends = (!lasts.is_zero()).then(|| Instant::now() + lasts);
        self.env.arm(&self.place, "off")
    }

    fn begin(&self) -> Result<Duration> {
        let (env, way) = (self.env, self.way);
        match self.fault {
            Fault::Dies => {}
            Fault::Kills(role) => env.kill(&way.service(role))?,
            Fault::Cancels => env.delete(&format!("{MIGRATIONS}/{}", self.job))?,
            Fault::DeletesMachine => env.delete(&format!("{MACHINES}/{}", self.guest.name))?,
            Fault::PowersOff => self.guest.power_off(env)?,
            Fault::KillsSourceQemu => kill_all(env, &way.from)?,
            Fault::KillsTargetQemu => kill_all(env, &way.to)?,
            Fault::CutsStream => {
                let stream = stream(env, &way.from, "daddr")?;
                env.firewall(&way.to, &[], &[format!("{stream} reject with tcp reset")])?;
                return Ok(CUT);
            }
            Fault::StallsStream => {
                let stream = stream(env, &way.from, "saddr")?;
                env.firewall(&way.to, &[format!("{stream} drop")], &[])?;
                return Ok(AWHILE);
            }
            Fault::Parts(one, other) => {
                self.part(one, other)?;
                return Ok(AWHILE);
            }
        }
        Ok(Duration::ZERO)
    }

    /// Two processes hear nothing of each other.
    fn part(&self, one: Role, other: Role) -> Result<()> {
        let (env, network) = (self.env, self.env.lab().network());
        let here = self.way.service(other);
        let peer = match one {
            Role::Source => env.address(&self.way.from)?,
            Role::Gateway | Role::Scheduler | Role::Coordinator | Role::Target => {
                network.management()
            }
        };
        // The agent calls the scheduler; all others call the agent.
        let (to, from) = if one == Role::Scheduler {
            ("sport", "dport")
        } else {
            ("dport", "sport")
        };
        let port = if one == Role::Scheduler {
            env.lab().scheduler_port()
        } else {
            7110
        };
        env.firewall(
            &here,
            &[format!("ip saddr {peer} tcp {to} {port} drop")],
            &[format!("ip daddr {peer} tcp {from} {port} drop")],
        )
    }

    /// Ends what lasts.
    fn heal(&mut self) -> Result<()> {
        if self.ends.take().is_some() {
            for worker in [&self.way.from, &self.way.to] {
                self.env.firewall(worker, &[], &[])?;
            }
        }
        Ok(())
    }
}

fn kill_all(env: &Faults, worker: &str) -> Result<()> {
    env.qemus(worker).iter().try_for_each(Process::kill)
}

/// The migration stream at the target, by the source's address: whatever is no agent's.
fn stream(env: &Faults, from: &str, side: &str) -> Result<String> {
    let port = if side == "saddr" { "dport" } else { "sport" };
    Ok(format!(
        "ip {side} {} tcp {port} != {{ 7110, 8110 }}",
        env.address(from)?
    ))
}
