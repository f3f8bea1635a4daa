//! One migration, one trace: from the request in a client's own trace to the running guest, through
//! five processes, in a collector that really listens; also when the owner of the job is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use godwit_testkit::api::{Method, Request};
use godwit_testkit::collector::{Collector, Seen};
use serde_json::Value;

use crate::fault_env::{Faults, MIGRATIONS, Place};
use crate::fault_guest::Guest;
use crate::fault_takeover::{COORDINATORS, way};
use crate::lab_env::{maintenance, migration};
use crate::lab_suite::say;
use crate::trace_checks::{leads_to_migrations, part, statements};

/// Moves whose blackout is compared with what the guest lived through.
const MOVES: usize = 3;
/// How much of the guest's words on each side of a blackout is listened to.
const AROUND: Duration = Duration::from_secs(1);
/// The span of the client that asks.
const CLIENT: &str = "00f067aa0ba902b7";
/// Maintenances of nodes.
const MAINTENANCES: &str = "/apis/kubevirt.io/v1alpha1/nodemaintenances";
/// What each process has to say last.
const LAST: [&str; 6] = [
    "HandedOver",
    "blackout",
    "Placement/Reserve",
    "Agent/DeliverProof",
    "Agent/RetireSource",
    "pass",
];
/// The states of a migration that succeeds, in their order.
const STEPS: [&str; 8] = [
    "Pending",
    "Placing",
    "Reserved",
    "Preparing",
    "Prepared",
    "Copying",
    "SwitchAllowed",
    "HandedOver",
];

#[test]
fn lab_trace_follows_a_migration_through_five_processes_and_the_death_of_its_owner() {
    let (collector, port) = Collector::start().unwrap();
    let env = Faults::start_traced(2, port).unwrap();
    let scene = Scene {
        guest: Guest::start_as(
            &env,
            "traced",
            (
                83,
                "godwit.tick=2 godwit.dirty=8000000 godwit.dirtyset=16000000",
            ),
        )
        .unwrap(),
        collector,
        env,
    };
    let apart: Vec<Duration> = (0..MOVES).map(|n| scene.moves(n).unwrap()).collect();
    say(&format!(
        "blackout spans and the guest's own clock differ by {apart:?}"
    ));
    scene.owner_dies().unwrap();
    scene.node_is_emptied().unwrap();
    scene.guest.judge().unwrap();
}

struct Scene {
    guest: Guest,
    collector: Collector,
    env: Faults,
}

impl Scene {
    /// Moves the machine as a part of a client's trace, and checks that trace. Answers how far the
    /// blackout's span is from what the guest lived through.
    fn moves(&self, number: usize) -> Result<Duration> {
        let trace = format!("{:032x}", 0xfeed_0000 + number);
        let (_, to) = way(&self.env, &self.guest)?;
        let name = format!("traced-{number}");
        self.ask_for(&name, &to, &trace)?;
        let clock = (Instant::now(), SystemTime::now());
        self.succeeds(&name)?;
        // What the guest says after its blackout is a part of the measurement.
        self.guest.beats(&self.env)?;
        std::thread::sleep(AROUND); // measure
        let spans = self.whole_trace(&trace)?;
        let ids: BTreeSet<&String> = spans.iter().map(|span| &span.id).collect();
        ensure!(
            ids.len() == spans.len(),
            "a span is there twice: {spans:#?}"
        );
        five_processes(&spans)?;
        steps_follow_each_other(&spans)?;
        passes_have_their_numbers(&spans)?;
        statements_are_told(&spans, &name)?;
        let blackout = named(&spans, "blackout")?;
        let stopped = clock.0 + blackout.began_at().duration_since(clock.1)?;
        let switch = (stopped, stopped + blackout.took());
        let lived = self.guest.report().standstill(switch, AROUND);
        let lived = lived.context("the guest was not heard on both sides of its blackout")?;
        say(&format!(
            "{name}: blackout span {:?}, the guest's clock stood still for {lived:?}",
            blackout.took()
        ));
        Ok(lived.abs_diff(blackout.took()))
    }

    /// The owner is killed while the memory is copied: the other one goes on in the same trace.
    fn owner_dies(&self) -> Result<()> {
        let env = &self.env;
        env.ready()?;
        let trace = format!("{:032x}", 0xdead_0000_u32);
        let (_, to) = way(env, &self.guest)?;
        let places = COORDINATORS.map(|service| Place::new(service, "order.StartCopy.after"));
        for place in &places {
            env.arm(place, "pause")?;
        }
        self.ask_for("orphaned", &to, &trace)?;
        let owner = env.until("an owner whose copy began", || {
            Ok(places.iter().find(|place| env.held(place)))
        })?;
        for place in places.iter().filter(|place| *place != owner) {
            env.arm(place, "off")?;
        }
        env.without(&owner.service, || self.succeeds("orphaned"))?;
        let spans = self.whole_trace(&trace)?;
        // What the dead owner had sent already, the new one sent again: the same spans.
        let mut once: BTreeMap<&String, &Seen> = BTreeMap::new();
        for span in &spans {
            if let Some(other) = once.insert(&span.id, span) {
                ensure!(
                    (other.began, other.ended, &other.name) == (span.began, span.ended, &span.name),
                    "two spans have one id: {other:#?} {span:#?}"
                );
            }
        }
        let spans: Vec<Seen> = once.into_values().cloned().collect();
        steps_follow_each_other(&spans)?;
        passes_have_their_numbers(&spans)?;
        let taken = named(&spans, "takeover")?;
        let copying = named(&spans, "Copying")?;
        ensure!(taken.parent == copying.id, "{taken:#?}");
        ensure!(copying.began < taken.began && taken.began < copying.ended);
        let (first, last) = (named(&spans, "Placing")?, named(&spans, "HandedOver")?);
        say(&format!(
            "owner killed: {} spans, steps of epochs {} and {}",
            spans.len(),
            first.number("godwit.epoch"),
            last.number("godwit.epoch"),
        ));
        ensure!(first.number("godwit.epoch") < last.number("godwit.epoch"));
        Ok(())
    }

    /// A node is emptied as a part of a client's trace, and the maintenance-service dies before it has
    /// told anybody that it closed the node and asked for the migration.
    fn node_is_emptied(&self) -> Result<()> {
        let env = &self.env;
        env.ready()?;
        let trace = format!("{:032x}", 0xbeef_0000_u32);
        let (from, _) = way(env, &self.guest)?;
        let service = "maintenance-service";
        let deaths = env.deaths(service);
        env.arm(&Place::new(service, "ledger.drain.after"), "kill")?;
        self.post(MAINTENANCES, &maintenance("emptied", &from), &trace)?;
        let path = format!("{MAINTENANCES}/emptied");
        env.until("the node to be empty", || {
            let object = env.get(&path)?.unwrap_or_default();
            Ok((object["status"]["phase"] == "Succeeded").then_some(()))
        })?;
        ensure!(env.deaths(service) > deaths, "{service} did not die");
        let whole = env.until("the maintenance's span", || {
            let spans = self.collector.trace(&trace);
            Ok(spans.into_iter().find(|span| span.name == "maintenance"))
        })?;
        let moved = env.until("the whole trace", || {
            Ok(leads_to_migrations(&whole, &self.collector).ok())
        });
        let moved = match moved {
            Ok(moved) => moved,
            Err(_) => leads_to_migrations(&whole, &self.collector)?,
        };
        ensure!(moved.len() == 1, "{moved:#?}");
        ensure!(whole.text("godwit.node") == from, "{whole:#?}");
        env.delete(&path)?;
        let spans = env.until("the node to be opened", || {
            let spans = self.collector.trace(&trace);
            Ok(part(&spans, "reopen", &whole).is_ok().then_some(spans))
        })?;
        let request = named(&spans, "POST nodemaintenances")?;
        ensure!(whole.parent == request.id && request.parent == CLIENT);
        Ok(())
    }

    /// Asks for a move as a part of `trace`.
    fn ask_for(&self, name: &str, node: &str, trace: &str) -> Result<()> {
        let object = migration(name, &self.guest.name, Some(node));
        self.post(MIGRATIONS, &object, trace)
    }

    /// Creates an object as a part of `trace`; the answer says which trace it is a part of.
    fn post(&self, path: &str, object: &Value, trace: &str) -> Result<()> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("content-type", "application/json")
            // Not sampled by the client: a job's trace is kept all the same.
            .header("traceparent", format!("00-{trace}-{CLIENT}-00"))
            .body(object.to_string())?;
        let answer = self.env.exchange(request)?;
        ensure!(answer.status().as_u16() == 201, "{}", answer.body());
        let told = answer.headers().get("traceresponse");
        let told = told.context("the answer names no trace")?.to_str()?;
        ensure!(told.contains(trace), "asked in {trace}, answered in {told}");
        Ok(())
    }

    fn succeeds(&self, name: &str) -> Result<Value> {
        let (phase, object) = self
            .env
            .until("the end of the migration", || self.env.ended(name))?;
        ensure!(phase == "Succeeded", "{name}: {object:#}");
        Ok(object)
    }

    /// A trace with its last step, once every span has its parent: exporters send in batches.
    fn whole_trace(&self, trace: &str) -> Result<Vec<Seen>> {
        let looked = self.env.until("the whole trace", || {
            let spans = self.collector.trace(trace);
            let has = |name: &&str| spans.iter().any(|span| span.name.ends_with(*name));
            let request = spans.iter().any(|span| span.parent == CLIENT);
            let whole = LAST.iter().all(has) && request;
            Ok((whole && orphans(&spans).is_empty()).then_some(spans))
        });
        looked.with_context(|| {
            let spans = self.collector.trace(trace);
            format!("orphans {:#?} in {spans:#?}", orphans(&spans))
        })
    }
}

/// Spans whose parent is not there, but for the one that the client's span caused.
fn orphans(spans: &[Seen]) -> Vec<&Seen> {
    let ids: BTreeSet<&str> = spans.iter().map(|span| span.id.as_str()).collect();
    spans
        .iter()
        .filter(|span| span.parent != CLIENT && !ids.contains(span.parent.as_str()))
        .collect()
}

/// The first span whose name ends so: an order that was not answered in time is given again.
fn named<'a>(spans: &'a [Seen], name: &str) -> Result<&'a Seen> {
    let found = spans.iter().filter(|span| span.name.ends_with(name));
    let first = found.min_by_key(|span| span.began);
    first.with_context(|| format!("no span {name} in {spans:#?}"))
}

/// Gateway, coordinator, scheduler and both agents, each called by the one that should.
fn five_processes(spans: &[Seen]) -> Result<()> {
    let processes: BTreeSet<_> = spans.iter().map(|span| &span.process).collect();
    let services = |name: &str| {
        processes
            .iter()
            .filter(|(service, _)| service == name)
            .count()
    };
    ensure!(processes.len() == 5, "{processes:#?}");
    ensure!(services("godwit-node-agent") == 2, "{processes:#?}");
    let id = |name: &str| named(spans, name).map(|span| &span.id);
    let parent = |name: &str| named(spans, name).map(|span| &span.parent);
    let request = spans.iter().find(|span| span.parent == CLIENT);
    let request = request.context("no span of the request")?;
    ensure!(request.process.0 == "godwit-api-gateway", "{request:#?}");
    for step in STEPS {
        ensure!(parent(step)? == &request.id, "{step}: {spans:#?}");
    }
    ensure!(parent("Placement/Reserve")? == id("Placing")?);
    ensure!(parent("Agent/PrepareTarget")? == id("Preparing")?);
    ensure!(parent("Agent/StartCopy")? == id("Copying")?);
    ensure!(parent("Agent/AllowSwitchover")? == id("SwitchAllowed")?);
    ensure!(parent("Agent/DeliverProof")? == id("Agent/StartCopy")?);
    ensure!(parent("blackout")? == id("SwitchAllowed")?);
    let process = |name: &str| named(spans, name).map(|span| &span.process);
    ensure!(process("Agent/DeliverProof")? == process("Agent/PrepareTarget")?);
    ensure!(process("Agent/DeliverProof")? != process("Agent/StartCopy")?);
    Ok(())
}

/// What the ledger was asked is a part of the request, of the placing, and of each step's end.
fn statements_are_told(spans: &[Seen], name: &str) -> Result<()> {
    let told = statements(spans, &[name])?;
    let below = |parent: &Seen| told.iter().filter(|one| one.parent == parent.id).count();
    let request = spans.iter().find(|span| span.parent == CLIENT);
    let request = below(request.context("no span of the request")?);
    let placing = below(named(spans, "Placement/Reserve")?);
    let copying = below(part(spans, "record", named(spans, "Copying")?)?);
    say(&format!(
        "{name}: {} statements: {request} of the request, {placing} of the placing, {copying} at the end of the copy",
        told.len()
    ));
    ensure!(request > 0 && placing > 0 && copying > 0, "{told:#?}");
    Ok(())
}

/// Each step begins when the one before ended, by the ledger's clock.
fn steps_follow_each_other(spans: &[Seen]) -> Result<()> {
    for pair in STEPS.windows(2) {
        let (one, next) = (named(spans, pair[0])?, named(spans, pair[1])?);
        ensure!(one.ended == next.began, "{one:#?} {next:#?}");
    }
    Ok(())
}

/// Every pass from the first on, with what it sent and what the guest dirtied.
fn passes_have_their_numbers(spans: &[Seen]) -> Result<()> {
    let copy = &named(spans, "Agent/StartCopy")?.id;
    let mut passes: Vec<&Seen> = spans.iter().filter(|span| span.name == "pass").collect();
    passes.sort_by_key(|span| span.number("godwit.pass"));
    let numbers: Vec<i64> = passes
        .iter()
        .map(|span| span.number("godwit.pass"))
        .collect();
    let expected: Vec<i64> = (1..).take(passes.len()).collect();
    ensure!(numbers.len() > 1 && numbers == expected, "{numbers:?}");
    ensure!(
        passes.iter().all(|span| &span.parent == copy),
        "{passes:#?}"
    );
    ensure!(passes[0].number("godwit.bytes") > 1_000_000, "{passes:#?}");
    // QEMU measures once a second: 0 in a copy that was shorter.
    let measured = "godwit.dirty_bytes_per_second";
    let all_say = passes
        .iter()
        .all(|span| span.attributes.contains_key(measured));
    ensure!(all_say, "{passes:#?}");
    let sent: i64 = passes.iter().map(|span| span.number("godwit.bytes")).sum();
    let told = named(spans, "blackout")?.number("godwit.bytes");
    say(&format!(
        "{} passes sent {sent} bytes; the history has {told}",
        passes.len()
    ));
    // The history's number may have been read while the last pass was still being sent.
    let last = passes[passes.len() - 1].number("godwit.bytes");
    ensure!(
        told > 0 && (sent - last..=sent).contains(&told),
        "{passes:#?}"
    );
    Ok(())
}
