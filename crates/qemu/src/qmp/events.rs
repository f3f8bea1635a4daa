//! What QEMU says unasked.

use super::types::MigrationStatus;
use serde_json::Value;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Something that happened in QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The migration's status changed.
    Migration(MigrationStatus),
    /// A new pass over dirty memory begins; the first is 1.
    MigrationPass(u64),
    /// The CPUs stopped.
    Stop,
    /// The CPUs run.
    Resume,
    /// The guest powered off, or was told to by `quit`; with `-no-shutdown` the process stays.
    Shutdown {
        /// Whether the guest did it, not the host.
        guest: bool,
        /// QEMU's word for the cause, for example `guest-shutdown` or `host-qmp-quit`.
        reason: String,
    },
    /// The power button was pressed.
    Powerdown,
    /// The machine was reset.
    Reset,
    /// The guest's kernel said that it panicked.
    GuestPanicked,
    /// A disk could not be read or written.
    BlockIoError {
        /// The device's or node's name.
        device: String,
        /// What the guest was told: `report`, `ignore` or `stop`.
        action: String,
    },
    /// Anything else, by QEMU's name.
    Other(String),
    /// This reader was too slow and events are lost: ask for the state again.
    Missed,
}

/// An event with its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamped {
    /// What happened.
    pub event: Event,
    /// When, by this host's clock, to the microsecond; `None` for [`Event::Missed`].
    pub at: Option<SystemTime>,
}

/// A reader of events. Dropping it loses nothing for others.
#[derive(Debug)]
pub struct Events {
    receiver: Option<broadcast::Receiver<Stamped>>,
}

impl Events {
    pub(super) const fn new(receiver: broadcast::Receiver<Stamped>) -> Self {
        Self {
            receiver: Some(receiver),
        }
    }

    pub(super) const fn ended() -> Self {
        Self { receiver: None }
    }

    /// The next event; `None` once the connection has ended and all is read. Cancel safe.
    pub async fn next(&mut self) -> Option<Stamped> {
        match self.receiver.as_mut()?.recv().await {
            Ok(stamped) => Some(stamped),
            Err(RecvError::Lagged(_)) => Some(Stamped {
                event: Event::Missed,
                at: None,
            }),
            Err(RecvError::Closed) => None,
        }
    }
}

pub(super) fn parse(message: &Value) -> Stamped {
    let data = &message["data"];
    let text = |key: &str| data[key].as_str().unwrap_or_default().to_owned();
    let name = message["event"].as_str().unwrap_or_default();
    let event = match name {
        "MIGRATION" => Event::Migration(MigrationStatus::parse(&data["status"])),
        "MIGRATION_PASS" => Event::MigrationPass(data["pass"].as_u64().unwrap_or_default()),
        "STOP" => Event::Stop,
        "RESUME" => Event::Resume,
        "SHUTDOWN" => Event::Shutdown {
            guest: data["guest"].as_bool().unwrap_or_default(),
            reason: text("reason"),
        },
        "POWERDOWN" => Event::Powerdown,
        "RESET" => Event::Reset,
        "GUEST_PANICKED" => Event::GuestPanicked,
        "BLOCK_IO_ERROR" => Event::BlockIoError {
            device: text("device"),
            action: text("action"),
        },
        other => Event::Other(other.to_owned()),
    };
    Stamped {
        event,
        at: time(&message["timestamp"]),
    }
}

fn time(timestamp: &Value) -> Option<SystemTime> {
    let seconds = timestamp["seconds"].as_u64()?;
    let micros = timestamp["microseconds"].as_u64()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds) + Duration::from_micros(micros))
}
