//! What a guest's silence says: how long it stood still, seen from outside.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use godwit_testkit::guest::heartbeat::Listener;
use godwit_testkit::lab::Lab;

/// How far from the stop and the start a silence may lie to be theirs.
const AROUND: Duration = Duration::from_millis(50);

/// Hears one guest.
pub(crate) struct Ear {
    listener: Listener,
    /// Where the guest sends to.
    pub(crate) address: SocketAddr,
}

impl Ear {
    /// Listens on the guests' network of `lab`, on a free port.
    pub(crate) fn open(lab: &Lab) -> Result<Self> {
        let socket = UdpSocket::bind((lab.network().guest_gateway(), 0));
        let socket = socket.context("listen on the guests' network")?;
        let address = socket.local_addr()?;
        let listener = Listener::start(socket)?;
        Ok(Self { listener, address })
    }

    /// Waits until the guest was heard after `since`.
    pub(crate) async fn heard_since(&self, since: Instant, limit: Duration) -> Result<()> {
        let look = async {
            loop {
                let last = self.listener.report().last();
                if last.is_some_and(|heard| heard.at > since) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await; // poll
            }
        };
        tokio::time::timeout(limit, look)
            .await
            .context("the guest is silent")
    }

    /// Judges the time from `from` to `to`; `switch` is from QEMU's own STOP to its RESUME.
    ///
    /// # Errors
    /// When the guest was not heard before and after it.
    pub(crate) fn judge(
        &self,
        (from, to): (Instant, Instant),
        switch: Option<(Instant, Instant)>,
    ) -> Result<Silence> {
        let report = self.listener.report();
        let after = report.last().is_some_and(|heard| heard.at > to);
        ensure!(after, "the guest was not heard again");
        let gaps: Vec<(Instant, Instant)> = report
            .heard
            .windows(2)
            .map(|pair| (pair[0].at, pair[1].at))
            .filter(|(begin, end)| *end >= from && *begin <= to)
            .collect();
        let longest = |(from, to): (Instant, Instant)| {
            gaps.iter()
                .filter(|(begin, end)| *end >= from && *begin <= to)
                .map(|(begin, end)| end.duration_since(*begin))
                .max()
        };
        let around = switch.map(|(stopped, running)| (stopped - AROUND, running + AROUND));
        Ok(Silence {
            blackout: around.and_then(longest),
            longest: longest((from, to)).context("the guest was not heard before")?,
            repeats: report.repeats().len(),
        })
    }
}

/// A guest's silence during one move.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Silence {
    /// Longest around the switch-over; `None` when it isn't known when that was.
    pub(crate) blackout: Option<Duration>,
    /// Longest of the whole move.
    pub(crate) longest: Duration,
    /// Heartbeats that came twice or too late, since the guest began: none unless it ran twice.
    pub(crate) repeats: usize,
}

/// Where the machine's clock and the monotonic one meet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant, SystemTime);

impl Clock {
    /// Now, on both.
    pub(crate) fn now() -> Self {
        Self(Instant::now(), SystemTime::now())
    }

    /// The moment of a time by the machine's clock.
    pub(crate) fn moment(self, time: SystemTime) -> Instant {
        match time.duration_since(self.1) {
            Ok(after) => self.0 + after,
            Err(before) => self.0.checked_sub(before.duration()).unwrap_or(self.0),
        }
    }
}
