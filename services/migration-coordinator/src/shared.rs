//! What all jobs of this process share: the ledger, the hosts, the limits in force.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use godwit_ledger::{Experience, Ledger, LedgerError, Object, ObjectKey, SettingsFound};
use godwit_model::limits::MigrationLimits;
use godwit_model::migration::convergence::CopyLimits;
use godwit_model::migration::queue::QueueLimits;
use godwit_model::migration::view::MigrationConfiguration;
use godwit_model::policy::{Labels, MigrationPolicy};
use godwit_model::{MachineId, NodeName};
use godwit_rpc::agent::v1 as wire;
use godwit_rpc::placement::v1::placement_client::PlacementClient;
use godwit_rpc::{Channel, Status};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::config::Config;
use crate::drives::Drives;
use crate::hosts::Hosts;
use crate::queue::Queue;
use crate::telemetry::Telemetry;

/// Where the ledger keeps MigrationPolicies.
const POLICIES: &str = "migrationpolicies.migrations.kubevirt.io";
/// How often the limits are read again although nobody woke us.
const LIMITS_POLL: Duration = Duration::from_secs(5);

/// Shortest time between two readings: every commit wakes us, and few change the limits.
const LIMITS_PAUSE: Duration = Duration::from_millis(200);

/// Shortest time between two readings of what migrations took.
const PASSAGES_PAUSE: Duration = Duration::from_secs(1);
/// How often it is read although nobody woke us.
const PASSAGES_POLL: Duration = Duration::from_secs(10);

/// One value for the whole process.
pub(crate) struct Shared {
    pub(crate) config: Config,
    /// Names this process in leases.
    pub(crate) owner: String,
    pub(crate) ledger: Ledger,
    pub(crate) hosts: Hosts,
    pub(crate) scheduler: PlacementClient<Channel>,
    pub(crate) telemetry: Telemetry,
    /// What this process drives.
    pub(crate) drives: Drives,
    /// Whose turn it is.
    pub(crate) queue: Queue,
    pub(crate) shutdown: CancellationToken,
    pub(crate) limits: RwLock<Arc<Limits>>,
    pub(crate) policies: RwLock<Arc<Vec<MigrationPolicy>>>,
    /// Held while limits and policies are read: an older reading never replaces a newer one. When
    /// the last good one began; `None` before.
    pub(crate) reading_limits: tokio::sync::Mutex<Option<Instant>>,
    /// Makes forecasts.
    pub(crate) experience: Experience,
}

/// The limits in force, in the forms that their users need.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// As they are set.
    pub(crate) cluster: MigrationLimits,
    pub(crate) queue: QueueLimits,
    pub(crate) copy: CopyLimits,
    pub(crate) wire: wire::CopyLimits,
    pub(crate) shown: MigrationConfiguration,
}

impl Shared {
    /// The limits in force.
    pub(crate) fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.limits.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over the limits and policies that users have set by now. A setting that makes no sense
    /// is told in the log, and the last good one stays; where a whole text can't be read, all do.
    /// A reading that began after `since` will do.
    pub(crate) async fn read_limits(&self, since: Option<Instant>) -> Result<(), LedgerError> {
        let mut last = self.reading_limits.lock().await;
        if last.is_some_and(|last| since.is_some_and(|since| last > since)) {
            return Ok(());
        }
        let began = Instant::now();
        let policies = self.ledger.list(POLICIES).await?;
        let policies = policies.iter().filter_map(policy).collect();
        let found = SettingsFound::read(&self.ledger).await?;
        *self
            .policies
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(policies);
        let first = last.replace(began).is_none();
        let before = self.limits();
        let places = [found.kubevirt, found.config_map];
        if let Some(problem) = places.iter().find_map(|place| place.as_ref().err()) {
            warn!(%problem, "migration limits can't be read; the last good ones stay");
            if !first {
                return Ok(());
            }
        }
        let [resource, config_map] = places.map(Result::unwrap_or_default);
        let (limits, problems) = MigrationLimits::resolve(&before.cluster, &resource, &config_map);
        for problem in problems {
            warn!(%problem, "a migration limit is not usable; the last good one stays");
        }
        if limits != before.cluster {
            *self.limits.write().unwrap_or_else(PoisonError::into_inner) =
                Arc::new(Limits::from(limits));
            self.queue.moved();
        }
        Ok(())
    }

    /// The policy that fits an instance by its labels and its namespace's.
    pub(crate) async fn policy_for(
        &self,
        vmi: &ObjectKey,
    ) -> Result<Option<MigrationPolicy>, LedgerError> {
        let policies = self.policies.read();
        let policies = Arc::clone(&policies.unwrap_or_else(PoisonError::into_inner));
        if policies.is_empty() {
            return Ok(None);
        }
        let space = ObjectKey::new("namespaces", "", &vmi.namespace);
        let instance = labels(self.ledger.get(vmi).await?);
        let namespace = labels(self.ledger.get(&space).await?);
        Ok(MigrationPolicy::chosen(&policies, &instance, &namespace).cloned())
    }

    /// The time for people's eyes, RFC 3339 with seconds, as Kubernetes writes it.
    pub(crate) fn now(&self) -> String {
        Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// Where the agent of `node` listens; `None` for a node that never registered.
    pub(crate) async fn agent_address(
        &self,
        node: &NodeName,
    ) -> Result<Option<String>, LedgerError> {
        let row = self.ledger.node(node).await?;
        Ok(row.map(|row| row.agent_address))
    }

    /// The hardware of a machine, as it was started.
    pub(crate) async fn machine_spec(
        &self,
        machine: &MachineId,
    ) -> Result<wire::MachineSpec, Status> {
        let row = self
            .ledger
            .instance(machine)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let spec = row.and_then(|row| row.machine);
        let spec = spec.ok_or_else(|| Status::failed_precondition("the machine runs nowhere"))?;
        Ok(spec.into())
    }
}

/// Keeps what is forecast in line with the migrations that ended.
pub(crate) async fn follow_passages(shared: Arc<Shared>) {
    let mut wakeups = shared.ledger.wakeups();
    loop {
        if let Err(error) = shared.experience.follow(&shared.ledger).await {
            debug!(%error, "what migrations took could not be read");
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = tokio::time::sleep(PASSAGES_PAUSE) => {} // debounce
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            _ = wakeups.next(PASSAGES_POLL) => {}
        }
    }
}

/// Keeps the limits in line with the KubeVirt object and the `kubevirt-config` ConfigMap.
pub(crate) async fn follow_limits(shared: Arc<Shared>) {
    let mut wakeups = shared.ledger.wakeups();
    loop {
        if let Err(error) = shared.read_limits(None).await {
            warn!(%error, "the migration limits could not be read");
        }
        tokio::time::sleep(LIMITS_PAUSE).await; // debounce
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            _ = wakeups.next(LIMITS_POLL) => {}
        }
    }
}

/// Labels of an object; one that is gone has none.
fn labels(object: Option<Object>) -> Labels {
    let labels = object.and_then(|object| object.metadata.get("labels").cloned());
    labels
        .and_then(|labels| serde_json::from_value(labels).ok())
        .unwrap_or_default()
}

/// What a MigrationPolicy says.
fn policy(object: &Object) -> Option<MigrationPolicy> {
    let spec = object.spec();
    let selectors = spec.get("selectors").filter(|set| !set.is_null());
    Some(MigrationPolicy {
        name: object.key.name.clone(),
        selectors: selectors.and_then(|set| serde_json::from_value(set.clone()).ok()),
        settings: serde_json::from_value(spec.clone())
            .inspect_err(|error| warn!(%error, "a MigrationPolicy makes no sense"))
            .ok()?,
    })
}

impl From<MigrationLimits> for Limits {
    fn from(limits: MigrationLimits) -> Self {
        Self {
            queue: limits.queue(),
            copy: CopyLimits {
                completion_timeout_per_gib: limits.completion_timeout_per_gib,
                progress_timeout: limits.progress_timeout,
                may_pause: limits.allow_workload_disruption,
            },
            wire: wire::CopyLimits {
                bandwidth: limits.bandwidth.0,
                downtime_limit_ms: limits.max_downtime_ms,
                auto_converge: limits.allow_auto_converge,
                post_copy: limits.allow_post_copy,
                post_copy_at_once: false,
            },
            shown: MigrationConfiguration {
                parallel_migrations_per_cluster: limits.parallel_per_cluster,
                parallel_outbound_migrations_per_node: limits.parallel_outbound_per_node,
                parallel_inbound_migrations_per_node: limits.parallel_inbound_per_node,
                bandwidth_per_migration: limits.bandwidth.0.to_string(),
                completion_timeout_per_gi_b: limits.completion_timeout_per_gib,
                progress_timeout: limits.progress_timeout,
                max_downtime_ms: limits.max_downtime_ms,
                allow_auto_converge: limits.allow_auto_converge,
                allow_workload_disruption: limits.allow_workload_disruption,
                allow_post_copy: limits.allow_post_copy,
            },
            cluster: limits,
        }
    }
}
