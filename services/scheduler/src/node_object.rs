//! The API's view of a host: the Node object, which users label and cordon and the scheduler fills.

use godwit_ledger::{EventKind, EventRecord, LedgerError, NewObject, Object, ObjectKey, Tx};
use godwit_model::NodeName;
use godwit_rpc::inventory::v1::{HostInventory, HostReport};
use serde_json::{Map, Value, json};

use crate::inventory::hugepages;
use crate::json::{Condition, child, condition, now, reference, set_condition};

/// KubeVirt's label of nodes that take machines.
const SCHEDULABLE: &str = "kubevirt.io/schedulable";
/// Conditions beside `Ready`.
const PRESSURES: [&str; 3] = ["MemoryPressure", "DiskPressure", "PIDPressure"];

/// Key of a node's object.
pub(crate) fn key(node: &NodeName) -> ObjectKey {
    ObjectKey::new("nodes", "", node.as_str())
}

/// Writes what a host reported; what users set (labels, cordon, taints) stays.
///
/// # Errors
/// The ledger's.
pub(crate) async fn write(
    tx: &mut Tx,
    node: &NodeName,
    inventory: &HostInventory,
    report: &HostReport,
) -> Result<(), LedgerError> {
    let key = key(node);
    let mut object = match tx.get(&key).await? {
        Some(object) => object,
        None => {
            let body = json!({ "spec": {} });
            let metadata = json!({ "labels": {}, "annotations": {} });
            tx.create(NewObject {
                key,
                uid: None,
                metadata,
                body,
                status: None,
            })
            .await?
        }
    };
    if let Some(labels) = child(&mut object.metadata, "labels") {
        label(labels, node, inventory);
    }
    let mut status = object.status.take().unwrap_or_else(|| json!({}));
    let was_ready = condition(&status, "Ready") == Some("True");
    fill(&mut status, node, inventory, report);
    object.status = Some(status);
    tx.put(&object).await?;
    if was_ready {
        return Ok(());
    }
    event(
        tx,
        &object,
        (
            "NodeReady",
            &format!("Node {node} status is now: NodeReady"),
        ),
    )
    .await
}

async fn event(
    tx: &mut Tx,
    object: &Object,
    (reason, note): (&str, &str),
) -> Result<(), LedgerError> {
    tx.event(EventRecord {
        regarding: reference(object, "Node"),
        reason: reason.to_owned(),
        note: note.to_owned(),
        kind: EventKind::Normal,
        component: "node-controller".to_owned(),
        host: String::new(),
    })
    .await
}

fn label(labels: &mut Map<String, Value>, node: &NodeName, inventory: &HostInventory) {
    let fixed = [
        ("kubernetes.io/hostname", node.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture(inventory)),
        (SCHEDULABLE, "true"),
        ("node-role.kubernetes.io/worker", ""),
    ];
    for (label, value) in fixed {
        labels.insert(label.to_owned(), json!(value));
    }
    for (label, value) in &inventory.labels {
        labels.insert(label.clone(), json!(value));
    }
}

/// Says that a host no longer answers.
///
/// # Errors
/// The ledger's.
pub(crate) async fn mark_silent(tx: &mut Tx, node: &NodeName) -> Result<(), LedgerError> {
    let Some(mut object) = tx.get(&key(node)).await? else {
        return Ok(());
    };
    let mut status = object.status.take().unwrap_or_else(|| json!({}));
    let last_heard = status["conditions"][0]["lastHeartbeatTime"].clone();
    for kind in ["Ready"].into_iter().chain(PRESSURES) {
        let silent = Condition {
            status: "Unknown",
            ..Condition::new(kind, false)
        };
        let text = "The node's agent stopped reporting.";
        set_condition(&mut status, &silent.because("NodeStatusUnknown", text));
    }
    heartbeat(&mut status, &last_heard);
    object.status = Some(status);
    if let Some(labels) = child(&mut object.metadata, "labels") {
        labels.insert(SCHEDULABLE.to_owned(), json!("false"));
    }
    tx.put(&object).await?;
    let text = "virt-handler is not responsive, marking node as unresponsive";
    event(tx, &object, ("NodeUnresponsive", text)).await
}

fn architecture(inventory: &HostInventory) -> &str {
    match inventory.architecture.as_str() {
        "" | "x86_64" => "amd64",
        other => other,
    }
}

fn fill(status: &mut Value, node: &NodeName, inventory: &HostInventory, report: &HostReport) {
    let ready = Condition::new("Ready", true).because("KubeletReady", "The node's agent reports.");
    set_condition(status, &ready);
    for kind in PRESSURES {
        set_condition(
            status,
            &Condition::new(kind, false).because("AgentHasRoom", ""),
        );
    }
    heartbeat(status, &json!(now()));
    let mut room = json!({
        "cpu": format!("{}m", inventory.cpu_milli),
        "memory": format!("{}Ki", inventory.memory_bytes >> 10),
        "pods": "110",
    });
    for (size, total) in hugepages(inventory).each() {
        // A size of which the host has none is shown, too, as Kubernetes does.
        room[format!("hugepages-{size}")] = json!(format!("{}Ki", total.0 >> 10));
    }
    status["capacity"] = room.clone();
    status["allocatable"] = room;
    status["addresses"] = json!([
        { "type": "InternalIP", "address": inventory.internal_ip },
        { "type": "Hostname", "address": node },
    ]);
    status["nodeInfo"] = json!({
        "architecture": architecture(inventory),
        "bootID": report.boot_id,
        "containerRuntimeVersion": format!("qemu://{}", inventory.qemu_version),
        "kernelVersion": inventory.kernel_version,
        "kubeProxyVersion": "",
        "kubeletVersion": format!("v{}", inventory.agent_version),
        "machineID": "",
        "operatingSystem": "linux",
        "osImage": inventory.os_image,
        "systemUUID": "",
    });
}

/// Nodes' conditions have a heartbeat; it is the time of the last change, not of the last report.
fn heartbeat(status: &mut Value, at: &Value) {
    if let Value::Array(conditions) = &mut status["conditions"] {
        for condition in conditions {
            condition["lastHeartbeatTime"] = at.clone();
            if let Value::Object(fields) = condition {
                fields.remove("lastProbeTime");
            }
        }
    }
}
