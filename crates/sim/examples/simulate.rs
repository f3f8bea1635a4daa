//! Runs fleets by seed, and prints how they went.
//!
//! - `cargo run --release -p godwit-sim --example simulate -- --seeds 2000 [--from N]`
//! - `... -- --seed N [--trace] [--without GUARD]`: one of them, with every event.
//! - `... -- --mutants [--seeds N]`: how many seeds it takes to find each guard taken away.
//!
//! Exit code 1 when a seed breaks an invariant, or when a mutant survives all seeds.

#![expect(clippy::print_stdout, reason = "a tool for people")]

use std::process::ExitCode;
use std::time::Instant;

use godwit_sim::{Counts, Guard, Options, simulate};

#[derive(Default)]
struct Task {
    seeds: Option<u64>,
    from: u64,
    seed: Option<u64>,
    options: Options,
    mutants: bool,
}

fn main() -> ExitCode {
    let good = match arguments() {
        Ok(task) if task.mutants => mutants(&task),
        Ok(task) => match task.seed {
            Some(seed) => one(seed, task.options),
            None => many(&task),
        },
        Err(why) => {
            println!("{why}");
            false
        }
    };
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn one(seed: u64, options: Options) -> bool {
    let outcome = simulate(seed, options);
    print!("{}", outcome.trace);
    println!(
        "seed {seed}: {} events, {} ms of virtual time, hash {:016x}, {} succeeded, {} failed, {} need fencing, {} leftovers",
        outcome.events,
        outcome.lasted / 1_000,
        outcome.hash,
        outcome.succeeded,
        outcome.failed,
        outcome.fenced,
        outcome.leftovers,
    );
    match outcome.violation {
        Some(what) => {
            println!("VIOLATED  {what}");
            false
        }
        None => true,
    }
}

fn many(task: &Task) -> bool {
    let began = Instant::now();
    let seeds = task.seeds.unwrap_or(2_000);
    let mut bad = 0_u64;
    let (mut events, mut lasted, mut counts) = (0, 0, Counts::default());
    let (mut succeeded, mut failed, mut fenced, mut left) = (0, 0, 0, 0);
    for seed in task.from..task.from + seeds {
        let outcome = simulate(seed, task.options);
        events += outcome.events;
        lasted += outcome.lasted;
        counts = counts.plus(outcome.counts);
        succeeded += outcome.succeeded;
        failed += outcome.failed;
        fenced += outcome.fenced;
        left += usize::from(outcome.leftovers > 0);
        if let Some(what) = outcome.violation {
            bad += 1;
            if bad <= 20 {
                println!("VIOLATED  seed {seed}: {what}");
                println!(
                    "  replay  cargo run --release -p godwit-sim --example simulate -- --seed {seed} --trace"
                );
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let jobs = succeeded + failed + fenced;
    println!(
        "{seeds} seeds from {}, {bad} bad, {seconds:.1} s, {:.0} seeds/s, {events} events, {} h of virtual time",
        task.from,
        f64::from(u32::try_from(seeds).unwrap_or(u32::MAX)) / seconds,
        lasted / 3_600_000_000,
    );
    println!(
        "{jobs} jobs: {succeeded} succeeded, {failed} failed, {fenced} need fencing; {left} seeds with leftovers",
    );
    println!("{counts:?}");
    bad == 0
}

fn mutants(task: &Task) -> bool {
    let seeds = task.seeds.unwrap_or(2_000);
    let mut survivors = 0;
    for guard in Guard::ALL {
        let options = Options {
            removed: Some(guard),
            ..task.options
        };
        let mut tried = task.from..task.from + seeds;
        let found = tried.find_map(|seed| Some((seed, simulate(seed, options).violation?)));
        match found {
            Some((seed, what)) => {
                let took = seed - task.from + 1;
                println!("killed    without {}: {took} seeds", guard.as_str());
                println!("  breaks  {what}");
                println!(
                    "  replay  cargo run --release -p godwit-sim --example simulate -- --seed {seed} --trace --without {guard:?}"
                );
            }
            None => {
                println!("SURVIVES  without {}: {seeds} seeds", guard.as_str());
                survivors += 1;
            }
        }
    }
    println!("{} mutants, {survivors} survive", Guard::ALL.len());
    survivors == 0
}

fn arguments() -> Result<Task, String> {
    let mut task = Task::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || {
            let value = words
                .next()
                .ok_or_else(|| format!("{word} needs a value"))?;
            value.parse::<u64>().map_err(|error| error.to_string())
        };
        match word.as_str() {
            "--seeds" => task.seeds = Some(number()?),
            "--from" => task.from = number()?,
            "--seed" => task.seed = Some(number()?),
            "--trace" => task.options.trace = true,
            "--clock-back" => task.options.clock_back = true,
            "--mutants" => task.mutants = true,
            "--without" => {
                let name = words.next().unwrap_or_default();
                let mut all = Guard::ALL.into_iter();
                let found = all.find(|guard| format!("{guard:?}") == name);
                task.options.removed = Some(found.ok_or_else(|| format!("no guard {name}"))?);
            }
            _ => return Err(format!("{word} is not known")),
        }
    }
    Ok(task)
}
