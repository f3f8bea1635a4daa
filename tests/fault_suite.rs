//! The real-QEMU part of the safety suite: one lab, and each section of it in turn.
//!
//! Runs alone, by `cargo xtask test safety`. `FAULTS=Moves+Target,Cut` runs those cases of the
//! matrix whose names hold both words of the first, or the second.

use std::time::Duration;

use crate::fault_env::Faults;
use crate::lab_suite::say;
use crate::{fault_chaos, fault_fence, fault_matrix, fault_takeover};

#[test]
fn fault_suite_matrix() {
    let env = Faults::start(1).unwrap();
    say("lab: up");
    fault_matrix::run(&env).unwrap();
}

#[test]
fn fault_suite_owners() {
    let env = Faults::start(2).unwrap();
    say("lab: up, with two coordinators");
    fault_takeover::owners_die(&env).unwrap();
    fault_takeover::owner_freezes(&env).unwrap();
}

#[test]
fn fault_suite_hosts() {
    let env = Faults::start(1).unwrap();
    fault_chaos::agent_dies(&env).unwrap();
    fault_fence::hosts_die(&env).unwrap();
}

#[test]
fn fault_suite_ledger() {
    let env = Faults::start(2).unwrap();
    fault_chaos::ledger_dies(&env).unwrap();
}

/// `FAULT_SECONDS` says for how long; five minutes when it doesn't.
#[test]
fn fault_suite_drain() {
    let seconds = std::env::var("FAULT_SECONDS").map_or(300, |text| text.parse().unwrap());
    let env = Faults::start(2).unwrap();
    fault_chaos::drain_goes_on(&env, Duration::from_secs(seconds)).unwrap();
}
