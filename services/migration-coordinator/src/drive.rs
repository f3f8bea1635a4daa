//! One job's loop, the same before and after a crash: gather facts, decide, carry out, again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_ledger::{JobFences, Lease, LedgerError};
use godwit_model::limits::MigrationLimits;
use godwit_model::migration::convergence::{Convergence, Verdict};
use godwit_model::migration::decide::{self, Action};
use godwit_model::migration::fact::{SourceFact, TargetFact};
use godwit_model::migration::job::JobState;
use godwit_model::migration::source::SourceState;
use godwit_model::policy::MigrationPolicy;
use godwit_runtime::backoff::Backoff;
use jiff::Timestamp;
use tracing::{debug, info, warn};

use crate::drives::Bells;
use crate::hosts::{self, HostWatch};
use crate::shared::{Limits, Shared};
use crate::step::{self, Outcome};
use crate::terms::Terms;
use crate::trace;

/// How often a waiting job looks around although nobody poked it. Of what changes in the ledger it
/// is told: see `queue.rs`.
const POLL: Duration = Duration::from_secs(1);
/// First and longest pause after the ledger could not be asked; up to twice as long by jitter.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(250));

/// A job in this process's hands.
pub(crate) struct Drive {
    pub(crate) shared: Arc<Shared>,
    pub(crate) lease: Lease,
    pub(crate) source: Option<HostWatch>,
    pub(crate) target: Option<HostWatch>,
    /// How it is told of news.
    bells: Arc<Bells>,
    /// When this process claimed it.
    claimed: Instant,
    /// Which hosts were declared dead, and not heard since.
    fences: JobFences,
    /// The policy that fits the machine, once its migration has its turn.
    pub(crate) policy: Option<MigrationPolicy>,
    policy_read: bool,
    limits_read: bool,
    pub(crate) convergence: Convergence,
    /// Whether the source was told that the guest may stand still until the rest is there.
    pub(crate) resorted: bool,
    /// When its target was known, if that was found by this process.
    pub(crate) reserved_at: Option<Timestamp>,
    /// How long the host is silent that the job waits for.
    pub(crate) silence: Silence,
    /// What the migration's condition says that it waits for.
    pub(crate) said: Option<(String, String)>,
    /// When that was written.
    pub(crate) said_at: Option<Instant>,
}

/// A host that a job waits for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Silence {
    /// It answers, or the job waits for something else.
    None,
    /// It does not answer.
    Since(Instant),
    /// Users were warned.
    Told,
}

/// What both hosts say of a job; `None` is a host that is silent.
#[derive(Debug, Clone)]
pub(crate) struct JobFacts {
    pub(crate) source: Option<SourceFact>,
    pub(crate) target: Option<TargetFact>,
}

/// Why a drive ended.
enum End {
    /// The job is over.
    Final,
    /// Somebody else has the job.
    Lost,
}

/// Drives the leased job until it is over, lost to another owner, or this process stops.
pub(crate) async fn drive(shared: Arc<Shared>, lease: Lease, bells: Arc<Bells>) {
    let job = lease.job.id.clone();
    let state = lease.job.state;
    info!(%job, %state, epoch = %lease.epoch, "job claimed");
    shared.telemetry.leases().begin(lease.epoch);
    trace::retell(&shared, &lease).await;
    let stop = shared.shutdown.clone();
    let mut drive = Drive {
        shared,
        lease,
        source: None,
        target: None,
        bells,
        claimed: Instant::now(),
        fences: JobFences::default(),
        policy: None,
        policy_read: false,
        limits_read: false,
        convergence: Convergence::default(),
        resorted: false,
        reserved_at: None,
        silence: Silence::None,
        said: None,
        said_at: None,
    };
    let mut taken = false;
    tokio::select! {
        end = drive.run() => match end {
            End::Final => info!(%job, state = %drive.lease.job.state, "job over"),
            End::Lost => {
                taken = true;
                info!(%job, "job is somebody else's");
            }
        },
        () = stop.cancelled() => debug!(%job, "job left to the next owner"),
    }
    drive.shared.telemetry.leases().end(taken);
    if drive.lease.job.state.is_final() {
        return; // The end of the job was that of the lease.
    }
    if let Err(error) = drive.shared.ledger.job_lease_release(&drive.lease).await {
        debug!(%job, %error, "the lease runs out by itself");
    }
}

impl Drive {
    async fn run(&mut self) -> End {
        loop {
            let outcome = match self.turn().await {
                Ok(outcome) => outcome,
                Err(error) => {
                    warn!(job = %self.lease.job.id, %error, "the ledger did not answer");
                    self.read_again().await
                }
            };
            match outcome {
                Outcome::Again => {}
                Outcome::Lost => return End::Lost,
                Outcome::Over => return End::Final,
                Outcome::Wait => {
                    if !self.wait().await {
                        return End::Lost;
                    }
                }
            }
        }
    }

    /// Facts, decision, one action.
    async fn turn(&mut self) -> Result<Outcome, LedgerError> {
        self.watch_hosts().await?;
        // A migration obeys what was set before it was made, however short ago.
        if !self.limits_read {
            self.shared.read_limits(Some(self.claimed)).await?;
            self.limits_read = true;
        }
        if !self.policy_read && self.lease.job.state != JobState::Pending {
            self.policy = self.shared.policy_for(&self.lease.job.vmi).await?;
            self.policy_read = true;
        }
        let facts = self.facts();
        // A host may have been heard since, and have fallen silent again: then its fence is void.
        if self.fences != JobFences::default() {
            self.fences = self.shared.ledger.job_fences(&self.lease.job.id).await?;
        }
        let action = self.decide(&facts);
        step::last_resort(self, &facts).await?;
        if !matches!(action, Action::Wait(_)) {
            let (job, state) = (&self.lease.job.id, self.lease.job.state);
            debug!(%job, %state, ?action, "decided");
        }
        step::carry_out(self, action, &facts).await
    }

    /// The limits that are set for this job: the cluster's, under its policy.
    pub(crate) fn set_limits(&self) -> MigrationLimits {
        let cluster = &self.shared.limits().cluster;
        match &self.policy {
            Some(policy) => cluster.under(policy),
            None => cluster.clone(),
        }
    }

    /// The limits of this job: those that are set, under its terms.
    pub(crate) fn limits(&self) -> Limits {
        let mut limits = self.set_limits();
        Terms::of(&self.lease.job).apply(&mut limits);
        Limits::from(limits)
    }

    /// What the hosts said last.
    pub(crate) fn facts(&self) -> JobFacts {
        let latest = |host: &Option<HostWatch>| host.as_ref().and_then(HostWatch::latest);
        JobFacts {
            source: latest(&self.source).map(|facts| facts.source),
            target: latest(&self.target).map(|facts| facts.target),
        }
    }

    /// What follows from the job as it is and from `facts`.
    pub(crate) fn decide(&mut self, facts: &JobFacts) -> Action {
        let verdict = match &facts.source {
            Some(fact) if fact.state == SourceState::Copying => {
                let elapsed = Duration::from_millis(fact.progress.elapsed_ms);
                let limits = self.limits().copy;
                self.convergence.judge(limits, &fact.progress, elapsed)
            }
            Some(_) | None => Verdict::GoOn,
        };
        let job = decide::Job {
            state: self.lease.job.state,
            cancel: self.lease.job.cancel.clone(),
            switch_allowed: self.lease.job.switch_allowed,
            verdict,
            source_fenced: self.fences.source,
            target_fenced: self.fences.target,
        };
        decide::decide(&job, facts.source.as_ref(), facts.target.as_ref())
    }

    /// Listens to the hosts that the job's state makes relevant.
    async fn watch_hosts(&mut self) -> Result<(), LedgerError> {
        let job = &self.lease.job;
        let wants_target = job.target.is_some();
        let wants_source = match job.state {
            JobState::Pending | JobState::Placing | JobState::Succeeded | JobState::Failed => false,
            JobState::Reserved
            | JobState::Preparing
            | JobState::Prepared
            | JobState::Copying
            | JobState::SwitchAllowed
            | JobState::HandedOver
            | JobState::Aborting
            | JobState::NeedsFencing => true,
        };
        if wants_target && self.target.is_none() {
            self.target = self.open(self.lease.job.target.clone()).await?;
        }
        if wants_source && self.source.is_none() {
            self.source = self.open(self.lease.job.source.clone()).await?;
        }
        Ok(())
    }

    async fn open(
        &self,
        node: Option<godwit_model::NodeName>,
    ) -> Result<Option<HostWatch>, LedgerError> {
        let Some(node) = node else { return Ok(None) };
        let Some(address) = self.shared.agent_address(&node).await? else {
            return Ok(None);
        };
        let job = hosts::job_ref(&self.lease.job, self.lease.epoch);
        match self.shared.hosts.agent(&address) {
            Ok(agent) => Ok(Some(HostWatch::open(node, (address, agent), job))),
            Err(error) => {
                warn!(%node, %error, "a host's address can't be used");
                Ok(None)
            }
        }
    }

    /// Waits for anything that may change the decision; `false` when the lease is lost.
    async fn wait(&mut self) -> bool {
        let bells = Arc::clone(&self.bells);
        tokio::select! {
            () = bells.lost.notified() => return false,
            () = changed(self.source.as_mut()) => return true,
            () = changed(self.target.as_mut()) => return true,
            () = bells.turn.notified() => return true,
            () = tokio::time::sleep(POLL) => return true,
            () = bells.poked.notified() => {}
        }
        self.refresh().await
    }

    /// Reads the job and the fences of its hosts again: a user may have cancelled it, or have
    /// declared a host dead.
    async fn refresh(&mut self) -> bool {
        let fences = self.shared.ledger.job_fences(&self.lease.job.id).await;
        let read = match fences {
            Ok(fences) => {
                self.fences = fences;
                self.read().await
            }
            Err(error) => Err(error),
        };
        match read {
            Ok(mine) => mine,
            Err(error) => {
                debug!(%error, "the job could not be read");
                tokio::time::sleep(RETRY_PAUSES.1).await; // back-off
                // What there was to read is told once.
                self.bells.poked.notify_one();
                true
            }
        }
    }

    /// Reads the job until that works. What was being written may have been committed, or not, so
    /// nothing is decided before.
    async fn read_again(&mut self) -> Outcome {
        let mut backoff = Backoff::new(RETRY_PAUSES.0, RETRY_PAUSES.1);
        loop {
            tokio::time::sleep(backoff.pause()).await; // back-off
            match self.read().await {
                Ok(true) => return Outcome::Again,
                Ok(false) => return Outcome::Lost,
                Err(error) => debug!(%error, "the job could not be read"),
            }
        }
    }

    /// Whether the job still is this owner's.
    async fn read(&mut self) -> Result<bool, LedgerError> {
        let job = self.shared.ledger.job(&self.lease.job.id).await?;
        let job = job.filter(|job| job.epoch == self.lease.epoch);
        let mine = job.is_some();
        if let Some(job) = job {
            self.lease.job = job;
        }
        Ok(mine)
    }
}

async fn changed(host: Option<&mut HostWatch>) {
    match host {
        Some(host) => host.changed().await,
        None => std::future::pending().await,
    }
}
