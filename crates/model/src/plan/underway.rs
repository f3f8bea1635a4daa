//! How long a migration that is under way still takes: by how far its copy is.

use std::time::Duration;

use crate::forecast::Forecast;

/// The switch, the start of the target and the removal of leftovers.
const TAIL: Duration = Duration::from_millis(300);
/// Nothing under way ends sooner.
const LEAST: Duration = Duration::from_millis(100);
/// A guest that writes nearly as fast as the link carries is slowed, or ends by a deadline.
const RATIO_MAX: f64 = 0.9;

/// How far a copy is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes of memory.
    pub total: u64,
    /// Bytes of memory that are not there yet, in this pass.
    pub remaining: u64,
    /// Bytes that were sent, in all passes.
    pub transferred: u64,
    /// Bytes sent each second.
    pub rate: u64,
    /// Bytes that the guest writes each second.
    pub dirty: u64,
}

/// What is left of a migration that was expected to be `forecast`, has been copying for `copying`,
/// and is so far; `None` before there is a measurement.
pub fn rest(forecast: &Forecast, copying: Duration, copied: Option<Copied>) -> Forecast {
    let measured = copied.filter(|copied| copied.rate > 0 && copied.total > 0);
    let takes = match measured {
        Some(copied) => left(forecast, copied).saturating_add(TAIL),
        None => forecast.takes.saturating_sub(copying),
    };
    let takes = takes.max(LEAST);
    let share = takes.as_secs_f64() / forecast.takes.max(LEAST).as_secs_f64();
    let scaled = |time: Duration| {
        Duration::try_from_secs_f64(time.as_secs_f64() * share).unwrap_or(Duration::MAX)
    };
    Forecast {
        takes,
        at_least: scaled(forecast.at_least).min(takes),
        at_most: scaled(forecast.at_most).max(takes),
        ..*forecast
    }
}

/// Until the copy is over.
fn left(forecast: &Forecast, copied: Copied) -> Duration {
    let rate = float(copied.rate);
    let (total, remaining) = (float(copied.total), float(copied.remaining));
    let (seen, sent) = (total - remaining, float(copied.transferred));
    // Pages of zeros are not sent, so memory that is left is more than what will be sent of it. A
    // guest's memory is not alike from end to end: the more of it was looked at, the more that says
    // about the rest.
    let by_forecast = (float(forecast.bytes.0) - sent).clamp(0.0, remaining);
    let by_measure = remaining * (sent / seen.max(1.0)).min(1.0);
    let trusted = seen / total;
    let bytes = trusted * by_measure + (1.0 - trusted) * by_forecast;
    // All passes together are this one, divided by one less their ratio.
    let ratio = (float(copied.dirty) / rate).min(RATIO_MAX);
    Duration::try_from_secs_f64(bytes / rate / (1.0 - ratio)).unwrap_or(Duration::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "an estimate needs no more")]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bytes;

    const MIB: u64 = 1 << 20;

    fn forecast() -> Forecast {
        Forecast {
            takes: Duration::from_secs(10),
            at_least: Duration::from_secs(5),
            at_most: Duration::from_secs(20),
            blackout: Duration::from_millis(50),
            bytes: Bytes(512 * MIB),
            converges: true,
        }
    }

    fn seconds(copied: Copied) -> f64 {
        let rest = rest(&forecast(), Duration::from_secs(1), Some(copied));
        assert!(rest.at_least <= rest.takes && rest.takes <= rest.at_most);
        (rest.takes - TAIL).as_secs_f64()
    }

    #[test]
    fn the_more_was_looked_at_the_more_it_says_about_the_rest() {
        // A quarter of it was sent, and the forecast says half.
        let seen = |mib: u64| {
            seconds(Copied {
                total: 1024 * MIB,
                remaining: (1024 - mib) * MIB,
                transferred: mib / 4 * MIB,
                rate: 64 * MIB,
                dirty: 0,
            })
        };
        assert!((seen(0) - 8.0).abs() < 0.01, "by the forecast");
        let half = f64::midpoint(128.0, 384.0) / 64.0;
        assert!((seen(512) - half).abs() < 0.01, "by both");
        assert!(seen(1000) < 0.3, "by what was sent: 6 MiB are left");
    }

    #[test]
    fn what_the_guest_writes_is_sent_too() {
        let copied = Copied {
            total: 1024 * MIB,
            remaining: 512 * MIB,
            transferred: 256 * MIB,
            rate: 64 * MIB,
            dirty: 0,
        };
        assert!((seconds(copied) - 4.0).abs() < 0.01);
        let dirty = Copied {
            dirty: 32 * MIB,
            ..copied
        };
        assert!((seconds(dirty) - 8.0).abs() < 0.01);
    }

    #[test]
    fn without_a_measurement_the_forecast_runs_down() {
        let rest = |copying| rest(&forecast(), Duration::from_secs(copying), None);
        assert_eq!(rest(4).takes, Duration::from_secs(6));
        assert_eq!(rest(4).at_most, Duration::from_secs(12));
        assert_eq!(rest(60).takes, LEAST);
    }
}
