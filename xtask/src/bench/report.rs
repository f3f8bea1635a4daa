//! What the bench reports, as JSON: these types are the schema. Times are in milliseconds unless
//! the name says otherwise, memory is in KiB. A number that could not be had is `null`.

use std::time::Duration;

use serde::Serialize;

use super::stats::Summary;

/// Version of this schema; grows when a field changes its meaning or goes.
pub(crate) const SCHEMA: u32 = 1;

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    /// Where and how it was measured.
    pub(crate) machine: Machine,
    /// What was asked for.
    pub(crate) settings: Settings,
    /// From nothing to a first machine.
    pub(crate) cold_start: ColdStart,
    /// Each move, in the order of the pairs; warm-up moves are left out.
    pub(crate) godwit: Vec<GodwitMove>,
    /// Each raw move, in the order of the pairs.
    pub(crate) raw: Vec<RawMove>,
    /// What the moves say together.
    pub(crate) summary: Summaries,
    /// Mean time in each state of a migration, and on the ways to the first and from the last.
    pub(crate) godwit_steps: Vec<MeanStep>,
    /// Mean time of each step of the raw script.
    pub(crate) raw_steps: Vec<MeanStep>,
    /// Services that have just become ready, without machines.
    pub(crate) memory_ready: Vec<Memory>,
    /// Services at rest before the moves, with one machine.
    pub(crate) memory_rest: Vec<Memory>,
    /// Services after the moves, with `settings.machines` machines.
    pub(crate) memory_machines: Vec<Memory>,
}

/// The machine that it ran on.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    /// When it began, RFC 3339, UTC.
    pub(crate) date: String,
    /// Commit of the sources; `-dirty` when they differ from it.
    pub(crate) commit: String,
    /// CPUs.
    pub(crate) cores: usize,
    /// Their model.
    pub(crate) cpu: String,
    /// Memory in KiB.
    pub(crate) memory_kib: u64,
    /// The kernel.
    pub(crate) kernel: String,
    /// QEMU.
    pub(crate) qemu: String,
    /// `kvm` or `tcg`.
    pub(crate) accelerator: String,
    /// Load averages before: 1, 5 and 15 minutes. Anything else that runs spoils the numbers.
    pub(crate) load_before: String,
    /// Load averages after the moves.
    pub(crate) load_after: String,
    /// Share of CPU time, in percent, that the hypervisor took away during the moves.
    pub(crate) steal_percent: f64,
}

/// What was asked for.
#[derive(Debug, Serialize)]
pub(crate) struct Settings {
    /// Pairs of moves, in the order A B B A.
    pub(crate) pairs: usize,
    /// Pairs before those, not counted.
    pub(crate) warm_up_pairs: usize,
    /// Build profile of the services.
    pub(crate) profile: String,
    /// Memory of the machines that move, MiB.
    pub(crate) memory_mib: u64,
    /// Milliseconds between two heartbeats.
    pub(crate) tick: u32,
    /// QEMU's downtime limit, the same in both arms.
    pub(crate) downtime_limit: u64,
    /// Bytes per second, the same in both arms; 0 is unlimited.
    pub(crate) bandwidth: u64,
    /// Whether the raw source stops in pre-switchover, as the product's does.
    pub(crate) raw_pauses_before_switchover: bool,
    /// Machines in the last measurement of memory.
    pub(crate) machines: usize,
}

/// From nothing to a first machine, with programs built and packages installed.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct ColdStart {
    /// Postgres, hosts, certificates, services: until all are ready. Seconds.
    pub(crate) system_seconds: f64,
    /// From the request for the first machine until its instance is `Running`. Seconds.
    pub(crate) machine_seconds: f64,
}

/// One move through the API.
#[derive(Debug, Serialize)]
pub(crate) struct GodwitMove {
    /// From sending the POST until the watch said `Succeeded`.
    pub(crate) total_ms: f64,
    /// Of that, QEMU's own number for the copy, from `migrate` to `completed`.
    pub(crate) copy_ms: Option<u64>,
    /// From sending the POST until its answer.
    pub(crate) accepted_ms: f64,
    /// Longest silence of the heartbeat around the switch-over.
    pub(crate) blackout_ms: Option<f64>,
    /// Longest silence of the heartbeat during the whole move.
    pub(crate) longest_gap_ms: f64,
    /// Heartbeats that came twice or too late since the guest's start; must be 0.
    pub(crate) repeats: usize,
    /// What the product recorded: from QEMU's STOP on the source to RESUME on the target.
    pub(crate) recorded_blackout_ms: Option<f64>,
    /// Of that, QEMU's part: from STOP to `completed` on the source.
    pub(crate) stop_to_completed_ms: Option<f64>,
    /// Of that, the hand-over: from `completed` on the source to RESUME on the target.
    pub(crate) completed_to_running_ms: Option<f64>,
    /// QEMU's own number for its part.
    pub(crate) qemu_downtime_ms: Option<u64>,
    /// Bytes sent.
    pub(crate) bytes: Option<u64>,
    /// Passes over the memory.
    pub(crate) passes: Option<u64>,
    /// Time in each recorded state.
    pub(crate) steps: Vec<Step>,
}

/// One move by the script.
#[derive(Debug, Serialize)]
pub(crate) struct RawMove {
    /// From the spawn of the target until it runs and the source has ended.
    pub(crate) total_ms: f64,
    /// Of that, QEMU's own number for the copy, from `migrate` to `completed`.
    pub(crate) copy_ms: Option<u64>,
    /// From the spawn of the target until it was told to run.
    pub(crate) running_ms: f64,
    /// What making the target's tap took before that; not in the total.
    pub(crate) tap_ms: f64,
    /// Longest silence of the heartbeat around the switch-over.
    pub(crate) blackout_ms: Option<f64>,
    /// Longest silence of the heartbeat during the whole move.
    pub(crate) longest_gap_ms: f64,
    /// Heartbeats that came twice or too late since the guest's start; must be 0.
    pub(crate) repeats: usize,
    /// From QEMU's STOP on the source to RESUME on the target.
    pub(crate) qemu_blackout_ms: Option<f64>,
    /// Time of each step.
    pub(crate) steps: Vec<Step>,
}

/// Time between two points of a move.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Step {
    /// The state, or what is done.
    pub(crate) name: String,
    /// How long.
    pub(crate) ms: f64,
}

/// A step over all moves.
#[derive(Debug, Serialize)]
pub(crate) struct MeanStep {
    /// The state, or what is done.
    pub(crate) name: String,
    /// Its times.
    pub(crate) ms: Summary,
}

/// The series of both arms, and the differences of the pairs (Godwit minus raw).
#[derive(Debug, Serialize)]
pub(crate) struct Summaries {
    /// [`GodwitMove::total_ms`]
    pub(crate) godwit_total: Summary,
    /// [`RawMove::total_ms`]
    pub(crate) raw_total: Summary,
    /// Of each pair: what the control plane adds to a move.
    pub(crate) overhead: Summary,
    /// As `overhead`, without QEMU's copy on either side, which varies by more than all else.
    pub(crate) overhead_outside_copy: Summary,
    /// As `overhead`, with the raw script's tap counted in.
    pub(crate) overhead_with_tap: Summary,
    /// [`GodwitMove::blackout_ms`]
    pub(crate) godwit_blackout: Summary,
    /// [`RawMove::blackout_ms`]
    pub(crate) raw_blackout: Summary,
    /// Of each pair: what the control plane adds to a guest's silence.
    pub(crate) added_blackout: Summary,
    /// [`GodwitMove::recorded_blackout_ms`]
    pub(crate) godwit_recorded_blackout: Summary,
    /// [`RawMove::qemu_blackout_ms`]
    pub(crate) raw_recorded_blackout: Summary,
    /// [`GodwitMove::stop_to_completed_ms`]
    pub(crate) godwit_stop_to_completed: Summary,
    /// [`GodwitMove::completed_to_running_ms`]
    pub(crate) godwit_completed_to_running: Summary,
    /// [`GodwitMove::accepted_ms`]
    pub(crate) accepted: Summary,
    /// [`RawMove::tap_ms`]
    pub(crate) raw_tap: Summary,
}

/// One service's memory.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Memory {
    /// Its name in the lab.
    pub(crate) service: String,
    /// Resident.
    pub(crate) rss_kib: u64,
    /// Of that, its own and no file's.
    pub(crate) rss_anon_kib: u64,
    /// Most that was ever resident.
    pub(crate) peak_kib: u64,
    /// Threads.
    pub(crate) threads: u64,
}

/// A time in milliseconds.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl Summaries {
    /// Of the moves of both arms, pair by pair.
    pub(crate) fn of(godwit: &[GodwitMove], raw: &[RawMove]) -> Self {
        let ours = |get: fn(&GodwitMove) -> Option<f64>| Summary::of(godwit.iter().filter_map(get));
        let theirs = |get: fn(&RawMove) -> Option<f64>| Summary::of(raw.iter().filter_map(get));
        let pairs = |get: fn(&GodwitMove, &RawMove) -> f64| {
            Summary::of(godwit.iter().zip(raw).map(|(a, b)| get(a, b)))
        };
        Self {
            godwit_total: ours(|a| Some(a.total_ms)),
            raw_total: theirs(|b| Some(b.total_ms)),
            overhead: pairs(|a, b| a.total_ms - b.total_ms),
            overhead_outside_copy: Summary::of(godwit.iter().zip(raw).filter_map(|(a, b)| {
                Some(outside(a.total_ms, a.copy_ms)? - outside(b.total_ms, b.copy_ms)?)
            })),
            overhead_with_tap: pairs(|a, b| a.total_ms - b.total_ms - b.tap_ms),
            godwit_blackout: ours(|a| a.blackout_ms),
            raw_blackout: theirs(|b| b.blackout_ms),
            added_blackout: Summary::of(
                godwit
                    .iter()
                    .zip(raw)
                    .filter_map(|(a, b)| Some(a.blackout_ms? - b.blackout_ms?)),
            ),
            godwit_recorded_blackout: ours(|a| a.recorded_blackout_ms),
            raw_recorded_blackout: theirs(|b| b.qemu_blackout_ms),
            godwit_stop_to_completed: ours(|a| a.stop_to_completed_ms),
            godwit_completed_to_running: ours(|a| a.completed_to_running_ms),
            accepted: ours(|a| Some(a.accepted_ms)),
            raw_tap: theirs(|b| Some(b.tap_ms)),
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn outside(total_ms: f64, copy_ms: Option<u64>) -> Option<f64> {
    Some(total_ms - copy_ms? as f64)
}

/// Each step over all moves, in the order of the first.
pub(crate) fn mean_steps<'a>(moves: impl Iterator<Item = &'a Vec<Step>> + Clone) -> Vec<MeanStep> {
    let first = moves.clone().next().cloned().unwrap_or_default();
    let of = |name: &str| {
        let all = moves.clone().flatten();
        Summary::of(all.filter(|step| step.name == name).map(|step| step.ms))
    };
    let mean = |step: Step| MeanStep {
        ms: of(&step.name),
        name: step.name,
    };
    first.into_iter().map(mean).collect()
}
