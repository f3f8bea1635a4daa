//! Hosts that die for good: nothing of theirs moves until somebody says so, and then all of it.

use anyhow::{Context, Result, ensure};
use godwit_testkit::api::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::fault_env::{Faults, INSTANCES, Place};
use crate::fault_guest::Guest;
use crate::fault_takeover::{signal, way};
use crate::lab_suite::say;

const EVENTS: &str = "/api/v1/namespaces/default/events";
const FENCES: &str = "/apis/godwit.io/v1alpha1/nodefences";

/// Each way for a host to be gone, in turn, with one machine.
pub(crate) fn hosts_die(env: &Faults) -> Result<()> {
    let guest = Guest::start(env, "fenced", 83)?;
    idle_host_dies(env, &guest)?;
    hung_host_comes_back(env, &guest)?;
    source_dies_copying(env, &guest)?;
    target_dies_with_the_proof(env, &guest)?;
    guest.judge()?;
    guest.remove(env)
}

/// A host loses its power. Its machine is Unknown until a NodeFence, then runs elsewhere.
fn idle_host_dies(env: &Faults, guest: &Guest) -> Result<()> {
    let boots = guest.boots();
    let (dead, _) = way(env, guest)?;
    let refused = env.ask(&Method::POST, FENCES, Some(&fence("too-early", &dead)))?;
    ensure!(refused.status == 409, "{}", refused.body);
    env.without(&dead, || {
        cut_power(env, &dead)?;
        unknown(env, guest)?;
        ensure!(guest.boots() == boots, "silence alone started it again");
        declare_dead(env, "idle", &dead)?;
        runs_elsewhere(env, guest, &dead)
    })?;
    env.audit(1)?;
    say(&format!(
        "{dead} lost its power: nothing moved until it was fenced"
    ));
    Ok(())
}

/// A host hangs with its guest and is fenced, though it isn't dead. The lock of its disk keeps the
/// second copy out; the first one ends when its host is heard again.
fn hung_host_comes_back(env: &Faults, guest: &Guest) -> Result<()> {
    let (hung, _) = way(env, guest)?;
    let agent = env.lab().service(&hung)?.process().context("an agent")?;
    let qemu = env.qemus(&hung).pop().context("a QEMU")?;
    signal(&agent, Signal::SIGSTOP)?;
    signal(&qemu, Signal::SIGSTOP)?;
    let fenced = unknown(env, guest)
        .and_then(|()| declare_dead(env, "hung", &hung))
        .and_then(|()| kept_out(env, guest));
    signal(&agent, Signal::SIGCONT)?;
    fenced?;
    let ended = || Ok((!qemu.is_alive()).then_some(()));
    env.until("the old copy's end", ended)?;
    runs_elsewhere(env, guest, &hung)?;
    env.audit(1)?;
    say(&format!(
        "{hung} hung and came back: its copy of the machine was ended"
    ));
    Ok(())
}

/// The source dies in the middle of a copy: the migration waits for the fence, and then fails.
fn source_dies_copying(env: &Faults, guest: &Guest) -> Result<()> {
    let (dead, to) = way(env, guest)?;
    let place = Place::new("migration-coordinator", "order.StartCopy.after");
    env.arm(&place, "pause")?;
    env.migrate("source-dies", &guest.name, &to)?;
    env.until("the copy's order", || Ok(env.held(&place).then_some(())))?;
    env.without(&dead, || {
        cut_power(env, &dead)?;
        env.arm(&place, "off")?;
        unknown(env, guest)?;
        ensure!(env.ended("source-dies")?.is_none(), "it ended on a silence");
        declare_dead(env, "source", &dead)?;
        failed(env, "source-dies")?;
        runs_elsewhere(env, guest, &dead)
    })?;
    env.audit(1)
}

/// The target dies when it has the proof and may have continued the guest: only its fence says
/// that no copy runs there, and the source's stopped one is never continued.
fn target_dies_with_the_proof(env: &Faults, guest: &Guest) -> Result<()> {
    let (_, dead) = way(env, guest)?;
    let place = Place::new(&dead, "target.Continuing.Continue.before");
    env.arm(&place, "pause")?;
    let boots = guest.boots();
    env.migrate("target-dies", &guest.name, &dead)?;
    env.until("the proof to be journaled", || {
        Ok(env.held(&place).then_some(()))
    })?;
    env.without(&dead, || {
        cut_power(env, &dead)?;
        env.until("the alarm", || {
            let events = env.get(EVENTS)?.unwrap_or_default();
            let events = events["items"].as_array().cloned().unwrap_or_default();
            let told = |event: &Value| {
                event["reason"] == "NodeUnresponsive"
                    && event["involvedObject"]["name"] == "target-dies"
            };
            Ok(events.iter().any(told).then_some(()))
        })?;
        ensure!(guest.boots() == boots, "it runs again without a fence");
        declare_dead(env, "target", &dead)?;
        failed(env, "target-dies")?;
        runs_elsewhere(env, guest, &dead)
    })?;
    ensure!(guest.boots().len() == boots.len() + 1, "not booted once");
    env.audit(1)
}

/// Nothing on the host acts any more; its agent is down already.
fn cut_power(env: &Faults, worker: &str) -> Result<()> {
    for qemu in env.qemus(worker) {
        signal(&qemu, Signal::SIGKILL)?;
    }
    Ok(())
}

fn unknown(env: &Faults, guest: &Guest) -> Result<()> {
    env.until("the instance to be Unknown", || {
        let found = env.get(&format!("{INSTANCES}/{}", guest.name))?;
        let unknown = found.is_some_and(|object| object["status"]["phase"] == "Unknown");
        Ok(unknown.then_some(()))
    })
}

fn kept_out(env: &Faults, guest: &Guest) -> Result<()> {
    env.until("the disk's lock to keep the second copy out", || {
        let found = env.get(&format!("{INSTANCES}/{}", guest.name))?;
        let told = found.unwrap_or_default()["status"].to_string();
        Ok(told
            .contains("Is another process using the image")
            .then_some(()))
    })
}

fn fence(name: &str, worker: &str) -> Value {
    json!({
        "apiVersion": "godwit.io/v1alpha1",
        "kind": "NodeFence",
        "metadata": { "name": name },
        "spec": { "nodeName": worker, "statement": "its plug is in my hand" },
    })
}

fn declare_dead(env: &Faults, name: &str, worker: &str) -> Result<()> {
    env.create(FENCES, &fence(name, worker))?;
    env.until("the fence", || {
        let found = env.get(&format!("{FENCES}/{name}"))?.unwrap_or_default();
        Ok((found["status"]["phase"] == "Fenced").then_some(()))
    })
}

fn runs_elsewhere(env: &Faults, guest: &Guest, dead: &str) -> Result<()> {
    env.until("the machine to run elsewhere", || {
        let node = env.running_on(&guest.name)?;
        Ok(node.filter(|node| node != dead).map(drop))
    })?;
    guest.beats(env)
}

fn failed(env: &Faults, job: &str) -> Result<()> {
    let (phase, object) = env.until("the end of the migration", || env.ended(job))?;
    let state = &object["status"]["migrationState"];
    let why = state["failureReason"].as_str().unwrap_or_default();
    ensure!(phase == "Failed" && !why.is_empty(), "{}", object["status"]);
    say(&format!("{job}: {phase}: {why}"));
    Ok(())
}
