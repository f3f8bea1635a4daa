//! Writers and watchers at the same time: nobody misses a change, sees one twice or out of order.
//!
//! Short runs; `cargo xtask test watch` has the long ones (`watch_suite.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::lab_suite::say;
use crate::watch_env::World;
use crate::watch_faults::Faults;
use crate::watch_log::Log;
use crate::watch_watchers::{Report, Watcher};
use crate::watch_writers::Writer;

/// Longest time until everybody has ended after the writers were told to.
const END_MAX: Duration = Duration::from_secs(180);
/// Longest pause of a writer for each writer that there is: some 250 changes a second of them all.
const PAUSE_EACH: Duration = Duration::from_millis(8);
/// Mismatches that are told in full.
const TOLD_MAX: usize = 10;

/// How much of what, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) time: Duration,
    pub(crate) writers: usize,
    pub(crate) watchers: usize,
    pub(crate) gateways: usize,
    /// Late commits, roll-backs, killed connections and dead gateways.
    pub(crate) faults: bool,
    pub(crate) seed: u64,
}

/// `WATCH_SEED`, or another at each run.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("WATCH_SEED").ok();
    seed.map_or_else(rand::random, |text| text.parse().unwrap())
}

/// Runs a plan and judges it.
pub(crate) async fn run(plan: Plan) -> Result<()> {
    say(&format!("watch: WATCH_SEED={} {plan:?}", plan.seed));
    let world = Arc::new(World::start(plan.gateways).await?);
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicUsize::new(0));
    let (end, ended) = watch::channel(None);
    let writers = write(plan, &world, (&stop, &written));
    let watchers: Vec<_> = (0..plan.watchers)
        .map(|number| {
            let who = (number, plan.seed);
            let watcher = Watcher::new(Arc::clone(&world), who, plan.faults, ended.clone());
            tokio::spawn(watcher.run())
        })
        .collect();
    let faults = Faults::new(Arc::clone(&world), plan.seed, Arc::clone(&stop));
    let faults = Arc::new(faults);
    let breaking = if plan.faults { begin(&faults) } else { vec![] };

    sleep(plan.time).await; // load
    stop.store(true, Ordering::Relaxed);
    let mut wrong = vec![];
    for task in writers.into_iter().chain(breaking) {
        let ended = timeout(END_MAX, task).await;
        let ended = ended.context("a writer or a fault goes on for ever")??;
        wrong.extend(ended.err().map(|error| format!("{error:#}")));
    }
    let last = godwit_ledger::retry(|| world.ledger.revision()).await?;
    end.send_replace(Some(last.0));
    let began = Instant::now();
    let mut done = vec![];
    for watcher in watchers {
        let ended = timeout(END_MAX, watcher).await;
        done.push(ended.context("a watcher goes on for ever")??);
    }
    let caught_up = began.elapsed();
    let log = Log::read(&world.ledger).await?;
    let reports: Vec<Report> = done
        .into_iter()
        .map(|watcher| watcher.judge(&log))
        .collect();
    say(&format!(
        "watch: {} changes, {} acknowledged; {} late, {} rolled back, {} connections killed, {} \
         gateways killed; {}; all at revision {last} {} ms after the last write",
        log.len(),
        written.load(Ordering::Relaxed),
        faults.late.load(Ordering::Relaxed),
        faults.rolled_back.load(Ordering::Relaxed),
        faults.killed.load(Ordering::Relaxed),
        faults.restarts.load(Ordering::Relaxed),
        sums(&reports),
        caught_up.as_millis(),
    ));
    wrong.extend(
        reports
            .iter()
            .flat_map(|report| report.wrong.iter().cloned()),
    );
    verdict(plan, &wrong)?;
    if plan.faults {
        each_happened(&faults)?;
    }
    let events: usize = reports.iter().map(|report| report.events).sum();
    ensure!(events > plan.watchers, "only {events} events were seen");
    Ok(())
}

fn write(
    plan: Plan,
    world: &Arc<World>,
    (stop, written): (&Arc<AtomicBool>, &Arc<AtomicUsize>),
) -> Vec<JoinHandle<Result<()>>> {
    let writers = (0..plan.writers).map(|number| Writer {
        world: Arc::clone(world),
        number,
        seed: plan.seed,
        faults: plan.faults,
        pause: PAUSE_EACH * u32::try_from(plan.writers).unwrap(),
        stop: Arc::clone(stop),
        written: Arc::clone(written),
    });
    writers.map(|writer| tokio::spawn(writer.run())).collect()
}

fn begin(faults: &Arc<Faults>) -> Vec<JoinHandle<Result<()>>> {
    let all = [(); 4].map(|()| Arc::clone(faults));
    let [delay, intrude, kill, restart] = all;
    vec![
        tokio::spawn(async move { delay.delay().await }),
        tokio::spawn(async move { intrude.intrude().await }),
        tokio::spawn(async move { kill.kill().await }),
        tokio::spawn(async move { restart.restart().await }),
    ]
}

fn each_happened(faults: &Faults) -> Result<()> {
    for (what, count) in [
        ("commit late", &faults.late),
        ("roll back", &faults.rolled_back),
        ("kill a connection", &faults.killed),
        ("kill a gateway", &faults.restarts),
    ] {
        ensure!(count.load(Ordering::Relaxed) > 0, "no fault was to {what}");
    }
    Ok(())
}

fn sums(reports: &[Report]) -> String {
    let sum = |of: fn(&Report) -> usize| reports.iter().map(of).sum::<usize>();
    format!(
        "{} watchers: {} events, {} bookmarks, {} connections, {} lists, {} times 410, {} times \
         too new, {} faults met",
        reports.len(),
        sum(|report| report.events),
        sum(|report| report.bookmarks),
        sum(|report| report.connections),
        sum(|report| report.lists),
        sum(|report| report.expired),
        sum(|report| report.too_new),
        sum(|report| report.faults),
    )
}

fn verdict(plan: Plan, wrong: &[String]) -> Result<()> {
    for text in wrong.iter().take(TOLD_MAX) {
        say(&format!("watch: WRONG: {text}"));
    }
    ensure!(
        wrong.is_empty(),
        "{} mismatches with WATCH_SEED={}, the first: {}",
        wrong.len(),
        plan.seed,
        wrong[0]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_come_and_go_see_every_change_once_and_in_order() -> Result<()> {
    run(Plan {
        time: Duration::from_secs(5),
        writers: 10,
        watchers: 30,
        gateways: 1,
        faults: false,
        seed: seed(),
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_of_two_gateways_see_every_change_through_faults() -> Result<()> {
    run(Plan {
        time: Duration::from_secs(5),
        writers: 10,
        watchers: 30,
        gateways: 2,
        faults: true,
        seed: seed(),
    })
    .await
}
