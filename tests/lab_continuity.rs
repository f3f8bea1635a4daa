//! Ten migrations back and forth: what a ping, the guest itself and its disk have to say.
//!
//! How long the guest is silent is reported here and measured by the benchmarks; a busy machine
//! must not fail this test.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit_testkit::guest::heartbeat::{Listener, Report};
use godwit_testkit::guest::record::{self, Record};
use godwit_testkit::kubectl::Release;

use crate::lab_env::{Env, Machine, wait};
use crate::lab_suite::say;

const VM: &str = "steady";
const LAST: u8 = 70;
const MIGRATIONS: usize = 10;
/// Any longer silence is a fault, however busy the machine.
const GAP_MAX: Duration = Duration::from_secs(5);
/// Pings that one migration may cost, a second's.
const LOST_MAX: usize = 100;
/// Heartbeats that prove that somebody listened.
const HEARD_MIN: usize = 1000;

/// The section.
pub(crate) fn ten_migrations(env: &Env) -> Result<()> {
    let (listener, machine) = beating(env, VM, LAST)?;
    env.run(std::slice::from_ref(&machine))?;
    let uid = env.uid_of(VM)?;
    let boot = env.ask(LAST)?;
    let address = env.lab().network().guest(LAST);
    let ping = env.run_aside(
        Release::Newest,
        &format!("exec ping -D -i 0.01 -W 1 {address}"),
    )?;
    let home = env.node_of(VM)?;
    let away = if home == "worker1" {
        "worker2"
    } else {
        "worker1"
    };
    for number in 1..=MIGRATIONS {
        let to = if number % 2 == 1 { away } else { home.as_str() };
        env.migrate(&format!("move-{number}"), VM, Some(to))?;
        ensure!(env.node_of(VM)? == to, "the machine is not on {to}");
        let now = env.ask(LAST)?;
        ensure!(
            now.boot_id == boot.boot_id,
            "migration {number}: the guest booted again"
        );
    }
    ensure!(env.uid_of(VM)? == uid, "the instance is another");
    let lines = ping.lines()?;
    drop(ping);
    let report = listener.report();
    let (pinged, beat) = (pinged(&lines), beat(&report, &boot));
    pinged.and(beat)?;
    env.kubectl(&format!("delete vm/{VM} --timeout=60s"))?;
    wait("the machine to stop", || {
        let left = env.kubectl("get vmi -o name")?;
        Ok(left.trim().is_empty().then_some(()))
    })?;
    written(env, &report)
}

/// A machine that sends heartbeats here all the time, and changes memory while it is copied.
pub(crate) fn beating(env: &Env, name: &str, last: u8) -> Result<(Listener, Machine)> {
    let writes = "godwit.tick=5 godwit.dirty=1000000 godwit.dirtyset=8000000";
    beating_under(env, Machine::small(name, last), writes)
}

/// One whose guest also has these arguments.
pub(crate) fn beating_under(
    env: &Env,
    machine: Machine,
    arguments: &str,
) -> Result<(Listener, Machine)> {
    let socket = UdpSocket::bind((env.lab().network().guest_gateway(), 0))?;
    let to = socket.local_addr()?;
    let machine = Machine {
        memory: "128Mi",
        arguments: format!("godwit.heartbeat={to} {arguments}"),
        ..machine
    };
    Ok((Listener::start(socket)?, machine))
}

/// The pings: which were answered, and when.
fn pinged(lines: &[String]) -> Result<()> {
    let mut answers: Vec<(f64, usize)> = lines.iter().filter_map(|line| answer(line)).collect();
    // One that was answered twice was not lost.
    answers.dedup_by_key(|(_, number)| *number);
    let last = answers.last().context("no ping was answered")?;
    let lost = last.1 - answers.len();
    let gaps = answers.windows(2).map(|pair| pair[1].0 - pair[0].0);
    let gap = gaps.fold(0.0, f64::max);
    say(&format!(
        "ping every 10 ms through {MIGRATIONS} migrations: {} sent, {lost} lost, longest gap \
         {:.0} ms",
        last.1,
        gap * 1e3
    ));
    ensure!(lost <= MIGRATIONS * LOST_MAX, "{lost} of {} lost", last.1);
    ensure!(gap < GAP_MAX.as_secs_f64(), "silent for {gap} s");
    Ok(())
}

/// `[1763.5] 64 bytes from ...: icmp_seq=7 ttl=64 ...`: the time and the number.
fn answer(line: &str) -> Option<(f64, usize)> {
    let (time, rest) = line.strip_prefix('[')?.split_once(']')?;
    let number = rest.split_once("icmp_seq=")?.1.split(' ').next()?;
    rest.contains(" bytes from ")
        .then_some((time.parse().ok()?, number.parse().ok()?))
}

/// The heartbeats: one guest, that never went back nor said anything twice.
fn beat(report: &Report, boot: &Record) -> Result<()> {
    let (gap, before) = report.longest_gap().context("no heartbeats")?;
    say(&format!(
        "heartbeats every 5 ms: {} heard, {} missing, longest gap {} ms before number {}",
        report.heard.len(),
        report.missing(),
        gap.as_millis(),
        before.sequence + 1
    ));
    for pair in report.heard.windows(2) {
        let silence = pair[1].at.duration_since(pair[0].at);
        if silence > Duration::from_millis(400) {
            let ago = jiff::SignedDuration::try_from(pair[0].at.elapsed())?;
            say(&format!(
                "silent for {silence:?} from {} up {}->{}",
                jiff::Timestamp::now() - ago,
                pair[0].record.uptime_ns / 1000000,
                pair[1].record.uptime_ns / 1000000
            ));
        }
    }
    ensure!(
        report.heard.len() > HEARD_MIN,
        "only {}",
        report.heard.len()
    );
    let repeats = report.repeats();
    ensure!(repeats.is_empty(), "said again: {:?}", repeats.first());
    let strangers = report
        .heard
        .iter()
        .any(|heard| heard.record.boot_id != boot.boot_id);
    ensure!(!strangers, "the guest booted again");
    ensure!(gap < GAP_MAX, "silent for {gap:?}");
    Ok(())
}

/// The disk: each record exactly once, all of the boot that was heard.
fn written(env: &Env, report: &Report) -> Result<()> {
    let disk = std::fs::read(env.lab().disks().join(format!("{VM}.img")))?;
    let boots = record::verify(&disk)?;
    let last = report.last().context("no heartbeats")?.record;
    ensure!(boots.len() == 1, "{boots:?}");
    ensure!(boots[0].boot_id == last.boot_id, "another guest wrote");
    ensure!(boots[0].first.sequence == 0, "{boots:?}");
    ensure!(
        boots[0].last.counter >= last.counter,
        "{boots:?}, heard {last:?}"
    );
    say(&format!(
        "disk: records 0 to {}, each once, over {:.1} s of the guest's time",
        boots[0].last.sequence,
        Duration::from_nanos(boots[0].last.uptime_ns).as_secs_f64()
    ));
    Ok(())
}
