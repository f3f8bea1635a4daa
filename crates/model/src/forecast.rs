//! How long a migration will take, and how long its guest will stand still: from what the machine
//! is, and from what earlier migrations took.
//!
//! Pre-copy sends the memory once, and then again and again what was written meanwhile. With link
//! rate B and dirty rate D each pass is D/B of the one before, until what is left fits into the
//! allowed blackout. Rates, the share of memory that is really sent, and the time around the copy
//! are learned; so is how wrong forecasts were, which gives the band of the next.

use std::collections::HashMap;
use std::time::Duration;

use crate::{Bytes, MachineId, NodeName};

/// Weight of the newest observation; the fifth last still counts for a fifth.
const NEWEST: f64 = 0.3;
/// Before anything was seen: a link of 1 Gbit/s.
const LINK_FIRST: f64 = 118e6;
/// Before anything was seen: what preparing and cleaning up take.
const AROUND_FIRST: f64 = 0.5;
/// Before anything was seen: what a switchover takes beside the memory that is left, which is that of
/// devices, and of a guest that goes on under TCG.
const SWITCH_FIRST: f64 = 0.05;
/// Before anything was seen: forecasts are right within a factor of two, four times of five.
const ERROR_FIRST: f64 = 0.54;
/// Standard deviations around the mean within which four of five lie.
const BAND: f64 = 1.2816;
/// More passes than this never happen: QEMU's throttle or a deadline ends it.
const PASSES_MAX: u32 = 64;

/// What is to be moved.
#[derive(Debug, Clone, Copy)]
pub struct Voyage<'a> {
    /// The machine.
    pub machine: &'a MachineId,
    /// Its memory.
    pub memory: Bytes,
    /// Where it is.
    pub source: &'a NodeName,
    /// Where it goes.
    pub target: &'a NodeName,
    /// Bytes a second that one migration may take; 0 is no limit.
    pub bandwidth: u64,
    /// Longest blackout that is allowed.
    pub downtime: Duration,
}

/// What a migration is expected to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// From when its target is known to its end.
    pub takes: Duration,
    /// Four of five take at least so long.
    pub at_least: Duration,
    /// Four of five take no longer.
    pub at_most: Duration,
    /// The guest's CPUs run nowhere for so long.
    pub blackout: Duration,
    /// Bytes that are sent.
    pub bytes: Bytes,
    /// Whether the copy comes to an end by itself; else only a throttle, a pause or post-copy ends
    /// it, and the times are those of the first passes alone.
    pub converges: bool,
}

/// What a migration was.
#[derive(Debug, Clone, Copy)]
pub struct Passage<'a> {
    /// What was moved.
    pub voyage: Voyage<'a>,
    /// From when its target is known to its end.
    pub took: Duration,
    /// The copy alone.
    pub copy: Duration,
    /// Bytes that were sent.
    pub bytes: Bytes,
    /// Bytes that the guest wrote each second, as QEMU saw it last.
    pub dirty_rate: u64,
    /// How long the guest's CPUs ran nowhere; `None` where that isn't known.
    pub blackout: Option<Duration>,
    /// What was forecast; `None` when nothing was.
    pub forecast: Option<Duration>,
}

/// What was learned.
#[derive(Debug, Clone, Default)]
pub struct Forecaster {
    links: HashMap<(NodeName, NodeName), Mean>,
    any_link: Mean,
    machines: HashMap<MachineId, Guest>,
    /// Share of the memory that the first pass sends.
    any_share: Mean,
    around: Mean,
    /// What a blackout has beside the memory that is left.
    switch: Mean,
    /// Of the square of the logarithm of what was, divided by what was forecast.
    error: Mean,
}

#[derive(Debug, Clone, Default)]
struct Guest {
    share: Mean,
    dirty_rate: Mean,
}

/// A mean that forgets; `None` before anything was seen.
#[derive(Debug, Clone, Copy, Default)]
struct Mean(Option<f64>);

impl Mean {
    fn learn(&mut self, value: f64) {
        let mean = self.0.unwrap_or(value);
        self.0 = Some(mean + NEWEST * (value - mean));
    }

    fn mean(&self) -> Option<f64> {
        self.0
    }
}

impl Forecaster {
    /// What to expect of `voyage`.
    pub fn forecast(&self, voyage: Voyage<'_>) -> Forecast {
        let (bytes, copy, left) = self.copy(voyage);
        let rate = self.rate(voyage);
        let around = self.around.mean().unwrap_or(AROUND_FIRST);
        let takes = copy + around;
        let spread = self.spread();
        let converges = left <= rate * voyage.downtime.as_secs_f64();
        let switch = self.switch.mean().unwrap_or(SWITCH_FIRST);
        let blackout = switch + left_time(left, rate, voyage);
        Forecast {
            takes: seconds(takes),
            at_least: seconds(takes / (BAND * spread).exp()),
            at_most: seconds(takes * (BAND * spread).exp()),
            blackout: seconds(blackout),
            bytes: whole(bytes),
            converges,
        }
    }

    /// Bytes and seconds of the copy, and bytes that are left for the blackout.
    fn copy(&self, voyage: Voyage<'_>) -> (f64, f64, f64) {
        let rate = self.rate(voyage);
        let guest = self.machines.get(voyage.machine);
        let share = guest.and_then(|guest| guest.share.mean());
        let share = share.or_else(|| self.any_share.mean()).unwrap_or(1.0);
        let dirty = guest
            .and_then(|guest| guest.dirty_rate.mean())
            .unwrap_or(0.0);
        let enough = rate * voyage.downtime.as_secs_f64();
        let mut left = float(voyage.memory.0) * share;
        let (mut bytes, mut time) = (0.0, 0.0);
        for _ in 0..PASSES_MAX {
            if left <= enough && bytes > 0.0 {
                break;
            }
            let pass = left / rate;
            bytes += left;
            time += pass;
            // It can't write more than it has.
            let written = (dirty * pass).min(float(voyage.memory.0));
            if written >= left {
                left = written;
                break;
            }
            left = written;
        }
        (bytes, time, left)
    }

    /// Bytes a second.
    fn rate(&self, voyage: Voyage<'_>) -> f64 {
        let way = (voyage.source.clone(), voyage.target.clone());
        let link = self.links.get(&way).and_then(Mean::mean);
        let rate = link.or_else(|| self.any_link.mean()).unwrap_or(LINK_FIRST);
        match voyage.bandwidth {
            0 => rate,
            limit => rate.min(float(limit)),
        }
    }

    /// Standard deviation of the logarithm of what was, divided by what was forecast.
    fn spread(&self) -> f64 {
        self.error.mean().map_or(ERROR_FIRST, f64::sqrt)
    }

    /// Learns from a migration that came to a good end.
    pub fn learn(&mut self, passage: Passage<'_>) {
        let voyage = passage.voyage;
        let copy = passage.copy.as_secs_f64();
        if copy <= 0.0 || voyage.memory.0 == 0 {
            return;
        }
        let bytes = float(passage.bytes.0);
        let rate = bytes / copy;
        // A limit says nothing about the link.
        if voyage.bandwidth == 0 || rate < 0.9 * float(voyage.bandwidth) {
            let way = (voyage.source.clone(), voyage.target.clone());
            self.links.entry(way).or_default().learn(rate);
            self.any_link.learn(rate);
        }
        // All passes together are the first one, divided by one less their ratio.
        let ratio = (float(passage.dirty_rate) / rate).min(0.9);
        let share = (bytes * (1.0 - ratio) / float(voyage.memory.0)).min(1.0);
        let guest = self.machines.entry(voyage.machine.clone()).or_default();
        guest.share.learn(share);
        guest.dirty_rate.learn(float(passage.dirty_rate));
        self.any_share.learn(share);
        let around = passage.took.saturating_sub(passage.copy).as_secs_f64();
        self.around.learn(around);
        if let Some(blackout) = passage.blackout {
            let (_, _, left) = self.copy(voyage);
            let left = left_time(left, self.rate(voyage), voyage);
            self.switch.learn((blackout.as_secs_f64() - left).max(0.0));
        }
        if let Some(forecast) = passage.forecast.filter(|time| !time.is_zero()) {
            let (was, said) = (passage.took.as_secs_f64(), forecast.as_secs_f64());
            let off = (was / said).max(1e-3).ln();
            // One that was right by chance does not make the band narrow.
            self.error.0.get_or_insert(ERROR_FIRST * ERROR_FIRST);
            self.error.learn(off * off);
        }
    }

    /// Forgets machines that are gone.
    pub fn retain(&mut self, is_there: impl Fn(&MachineId) -> bool) {
        self.machines.retain(|machine, _| is_there(machine));
    }
}

/// Seconds that the memory which is left takes, of those that are allowed.
fn left_time(left: f64, rate: f64, voyage: Voyage<'_>) -> f64 {
    (left / rate).min(voyage.downtime.as_secs_f64())
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "an estimate needs no more")]
fn float(number: u64) -> f64 {
    number as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate that is never below zero; a cast ends at the largest number"
)]
fn whole(number: f64) -> Bytes {
    Bytes(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> MachineId {
        MachineId::parse(format!("43f5b34d-94b4-4cda-9a69-{number:012}")).expect("a uuid")
    }

    fn name(node: &str) -> NodeName {
        NodeName::parse(node).expect("a name")
    }

    struct World {
        machine: MachineId,
        nodes: [NodeName; 2],
    }

    impl World {
        fn new() -> Self {
            Self {
                machine: id(1),
                nodes: [name("worker1"), name("worker2")],
            }
        }

        fn voyage(&self) -> Voyage<'_> {
            Voyage {
                machine: &self.machine,
                memory: Bytes(1_000_000_000),
                source: &self.nodes[0],
                target: &self.nodes[1],
                bandwidth: 0,
                downtime: Duration::from_millis(100),
            }
        }

        /// A link of 100 MB/s, half of the memory in use, so many bytes written a second, a second
        /// around the copy: what the real world would do.
        fn passage(&self, dirty: f64, forecast: Option<Duration>) -> Passage<'_> {
            let (mut left, mut bytes) = (0.5e9, 0.0);
            while left > 1e7 {
                bytes += left;
                left = dirty * left / 1e8;
            }
            let copy = seconds(bytes / 1e8);
            Passage {
                voyage: self.voyage(),
                took: copy + Duration::from_secs(1),
                copy,
                bytes: whole(bytes),
                dirty_rate: whole(dirty).0,
                blackout: Some(seconds(left / 1e8 + 0.02)),
                forecast,
            }
        }
    }

    fn off(forecast: &Forecast, passage: &Passage<'_>) -> f64 {
        (forecast.takes.as_secs_f64() / passage.took.as_secs_f64() - 1.0).abs()
    }

    #[test]
    fn before_anything_was_seen_the_band_is_wide() {
        let world = World::new();
        let forecast = Forecaster::default().forecast(world.voyage());
        assert!(forecast.converges);
        let takes = forecast.takes.as_secs_f64();
        assert!((takes - (1e9 / LINK_FIRST + AROUND_FIRST)).abs() < 0.01);
        let band = forecast.at_most.as_secs_f64() / forecast.at_least.as_secs_f64();
        assert!((3.5..4.5).contains(&band), "{band}");
    }

    #[test]
    fn it_learns_links_memory_and_what_guests_write() {
        let world = World::new();
        let mut forecaster = Forecaster::default();
        for dirty in [0.0, 3e7] {
            for _ in 0..12 {
                let said = forecaster.forecast(world.voyage()).takes;
                forecaster.learn(world.passage(dirty, Some(said)));
            }
            let forecast = forecaster.forecast(world.voyage());
            let real = world.passage(dirty, None);
            assert!(off(&forecast, &real) < 0.1, "{forecast:?} {real:?}");
            assert!(forecast.at_least <= real.took && real.took <= forecast.at_most);
            let blackout = real.blackout.unwrap_or_default().as_secs_f64();
            let off = forecast.blackout.as_secs_f64() / blackout - 1.0;
            assert!(off.abs() < 0.25, "{forecast:?} {real:?}");
        }
        // Another machine on the same link, of which nothing is known.
        let other = id(2);
        let voyage = Voyage {
            machine: &other,
            ..world.voyage()
        };
        let takes = forecaster.forecast(voyage).takes.as_secs_f64();
        assert!((3.0..12.0).contains(&takes), "{takes}");
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_link_never_ends_by_itself() {
        let world = World::new();
        let mut forecaster = Forecaster::default();
        let mut passage = world.passage(0.0, None);
        passage.dirty_rate = 200_000_000;
        forecaster.learn(passage);
        let forecast = forecaster.forecast(world.voyage());
        assert!(!forecast.converges);
        assert!(forecast.blackout >= Duration::from_millis(100));
    }

    #[test]
    fn a_limit_slows_the_copy_and_teaches_nothing_about_the_link() {
        let world = World::new();
        let limited = Voyage {
            bandwidth: 10_000_000,
            ..world.voyage()
        };
        let mut forecaster = Forecaster::default();
        forecaster.learn(world.passage(0.0, None));
        let slow = forecaster.forecast(limited).takes.as_secs_f64();
        assert!((45.0..60.0).contains(&slow), "{slow}");
        forecaster.learn(Passage {
            voyage: limited,
            copy: Duration::from_secs(50),
            took: Duration::from_secs(51),
            ..world.passage(0.0, None)
        });
        let fast = forecaster.forecast(world.voyage()).takes.as_secs_f64();
        assert!(fast < 8.0, "{fast}");
    }
}
