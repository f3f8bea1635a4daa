//! `cargo xtask bench`: what Godwit adds to a move, beside a script that does the same by hand.
//!
//! A lab of its own with two hosts. Two machines of the same kind: one is moved through the API
//! (arm A), one by QMP alone (arm B), in the order A B B A, while each guest says all the time
//! that it is alive. Nothing is asserted: what is measured is printed, and written as JSON in the
//! form of `bench/report.rs`. The lab is gone afterwards.

mod api;
mod fleet;
mod godwit;
mod heartbeat;
mod machine;
mod machines;
mod memory;
mod placement;
mod raw;
mod report;
mod stats;
mod table;
mod telemetry;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use godwit_model::MachineId;
use godwit_model::limits::MigrationLimits;
use godwit_model::migration::convergence::planned_blackout;
use godwit_testkit::api::{Api, Connection};
use godwit_testkit::guest::linux;
use godwit_testkit::lab::{Lab, LabOptions};
use indicatif::ProgressBar;

use self::godwit::Godwit;
use self::heartbeat::Ear;
use self::machine::CpuTime;
use self::machines::{Guest, Wanted};
use self::raw::Raw;
use self::report::{
    ColdStart, GodwitMove, Machine, Memory, RawMove, Report, SCHEMA, Settings, Summaries,
};
use crate::tools::{self, say};

/// Last byte of the address of Godwit's machine.
const LAST: u8 = 62;
/// Last byte of the address of the raw machine.
const RAW_LAST: u8 = 63;
/// Last byte of the address of the first of the other machines.
const OTHERS_LAST: u8 = 70;
/// Hosts: the machines go back and forth.
const WORKERS: usize = 2;
/// Memory of the machines that move.
const MEMORY_MIB: u64 = 256;
/// Pairs that only warm everything up.
const WARM_UP_PAIRS: usize = 1;
/// How long a guest is listened to after its move; its announcements take 0.7 s. A hypervisor that
/// takes free memory back does so after 2 s, and a target that finds it gone copies 0.3 s longer:
/// so all moves wait that long.
const SETTLE: Duration = Duration::from_secs(3);
/// How long services may rest before their memory is looked at.
const REST: Duration = Duration::from_secs(5);
/// Longest boot of a guest.
const BOOT_MAX: Duration = Duration::from_secs(90);

/// `cargo xtask bench`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// Pairs of moves.
    #[arg(long, default_value_t = 20)]
    pairs: usize,
    /// Build profile of the services: `dev` or `release`.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Where the report is written as JSON.
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// Milliseconds between two heartbeats of a guest.
    #[arg(long, default_value_t = 2)]
    tick: u32,
    /// Machines in the last measurement of memory; 0 leaves it out.
    #[arg(long, default_value_t = 10)]
    machines: usize,
    /// Lets the raw source run through its switch-over without a stop for permission, which
    /// the product always makes.
    #[arg(long)]
    straight: bool,
}

/// Another bench.
#[derive(Debug, Subcommand)]
enum Part {
    /// Lists, reads, creations and watches of the API, and its memory.
    Api(api::Arguments),
    /// Placing machines and planning maintenance in memory, beside Ganeti's htools.
    Placement(placement::Arguments),
    /// Every node of a fleet of hosts that pretend is emptied once, by the real services.
    Fleet(fleet::Arguments),
    /// What traces cost, with a collector that takes them and with one that hangs.
    Telemetry(telemetry::Arguments),
}

/// What every part of the bench needs.
pub(crate) struct Bench {
    arguments: Arguments,
    lab: Lab,
    image: PathBuf,
    downtime: Duration,
    ear: Ear,
    raw_ear: Ear,
    bar: ProgressBar,
}

/// The moves of both arms.
#[derive(Default)]
struct Moves {
    godwit: Vec<GodwitMove>,
    raw: Vec<RawMove>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    match &arguments.part {
        Some(Part::Api(arguments)) => return api::run(arguments),
        Some(Part::Placement(arguments)) => return placement::run(arguments),
        Some(Part::Fleet(arguments)) => return fleet::run(arguments),
        Some(Part::Telemetry(arguments)) => return telemetry::run(arguments),
        None => {}
    }
    ensure!(
        nix::unistd::Uid::effective().is_root(),
        "the bench makes hosts out of network namespaces, which takes root: run it with sudo"
    );
    ensure!(arguments.pairs > 0, "nothing to measure with 0 pairs");
    let bar = tools::spinner();
    tools::ensure_packages(&bar)?;
    say(&bar, "building the services");
    bar.suspend(|| tools::build_programs(&arguments.profile))?;
    let lab = Lab::new(LabOptions {
        prefix: "gwb".to_owned(),
        index: 2,
        workers: WORKERS,
        coordinators: 1,
        dir: PathBuf::from("/var/lib/gw-bench"),
        ..LabOptions::standard(tools::bin_dir(&arguments.profile), tools::cache_dir())
    });
    say(&bar, "removing what an ended bench may have left");
    lab.down()?;
    let ends = EndsLab(lab.clone());
    let json = arguments.json.clone();
    let measured = measure_on(&lab, arguments, &bar);
    say(&bar, "ending the lab");
    drop(ends);
    bar.finish_and_clear();
    let report = measured?;
    table::print(&report);
    let text = serde_json::to_string_pretty(&report)?;
    std::fs::write(&json, text).with_context(|| format!("write {}", json.display()))?;
    println!("\nAll of it: {}", json.display());
    Ok(())
}

/// Ends the lab, also on an error or a panic.
struct EndsLab(Lab);

impl Drop for EndsLab {
    fn drop(&mut self) {
        if let Err(error) = self.0.down() {
            eprintln!("the lab does not end: {error:#}");
        }
    }
}

/// Starts the lab, and measures.
fn measure_on(lab: &Lab, arguments: Arguments, bar: &ProgressBar) -> Result<Report> {
    let image = linux::ensure(&tools::cache_dir(), &|text| say(bar, text))?;
    let machine = machine::describe();
    let began = Instant::now();
    lab.up(&|text| say(bar, text))?;
    let up = began.elapsed();
    let memory_ready = memory::of(lab)?;
    let limits = MigrationLimits::default();
    let bench = Bench {
        arguments,
        image,
        // What the product begins with, and an idle guest needs no more.
        downtime: planned_blackout(
            Duration::ZERO,
            Duration::from_millis(limits.max_downtime_ms.into()),
        ),
        ear: Ear::open(lab)?,
        raw_ear: Ear::open(lab)?,
        lab: lab.clone(),
        bar: bar.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tokio::select! {
            report = bench.measure(machine, (up, memory_ready)) => report,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    })
}

impl Bench {
    async fn measure(
        &self,
        mut machine: Machine,
        (up, memory_ready): (Duration, Vec<Memory>),
    ) -> Result<Report> {
        let api = Api::of(&self.lab)?;
        let mut connection = api.connect().await?;
        say(&self.bar, "starting the first machine");
        let wanted = self.wanted("bench", LAST);
        let started = machines::run(&self.lab, (&api, &mut connection), &wanted).await;
        let (instance, machine_seconds) = started?;
        let cold_start = ColdStart {
            system_seconds: up.as_secs_f64(),
            machine_seconds,
        };
        let uid = instance["metadata"]["uid"].as_str().unwrap_or_default();
        let ledger = godwit::ledger(&self.lab).await?;
        let mut raw = Raw::start(self, &ledger, &MachineId::parse(uid)?).await?;
        machine.qemu = raw.version();
        machine.accelerator = raw.accelerator().to_owned();
        say(&self.bar, "waiting for the guests");
        for ear in [&self.ear, &self.raw_ear] {
            ear.heard_since(Instant::now(), BOOT_MAX).await?;
        }
        tokio::time::sleep(REST).await;
        let memory_rest = memory::of(&self.lab)?;
        let mut godwit = Godwit {
            connection: api.connect().await?,
            api: &api,
            ledger: &ledger,
            ear: &self.ear,
            vmi: "bench",
        };
        let cpu = CpuTime::now();
        let moves = self.pairs(&mut godwit, &mut raw).await?;
        machine.load_after = machine::load();
        machine.steal_percent = cpu.stolen_since();
        drop((godwit, raw));
        let memory_machines = self.many(&api).await?;
        let memory = [memory_ready, memory_rest, memory_machines];
        Ok(self.report((machine, cold_start), moves, memory))
    }

    /// The pairs, in the order A B B A; the first ones don't count.
    async fn pairs(&self, godwit: &mut Godwit<'_>, raw: &mut Raw) -> Result<Moves> {
        let mut moves = Moves::default();
        let pairs = self.arguments.pairs + WARM_UP_PAIRS;
        for pair in 0..pairs {
            say(&self.bar, &format!("pair {} of {pairs}", pair + 1));
            let name = format!("bench-{pair}");
            let (ours, theirs) = if pair % 2 == 0 {
                let ours = godwit.migrate(&name, SETTLE).await?;
                (ours, raw.migrate(&self.raw_ear, SETTLE).await?)
            } else {
                let theirs = raw.migrate(&self.raw_ear, SETTLE).await?;
                (godwit.migrate(&name, SETTLE).await?, theirs)
            };
            if pair >= WARM_UP_PAIRS {
                moves.godwit.push(ours);
                moves.raw.push(theirs);
            }
        }
        Ok(moves)
    }

    /// Starts machines until there are as many as asked for, and looks at the services' memory.
    async fn many(&self, api: &Api) -> Result<Vec<Memory>> {
        let mut connection: Connection = api.connect().await?;
        for number in 1..self.arguments.machines {
            say(&self.bar, &format!("starting machine {}", number + 1));
            let wanted = Wanted {
                memory: "96Mi",
                guest: Guest {
                    tick: 1000,
                    heartbeat: None,
                },
                ..self.wanted(
                    &format!("other-{number}"),
                    OTHERS_LAST + u8::try_from(number)?,
                )
            };
            machines::run(&self.lab, (api, &mut connection), &wanted).await?;
        }
        tokio::time::sleep(REST).await;
        memory::of(&self.lab)
    }

    fn wanted(&self, name: &str, last: u8) -> Wanted {
        Wanted {
            name: name.to_owned(),
            last,
            memory: "256Mi",
            guest: Guest {
                tick: self.arguments.tick,
                heartbeat: Some(self.ear.address),
            },
        }
    }

    fn report(
        &self,
        (machine, cold_start): (Machine, ColdStart),
        Moves { godwit, raw }: Moves,
        [memory_ready, memory_rest, memory_machines]: [Vec<Memory>; 3],
    ) -> Report {
        let downtime = u64::try_from(self.downtime.as_millis()).unwrap_or(u64::MAX);
        Report {
            schema: SCHEMA,
            machine,
            settings: Settings {
                pairs: self.arguments.pairs,
                warm_up_pairs: WARM_UP_PAIRS,
                profile: self.arguments.profile.clone(),
                memory_mib: MEMORY_MIB,
                tick: self.arguments.tick,
                downtime_limit: downtime,
                bandwidth: MigrationLimits::default().bandwidth.0,
                raw_pauses_before_switchover: !self.arguments.straight,
                machines: self.arguments.machines,
            },
            cold_start,
            summary: Summaries::of(&godwit, &raw),
            godwit_steps: report::mean_steps(godwit.iter().map(|a| &a.steps)),
            raw_steps: report::mean_steps(raw.iter().map(|b| &b.steps)),
            godwit,
            raw,
            memory_ready,
            memory_rest,
            memory_machines,
        }
    }
}
