//! The report for people.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::report::{MeanStep, Memory, Report};
use super::stats::Summary;

/// Prints all of it.
pub(crate) fn print(report: &Report) {
    let machine = &report.machine;
    println!(
        "\n{} on {} cores of {} ({} GiB), QEMU {} with {}, Linux {}, {} build, commit {}",
        machine.date,
        machine.cores,
        machine.cpu,
        machine.memory_kib >> 20,
        machine.qemu,
        machine.accelerator,
        machine.kernel,
        report.settings.profile,
        machine.commit
    );
    println!(
        "load before {}, after {}; stolen {:.1}%",
        machine.load_before, machine.load_after, machine.steal_percent
    );
    println!(
        "\nMoves of a {} MiB machine, {} pairs, milliseconds",
        report.settings.memory_mib, report.settings.pairs
    );
    println!("{}", moves(report));
    println!("\nWhere the time goes: recorded states of a migration, milliseconds");
    println!("{}", steps(&report.godwit_steps));
    println!("\nWhere the time goes: the raw script, milliseconds");
    println!("{}", steps(&report.raw_steps));
    println!(
        "\nMemory of the services, MiB: without machines, with one, and after the moves with {}",
        report.settings.machines
    );
    println!("{}", memory(report));
    let start = report.cold_start;
    println!(
        "\nCold start: {:.1} s until the system is ready + {:.1} s until the first machine is \
         Running = {:.1} s (goal: under 15)",
        start.system_seconds,
        start.machine_seconds,
        start.system_seconds + start.machine_seconds
    );
    let repeats = report.godwit.iter().map(|a| a.repeats);
    let repeats: usize = repeats.chain(report.raw.iter().map(|b| b.repeats)).sum();
    if repeats > 0 {
        println!("\nWARNING: {repeats} heartbeats came twice or too late.");
    }
}

fn moves(report: &Report) -> Table {
    let all = &report.summary;
    let rows: [(&str, &Summary, &str); 14] = [
        ("Godwit: POST to Succeeded", &all.godwit_total, ""),
        ("raw: spawn to source gone", &all.raw_total, ""),
        ("difference of pairs", &all.overhead, "p50 <= 25"),
        ("  without the copies", &all.overhead_outside_copy, ""),
        ("  with raw's tap", &all.overhead_with_tap, ""),
        ("Godwit: blackout by heartbeat", &all.godwit_blackout, ""),
        ("raw: blackout by heartbeat", &all.raw_blackout, ""),
        ("difference of pairs", &all.added_blackout, "p50 <= 2"),
        ("Godwit: STOP to RESUME", &all.godwit_recorded_blackout, ""),
        ("raw: STOP to RESUME", &all.raw_recorded_blackout, ""),
        (
            "Godwit: STOP to completed",
            &all.godwit_stop_to_completed,
            "",
        ),
        (
            "Godwit: completed to RESUME",
            &all.godwit_completed_to_running,
            "",
        ),
        ("Godwit: POST to its answer", &all.accepted, ""),
        ("raw: making the tap before", &all.raw_tap, ""),
    ];
    let mut table = table(&[
        "",
        "p50",
        "95% of p50",
        "mean",
        "p99",
        "min",
        "max",
        "n",
        "goal",
    ]);
    for (name, summary, goal) in rows {
        let mut row = vec![
            name.to_owned(),
            number(summary.p50),
            format!("{:.1} .. {:.1}", summary.p50_low, summary.p50_high),
        ];
        let rest = [summary.mean, summary.p99, summary.min, summary.max];
        row.extend(rest.map(number));
        row.extend([summary.n.to_string(), goal.to_owned()]);
        table.add_row(row);
    }
    table
}

fn steps(steps: &[MeanStep]) -> Table {
    let mut table = table(&["", "mean", "p50", "p99", "min", "max"]);
    for MeanStep { name, ms } in steps {
        let numbers = [ms.mean, ms.p50, ms.p99, ms.min, ms.max].map(number);
        let row = std::iter::once(name.clone()).chain(numbers);
        table.add_row(row.collect::<Vec<_>>());
    }
    let sum: f64 = steps.iter().map(|step| step.ms.mean).sum();
    table.add_row(["sum of means", &number(sum)]);
    table
}

fn memory(report: &Report) -> Table {
    let header = [
        "",
        "RSS 0",
        "RSS 1",
        "RSS",
        "of it anon",
        "peak",
        "threads",
        "goal",
    ];
    let mut table = table(&header);
    for after in &report.memory_machines {
        let rss = |earlier: &[Memory]| {
            let same = earlier
                .iter()
                .find(|memory| memory.service == after.service);
            same.map(|memory| memory.rss_kib).unwrap_or_default()
        };
        let is_agent = after.service.starts_with("worker");
        let mut row = vec![after.service.clone()];
        let kib = [
            rss(&report.memory_ready),
            rss(&report.memory_rest),
            after.rss_kib,
            after.rss_anon_kib,
            after.peak_kib,
        ];
        row.extend(kib.map(mib));
        row.push(after.threads.to_string());
        row.push(if is_agent { "RSS <= 15" } else { "RSS <= 40" }.to_owned());
        table.add_row(row);
    }
    table
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn number(value: f64) -> String {
    format!("{value:.2}")
}

#[allow(clippy::cast_precision_loss)]
fn mib(kib: u64) -> String {
    format!("{:.1}", kib as f64 / 1024.0)
}
