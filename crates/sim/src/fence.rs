//! Hosts that die for good, and the person who says so.
//!
//! As in `scheduler/src/fence.rs` and `migration-coordinator/src/story.rs`: a fence moves nothing
//! while the job is open. When that is over, a machine of a fenced host, and one that a fenced
//! target may have run, starts again from its disk.

use crate::Migration;
use crate::config::Config;
use crate::owner::Side;
use crate::state::{Ledger, SourceHost, SourceQemu, State, TargetHost};

impl Ledger {
    /// Whether this host was declared dead.
    pub(crate) const fn fenced(&self, side: Side) -> bool {
        match side {
            Side::Source => self.source_fenced,
            Side::Target => self.target_fenced,
        }
    }

    /// Whether any host was.
    pub(crate) const fn has_fence(&self) -> bool {
        self.source_fenced || self.target_fenced
    }

    /// Whether the machine is taken from where it was.
    fn takes(&self) -> bool {
        let at = if self.handed_over {
            Side::Target
        } else {
            Side::Source
        };
        self.state.is_final() && (self.released || self.fenced(at))
    }
}

impl State {
    /// Whether this host died for good.
    pub(crate) const fn lost(&self, side: Side) -> bool {
        match side {
            Side::Source => self.source.lost,
            Side::Target => self.target.lost,
        }
    }

    /// Whether anything died that nobody can be blamed for.
    pub(crate) const fn died(&self, config: &Config) -> bool {
        self.deaths < config.deaths || self.source.lost || self.target.lost || self.broke
    }
}

impl Migration {
    /// The host dies with all that is on it, and never comes back.
    pub(crate) fn lose(&self, state: &mut State, side: Side) -> Option<()> {
        if state.lost(side) {
            return None;
        }
        state.losses = state.losses.checked_sub(1)?;
        match side {
            Side::Source => {
                state.source = SourceHost {
                    qemu: SourceQemu::Gone,
                    machine: false,
                    sent: state.source.sent,
                    package: state.source.package,
                    completed: state.source.completed,
                    lost: true,
                    ..SourceHost::default()
                };
            }
            Side::Target => {
                // What was on its disk, only for the properties.
                state.target = TargetHost {
                    disk: state.target.disk,
                    lost: true,
                    ..TargetHost::default()
                };
            }
        }
        Some(())
    }

    /// A person declares the host dead, which it is, or is not.
    pub(crate) fn fence(&self, state: &mut State, side: Side) -> Option<()> {
        let may = state.lost(side) || (self.config.lies && !state.ledger.has_fence());
        if !may || state.ledger.fenced(side) {
            return None;
        }
        match side {
            Side::Source => state.ledger.source_fenced = true,
            Side::Target => state.ledger.target_fenced = true,
        }
        Some(())
    }

    /// The scheduler starts the machine on another host, from its disk.
    pub(crate) fn restart(&self, state: &mut State) -> Option<()> {
        if state.left || !state.ledger.takes() {
            return None;
        }
        state.left = true;
        Some(())
    }
}
