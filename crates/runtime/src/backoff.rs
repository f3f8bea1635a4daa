//! Pauses between attempts: each about twice as long as the one before, never quite the same.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio_util::sync::CancellationToken;

/// Endless pauses from `min` to `max`, with jitter so that many don't come back at once.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    pauses: ExponentialBackoff,
    max: Duration,
}

impl Backoff {
    /// The first pause is `min` to twice `min`, the longest `max` to twice `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        let builder = ExponentialBuilder::new()
            .with_min_delay(min)
            .with_max_delay(max)
            .with_factor(2.0)
            .with_jitter()
            .without_max_times();
        Self {
            pauses: builder.build(),
            builder,
            max,
        }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(self.max)
    }

    /// Begins anew: something worked.
    pub fn reset(&mut self) {
        self.pauses = self.builder.build();
    }

    /// Waits for the next pause; `false` when `shutdown` came first.
    pub async fn wait(&mut self, shutdown: &CancellationToken) -> bool {
        tokio::select! {
            () = shutdown.cancelled() => false,
            () = tokio::time::sleep(self.pause()) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_begin_anew() {
        let (min, max) = (Duration::from_millis(10), Duration::from_millis(100));
        let mut backoff = Backoff::new(min, max);
        let first = backoff.pause();
        assert!(first >= min && first <= min * 2, "{first:?}");
        for _ in 0..20 {
            assert!(backoff.pause() <= max * 2);
        }
        assert!(backoff.pause() >= max);
        backoff.reset();
        assert!(backoff.pause() <= min * 2);
    }

    #[tokio::test]
    async fn a_shutdown_cuts_a_pause_short() {
        let hour = Duration::from_secs(3600);
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        assert!(!Backoff::new(hour, hour).wait(&shutdown).await);
    }
}
