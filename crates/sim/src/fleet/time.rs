//! Virtual time: what happens when, in one order that the seed decides.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Event;

/// Microseconds since the simulation began.
pub(crate) type Time = u64;

/// A millisecond.
pub(crate) const MS: Time = 1_000;
/// A second.
pub(crate) const SEC: Time = 1_000 * MS;

/// Everything that is going to happen.
#[derive(Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    count: u64,
}

struct Entry {
    /// When, and in which order among those at the same time.
    key: (Time, u64),
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

impl Queue {
    /// Something that will happen at `at`.
    pub(crate) fn push(&mut self, at: Time, event: Event) {
        self.count += 1;
        let key = (at, self.count);
        self.heap.push(Reverse(Entry { key, event }));
    }

    /// What happens next; `None` when nothing ever does.
    pub(crate) fn pop(&mut self) -> Option<(Time, Event)> {
        let Reverse(Entry { key, event }) = self.heap.pop()?;
        Some((key.0, event))
    }
}

/// Every choice comes from here, so that a seed is a run.
pub(crate) struct Dice(fastrand::Rng);

impl Dice {
    /// The dice of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Between `low` and `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0.u64(low..=high)
    }

    /// An index below `count`; 0 of nothing.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        self.0.usize(..count.max(1))
    }

    /// True in so many of 10,000 cases.
    pub(crate) fn chance(&mut self, of_10_000: u32) -> bool {
        of_10_000 > 0 && self.0.u32(..10_000) < of_10_000
    }

    /// One of several.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(self.below(of.len())).copied()
    }
}
