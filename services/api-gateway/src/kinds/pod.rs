//! Pod: what a running machine looks like to clients that know pods: the launcher that it has in
//! KubeVirt. Computed from the instance; nobody can write one.

use std::sync::Arc;

use godwit_apimachinery::object::{is_deleting, meta_str, name, namespace, uid};
use godwit_apimachinery::{Column, ColumnType, Kind, Stored, Verb, View};
use godwit_model::migration::view::launcher_name;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{condition, schema};

/// Where the launchers' UIDs come from, so that each is the same wherever it is computed.
const UIDS: Uuid = Uuid::from_u128(0x6d1c_7a52_0f3e_4b0c_9a55_21d0_c43e_8f17);
/// The container in which KubeVirt runs a machine.
const CONTAINER: &str = "compute";
const NONE: &str = "<none>";

pub(crate) fn kind() -> Kind {
    Kind {
        short_names: vec!["po"],
        categories: vec!["all"],
        verbs: Verb::READ.to_vec(),
        has_status: false,
        strategic_merge: true,
        schema: schema::parse(include_str!("schema/pod.yaml")),
        columns: columns(),
        selectable_fields: vec!["spec.nodeName", "status.phase", "status.podIP"],
        ..Kind::custom("Pod", "pods", vec![View::new("", "v1")])
    }
}

/// Kubernetes' own.
fn columns() -> Vec<Column> {
    let path = |name, path, text| Column::path(name, ColumnType::String, path, text);
    vec![
        Column::computed(
            "Ready",
            |pod, _| json!(format!("{}/1", u8::from(is_ready(pod)))),
            "Containers that are ready, of all.",
        ),
        Column::computed("Status", |pod, _| json!(shown_status(pod)), "How it is."),
        Column::computed("Restarts", |_, _| json!("0"), "A launcher never restarts."),
        Column::age(),
        Column::computed("IP", |pod, _| or_none(&pod["status"]["podIP"]), "Address.").wide(),
        path("Node", ".spec.nodeName", "Where it runs.").wide(),
        Column::computed("Nominated Node", |_, _| json!(NONE), "Not used here.").wide(),
        Column::computed("Readiness Gates", |_, _| json!(NONE), "Not used here.").wide(),
    ]
}

fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready["status"] == "True")
}

fn shown_status(pod: &Value) -> &str {
    match pod["status"]["phase"].as_str() {
        _ if is_deleting(pod) => "Terminating",
        Some(phase) => phase,
        None => "Unknown",
    }
}

fn or_none(value: &Value) -> Value {
    json!(value.as_str().unwrap_or(NONE))
}

/// The launcher of an instance, at the instance's revision; `None` where no host has its machine.
pub(crate) fn launcher(instance: &Stored) -> Option<Arc<Stored>> {
    let pod = launcher_of(instance.object())?;
    Some(Stored::new(pod, instance.revision()))
}

fn launcher_of(instance: &Value) -> Option<Value> {
    let told = &instance["status"];
    let node = told["nodeName"].as_str().filter(|node| !node.is_empty())?;
    let phase = match told["phase"].as_str()? {
        "Succeeded" | "Failed" => return None,
        "Running" => "Running",
        "Unknown" => "Unknown",
        _ => "Pending",
    };
    let seed = seed(instance, node);
    let mut pod = json!({
        "metadata": metadata(instance, seed),
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "containers": [{ "name": CONTAINER, "image": image(told), "resources": {} }],
        },
        "status": status(instance, phase),
    });
    for mark in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        let value = &instance["metadata"][mark];
        if !value.is_null() {
            pod["metadata"][mark] = value.clone();
        }
    }
    Some(pod)
}

/// What the launcher is named after: the job that brought the machine to its node, or the machine.
fn seed<'a>(instance: &'a Value, node: &str) -> &'a str {
    let pods = instance["status"]["activePods"].as_object();
    let here = pods.and_then(|pods| pods.iter().find(|(_, place)| **place == node));
    here.map_or_else(|| uid(instance), |(seed, _)| seed.as_str())
}

/// The instance that a launcher of this name would stand for.
pub(crate) fn instance_name(launcher: &str) -> Option<&str> {
    let rest = launcher.strip_prefix("virt-launcher-")?;
    rest.rsplit_once('-').map(|(instance, _)| instance)
}

fn metadata(instance: &Value, seed: &str) -> Value {
    let (vmi, id) = (name(instance), uid(instance));
    // The machine's own labels select its launchers, too.
    let mut labels = instance["metadata"]["labels"].clone();
    if !labels.is_object() {
        labels = json!({});
    }
    labels["kubevirt.io"] = json!("virt-launcher");
    labels["kubevirt.io/created-by"] = json!(id);
    labels["vm.kubevirt.io/name"] = json!(vmi);
    json!({
        "name": launcher_name(vmi, seed),
        "generateName": format!("virt-launcher-{vmi}-"),
        "namespace": namespace(instance),
        "uid": Uuid::new_v5(&UIDS, format!("{id}/{seed}").as_bytes()),
        // A launcher of its own age would need a time that an instance doesn't keep.
        "creationTimestamp": meta_str(instance, "creationTimestamp"),
        "labels": labels,
        "annotations": annotations(instance, vmi),
        "ownerReferences": [{
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "name": vmi,
            "uid": id,
            "controller": true,
            "blockOwnerDeletion": true,
        }],
    })
}

/// What KubeVirt notes on launchers; the last two tell a descheduler that evictions go on after they
/// were answered.
fn annotations(instance: &Value, vmi: &str) -> Value {
    let mut annotations = json!({
        "kubevirt.io/domain": vmi,
        "descheduler.alpha.kubernetes.io/request-evict-only": "",
    });
    let told = &instance["status"];
    if told["nodeName"].is_string() && told["evacuationNodeName"] == told["nodeName"] {
        annotations["descheduler.alpha.kubernetes.io/eviction-in-progress"] = json!("kubevirt");
    }
    annotations
}

fn image(told: &Value) -> &str {
    told["launcherContainerImageVersion"]
        .as_str()
        .unwrap_or_default()
}

fn status(instance: &Value, phase: &str) -> Value {
    let told = &instance["status"];
    let ready = condition(instance, "Ready");
    let is_ready = ready.is_some_and(|ready| ready["status"] == "True");
    let condition = |kind: &str, is_true: bool| {
        let since = ready.map_or(&Value::Null, |ready| &ready["lastTransitionTime"]);
        let status = if is_true { "True" } else { "False" };
        json!({
            "type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": since,
        })
    };
    let started = meta_str(instance, "creationTimestamp");
    let state = match phase {
        "Running" => json!({ "running": { "startedAt": since_running(told) } }),
        _ => json!({ "waiting": { "reason": phase } }),
    };
    let mut status = json!({
        "phase": phase,
        "startTime": started,
        "qosClass": "Burstable",
        "conditions": [
            condition("Ready", is_ready),
            condition("ContainersReady", is_ready),
            condition("Initialized", true),
            condition("PodScheduled", true),
        ],
        "containerStatuses": [{
            "name": CONTAINER,
            "ready": is_ready,
            "started": is_ready,
            "restartCount": 0,
            "image": image(told),
            "imageID": "",
            "state": state,
            "lastState": {},
        }],
    });
    for field in ["reason", "message"] {
        if let Some(text) = ready.and_then(|ready| ready[field].as_str()) {
            status["conditions"][0][field] = json!(text);
        }
    }
    // An instance shows addresses as its host has them, which may be with a prefix length.
    let address = told["interfaces"][0]["ipAddress"].as_str();
    let address = address.and_then(|address| address.split('/').next());
    if let Some(address) = address.filter(|address| !address.is_empty()) {
        status["podIP"] = json!(address);
        status["podIPs"] = json!([{ "ip": address }]);
    }
    status
}

fn since_running(told: &Value) -> &Value {
    let times = told["phaseTransitionTimestamps"].as_array();
    let running = times
        .into_iter()
        .flatten()
        .find(|time| time["phase"] == "Running");
    running.map_or(&Value::Null, |time| &time["phaseTransitionTimestamp"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> Value {
        json!({
            "metadata": {
                "name": "rhel8-server-nfs", "namespace": "default", "uid": "u1",
                "labels": {"app": "lab"}, "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {},
            "status": {
                "phase": "Running", "nodeName": "worker1", "activePods": {"u1": "worker1"},
                "interfaces": [{"name": "lab", "ipAddress": "192.168.123.62/24"}],
                "conditions": [{
                    "type": "Ready", "status": "True",
                    "lastTransitionTime": "2026-01-01T00:00:05Z",
                }],
            },
        })
    }

    #[test]
    fn a_running_machine_has_a_launcher_as_kubevirts_clients_look_for_it() {
        let pod = launcher_of(&instance()).unwrap();
        let name = name(&pod).to_owned();
        assert_eq!(name, launcher_name("rhel8-server-nfs", "u1"));
        assert_eq!(instance_name(&name), Some("rhel8-server-nfs"));
        let labels = &pod["metadata"]["labels"];
        assert_eq!(labels["kubevirt.io"], "virt-launcher");
        assert_eq!(labels["kubevirt.io/created-by"], "u1");
        assert_eq!(labels["vm.kubevirt.io/name"], "rhel8-server-nfs");
        assert_eq!(labels["app"], "lab");
        let owner = &pod["metadata"]["ownerReferences"][0];
        assert_eq!(
            (&owner["uid"], &owner["controller"]),
            (&json!("u1"), &json!(true))
        );
        assert_eq!(pod["status"]["podIP"], "192.168.123.62");
        assert!(is_ready(&pod));
        assert_eq!(shown_status(&pod), "Running");
        // A machine and its launcher are two objects.
        assert_ne!(pod["metadata"]["uid"], "u1");
    }

    #[test]
    fn a_launcher_that_is_to_leave_its_node_says_so() {
        const LEAVES: &str = "descheduler.alpha.kubernetes.io/eviction-in-progress";
        let mut instance = instance();
        for (node, leaves) in [
            (Value::Null, Value::Null),
            (json!("worker1"), json!("kubevirt")),
            // The mark is that of the node it has left.
            (json!("worker2"), Value::Null),
        ] {
            instance["status"]["evacuationNodeName"] = node;
            let pod = launcher_of(&instance).unwrap();
            assert_eq!(pod["metadata"]["annotations"][LEAVES], leaves);
        }
    }

    #[test]
    fn on_another_node_it_is_another_launcher() {
        let before = launcher_of(&instance()).unwrap();
        let mut moved = instance();
        moved["status"]["nodeName"] = json!("worker2");
        moved["status"]["activePods"] = json!({"job1": "worker2"});
        let after = launcher_of(&moved).unwrap();
        assert_eq!(after["spec"]["nodeName"], "worker2");
        assert_ne!(before["metadata"]["name"], after["metadata"]["name"]);
        assert_ne!(before["metadata"]["uid"], after["metadata"]["uid"]);
    }

    #[test]
    fn a_machine_that_is_nowhere_or_ended_has_none() {
        for (field, value) in [
            ("nodeName", Value::Null),
            ("phase", json!("Succeeded")),
            ("phase", json!("Failed")),
        ] {
            let mut instance = instance();
            instance["status"][field] = value;
            assert!(launcher_of(&instance).is_none(), "{instance}");
        }
    }

    #[test]
    fn a_machine_on_its_way_out_shows_as_such() {
        let mut instance = instance();
        instance["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:01:00Z");
        let pod = launcher_of(&instance).unwrap();
        assert_eq!(shown_status(&pod), "Terminating");
    }
}
