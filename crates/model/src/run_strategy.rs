//! Whether a virtual machine shall have an instance, and how soon after one that failed.
//!
//! KubeVirt's rules. Called by `scheduler/src/vm.rs`.

use std::time::Duration;

/// A machine that ran for so long before it failed did start: the next run need not wait.
const RAN_WELL: Duration = Duration::from_secs(60);
/// Pause after the first failed start: KubeVirt's.
const PAUSE_FIRST: Duration = Duration::from_secs(10);
/// Longest pause between two starts: KubeVirt's.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// When a virtual machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunStrategy {
    /// All the time.
    Always,
    /// Until it shuts itself down.
    RerunOnFailure,
    /// As somebody starts and stops it.
    Manual,
    /// Once: an instance that ended is kept, and not run again.
    Once,
    /// Not at all.
    Halted,
}

/// What has become of a virtual machine's instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Instance {
    /// There is none.
    Absent,
    /// It runs, or is on its way to.
    Alive,
    /// It shut itself down.
    Succeeded,
    /// It failed.
    Failed,
}

/// What a virtual machine wants of its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wish {
    /// There shall be one that runs; one that has ended makes room for the next.
    Run,
    /// There shall be none.
    Halt,
    /// It stays as it is.
    Keep,
}

impl Instance {
    /// Whether it was there, and is over.
    pub const fn has_ended(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed => true,
            Self::Absent | Self::Alive => false,
        }
    }
}

impl RunStrategy {
    /// Reads `spec.runStrategy` and `spec.running`. What says nothing that is known is `Halted`.
    pub fn read(strategy: Option<&str>, running: Option<bool>) -> Self {
        match (strategy, running) {
            (Some("Always"), _) | (None, Some(true)) => Self::Always,
            (Some("RerunOnFailure"), _) => Self::RerunOnFailure,
            (Some("Manual"), _) => Self::Manual,
            (Some("Once"), _) => Self::Once,
            (Some(_), _) | (None, Some(false) | None) => Self::Halted,
        }
    }

    /// KubeVirt's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::RerunOnFailure => "RerunOnFailure",
            Self::Manual => "Manual",
            Self::Once => "Once",
            Self::Halted => "Halted",
        }
    }

    /// What it wants, `instance` being as it is.
    pub const fn wish(self, instance: Instance) -> Wish {
        match (self, instance) {
            (Self::RerunOnFailure, Instance::Succeeded) => Wish::Keep,
            (Self::Always | Self::RerunOnFailure, _) | (Self::Once, Instance::Absent) => Wish::Run,
            (Self::Once, Instance::Alive | Instance::Succeeded | Instance::Failed)
            | (Self::Manual, _) => Wish::Keep,
            (Self::Halted, _) => Wish::Halt,
        }
    }
}

/// Failed starts in a row once an instance failed that had been running for `ran`, or never was
/// (`None`).
pub fn failures(before: u32, ran: Option<Duration>) -> u32 {
    if has_run_well(ran) {
        0
    } else {
        before.saturating_add(1)
    }
}

/// Whether an instance that runs for `ran` has put earlier failures right.
pub fn has_run_well(ran: Option<Duration>) -> bool {
    ran.is_some_and(|ran| ran >= RAN_WELL)
}

/// The pause before the next start, after so many failures in a row.
pub fn pause(failures: u32) -> Duration {
    PAUSE_FIRST
        .saturating_mul(failures.saturating_mul(failures))
        .min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_strategy_wants_what_kubevirt_says() {
        use Instance as I;
        use Wish as W;
        let all = [I::Absent, I::Alive, I::Succeeded, I::Failed];
        for (strategy, wanted) in [
            (RunStrategy::Always, [W::Run; 4]),
            (
                RunStrategy::RerunOnFailure,
                [W::Run, W::Run, W::Keep, W::Run],
            ),
            (RunStrategy::Manual, [W::Keep; 4]),
            (RunStrategy::Once, [W::Run, W::Keep, W::Keep, W::Keep]),
            (RunStrategy::Halted, [W::Halt; 4]),
        ] {
            assert_eq!(
                all.map(|instance| strategy.wish(instance)),
                wanted,
                "{strategy:?}"
            );
        }
    }

    #[test]
    fn the_old_field_is_read_where_the_new_one_is_missing() {
        let read = RunStrategy::read;
        assert_eq!(read(None, Some(true)), RunStrategy::Always);
        assert_eq!(read(None, Some(false)), RunStrategy::Halted);
        assert_eq!(read(None, None), RunStrategy::Halted);
        for name in ["Always", "RerunOnFailure", "Manual", "Once", "Halted"] {
            assert_eq!(read(Some(name), Some(true)).as_str(), name);
        }
    }

    #[test]
    fn who_fails_at_once_waits_longer_each_time_and_who_ran_well_does_not() {
        let seconds = |failures| pause(failures).as_secs();
        assert_eq!([0, 1, 2, 3, 6].map(seconds), [0, 10, 40, 90, 300]);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
        assert_eq!(failures(3, None), 4);
        assert_eq!(failures(3, Some(Duration::from_secs(59))), 4);
        assert_eq!(failures(3, Some(Duration::from_secs(60))), 0);
    }
}
