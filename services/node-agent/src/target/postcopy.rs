//! Post-copy at the target: how its link is mended, and how its guest ends when its source is lost.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{info, warn};

use godwit_model::migration::grant::Refusal;
use godwit_model::migration::target::{LoadStatus, TargetEvent, TargetState};
use godwit_model::{Epoch, NodeName};
use godwit_qemu::qmp::MigrationStatus;
use godwit_qemu::secret::Key;
use godwit_qemu::{Event, Events, migrate};

use super::{Owner, not_now};
use crate::half::HalfError;
use crate::text::chain;

/// How long QEMU may take to give up a link.
const PART_LIMIT: Duration = Duration::from_secs(1);

/// How long a QEMU whose link broke early may take to load what it got.
const LOAD_LIMIT: Duration = Duration::from_secs(2);

/// Longest wait for an answer of a QEMU that may wait for a page.
const ANSWER_LIMIT: Duration = Duration::from_millis(300);

/// The source of a post-copy asks where it finds QEMU, since its link broke.
#[derive(Debug)]
pub(crate) struct MendAsked {
    /// Under which owner of the job.
    pub(crate) epoch: Epoch,
    /// For the source on this node.
    pub(crate) source: NodeName,
    /// Where the answer goes.
    pub(crate) give: oneshot::Sender<Mended>,
}

/// Where a source finds its target again.
#[derive(Debug)]
pub(crate) struct Mended {
    pub(crate) uri: String,
    /// `None` stands for a copy that is taken in the clear.
    pub(crate) key: Option<Key>,
}

impl Owner {
    /// Whether this half still takes the copy. One that gave it up, and whose QEMU is yet to be ended,
    /// would take the guest's memory with it.
    pub(super) fn confirm(&self, epoch: Epoch, source: &NodeName) -> Result<(), HalfError> {
        self.only_from(source)?;
        let (mine, seen) = (epoch, self.line.half.epoch());
        if mine < seen {
            return Err(Refusal::Fenced { mine, seen }.into());
        }
        // A copy that is not in use may be discarded for its age at any time.
        let taken = self.line.half.state() == TargetState::Prepared && self.loading;
        if taken && self.vm.is_some() {
            Ok(())
        } else {
            Err(not_now("no copy of this job arrives here"))
        }
    }

    /// Lets QEMU listen once more. Only commands that it takes past its main loop, which may wait for
    /// a page that the source has.
    pub(super) async fn listen_again(&mut self, asked: MendAsked) -> Result<(), HalfError> {
        self.only_from(&asked.source)?;
        let (mine, seen) = (asked.epoch, self.line.half.epoch());
        if mine < seen {
            return Err(Refusal::Fenced { mine, seen }.into());
        }
        if self.line.half.state() == TargetState::Prepared && self.loading {
            return self.broke_early();
        }
        let fetches = matches!(
            self.line.half.state(),
            TargetState::Loaded | TargetState::Continuing | TargetState::Fetching
        );
        let Some(vm) = self.vm.clone().filter(|_| fetches) else {
            return Err(not_now("no memory is waited for here"));
        };
        let key = match self.line.encrypted {
            true => {
                let key = Key::random().map_err(|e| not_now(&format!("make a key: {e}")))?;
                // QEMU reads it again when it is connected to.
                vm.put_copy_key(&self.host, &key)
                    .map_err(|why| not_now(&why))?;
                Some(key)
            }
            false => None,
        };
        let (qmp, events) = vm.events().await.map_err(|e| not_now(&chain(&e)))?;
        // A source that lost its link knows that first, when the network is silent.
        if qmp.migrate_pause().await.is_ok() {
            parted(events).await?;
        }
        let address = free_address(SocketAddr::new(self.host.config.migration_address, 0))?;
        let uri = migrate::listen_again(&qmp, address)
            .await
            .map_err(|error| not_now(&chain(&error)))?;
        info!(job = %self.job, uri, "waiting for the source of the post-copy");
        // Whoever asked may be gone.
        let _ = asked.give.send(Mended { uri, key });
        Ok(())
    }

    /// The source's QEMU lost its link before this one has what the guest needs to go on. What has
    /// arrived may still be enough; else this one would wait for ever, and its guest with it.
    fn broke_early(&mut self) -> Result<(), HalfError> {
        let since = *self.broken.get_or_insert_with(Instant::now);
        if since.elapsed() >= LOAD_LIMIT
            && let Some(vm) = &self.vm
        {
            warn!(job = %self.job, "the link broke before the copy was here, and it is given up");
            vm.kill().map_err(|error| not_now(&chain(&error)))?;
        }
        Err(not_now("the link broke before the copy was here"))
    }

    /// Ends the guest, unless QEMU says that it has all its memory.
    pub(super) async fn abandon(&mut self, epoch: Epoch) -> Result<(), HalfError> {
        if self.line.half.state() == TargetState::Fetching
            && let Some(vm) = self.vm.clone()
        {
            // One that doesn't answer waits for a page.
            match tokio::time::timeout(ANSWER_LIMIT, self.link(&vm)).await {
                Ok(Ok(status @ (LoadStatus::Completed | LoadStatus::Running))) => {
                    self.feed(TargetEvent::Load(status)).await?;
                }
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(error)) => warn!(job = %self.job, %error, "qemu does not answer"),
            }
        }
        self.feed(TargetEvent::Abandon { epoch }).await
    }

    /// Ends the QEMU of a guest that can't go on: its machine crashed here, and its task cleans up.
    pub(super) fn end_guest(&mut self) -> Result<(), String> {
        let Some(vm) = &self.vm else { return Ok(()) };
        vm.kill().map_err(|error| chain(&error))?;
        self.vm = None;
        self.events = None;
        Ok(())
    }
}

/// Waits until QEMU has given up its link. It tells that itself: it can't be asked, since its main loop
/// may wait.
async fn parted(mut events: Events) -> Result<(), HalfError> {
    let paused = async {
        while let Some(told) = events.next().await {
            if told.event == Event::Migration(MigrationStatus::PostcopyPaused) {
                return Ok(());
            }
        }
        Err(not_now("qemu ended"))
    };
    let late = |_| not_now("qemu has not given up the broken link yet");
    tokio::time::timeout(PART_LIMIT, paused)
        .await
        .map_err(late)?
}

/// An address that nobody listens on. QEMU can't be asked which port it chose itself: its main loop
/// may wait.
fn free_address(host: SocketAddr) -> Result<SocketAddr, HalfError> {
    let found = TcpListener::bind(host).and_then(|listener| listener.local_addr());
    found.map_err(|error| not_now(&format!("find a port: {error}")))
}
