//! What the Linux guest leaves behind: numbered, checksummed records on its disk and in datagrams.
//!
//! Compiled twice, into the guest's program and into the tests that judge it, so it uses the
//! standard library alone.

use std::fmt;

/// Size of a record on disk: one sector, which a disk writes wholly or not at all.
pub const DISK_RECORD_BYTES: usize = 512;

/// Size of a heartbeat datagram.
pub const HEARTBEAT_BYTES: usize = HEAD_BYTES + CHECKSUM_BYTES;

/// UDP port on which the guest answers any datagram with its present state.
pub const QUERY_PORT: u16 = 7777;
/// The question that makes the guest power off.
pub const POWER_OFF: &[u8] = b"off";

const DISK_MAGIC: [u8; 8] = *b"GODWITR1";
const HEARTBEAT_MAGIC: [u8; 8] = *b"GODWITH1";
const HEAD_BYTES: usize = 48;
const CHECKSUM_BYTES: usize = 8;

/// One statement of the guest about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The guest kernel's random id of this boot.
    pub boot_id: [u8; 16],
    /// Number of this record: counts on over boots on disk, from 0 in each boot over the network.
    pub sequence: u64,
    /// Ticks that the guest's program has counted in memory since it started.
    pub counter: u64,
    /// The guest's monotonic clock since its program started, nanoseconds.
    pub uptime_ns: u64,
}

impl Record {
    /// As a sector of the disk.
    pub fn to_sector(&self) -> [u8; DISK_RECORD_BYTES] {
        let mut sector = [0; DISK_RECORD_BYTES];
        self.write(&DISK_MAGIC, &mut sector);
        sector
    }

    /// As a datagram.
    pub fn to_datagram(&self) -> [u8; HEARTBEAT_BYTES] {
        let mut datagram = [0; HEARTBEAT_BYTES];
        self.write(&HEARTBEAT_MAGIC, &mut datagram);
        datagram
    }

    fn write(&self, magic: &[u8; 8], to: &mut [u8]) {
        to[..8].copy_from_slice(magic);
        to[8..24].copy_from_slice(&self.boot_id);
        to[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        to[32..40].copy_from_slice(&self.counter.to_le_bytes());
        to[40..48].copy_from_slice(&self.uptime_ns.to_le_bytes());
        let end = to.len() - CHECKSUM_BYTES;
        let sum = checksum(&to[..end]);
        to[end..].copy_from_slice(&sum.to_le_bytes());
    }

    /// Reads a sector of the disk; `None` when it isn't a whole record.
    pub fn from_sector(sector: &[u8]) -> Option<Self> {
        (sector.len() == DISK_RECORD_BYTES)
            .then(|| Self::read(&DISK_MAGIC, sector))
            .flatten()
    }

    /// Reads a datagram; `None` when it isn't a whole heartbeat.
    pub fn from_datagram(datagram: &[u8]) -> Option<Self> {
        (datagram.len() == HEARTBEAT_BYTES)
            .then(|| Self::read(&HEARTBEAT_MAGIC, datagram))
            .flatten()
    }

    fn read(magic: &[u8; 8], from: &[u8]) -> Option<Self> {
        let end = from.len() - CHECKSUM_BYTES;
        if from[..8] != magic[..] || number(&from[end..]) != checksum(&from[..end]) {
            return None;
        }
        let mut boot_id = [0; 16];
        boot_id.copy_from_slice(&from[8..24]);
        Some(Self {
            boot_id,
            sequence: number(&from[24..32]),
            counter: number(&from[32..40]),
            uptime_ns: number(&from[40..48]),
        })
    }
}

/// FNV-1a, 64 bits: enough to tell torn and foreign bytes.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn number(bytes: &[u8]) -> u64 {
    let mut array = [0; 8];
    array.copy_from_slice(bytes);
    u64::from_le_bytes(array)
}

/// One boot of the guest, as its disk tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// Which boot.
    pub boot_id: [u8; 16],
    /// Its first record that is still on the disk.
    pub first: Record,
    /// Its last record.
    pub last: Record,
}

/// Why a disk does not tell one story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A slot holds bytes that are no whole record.
    Torn {
        /// Which slot.
        slot: u64,
    },
    /// A record is in a slot that isn't its own.
    Misplaced {
        /// Which slot.
        slot: u64,
        /// What is in it.
        record: Record,
    },
    /// A record is missing or there twice: `next` does not follow `previous`.
    NotNext {
        /// The record before.
        previous: Record,
        /// What comes after it.
        next: Record,
    },
    /// A boot goes on after another has begun: two copies of the guest wrote.
    BootReturned {
        /// Which boot.
        boot_id: [u8; 16],
        /// Where it goes on.
        sequence: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Torn { slot } => write!(f, "slot {slot} holds no whole record"),
            Self::Misplaced { slot, record } => {
                write!(f, "slot {slot} holds record {}", record.sequence)
            }
            Self::NotNext { previous, next } => write!(f, "{next:?} does not follow {previous:?}"),
            Self::BootReturned { sequence, .. } => {
                write!(f, "an ended boot goes on at record {sequence}")
            }
        }
    }
}

impl std::error::Error for Fault {}

/// Checks a whole disk: each record there exactly once, in order, whole, and within a boot with
/// a counter and a clock that only grow. Returns the boots in order; none for an empty disk.
pub fn verify(disk: &[u8]) -> Result<Vec<Boot>, Fault> {
    let mut boots: Vec<Boot> = Vec::new();
    for record in parse(disk)? {
        let Some(boot) = boots.last_mut() else {
            boots.push(Boot {
                boot_id: record.boot_id,
                first: record,
                last: record,
            });
            continue;
        };
        let previous = boot.last;
        let same_boot = previous.boot_id == record.boot_id;
        let grows = record.counter >= previous.counter && record.uptime_ns > previous.uptime_ns;
        if record.sequence != previous.sequence + 1 || (same_boot && !grows) {
            return Err(Fault::NotNext {
                previous,
                next: record,
            });
        }
        if same_boot {
            boot.last = record;
        } else if boots.iter().any(|boot| boot.boot_id == record.boot_id) {
            let Record {
                boot_id, sequence, ..
            } = record;
            return Err(Fault::BootReturned { boot_id, sequence });
        } else {
            boots.push(Boot {
                boot_id: record.boot_id,
                first: record,
                last: record,
            });
        }
    }
    Ok(boots)
}

/// All records of a disk by number. A full disk is written again from its start, so the records
/// on it are the last ones.
pub fn parse(disk: &[u8]) -> Result<Vec<Record>, Fault> {
    let mut records = Vec::new();
    let slots = (disk.len() / DISK_RECORD_BYTES) as u64;
    for (slot, sector) in (0_u64..).zip(disk.chunks_exact(DISK_RECORD_BYTES)) {
        if sector.iter().all(|byte| *byte == 0) {
            continue;
        }
        let record = Record::from_sector(sector).ok_or(Fault::Torn { slot })?;
        if record.sequence % slots != slot {
            return Err(Fault::Misplaced { slot, record });
        }
        records.push(record);
    }
    records.sort_by_key(|record| record.sequence);
    Ok(records)
}

/// The number that the next record on a disk has: one after the highest, 0 on an empty disk, and
/// `None` on one with other content. `read` gives a slot's content.
///
/// The written slots are a run from the start, or all of them once the disk was full, and then the
/// slots before the next one hold higher numbers than those behind: so it is found by halving.
pub fn next_sequence(
    slots: u64,
    read: impl Fn(u64) -> Option<[u8; DISK_RECORD_BYTES]>,
) -> Option<u64> {
    let first = read(0)?;
    let Some(first) = Record::from_sector(&first) else {
        return first.iter().all(|byte| *byte == 0).then_some(0);
    };
    let round = first.sequence / slots;
    let in_round = |slot| {
        let record = read(slot).and_then(|sector| Record::from_sector(&sector));
        record.is_some_and(|record| record.sequence / slots == round)
    };
    let (mut written, mut unwritten) = (0, slots);
    while unwritten - written > 1 {
        let middle = written + (unwritten - written) / 2;
        if in_round(middle) {
            written = middle;
        } else {
            unwritten = middle;
        }
    }
    Some(round * slots + written + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: u64 = 8;

    fn record(boot: u8, sequence: u64) -> Record {
        Record {
            boot_id: [boot; 16],
            sequence,
            counter: sequence,
            uptime_ns: sequence,
        }
    }

    fn offset(slot: u64) -> usize {
        usize::try_from(slot).unwrap() * DISK_RECORD_BYTES
    }

    fn disk(records: &[Record]) -> Vec<u8> {
        let mut disk = vec![0; offset(SLOTS)];
        for record in records {
            let at = offset(record.sequence % SLOTS);
            disk[at..at + DISK_RECORD_BYTES].copy_from_slice(&record.to_sector());
        }
        disk
    }

    fn next(disk: &[u8]) -> Option<u64> {
        next_sequence(SLOTS, |slot| {
            let at = offset(slot);
            disk[at..at + DISK_RECORD_BYTES].try_into().ok()
        })
    }

    #[test]
    fn a_disk_tells_its_boots_in_order() {
        let written: Vec<Record> = (0..3).map(|n| record(1, n)).chain([record(2, 3)]).collect();
        let boots = verify(&disk(&written)).unwrap();
        assert_eq!(boots.len(), 2);
        assert_eq!(
            (boots[0].first, boots[0].last),
            (record(1, 0), record(1, 2))
        );
        assert_eq!(verify(&disk(&[])), Ok(Vec::new()));
    }

    #[test]
    fn a_full_disk_is_written_again_from_its_start() {
        for count in 0..4 * SLOTS {
            let written: Vec<Record> = (0..count).map(|n| record(1, n)).collect();
            let disk = disk(&written);
            assert_eq!(next(&disk), Some(count));
            assert!(verify(&disk).is_ok());
        }
    }

    #[test]
    fn a_disk_with_other_content_is_left_alone() {
        let mut foreign = disk(&[]);
        foreign[3] = 1;
        assert_eq!(next(&foreign), None);
        assert_eq!(verify(&foreign), Err(Fault::Torn { slot: 0 }));
    }

    #[test]
    fn a_lost_a_changed_and_a_foreign_record_are_found() {
        let lost = disk(&[record(1, 0), record(1, 2)]);
        let fault = Fault::NotNext {
            previous: record(1, 0),
            next: record(1, 2),
        };
        assert_eq!(verify(&lost), Err(fault));
        let mut changed = disk(&[record(1, 0), record(1, 1)]);
        changed[DISK_RECORD_BYTES + 30] ^= 1;
        assert_eq!(verify(&changed), Err(Fault::Torn { slot: 1 }));
        let mut misplaced = disk(&[record(1, 0)]);
        misplaced.rotate_right(DISK_RECORD_BYTES);
        let fault = Fault::Misplaced {
            slot: 1,
            record: record(1, 0),
        };
        assert_eq!(verify(&misplaced), Err(fault));
    }

    #[test]
    fn two_copies_of_a_guest_on_one_disk_are_found() {
        let returned = disk(&[record(1, 0), record(2, 1), record(1, 2)]);
        let fault = Fault::BootReturned {
            boot_id: [1; 16],
            sequence: 2,
        };
        assert_eq!(verify(&returned), Err(fault));
        let older = Record {
            counter: 0,
            ..record(1, 2)
        };
        let fault = Fault::NotNext {
            previous: record(1, 1),
            next: older,
        };
        assert_eq!(
            verify(&disk(&[record(1, 0), record(1, 1), older])),
            Err(fault)
        );
    }
}
