//! The main job, on real machines, with real kubectls: one lab, and each section of it in turn.
//!
//! `LAB_SECTIONS=drain,restart` runs those whose names hold one of the words.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::lab_down::Footprint;
use crate::lab_env::Env;
use crate::{
    lab_bad_input, lab_clients, lab_continuity, lab_drain, lab_plan, lab_policy, lab_postcopy,
    lab_restart, lab_rolling, lab_seed, lab_virtctl, lab_walkthrough,
};

type Section = fn(&Env) -> Result<()>;

const SECTIONS: [(&str, Section); 16] = [
    ("walkthrough with Debian's kubectl", lab_walkthrough::debian),
    (
        "walkthrough with the newest kubectl",
        lab_walkthrough::newest,
    ),
    ("continuity", lab_continuity::ten_migrations),
    ("opposite directions", lab_drain::opposite_directions),
    ("drain of ten", lab_drain::ten_leave),
    ("drain blocked", lab_drain::some_stay),
    ("drain as planned", lab_plan::as_planned),
    ("drain by kubectl", lab_drain::by_kubectl),
    ("rolling maintenance", lab_rolling::three_workers),
    ("switched by hand", lab_virtctl::by_hand),
    ("policy", lab_policy::under_a_policy),
    ("post-copy", lab_postcopy::memory_follows),
    ("cloud-init", lab_seed::by_a_secret),
    ("clients", lab_clients::as_published),
    ("restart", lab_restart::each_service),
    ("bad input", lab_bad_input::refused),
];

/// How one section ended.
struct Ended {
    name: &'static str,
    took: Duration,
    failure: Option<String>,
}

/// Says it at once, also where the test's output is kept back.
pub(crate) fn say(text: &str) {
    // A closed terminal is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[test]
fn lab_suite() {
    let options = Env::options();
    let leftovers = godwit_testkit::lab::Lab::new(options.clone());
    leftovers.down().unwrap();
    let before = Footprint::take(&options).unwrap();
    let began = Instant::now();
    let env = Env::start(&|step| say(&format!("lab: {step}"))).unwrap();
    say(&format!(
        "lab: up after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    let mut ended: Vec<Ended> = chosen().map(|section| run(&env, section)).collect();
    assert!(!ended.is_empty(), "LAB_SECTIONS names no section");
    ended.push(down(&env, &before));
    drop(env);
    let mut failures = vec![];
    for section in &ended {
        let verdict = if section.failure.is_none() {
            "ok"
        } else {
            "FAILED"
        };
        say(&format!(
            "{:36} {verdict:6} {:6.1} s",
            section.name,
            section.took.as_secs_f64()
        ));
        failures.extend(
            section
                .failure
                .as_ref()
                .map(|why| format!("{}: {why}", section.name)),
        );
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn chosen() -> impl Iterator<Item = (&'static str, Section)> {
    let words = std::env::var("LAB_SECTIONS").unwrap_or_default();
    SECTIONS
        .into_iter()
        .filter(move |(name, _)| words.split(',').any(|word| name.contains(word)))
}

/// Runs a section and takes away what it made; a section that failed does not end the others.
fn run(env: &Env, (name, section): (&'static str, Section)) -> Ended {
    say(&format!("== {name}"));
    let began = Instant::now();
    let mut outcome = caught(|| section(env));
    if outcome.is_err() {
        say(&env.situation());
        match env.keep_logs() {
            Ok(kept) => say(&format!("logs: {}", kept.display())),
            Err(why) => say(&format!("no logs: {why:#}")),
        }
    }
    if let Err(why) = caught(|| env.clear())
        && outcome.is_ok()
    {
        say(&env.situation());
        outcome = Err(why.context("cleaning up"));
    }
    let failure = outcome.err().map(|why| format!("{why:#}"));
    Ended {
        name,
        took: began.elapsed(),
        failure,
    }
}

/// Ends the lab, and compares the machine with what it was.
fn down(env: &Env, before: &Footprint) -> Ended {
    say("== down");
    let began = Instant::now();
    let failure = caught(|| {
        let during = Footprint::take(env.lab().options())?;
        env.end()?;
        before.compare(&during, env.lab().options())
    });
    Ended {
        name: "down",
        took: began.elapsed(),
        failure: failure.err().map(|why| format!("{why:#}")),
    }
}

/// A panic as an error.
fn caught(work: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(anyhow!("{}", text.unwrap_or("panicked")))
    })
}
