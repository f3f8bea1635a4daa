//! After a start of the agent: finds the machines and jobs that were here, and goes on with them.
//!
//! QEMU outlives its agent. A process is known by id, start and boot, never by its id alone; its
//! state is asked for, never rebuilt from events; and nothing is ever started here again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info, warn};

use godwit_model::migration::source::SourceState;
use godwit_model::migration::target::TargetState;
use godwit_model::{JobId, MachineId};
use godwit_qemu::process::{Identity, Process};

use crate::half::HalfError;
use crate::host::Host;
use crate::journal::Side;
use crate::machines::{End, Record};
use crate::text::chain;
use crate::vm::{self, Vm};
use crate::{source, target};

/// How long the log of an ended job is kept: its tombstone has to outlive every late message.
const LOG_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Takes up everything that was on this host. Called once, before the agent listens.
///
/// # Errors
/// When the state directory can't be read. One bad machine doesn't keep the others from theirs.
pub(crate) async fn adopt(host: &Arc<Host>) -> io::Result<()> {
    let machines = host.store.machines()?;
    for id in &machines {
        match host.store.record::<Record>(id) {
            Ok(Some(record)) => machine(host, record).await,
            Ok(None) => {}
            Err(why) => error!(machine = %id, %why, "record unreadable, machine left alone"),
        }
    }
    for id in &machines {
        for (job, side) in host.store.jobs(id)? {
            if let Err(why) = half(host, id, &job, side).await {
                error!(machine = %id, %job, error = chain(&why), "log unreadable, job left alone");
            }
        }
        host.store.prune(id, LOG_AGE_MAX)?;
    }
    Ok(())
}

async fn machine(host: &Arc<Host>, mut record: Record) {
    let id = record.spec.id.clone();
    let vm = match Vm::adopt(host, record.place.clone()) {
        Ok(vm) => vm.map(Arc::new),
        Err(why) => {
            error!(machine = %id, error = chain(&why), "process unknown, machine left alone");
            return;
        }
    };
    if vm.is_none() && record.ended.is_none() {
        record.ended = Some(clean(host, &record).await);
        if let Err(why) = host.store.record_put(&id, &record) {
            warn!(machine = %id, %why, "end of the machine not recorded");
        }
    }
    let pid = vm.as_ref().map(|vm| vm.identity().pid);
    info!(machine = %id, pid, "machine adopted");
    host.machine_or_new(record, vm);
}

/// Removes what is left of a machine without a process, and says how it ended.
async fn clean(host: &Host, record: &Record) -> End {
    if record.place.process.is_none() {
        if let Err(why) = vm::end_unfinished(host, &record.spec.id, "").await {
            warn!(machine = %record.spec.id, error = chain(&why), "unfinished start left behind");
        }
        return End {
            crashed: true,
            message: "the agent ended during the start".to_owned(),
        };
    }
    vm::clean(host, &record.place).await;
    match record.stopping {
        Some(_) => End {
            crashed: false,
            message: "stopped".to_owned(),
        },
        None => End {
            crashed: true,
            message: "qemu ended while the agent was away".to_owned(),
        },
    }
}

/// Opens a half that still has something to do. What has ended is opened when it is asked for.
async fn half(host: &Arc<Host>, id: &MachineId, job: &JobId, side: Side) -> Result<(), HalfError> {
    let Some(log) = host.store.log(id, job, side)? else {
        return Ok(());
    };
    match side {
        Side::Source => {
            let line: Option<source::Line> = log.last()?;
            if let Some(line) = line.filter(|line| source_open(host, id, job, line)) {
                // Before anybody can ask for anything: the guest is the job's, not its user's.
                hold(host, id, job, line.half.state()).await;
                host.source(id, job).await?;
            }
        }
        Side::Target => {
            let line: Option<target::Line> = log.last()?;
            if line.is_some_and(|line| target_open(host, id, job, &line)) {
                host.target(id, job).await?;
            }
        }
    }
    Ok(())
}

async fn hold(host: &Host, id: &MachineId, job: &JobId, state: SourceState) {
    let Some(machine) = host.machine(id) else {
        return;
    };
    match state {
        SourceState::Completed | SourceState::Serving | SourceState::ServerLost => {
            machine.migrated(job).await;
        }
        SourceState::Copying | SourceState::Switching => {
            // Without a process there is nothing to hold; the half finds out, too.
            if let Err(why) = machine.hold(job).await {
                warn!(machine = %id, %job, error = chain(&why), "machine not held");
            }
        }
        SourceState::Absent | SourceState::Resumed | SourceState::Retired | SourceState::Lost => {}
    }
}

fn source_open(host: &Host, id: &MachineId, job: &JobId, line: &source::Line) -> bool {
    match line.half.state() {
        SourceState::Copying
        | SourceState::Switching
        | SourceState::Serving
        | SourceState::ServerLost
        | SourceState::Completed => true,
        // What followed may not have been done. Only the last job may still act on its QEMU.
        SourceState::Retired => is_last(host, id, job),
        SourceState::Resumed | SourceState::Lost => {
            is_last(host, id, job) && is_alive(line.process.as_ref())
        }
        SourceState::Absent => false,
    }
}

fn target_open(host: &Host, id: &MachineId, job: &JobId, line: &target::Line) -> bool {
    match line.half.state() {
        TargetState::Preparing
        | TargetState::Prepared
        | TargetState::Loaded
        | TargetState::Continuing
        | TargetState::Fetching => true,
        // Its QEMU may be left, or what belonged to it, also one that was never written down.
        TargetState::Discarded | TargetState::Lost { .. } | TargetState::MemoryLost => {
            vm::has_remains(host, id, &job.to_string())
        }
        TargetState::Absent | TargetState::Running => false,
    }
}

fn is_last(host: &Host, id: &MachineId, job: &JobId) -> bool {
    host.machine(id)
        .is_some_and(|machine| machine.view().job.as_ref() == Some(job))
}

fn is_alive(process: Option<&Identity>) -> bool {
    process.is_some_and(|identity| matches!(Process::adopt(identity), Ok(Some(_))))
}
