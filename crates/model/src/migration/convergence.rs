//! Whether a copy may go on: from its numbers and the limits to a verdict.
//!
//! The same two time limits as KubeVirt's, with the reason kept: a deadline that grows with the
//! machine's memory, and a limit on time without progress.

use super::fact::Progress;
use crate::Bytes;
use std::time::Duration;

/// The limits of one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyLimits {
    /// Seconds allowed for each 10^9 bytes of memory, begun ones counted; 0 means no deadline.
    pub completion_timeout_per_gib: u64,
    /// Seconds allowed without a new lowest count of remaining bytes; 0 means no limit.
    pub progress_timeout: u64,
    /// Whether the guest may stand still until the rest is there, rather than the copy be given up.
    pub may_pause: bool,
}

/// Blackout that QEMU may plan for at the beginning of a copy.
const BLACKOUT_FIRST: Duration = Duration::from_millis(5);
/// Time after which twice as much is allowed. QEMU judges every 0.1 s whether the rest fits.
const BLACKOUT_DOUBLES: Duration = Duration::from_millis(200);

/// The blackout that QEMU may plan for when it has been sending for so long what the guest wrote
/// meanwhile; at most `limit`.
///
/// QEMU uses up what it is allowed, so it is allowed little; and more only as a busy guest's copy
/// doesn't come to its end.
#[must_use]
pub fn planned_blackout(resending: Duration, limit: Duration) -> Duration {
    let doublings = resending.as_millis() / BLACKOUT_DOUBLES.as_millis();
    let factor = u32::try_from(doublings).ok();
    let factor = factor.and_then(|doublings| 1_u32.checked_shl(doublings));
    BLACKOUT_FIRST
        .saturating_mul(factor.unwrap_or(u32::MAX))
        .min(limit)
}

/// What is to happen with a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Within its limits.
    GoOn,
    /// Past a limit; the text says which.
    GiveUp(String),
}

/// Remembers how low the remaining bytes have been, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Convergence {
    lowest: Option<(Bytes, Duration)>,
    /// When a limit was reached although the guest may be paused, and which.
    resort: Option<(Duration, String)>,
}

/// A limit that a copy has reached.
struct Reached {
    /// Which, with the numbers.
    why: String,
    /// What was allowed: as much again is given to a copy that may pause its guest.
    seconds: u64,
}

impl Convergence {
    /// Judges a copy that began `elapsed` ago and has made `progress`.
    pub fn judge(&mut self, limits: CopyLimits, progress: &Progress, elapsed: Duration) -> Verdict {
        let Some(Reached { why, seconds }) = self.reached(limits, progress, elapsed) else {
            return Verdict::GoOn;
        };
        if !limits.may_pause {
            return Verdict::GiveUp(why);
        }
        let (since, _) = self.resort.get_or_insert_with(|| (elapsed, why.clone()));
        match elapsed.saturating_sub(*since).as_secs() >= seconds {
            true => Verdict::GiveUp(why),
            false => Verdict::GoOn,
        }
    }

    /// Why the guest is to be stopped until the rest is there; `None` while that is not needed or
    /// not allowed.
    pub fn last_resort(&self) -> Option<&str> {
        self.resort.as_ref().map(|(_, why)| why.as_str())
    }

    fn reached(
        &mut self,
        limits: CopyLimits,
        progress: &Progress,
        elapsed: Duration,
    ) -> Option<Reached> {
        let lowest = self.lowest.get_or_insert((progress.remaining, elapsed));
        if progress.remaining < lowest.0 {
            *lowest = (progress.remaining, elapsed);
        }
        let stuck = elapsed.saturating_sub(lowest.1).as_secs();
        if limits.progress_timeout > 0 && stuck >= limits.progress_timeout {
            let why = format!(
                "no progress for {stuck} s (progressTimeout {} s): {} remain, the guest dirties {}/s and {}/s are sent",
                limits.progress_timeout,
                progress.remaining,
                Bytes(progress.dirty_rate),
                Bytes(progress.throughput),
            );
            let seconds = limits.progress_timeout;
            return Some(Reached { why, seconds });
        }
        let allowed = deadline(limits, progress.total);
        if allowed > 0 && elapsed.as_secs() >= allowed {
            let why = format!(
                "not complete after {} s (completionTimeoutPerGiB {} s): {} of {} remain",
                elapsed.as_secs(),
                limits.completion_timeout_per_gib,
                progress.remaining,
                progress.total,
            );
            let seconds = allowed;
            return Some(Reached { why, seconds });
        }
        None
    }
}

fn deadline(limits: CopyLimits, total: Bytes) -> u64 {
    limits.completion_timeout_per_gib * total.0.div_ceil(1_000_000_000).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CopyLimits = CopyLimits {
        completion_timeout_per_gib: 100,
        progress_timeout: 20,
        may_pause: false,
    };

    fn left(remaining: u64) -> Progress {
        Progress {
            remaining: Bytes::mib(remaining),
            total: Bytes::mib(1024),
            ..Progress::default()
        }
    }

    #[test]
    fn a_blackout_is_planned_short_until_it_shows_that_it_takes_more() {
        let limit = Duration::from_millis(100);
        let plan = [0, 199, 200, 400, 600, 800, 1000, 10_000, u64::MAX]
            .map(|since| planned_blackout(Duration::from_millis(since), limit).as_millis());
        assert_eq!(plan, [5, 5, 10, 20, 40, 80, 100, 100, 100]);
        let strict = Duration::from_millis(2);
        assert_eq!(planned_blackout(Duration::ZERO, strict), strict);
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_copy_that_shrinks_goes_on() {
        let mut copy = Convergence::default();
        for second in 0..90 {
            let verdict = copy.judge(LIMITS, &left(1000 - second), at(second));
            assert_eq!(verdict, Verdict::GoOn);
        }
    }

    #[test]
    fn a_copy_that_only_oscillates_is_given_up_with_its_numbers() {
        let mut copy = Convergence::default();
        copy.judge(LIMITS, &left(100), at(0));
        assert_eq!(copy.judge(LIMITS, &left(300), at(19)), Verdict::GoOn);
        let Verdict::GiveUp(why) = copy.judge(LIMITS, &left(100), at(20)) else {
            panic!("a stuck copy went on");
        };
        assert!(
            why.contains("progressTimeout 20 s") && why.contains("100 MiB remain"),
            "{why}"
        );
    }

    #[test]
    fn the_deadline_grows_with_memory_and_zero_means_none() {
        let mut copy = Convergence::default();
        let limits = CopyLimits {
            progress_timeout: 0,
            ..LIMITS
        };
        assert_eq!(copy.judge(limits, &left(9), at(199)), Verdict::GoOn);
        assert!(matches!(
            copy.judge(limits, &left(9), at(200)),
            Verdict::GiveUp(_)
        ));
        let none = CopyLimits {
            completion_timeout_per_gib: 0,
            progress_timeout: 0,
            ..LIMITS
        };
        assert_eq!(copy.judge(none, &left(9), at(100_000)), Verdict::GoOn);
    }

    #[test]
    fn a_copy_whose_guest_may_be_paused_gets_the_same_time_again() {
        let mut copy = Convergence::default();
        let limits = CopyLimits {
            progress_timeout: 0,
            may_pause: true,
            ..LIMITS
        };
        assert_eq!(copy.judge(limits, &left(9), at(199)), Verdict::GoOn);
        assert_eq!(copy.last_resort(), None);
        assert_eq!(copy.judge(limits, &left(9), at(200)), Verdict::GoOn);
        let why = copy.last_resort().unwrap_or_default();
        assert!(why.contains("not complete after 200 s"), "{why}");
        assert_eq!(copy.judge(limits, &left(9), at(399)), Verdict::GoOn);
        assert!(matches!(
            copy.judge(limits, &left(9), at(400)),
            Verdict::GiveUp(_)
        ));
    }
}
