//! The program of the Linux guest: says all the time that it is alive, in four ways.
//!
//! It counts ticks in memory, sends each as a datagram, writes a numbered record to its disk ten
//! times a second, and prints a line a second. It dirties memory at a chosen rate, and ends when
//! somebody presses the power button. The standard library alone, one static binary; started by
//! the guest's `/init`, which powers off when it ends. Everything is set by kernel arguments:
//!
//! - `godwit.heartbeat=ADDRESS:PORT` where the datagrams go; none without it
//! - `godwit.tick=MILLISECONDS` between two ticks, 5 if not given
//! - `godwit.dirty=BYTES_PER_SECOND` and `godwit.dirtyset=BYTES`: memory written, none if not given

#[allow(dead_code)]
#[path = "../src/guest/record.rs"]
mod record;

use record::{DISK_RECORD_BYTES, POWER_OFF, QUERY_PORT, Record};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const DISK: &str = "/dev/vda";
const DISK_EVERY: Duration = Duration::from_millis(100);
const LINE_EVERY: Duration = Duration::from_secs(1);
const DIRTY_EVERY: Duration = Duration::from_millis(10);
const TICK_MS: u64 = 5;
const PAGE_BYTES: u64 = 4096;

/// Linux's O_SYNC and O_DIRECT on x86-64: a record is on the disk when the write returns, and no
/// page of a cache stands between.
const SYNC_DIRECT: i32 = 0o4_010_000 | 0o40_000;

/// Size of Linux's `struct input_event` on 64 bits.
const INPUT_EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

struct Guest {
    boot_id: [u8; 16],
    started: Instant,
    counter: AtomicU64,
    ending: AtomicBool,
}

impl Guest {
    fn record(&self, sequence: u64) -> Record {
        Record {
            boot_id: self.boot_id,
            sequence,
            counter: self.counter.load(Ordering::SeqCst),
            uptime_ns: self.started.elapsed().as_nanos() as u64,
        }
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }
}

fn main() {
    let arguments = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let number = |name: &str| argument(&arguments, name).and_then(|value| value.parse().ok());
    let guest = Arc::new(Guest {
        boot_id: boot_id(),
        started: Instant::now(),
        counter: AtomicU64::new(0),
        ending: AtomicBool::new(false),
    });
    let disk = spawn(&guest, write_disk);
    spawn(&guest, answer_queries);
    watch_power_buttons(&guest);
    if let (Some(rate), Some(set)) = (number("godwit.dirty"), number("godwit.dirtyset")) {
        spawn(&guest, move |guest| dirty_memory(guest, rate, set));
    }
    println!("GODWIT-GUEST-READY");
    let heartbeat = argument(&arguments, "godwit.heartbeat").and_then(|value| value.parse().ok());
    tick(
        &guest,
        heartbeat,
        Duration::from_millis(number("godwit.tick").unwrap_or(TICK_MS).max(1)),
    );
    // The disk's last record is whole before the power goes.
    let _ = disk.join();
    println!("GODWIT-GUEST-END");
}

fn argument<'a>(arguments: &'a str, name: &str) -> Option<&'a str> {
    arguments
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn boot_id() -> [u8; 16] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|c| c.to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    id
}

fn spawn(guest: &Arc<Guest>, job: impl FnOnce(&Guest) + Send + 'static) -> thread::JoinHandle<()> {
    let guest = Arc::clone(guest);
    thread::spawn(move || job(&guest))
}

/// Counts, sends and prints, until the end.
fn tick(guest: &Guest, heartbeat: Option<SocketAddr>, every: Duration) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok();
    let mut next = guest.started;
    let mut line = guest.started + LINE_EVERY;
    let mut sequence = 0;
    while !guest.is_ending() {
        guest.counter.fetch_add(1, Ordering::SeqCst);
        if let (Some(socket), Some(to)) = (&socket, heartbeat) {
            // A datagram that can't be sent is a gap, which is what the listener looks for.
            let _ = socket.send_to(&guest.record(sequence).to_datagram(), to);
            sequence += 1;
        }
        let now = Instant::now();
        if now >= line {
            let record = guest.record(sequence);
            println!(
                "godwit uptime_ms={} counter={}",
                record.uptime_ns / 1_000_000,
                record.counter
            );
            line += LINE_EVERY;
        }
        // Late ticks are left out, not caught up with: a burst would hide a gap.
        next = (next + every).max(now);
        thread::sleep(next.saturating_duration_since(now));
    }
}

fn answer_queries(guest: &Guest) {
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, QUERY_PORT)) else {
        return;
    };
    let mut question = [0; 64];
    let mut sequence = 0;
    while let Ok((length, from)) = socket.recv_from(&mut question) {
        if question[..length] == *POWER_OFF {
            guest.ending.store(true, Ordering::SeqCst);
            return;
        }
        let _ = socket.send_to(&guest.record(sequence).to_datagram(), from);
        sequence += 1;
    }
}

/// A buffer that direct I/O accepts.
#[repr(align(4096))]
struct Sector([u8; DISK_RECORD_BYTES]);

fn write_disk(guest: &Guest) {
    let options = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(SYNC_DIRECT)
        .open(DISK);
    let Ok(disk) = options else {
        return;
    };
    let slots = slots();
    let Some(mut sequence) = record::next_sequence(slots, |slot| read_slot(&disk, slot)) else {
        println!("godwit: {DISK} holds something else and is left alone");
        return;
    };
    let mut next = Instant::now();
    while !guest.is_ending() {
        let sector = Sector(guest.record(sequence).to_sector());
        let offset = sequence % slots * DISK_RECORD_BYTES as u64;
        match disk.write_all_at(&sector.0, offset) {
            Ok(()) => sequence += 1,
            Err(error) => println!("godwit: {DISK}: {error}"),
        }
        next = (next + DISK_EVERY).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn slots() -> u64 {
    let sectors = fs::read_to_string("/sys/class/block/vda/size").unwrap_or_default();
    sectors.trim().parse().unwrap_or(1).max(1)
}

/// The slot's content; `None` when it can't be read.
fn read_slot(disk: &File, slot: u64) -> Option<[u8; DISK_RECORD_BYTES]> {
    let mut sector = Sector([0; DISK_RECORD_BYTES]);
    disk.read_exact_at(&mut sector.0, slot * DISK_RECORD_BYTES as u64)
        .ok()?;
    Some(sector.0)
}

/// Writes one word to each page of the set in turn, as many pages a second as asked for.
fn dirty_memory(guest: &Guest, bytes_per_second: u64, set_bytes: u64) {
    let pages = (set_bytes / PAGE_BYTES).max(1) as usize;
    let mut set = vec![0_u64; pages * (PAGE_BYTES as usize / 8)];
    let started = Instant::now();
    let mut done = 0_u64;
    while !guest.is_ending() {
        let elapsed = started.elapsed().as_millis() as u64;
        let due = bytes_per_second / PAGE_BYTES * elapsed / 1000;
        for page in done..due {
            set[page as usize % pages * (PAGE_BYTES as usize / 8)] = page;
        }
        // The compiler must not see that nobody reads it.
        std::hint::black_box(&mut set);
        done = due.max(done);
        thread::sleep(DIRTY_EVERY);
    }
}

fn watch_power_buttons(guest: &Arc<Guest>) {
    let Ok(devices) = fs::read_dir("/dev/input") else {
        return;
    };
    for device in devices.flatten() {
        spawn(guest, move |guest| {
            let Ok(mut events) = File::open(device.path()) else {
                return;
            };
            let mut event = [0; INPUT_EVENT_BYTES];
            while events.read_exact(&mut event).is_ok() {
                let kind = u16::from_le_bytes([event[16], event[17]]);
                let code = u16::from_le_bytes([event[18], event[19]]);
                if (kind, code) == (EV_KEY, KEY_POWER) {
                    guest.ending.store(true, Ordering::SeqCst);
                }
            }
        });
    }
}
