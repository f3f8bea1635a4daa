//! Listens to a guest's heartbeats and judges them: how long it was silent, and whether there were
//! two of it.

use super::record::{HEARTBEAT_BYTES, Record};
use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the listener looks whether it should end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Most heartbeats kept: 4 hours of one each 5 ms. Later ones are left out.
const KEPT_MAX: usize = 3_000_000;

/// A heartbeat and when it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// When, by the listener's monotonic clock.
    pub at: Instant,
    /// What the guest said.
    pub record: Record,
}

/// What a listener heard, in order of arrival.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// All of it.
    pub heard: Vec<Heard>,
}

impl Report {
    /// Longest silence between two heartbeats, with the record before it; `None` with fewer than
    /// two.
    pub fn longest_gap(&self) -> Option<(Duration, Record)> {
        self.heard
            .windows(2)
            .map(|pair| (pair[1].at.duration_since(pair[0].at), pair[0].record))
            .max_by_key(|(gap, _)| *gap)
    }

    /// Heartbeats that say what was said before, or less: none unless two copies of the guest ran
    /// or one went back in time. A new boot starts over; the old one must not return.
    pub fn repeats(&self) -> Vec<Record> {
        let mut boots: Vec<Record> = Vec::new();
        let mut repeats = Vec::new();
        for Heard { record, .. } in &self.heard {
            let newest = boots.len().saturating_sub(1);
            match boots.iter().position(|last| last.boot_id == record.boot_id) {
                None => boots.push(*record),
                Some(at) if at == newest && follows(&boots[at], record) => boots[at] = *record,
                Some(_) => repeats.push(*record),
            }
        }
        repeats
    }

    /// Heartbeats that were sent and not heard, over all boots.
    pub fn missing(&self) -> u64 {
        self.heard
            .windows(2)
            .filter(|pair| pair[0].record.boot_id == pair[1].record.boot_id)
            .map(|pair| {
                pair[1]
                    .record
                    .sequence
                    .saturating_sub(pair[0].record.sequence + 1)
            })
            .sum()
    }

    /// How long the guest's own clock stood still from before `from` to after `to`: the time that
    /// the guest did not live through. `None` when it said too little within `window` of either.
    ///
    /// Of the heartbeats on each side the one that came with the least delay counts, so a busy
    /// machine that delivers most of them late changes little.
    pub fn standstill(&self, (from, to): (Instant, Instant), window: Duration) -> Option<Duration> {
        let base = self.heard.first()?.at;
        let lead = |heard: &Heard| {
            let arrived = heard.at.duration_since(base).as_nanos();
            Some(i128::try_from(arrived).ok()? - i128::from(heard.record.uptime_ns))
        };
        let least = |begin: Instant, end: Instant| {
            let within = |heard: &&Heard| heard.at >= begin && heard.at <= end;
            self.heard.iter().filter(within).filter_map(lead).min()
        };
        let before = least(from.checked_sub(window)?, from)?;
        let after = least(to, to + window)?;
        u64::try_from(after - before).ok().map(Duration::from_nanos)
    }

    /// The last one heard.
    pub fn last(&self) -> Option<Heard> {
        self.heard.last().copied()
    }
}

fn follows(previous: &Record, next: &Record) -> bool {
    next.sequence > previous.sequence
        && next.counter > previous.counter
        && next.uptime_ns > previous.uptime_ns
}

/// A thread that hears heartbeats on a socket until it is dropped.
#[derive(Debug)]
pub struct Listener {
    report: Arc<Mutex<Report>>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens on `socket`, which the caller has bound where the guest can reach it.
    ///
    /// # Errors
    /// When the socket can't be set up.
    pub fn start(socket: UdpSocket) -> io::Result<Self> {
        socket.set_read_timeout(Some(LOOK_EVERY))?;
        let report = Arc::new(Mutex::new(Report::default()));
        let ending = Arc::new(AtomicBool::new(false));
        let thread = {
            let (report, ending) = (Arc::clone(&report), Arc::clone(&ending));
            std::thread::spawn(move || listen(&socket, &report, &ending))
        };
        Ok(Self {
            report,
            ending,
            thread: Some(thread),
        })
    }

    /// What was heard so far.
    pub fn report(&self) -> Report {
        self.report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say when it ends.
            let _ = thread.join();
        }
    }
}

fn listen(socket: &UdpSocket, report: &Mutex<Report>, ending: &AtomicBool) {
    let mut datagram = [0; HEARTBEAT_BYTES + 1];
    while !ending.load(Ordering::Relaxed) {
        let Ok((length, _)) = socket.recv_from(&mut datagram) else {
            continue;
        };
        let at = Instant::now();
        let Some(record) = Record::from_datagram(&datagram[..length]) else {
            continue;
        };
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        if report.heard.len() < KEPT_MAX {
            report.heard.push(Heard { at, record });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(start: Instant, boots: &[(u8, u64, u64)]) -> Report {
        let heard = boots
            .iter()
            .map(|(boot, sequence, at_ms)| Heard {
                at: start + Duration::from_millis(*at_ms),
                record: Record {
                    boot_id: [*boot; 16],
                    sequence: *sequence,
                    counter: *sequence,
                    uptime_ns: *sequence,
                },
            })
            .collect();
        Report { heard }
    }

    #[test]
    fn a_silence_is_measured_and_what_was_lost_in_it_counted() {
        let report = heard(
            Instant::now(),
            &[(1, 1, 0), (1, 2, 5), (1, 7, 45), (1, 8, 50)],
        );
        let (gap, before) = report.longest_gap().unwrap();
        assert_eq!((gap, before.sequence), (Duration::from_millis(40), 2));
        assert_eq!(report.missing(), 4);
        assert!(report.repeats().is_empty());
    }

    #[test]
    fn a_standstill_is_what_the_guests_clock_lacks_whatever_came_late() {
        let start = Instant::now();
        let (at, uptime) = (Duration::from_millis, |ms: u64| ms * 1_000_000);
        // Stopped from 100 to 130, ticks of 10; one heartbeat on each side comes 4 late.
        let came = [(84, 80), (90, 90), (100, 100), (144, 110), (150, 120)];
        let heard = came.map(|(came, lived)| Heard {
            at: start + at(came),
            record: Record {
                boot_id: [1; 16],
                sequence: lived,
                counter: lived,
                uptime_ns: uptime(lived),
            },
        });
        let report = Report {
            heard: heard.to_vec(),
        };
        let switch = (start + at(100), start + at(130));
        assert_eq!(report.standstill(switch, at(50)), Some(at(30)));
        assert_eq!(report.standstill(switch, at(5)), None);
    }

    #[test]
    fn two_copies_of_a_guest_and_a_boot_that_returns_are_seen() {
        let start = Instant::now();
        let twice = heard(start, &[(1, 1, 0), (1, 2, 5), (1, 2, 6), (1, 3, 10)]);
        assert_eq!(twice.repeats().len(), 1);
        let restarted = heard(start, &[(1, 5, 0), (2, 0, 5), (2, 1, 10)]);
        assert!(restarted.repeats().is_empty());
        let returned = heard(start, &[(1, 5, 0), (2, 0, 5), (1, 6, 10)]);
        assert_eq!(returned.repeats().len(), 1);
    }
}
