//! Checks the migration protocol and prints what was explored and found.
//!
//! - `cargo run --release -p godwit-sim --example check`: every kind of fault once, both hosts dead
//!   for good, and post-copy; about two minutes on two cores.
//! - `... -- --post-copy`: post-copy alone.
//! - `... -- --mutants`: takes the guards away one by one; each must lead to a violation. Then a
//!   host is declared dead that lives, which must lead to one, too: nothing guards against a lie.
//! - `... -- --large`, or `--takeovers N --crashes N --deaths N --losses N --unknown-commits 0|1
//!   --memory 0|1 --later-job 0|1 --post-copy-may 0|1 --lies 0|1 --without GUARD`: more, or less.
//!
//! Exit code 1 when something is violated, never happens, can't end, or when a mutant survives.

#![expect(clippy::print_stdout, reason = "a tool for people")]

use std::process::ExitCode;
use std::time::Instant;

use godwit_sim::{Config, Ends, Guard, Migration, Report, check, ends, way};

enum Task {
    Check(Vec<Config>),
    Mutants,
}

fn main() -> ExitCode {
    let good = match arguments() {
        Ok(Task::Check(configs)) => configs.into_iter().all(explore),
        Ok(Task::Mutants) => mutants(),
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

/// Looks for violations and for states without a way to an end, side by side.
fn explore(config: Config) -> bool {
    println!("{config:?}");
    let model = Migration::new(config);
    std::thread::scope(|scope| {
        let found = scope.spawn(|| timed(|| ends(&model)));
        let safe = safety(timed(|| check(config)));
        found.join().is_ok_and(|found| live(&model, found)) && safe
    })
}

/// What `work` leads to, and how many seconds it takes.
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let began = Instant::now();
    let done = work();
    (done, began.elapsed().as_secs_f64())
}

fn safety((report, seconds): (Report, f64)) -> bool {
    println!(
        "states generated {}, distinct {}, depth {}, {seconds:.1} s, complete",
        report.generated, report.distinct, report.depth,
    );
    for finding in &report.findings {
        println!("{:>14}  {}", finding.verdict.as_str(), finding.name);
        for step in &finding.way {
            println!("      {step}");
        }
    }
    report.is_good()
}

fn live(model: &Migration, (found, seconds): (Ends, f64)) -> bool {
    let verdict = if found.is_good() { "holds" } else { "VIOLATED" };
    println!("{verdict:>14}  once faults stop, every state has a way to a final one");
    for step in way(model, found.way) {
        println!("      {step}");
    }
    let (left, states) = (found.unclean, found.states);
    println!("{left:>14}  of {states} states can't lose all leftovers without help, for example");
    for step in way(model, found.unclean_way) {
        println!("      {step}");
    }
    println!("liveness: {seconds:.1} s");
    found.stuck == 0
}

fn mutants() -> bool {
    let mut survivors = 0;
    for guard in Guard::ALL {
        let name = format!("without {}", guard.as_str());
        survivors += u32::from(!is_killed(&name, Config::control(guard)));
    }
    println!("{} mutants, {survivors} survive", Guard::ALL.len());
    println!("a bound, not a guard: a fence is a person's word that the host is dead");
    is_killed("with a fence of a host that lives", Config::lie()) && survivors == 0
}

fn is_killed(name: &str, config: Config) -> bool {
    let (report, seconds) = timed(|| check(config));
    let violated = report.violated();
    let states = report.distinct;
    let Some(first) = violated.first() else {
        println!("SURVIVES  {name}: {states} states, {seconds:.1} s");
        return false;
    };
    println!("killed    {name}: {states} states, {seconds:.1} s");
    for finding in &violated {
        println!("  breaks  {}", finding.name);
    }
    println!("  by      {} steps", first.way.len());
    for step in &first.way {
        println!("      {step}");
    }
    true
}

fn arguments() -> Result<Task, String> {
    let mut config = Config::usual();
    let mut both = vec![Config::both_hosts()];
    both.extend(Config::post_copies());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        both.clear();
        match word.as_str() {
            "--mutants" => return Ok(Task::Mutants),
            "--large" => config = Config::large(),
            "--quick" => config = Config::quick(),
            "--post-copy" => return Ok(Task::Check(Config::post_copies().to_vec())),
            _ => {
                let value = words.next();
                let value = value.ok_or_else(|| format!("{word} needs a value"))?;
                set(&mut config, &word, &value)?;
            }
        }
    }
    both.insert(0, config);
    Ok(Task::Check(both))
}

fn set(config: &mut Config, word: &str, value: &str) -> Result<(), String> {
    let number = || value.parse().map_err(|error| format!("{word}: {error}"));
    let switch = || number().map(|number: u8| number > 0);
    match word {
        "--takeovers" => config.takeovers = number()?,
        "--crashes" => config.crashes = number()?,
        "--deaths" => config.deaths = number()?,
        "--losses" => config.losses = number()?,
        "--lies" => config.lies = switch()?,
        "--unknown-commits" => config.unknown_commits = switch()?,
        "--memory" => config.memory = switch()?,
        "--post-copy-may" => config.post_copy = switch()?,
        "--later-job" => config.later_job = switch()?,
        "--without" => config.removed = Some(guard(value)?),
        _ => return Err(format!("{word} is not known")),
    }
    Ok(())
}

fn guard(name: &str) -> Result<Guard, String> {
    let found = Guard::ALL
        .into_iter()
        .find(|guard| format!("{guard:?}") == name);
    found.ok_or_else(|| format!("no guard {name}; there are {:?}", Guard::ALL))
}
