//! What users see of a job: phase, `migrationState` and event texts, in KubeVirt's words.
//!
//! The only place that turns our states into theirs. The coordinator stores what it computes here
//! in the transaction of the transition.

use super::fact::TargetAddress;
use super::job::JobState;
use crate::{JobId, NodeName};
use serde::Serialize;
use std::collections::BTreeMap;

/// The public phase of a state; `None` keeps the phase shown before.
pub const fn phase(state: JobState) -> Option<&'static str> {
    match state {
        JobState::Pending => Some("Pending"),
        JobState::Placing => Some("Scheduling"),
        JobState::Reserved => Some("Scheduled"),
        JobState::Preparing => Some("PreparingTarget"),
        JobState::Prepared => Some("TargetReady"),
        JobState::Copying | JobState::SwitchAllowed | JobState::HandedOver => Some("Running"),
        JobState::Aborting | JobState::NeedsFencing => None,
        JobState::Succeeded => Some("Succeeded"),
        JobState::Failed => Some("Failed"),
    }
}

/// KubeVirt's role of the port that guest memory travels over.
const DIRECT_MIGRATION_PORT: u32 = 49152;

/// `status.migrationState` of an instance: the latest migration, field by field as KubeVirt has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationState {
    /// When the source began to copy, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_timestamp: Option<String>,
    /// When it ended, either way, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_timestamp: Option<String>,
    /// When the guest went on at the target, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_node_domain_ready_timestamp: Option<String>,
    /// Whether the target's QEMU was seen.
    #[serde(skip_serializing_if = "is_false")]
    pub target_node_domain_detected: bool,
    /// Address that the target listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_node_address: Option<String>,
    /// Listening ports and what travels over them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub target_direct_migration_node_ports: BTreeMap<String, u32>,
    /// Where to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_node: Option<NodeName>,
    /// The launcher on the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_pod: Option<String>,
    /// Where from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_node: Option<NodeName>,
    /// The launcher on the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_pod: Option<String>,
    /// Whether it ended, either way.
    #[serde(skip_serializing_if = "is_false")]
    pub completed: bool,
    /// Whether it ended without moving.
    #[serde(skip_serializing_if = "is_false")]
    pub failed: bool,
    /// Whether somebody asked to end it.
    #[serde(skip_serializing_if = "is_false")]
    pub abort_requested: bool,
    /// `Aborting`, `Succeeded` or `Failed`; absent when nobody asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort_status: Option<&'static str>,
    /// Why it failed, whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<String>,
    /// UID of the VirtualMachineInstanceMigration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration_uid: Option<JobId>,
    /// `PreCopy`, `PostCopy` or `Paused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<&'static str>,
    /// The MigrationPolicy that the options come from, if one fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration_policy_name: Option<String>,
    /// The options in force when it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration_configuration: Option<MigrationConfiguration>,
    /// The source's side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_state: Option<SideState>,
    /// The target's side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_state: Option<SideState>,
    /// Network of the copy: `Pod`, or `Migration` for a network of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration_network_type: Option<&'static str>,
}

/// One side of `migrationState`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SideState {
    /// The node.
    pub node: NodeName,
    /// The launcher.
    pub pod: String,
    /// UID of the migration; KubeVirt spells it with a capital UID here.
    #[serde(rename = "migrationUID")]
    pub migration_uid: JobId,
    /// Name of the machine on the host.
    pub domain_name: String,
    /// Its namespace.
    pub domain_namespace: String,
    /// UID of the instance.
    #[serde(rename = "virtualMachineInstanceUID")]
    pub instance_uid: String,
}

/// The options of one migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationConfiguration {
    /// Migrations at once in the cluster.
    pub parallel_migrations_per_cluster: u32,
    /// Migrations at once away from a node.
    pub parallel_outbound_migrations_per_node: u32,
    /// Migrations at once towards a node; ours, KubeVirt has none.
    pub parallel_inbound_migrations_per_node: u32,
    /// Bytes per second as a Kubernetes quantity; `0` is unlimited.
    pub bandwidth_per_migration: String,
    /// Seconds for each GiB.
    pub completion_timeout_per_gi_b: u64,
    /// Seconds without progress.
    pub progress_timeout: u64,
    /// Longest stop of the guest that the switch may take, milliseconds.
    pub max_downtime_ms: u32,
    /// Whether the guest may be slowed.
    pub allow_auto_converge: bool,
    /// Whether the guest may be paused until the copy is complete, as a last resort.
    pub allow_workload_disruption: bool,
    /// Whether the rest may be fetched after the switch.
    pub allow_post_copy: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form serde asks for")]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl MigrationState {
    /// Fills in where the target listens.
    pub fn listens(&mut self, address: &TargetAddress) {
        self.target_node_address = Some(address.address.clone());
        self.target_node_domain_detected = true;
        self.target_direct_migration_node_ports = address
            .ports
            .iter()
            .map(|port| (port.to_string(), DIRECT_MIGRATION_PORT))
            .collect();
    }
}

/// Which object an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Regarding {
    /// The VirtualMachineInstance.
    Instance,
    /// The VirtualMachineInstanceMigration.
    Migration,
}

/// One event that a transition causes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The object.
    pub regarding: Regarding,
    /// Whether it is a Warning.
    pub warning: bool,
    /// KubeVirt's reason.
    pub reason: &'static str,
    /// The text.
    pub note: String,
    /// Who says it: KubeVirt's name of the component.
    pub component: &'static str,
    /// On which host; `None` for the controllers.
    pub host: Option<NodeName>,
}

/// What the texts need to know of a job.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The job.
    pub job: &'a JobId,
    /// Name of the instance.
    pub instance: &'a str,
    /// Where from; `None` when the machine is nowhere.
    pub source: Option<&'a NodeName>,
    /// Where to; `None` before one is chosen.
    pub target: Option<&'a NodeName>,
    /// Where the target listens; `None` before.
    pub address: Option<&'a TargetAddress>,
    /// Why it is being undone; empty otherwise.
    pub failure: &'a str,
    /// Whether the copy had begun.
    pub copied: bool,
}

/// The events of a transition to `to`.
pub fn announcements(to: JobState, context: Context<'_>) -> Vec<Announcement> {
    match to {
        JobState::Reserved => vec![migration("SuccessfulCreate", created_target(context))],
        JobState::Preparing => vec![migration(
            "SuccessfulHandOver",
            "Migration target pod is ready for preparation by virt-handler.".to_owned(),
        )],
        JobState::Prepared => prepared(context),
        JobState::Copying => vec![instance(
            "Migrating",
            "VirtualMachineInstance is migrating.".to_owned(),
            context.source,
        )],
        JobState::HandedOver => handed_over(context),
        JobState::Succeeded => vec![
            instance("Deleted", "Signaled Deletion".to_owned(), context.source),
            migration(
                "SuccessfulMigration",
                "Source node reported migration succeeded".to_owned(),
            ),
        ],
        JobState::Aborting if context.copied => vec![instance(
            "Migrating",
            "VirtualMachineInstance is aborting migration.".to_owned(),
            context.source,
        )],
        JobState::NeedsFencing => vec![Announcement {
            warning: true,
            ..migration("NeedsFencing", context.failure.to_owned())
        }],
        JobState::Failed => failed(context),
        JobState::Pending | JobState::Placing | JobState::SwitchAllowed | JobState::Aborting => {
            vec![]
        }
    }
}

fn created_target(context: Context<'_>) -> String {
    format!(
        "Created migration target pod {}",
        launcher_name(context.instance, context.job.as_str())
    )
}

fn prepared(context: Context<'_>) -> Vec<Announcement> {
    let mut all = vec![instance(
        "PreparingTarget",
        "VirtualMachineInstance Migration Target Prepared.".to_owned(),
        context.target,
    )];
    if let Some(address) = context.address {
        let ports: Vec<String> = address.ports.iter().map(u16::to_string).collect();
        let note = format!(
            "Migration Target is listening at {}, on ports: {}",
            address.address,
            ports.join(",")
        );
        all.push(instance("PreparingTarget", note, context.target));
    }
    all
}

fn handed_over(context: Context<'_>) -> Vec<Announcement> {
    let mut all = vec![instance(
        "Created",
        "VirtualMachineInstance defined.".to_owned(),
        context.target,
    )];
    if let Some(target) = context.target {
        let note = format!("The VirtualMachineInstance migrated to node {target}.");
        all.push(instance("Migrated", note, context.source));
    }
    all
}

fn failed(context: Context<'_>) -> Vec<Announcement> {
    let note = format!("Migration failed: {}", context.failure);
    let mut all = vec![Announcement {
        warning: true,
        ..migration("FailedMigration", note)
    }];
    if context.copied {
        let note = format!(
            "VirtualMachineInstance migration uid {} failed. reason:{}",
            context.job, context.failure
        );
        all.push(Announcement {
            warning: true,
            ..instance("Migrated", note, context.source)
        });
    }
    all
}

fn migration(reason: &'static str, note: String) -> Announcement {
    Announcement {
        regarding: Regarding::Migration,
        warning: false,
        reason,
        note,
        component: "virtualmachine-controller",
        host: None,
    }
}

fn instance(reason: &'static str, note: String, host: Option<&NodeName>) -> Announcement {
    Announcement {
        regarding: Regarding::Instance,
        warning: false,
        reason,
        note,
        component: "virt-handler",
        host: host.cloned(),
    }
}

/// Name of the launcher that stands for a machine on one host: `virt-launcher-NAME-xxxxx`.
///
/// `seed` is the id of the job that brought it there, or the machine's own for its first host, so
/// that the name is the same wherever it is asked for.
pub fn launcher_name(instance: &str, seed: &str) -> String {
    // Kubernetes' alphabet for generated names has no vowels and no 0, 1, 3.
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash: u32 = 0x811c_9dc5; // FNV-1a
    for byte in seed.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    let mut name = format!("virt-launcher-{instance}-");
    for _ in 0..5 {
        name.push(char::from(ALPHABET[(hash % 27) as usize]));
        hash /= 27;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> JobId {
        JobId::parse("43f5b34d-94b4-4cda-9a69-cca8d4b4c587").expect("a uuid")
    }

    #[test]
    fn the_phases_of_a_good_run_are_kubevirts() {
        use JobState as S;
        let run = [
            S::Pending,
            S::Placing,
            S::Reserved,
            S::Preparing,
            S::Prepared,
            S::Copying,
            S::SwitchAllowed,
            S::HandedOver,
            S::Succeeded,
        ];
        let mut phases: Vec<&str> = run.into_iter().filter_map(phase).collect();
        phases.dedup();
        assert_eq!(
            phases,
            [
                "Pending",
                "Scheduling",
                "Scheduled",
                "PreparingTarget",
                "TargetReady",
                "Running",
                "Succeeded"
            ]
        );
    }

    #[test]
    fn the_target_says_where_it_listens() {
        let address = TargetAddress {
            uri: "tcp:10.131.0.3:39037".into(),
            address: "10.131.0.3".into(),
            ports: vec![39037, 42063],
        };
        let job = job();
        let target = NodeName::parse("worker1").expect("a name");
        let context = Context {
            job: &job,
            instance: "rhel8-server-nfs",
            source: None,
            target: Some(&target),
            address: Some(&address),
            failure: "",
            copied: false,
        };
        let notes: Vec<String> = announcements(JobState::Prepared, context)
            .into_iter()
            .map(|a| a.note)
            .collect();
        assert_eq!(
            notes,
            [
                "VirtualMachineInstance Migration Target Prepared.",
                "Migration Target is listening at 10.131.0.3, on ports: 39037,42063"
            ]
        );
    }

    #[test]
    fn a_launcher_is_named_like_a_generated_pod() {
        let name = launcher_name("rhel8-server-nfs", job().as_str());
        let suffix = name
            .strip_prefix("virt-launcher-rhel8-server-nfs-")
            .expect("the prefix");
        assert_eq!(suffix.len(), 5);
        assert_eq!(name, launcher_name("rhel8-server-nfs", job().as_str()));
    }
}
