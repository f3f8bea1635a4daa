//! The status of a VirtualMachineInstance, in KubeVirt's words.

use godwit_ledger::Object;
use godwit_model::NodeName;
use godwit_model::instance::{NotMigratable, live_migratable};
use godwit_model::machine::MachineSpec;
use godwit_model::placement::{Placement, Shown, overhead};
use godwit_model::vmi::VmiSpec;
use godwit_rpc::agent::v1::{MachineReport, MachineState};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::json::{Condition, child, clear_condition, now, set_condition};

/// Label of the instance that names its node.
const NODE_LABEL: &str = "kubevirt.io/nodeName";
/// KubeVirt's user of a launcher without root.
pub(crate) const RUNTIME_USER: u32 = 107;

/// Field with what speaks against each node while none takes the instance.
const PLACEMENT: &str = "placement";
/// Most nodes there.
const VERDICTS_MAX: usize = 50;

/// Phase of an instance of which nobody knows whether it runs.
const UNKNOWN: &str = "Unknown";

/// Moves the instance to `phase`; `true` when it was in another.
pub(crate) fn set_phase(status: &mut Value, phase: &str) -> bool {
    if status["phase"] == phase {
        return false;
    }
    status["phase"] = json!(phase);
    if !status["phaseTransitionTimestamps"].is_array() {
        status["phaseTransitionTimestamps"] = json!([]);
    }
    if let Value::Array(times) = &mut status["phaseTransitionTimestamps"] {
        // The last time of each phase: a host that comes and goes must not make this grow.
        times.retain(|time| time["phase"] != phase);
        times.push(json!({ "phase": phase, "phaseTransitionTimestamp": now() }));
    }
    true
}

/// When the instance came into `phase`; `None` when it never did.
pub(crate) fn since(status: &Value, phase: &str) -> Option<Timestamp> {
    let times = status["phaseTransitionTimestamps"].as_array()?;
    let time = times.iter().rfind(|time| time["phase"] == phase)?;
    time["phaseTransitionTimestamp"].as_str()?.parse().ok()
}

/// Fills in what is known once the instance has a node.
pub(crate) fn bind(object: &mut Object, node: &NodeName, spec: &MachineSpec) {
    if let Some(labels) = child(&mut object.metadata, "labels") {
        labels.insert(NODE_LABEL.to_owned(), json!(node));
    }
    let uid = object.uid.clone();
    let mut status = object.status.take().unwrap_or_else(|| json!({}));
    status["nodeName"] = json!(node);
    status["activePods"] = json!({ uid: node });
    status["machine"] = json!({ "type": spec.machine_type });
    let mebibytes = |bytes: u64| format!("{}Mi", bytes.div_ceil(1 << 20));
    let memory = mebibytes(spec.memory.0);
    status["memory"] = json!({
        "guestAtBoot": memory, "guestCurrent": memory, "guestRequested": memory,
        "memoryOverhead": mebibytes(overhead(spec.memory).0),
    });
    status["currentCPUTopology"] = json!({ "cores": spec.cpus, "sockets": 1, "threads": 1 });
    status["guestOSInfo"] = json!({});
    status["launcherContainerImageVersion"] =
        json!(format!("godwit-{}", godwit_runtime::build::VERSION));
    status["migrationMethod"] = json!("LiveMigration");
    status["migrationTransport"] = json!("Unix");
    status["qosClass"] = json!("Burstable");
    status["runtimeUser"] = json!(RUNTIME_USER);
    status["selinuxContext"] = json!("none");
    status["volumeStatus"] = spec
        .disks
        .iter()
        .zip('a'..='z')
        .map(|(disk, letter)| json!({ "name": disk.name, "target": format!("vd{letter}") }))
        .collect();
    clear_condition(&mut status, "PodScheduled");
    if let Some(status) = status.as_object_mut() {
        status.remove(PLACEMENT);
    }
    not_ready(
        &mut status,
        "GuestNotRunning",
        "Guest VM is not reported as running",
    );
    object.status = Some(status);
}

/// Says whether the instance can move live, and why not.
pub(crate) fn set_migratable(status: &mut Value, spec: &VmiSpec) {
    let condition = match live_migratable(spec) {
        Ok(()) => Condition::new("LiveMigratable", true),
        Err(NotMigratable { reason, message }) => {
            Condition::new("LiveMigratable", false).because(reason, &message)
        }
    };
    set_condition(status, &condition);
}

/// Says that no node was found, and why, of the cluster in one line and of some nodes each.
pub(crate) fn set_unschedulable(status: &mut Value, placement: &Placement) {
    let condition =
        Condition::new("PodScheduled", false).because("Unschedulable", &placement.summary());
    set_condition(status, &condition);
    status[PLACEMENT] = json!(Shown::of(&placement.verdicts, VERDICTS_MAX));
    not_ready(
        status,
        "PodNotExists",
        "virt-launcher pod has not yet been scheduled",
    );
}

/// Says that the instance isn't ready.
pub(crate) fn not_ready(status: &mut Value, reason: &str, message: &str) {
    set_condition(
        status,
        &Condition::new("Ready", false).because(reason, message),
    );
}

/// Says that nobody knows whether the machine runs, and why.
pub(crate) fn unknown(status: &mut Value, reason: &str, message: &str) {
    set_phase(status, UNKNOWN);
    not_ready(status, reason, message);
}

/// Says that the machine ended, and why.
pub(crate) fn ended(status: &mut Value, phase: &str, why: &str) {
    set_phase(status, phase);
    not_ready(
        status,
        "GuestNotRunning",
        "Guest VM is not reported as running",
    );
    if !why.is_empty() {
        status["message"] = json!(why);
    }
    clear_condition(status, "Paused");
}

/// Condition that shows `evacuationNodeName` to those who wait for conditions; KubeVirt's.
const EVICTION_REQUESTED: &str = "EvictionRequested";

/// Takes over what the owner's host reports of a machine that runs, and shows whether it shall leave.
pub(crate) fn observe(status: &mut Value, report: &MachineReport) {
    clear_condition(status, "Synchronized");
    set_condition(status, &Condition::new("Ready", true));
    if status["phase"] == UNKNOWN {
        set_phase(status, "Running");
    }
    if report.state() == MachineState::Paused {
        let paused =
            Condition::new("Paused", true).because("PausedByUser", "VMI was paused by user");
        set_condition(status, &paused);
    } else {
        clear_condition(status, "Paused");
    }
    if status["evacuationNodeName"].is_string() {
        let marked = Condition::new(EVICTION_REQUESTED, true)
            .because(EVICTION_REQUESTED, "VMI is marked for eviction");
        set_condition(status, &marked);
    } else {
        clear_condition(status, EVICTION_REQUESTED);
    }
    let before = status["interfaces"].take();
    status["interfaces"] = report
        .interfaces
        .iter()
        .map(|interface| self::interface(interface, &before))
        .collect();
}

/// An interface; addresses that this host hasn't seen yet are the ones the last host saw.
fn interface(report: &godwit_rpc::agent::v1::InterfaceReport, before: &Value) -> Value {
    let known = before
        .as_array()
        .into_iter()
        .flatten()
        .find(|old| old["name"] == report.name);
    let addresses = if report.addresses.is_empty() {
        known
            .map(|old| old["ipAddresses"].clone())
            .unwrap_or_default()
    } else {
        json!(report.addresses)
    };
    let mut interface = json!({
        "name": report.name,
        "mac": report.mac,
        "infoSource": "domain",
        "queueCount": 1,
        "linkState": "up",
    });
    if let Some(first) = addresses.get(0) {
        interface["ipAddress"] = first.clone();
        interface["ipAddresses"] = addresses;
    }
    interface
}
