//! Virtual time: what hosts and links need, much faster than they would.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// A clock that runs `speed` times as fast as the real one.
#[derive(Debug)]
pub(crate) struct VirtualTime {
    began: Instant,
    /// The wall clock then, microseconds since the Unix epoch.
    began_us: u64,
    speed: f64,
}

impl VirtualTime {
    /// Begins now, at the present time.
    pub(crate) fn new(speed: f64) -> Self {
        Self {
            began: Instant::now(),
            began_us: u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default(),
            speed: speed.max(f64::MIN_POSITIVE),
        }
    }

    /// Time since the beginning.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed().mul_f64(self.speed)
    }

    /// As hosts tell it: microseconds since the Unix epoch.
    pub(crate) fn micros(&self) -> u64 {
        let passed = u64::try_from(self.now().as_micros()).unwrap_or(u64::MAX);
        self.began_us.saturating_add(passed)
    }

    /// Waits for so much of virtual time.
    pub(crate) async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time.div_f64(self.speed)).await;
    }
}
