//! What changes of a node with every placement, kept apart because each placement reads it all.

use crate::Bytes;
use crate::machine::PageSize;

use super::{Candidate, Hugepages, Room};

/// One part in a million of a node is worth this many points.
const PART: f64 = 1e-4;
/// For each migration on its way there: its link and its CPUs are busy.
const INBOUND_POINTS: f64 = 10.0;
/// For a node that is about to be emptied: more than all else, so that nothing moves twice if that
/// can be avoided.
const LEAVING_POINTS: f64 = 10_000.0;

/// The room of a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Below zero where more is held than is there.
    pub(super) free_memory: i64,
    pub(super) free_cpu_milli: i64,
    /// By size.
    pub(super) free_hugepages: [i64; PageSize::ALL.len()],
    /// One part in a million of it, for scores.
    pub(super) memory_part: f64,
    pub(super) cpu_part: f64,
    /// Machines on their way to it.
    pub(super) inbound: u32,
    /// Whether machines may be placed there.
    pub(super) open: bool,
    /// Whether a plan has closed it.
    pub(super) closed: bool,
    /// Whether it is about to be emptied.
    pub(super) leaving: bool,
}

impl Row {
    pub(super) fn new(node: &Candidate, held: Room, inbound: u32) -> Self {
        let mut row = Self {
            free_memory: signed(node.memory.0),
            free_cpu_milli: signed(node.cpu_milli),
            free_hugepages: PageSize::ALL.map(|size| signed(node.hugepages.get(size).0)),
            memory_part: part(node.memory.0),
            cpu_part: part(node.cpu_milli),
            inbound,
            open: node.ready && !node.cordoned,
            closed: false,
            leaving: node.leaving,
        };
        row.hold(held, 1);
        row
    }

    pub(super) fn free(&self) -> Room {
        let [mi2, gi1] = self.free_hugepages.map(|free| Bytes(unsigned(free)));
        Room {
            memory: Bytes(unsigned(self.free_memory)),
            cpu_milli: unsigned(self.free_cpu_milli),
            hugepages: Hugepages { mi2, gi1 },
        }
    }

    pub(super) fn hold(&mut self, room: Room, times: i64) {
        self.free_memory -= times * signed(room.memory.0);
        self.free_cpu_milli -= times * signed(room.cpu_milli);
        for (free, (_, takes)) in self.free_hugepages.iter_mut().zip(room.hugepages.each()) {
            *free -= times * signed(takes.0);
        }
    }

    /// Sizes of which there are too few pages. None are ever too few for a machine without them.
    pub(super) fn lacks_hugepages(&self, room: Room) -> impl Iterator<Item = PageSize> {
        let sizes = self.free_hugepages.into_iter().zip(room.hugepages.each());
        let lacking = sizes.filter(|(free, (_, takes))| takes.0 > 0 && *free < signed(takes.0));
        lacking.map(|(_, (size, _))| size)
    }
}

fn unsigned(number: i64) -> u64 {
    number.max(0).unsigned_abs()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// So much of a million is one unit of `whole`.
#[expect(clippy::cast_precision_loss, reason = "a score needs no more")]
fn part(whole: u64) -> f64 {
    1e6 / (whole.max(1) as f64)
}

#[expect(clippy::cast_precision_loss, reason = "a score needs no more")]
impl Row {
    pub(super) fn lacks_memory(&self, room: Room) -> bool {
        i64::try_from(room.memory.0).map_or(true, |memory| self.free_memory < memory)
    }

    pub(super) fn lacks_cpu(&self, room: Room) -> bool {
        i64::try_from(room.cpu_milli).map_or(true, |cpu| self.free_cpu_milli < cpu)
    }

    pub(super) fn has_room(&self, room: Room) -> bool {
        !self.lacks_memory(room)
            && !self.lacks_cpu(room)
            && (room.hugepages == Hugepages::default()
                || self.lacks_hugepages(room).next().is_none())
    }

    pub(super) fn is_full(&self, inbound_max: u32) -> bool {
        inbound_max > 0 && self.inbound >= inbound_max
    }

    /// Room is best where most is left, and where as much memory as CPU is left.
    pub(super) fn points(&self, room: Room) -> f64 {
        let left = |free: i64, takes: u64, part: f64| (free as f64 - takes as f64) * part * PART;
        let memory = left(self.free_memory, room.memory.0, self.memory_part);
        let cpu = left(self.free_cpu_milli, room.cpu_milli, self.cpu_part);
        let lopsided = (memory - cpu).abs();
        let leaving = if self.leaving { LEAVING_POINTS } else { 0.0 };
        f64::midpoint(memory, cpu) + (100.0 - lopsided)
            - INBOUND_POINTS * f64::from(self.inbound)
            - leaving
    }
}
