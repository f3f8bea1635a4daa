//! Closing a node and opening it again: what others did to it stays as it is.

use godwit_ledger::Object;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::json::seconds;

/// Taints of a node under maintenance: Kubernetes' and medik8s'. Between them stands the one that
/// KubeVirt's `nodeDrainTaintKey` names.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const MEDIK8S: &str = "medik8s.io/drain";
/// Label by which medik8s' other operators leave a node alone.
const EXCLUDED: &str = "remediation.medik8s.io/exclude-from-remediation";
/// Conditions of a node under maintenance, as KEP-5683 of Kubernetes names them.
const CONDITIONS: [&str; 4] = [
    "MaintenancePlanned",
    "DrainInProgress",
    "Drained",
    "MaintenanceInProgress",
];
/// Their effect.
const EFFECT: &str = "NoSchedule";

/// What a maintenance did to its node; kept in the maintenance's status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Cordon {
    /// Whether it was the maintenance that closed the node.
    pub(crate) unschedulable: bool,
    /// Keys of the taints that the maintenance set.
    pub(crate) taints: Vec<String>,
    /// Whether the maintenance labelled the node, so that nobody remediates it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) excluded: bool,
}

/// How far the maintenance of a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Machines are on it.
    Draining {
        /// How many.
        machines: usize,
    },
    /// It is empty.
    Drained,
    /// Its deadline came before it was empty.
    Aborted,
}

/// Closes `node`, and adds to `done` what had to be done for it.
pub(crate) fn close(node: &mut Object, done: &mut Cordon, drain_taint: &str) {
    if let Value::Object(metadata) = &mut node.metadata {
        let labels = metadata.entry("labels").or_insert_with(|| json!({}));
        if labels[EXCLUDED] != "true" {
            labels[EXCLUDED] = json!("true");
            done.excluded = true;
        }
    }
    let spec = &mut node.body["spec"];
    if spec["unschedulable"] != true {
        spec["unschedulable"] = json!(true);
        done.unschedulable = true;
    }
    if !spec["taints"].is_array() {
        spec["taints"] = json!([]);
    }
    let Value::Array(taints) = &mut spec["taints"] else {
        return;
    };
    for key in [UNSCHEDULABLE, drain_taint, MEDIK8S] {
        if taints.iter().any(|taint| is_ours(taint, key)) {
            continue;
        }
        taints.push(json!({ "key": key, "effect": EFFECT }));
        if !done.taints.iter().any(|known| known == key) {
            done.taints.push(key.to_owned());
        }
    }
}

/// Takes back what `done` says.
pub(crate) fn open(node: &mut Object, done: &Cordon) {
    if let Some(Value::Array(conditions)) = node.status.as_mut().map(|told| &mut told["conditions"])
    {
        conditions.retain(|condition| CONDITIONS.iter().all(|kind| condition["type"] != *kind));
    }
    if let (true, Some(labels)) = (done.excluded, node.metadata["labels"].as_object_mut()) {
        labels.remove(EXCLUDED);
    }
    let Value::Object(spec) = &mut node.body["spec"] else {
        return;
    };
    if done.unschedulable {
        spec.remove("unschedulable");
    }
    let Some(Value::Array(taints)) = spec.get_mut("taints") else {
        return;
    };
    taints.retain(|taint| !done.taints.iter().any(|key| is_ours(taint, key)));
    if taints.is_empty() {
        spec.remove("taints");
    }
}

/// Tells in the node's conditions how far its maintenance is, and what for. A condition that says
/// the same as before stays as it is, heartbeat included.
pub(crate) fn tell(node: &mut Object, stage: Stage, (purpose, now): (&str, Timestamp)) {
    let status = node.status.get_or_insert_with(|| json!({}));
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Value::Array(conditions) = &mut status["conditions"] else {
        return;
    };
    for (kind, holds, reason, message) in told(stage, purpose) {
        let holds = if holds { "True" } else { "False" };
        let found = conditions.iter_mut().find(|old| old["type"] == kind);
        let same = |old: &Value| {
            old["status"] == holds && old["reason"] == reason && old["message"] == message
        };
        let since = match &found {
            Some(old) if same(old) => continue,
            Some(old) if old["status"] == holds => old["lastTransitionTime"].clone(),
            Some(_) | None => json!(seconds(now)),
        };
        let fresh = json!({
            "type": kind,
            "status": holds,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": seconds(now),
            "lastTransitionTime": since,
        });
        match found {
            Some(old) => *old = fresh,
            None => conditions.push(fresh),
        }
    }
}

fn told(stage: Stage, purpose: &str) -> [(&'static str, bool, &'static str, String); 4] {
    let [planned, draining, drained, maintained] = CONDITIONS;
    let said = |text: &str| text.to_owned();
    match stage {
        Stage::Draining { machines } => {
            let left = format!("{} still on the node", crate::words::machines(machines));
            [
                (planned, true, "NodeMaintenance", said(purpose)),
                (draining, true, "Evacuating", left.clone()),
                (drained, false, "Evacuating", left),
                (
                    maintained,
                    false,
                    "Evacuating",
                    said("the node is not empty yet"),
                ),
            ]
        }
        Stage::Drained => [
            (planned, false, "MaintenanceBegun", said(purpose)),
            (draining, false, "Drained", String::new()),
            (drained, true, "Drained", said("no machine is on the node")),
            (maintained, true, "NodeMaintenance", said(purpose)),
        ],
        Stage::Aborted => {
            let why = said("the deadline came before the node was empty");
            [
                (planned, true, "NodeMaintenance", said(purpose)),
                (draining, false, "DeadlineExceeded", why.clone()),
                (drained, false, "DeadlineExceeded", why.clone()),
                (maintained, false, "DeadlineExceeded", why),
            ]
        }
    }
}

/// Whether nothing may be placed on a node because of the taint `key`.
pub(crate) fn has_taint(node: &Object, key: &str) -> bool {
    let taints = node.spec()["taints"].as_array();
    taints.is_some_and(|taints| taints.iter().any(|taint| is_ours(taint, key)))
}

fn is_ours(taint: &Value, key: &str) -> bool {
    taint["key"] == key && taint["effect"] == EFFECT
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_ledger::ObjectKey;

    fn node(spec: &Value) -> Object {
        Object {
            key: ObjectKey::new("nodes", "", "worker2"),
            uid: String::new(),
            metadata: json!({}),
            body: json!({ "spec": spec }),
            status: None,
            revision: godwit_model::Revision(1),
        }
    }

    fn keys(node: &Object) -> Vec<&str> {
        let taints = node.spec()["taints"].as_array();
        let keys = taints.into_iter().flatten();
        keys.filter_map(|taint| taint["key"].as_str()).collect()
    }

    const DRAIN: &str = "example.com/drain";

    #[test]
    fn a_node_is_as_it_was_after_its_maintenance() {
        let foreign = json!({ "key": "dedicated", "value": "lab", "effect": "NoExecute" });
        let drained = json!({ "key": DRAIN, "effect": "NoSchedule" });
        for (spec, labels) in [
            (json!({}), json!({})),
            (json!({ "taints": [foreign] }), json!({ "rack": "1" })),
            (
                json!({ "unschedulable": true }),
                json!({ EXCLUDED: "true" }),
            ),
            (
                json!({ "unschedulable": true, "taints": [foreign, drained] }),
                json!({}),
            ),
        ] {
            let mut before = node(&spec);
            before.metadata["labels"] = labels;
            before.status = Some(json!({ "conditions": [{ "type": "Ready" }] }));
            let mut after = before.clone();
            let mut done = Cordon::default();
            close(&mut after, &mut done, DRAIN);
            assert_eq!(after.spec()["unschedulable"], true);
            assert_eq!(after.metadata["labels"][EXCLUDED], "true");
            let taints = [UNSCHEDULABLE, DRAIN, MEDIK8S];
            assert!(taints.iter().all(|taint| keys(&after).contains(taint)));
            let (closed, known) = (after.clone(), done.clone());
            close(&mut after, &mut done, DRAIN);
            assert_eq!((&after, &done), (&closed, &known), "closed twice");
            tell(
                &mut after,
                Stage::Drained,
                ("new memory", Timestamp::UNIX_EPOCH),
            );
            open(&mut after, &done);
            assert_eq!(after, before);
        }
    }

    #[test]
    fn what_a_person_did_meanwhile_is_closed_again_and_remembered() {
        let mut node = node(&json!({ "unschedulable": true }));
        let mut done = Cordon::default();
        close(&mut node, &mut done, DRAIN);
        assert!(!done.unschedulable);
        node.body["spec"]["unschedulable"] = json!(false);
        close(&mut node, &mut done, DRAIN);
        assert!(done.unschedulable);
    }

    #[test]
    fn a_node_tells_how_far_its_maintenance_is_and_does_not_repeat_itself() {
        let mut node = node(&json!({}));
        let at = |second| Timestamp::from_second(second).unwrap();
        let holds = |node: &Object| -> Vec<String> {
            let conditions = node.status.as_ref().unwrap()["conditions"].as_array();
            let held = conditions
                .unwrap()
                .iter()
                .filter(|one| one["status"] == "True");
            held.map(|one| one["type"].as_str().unwrap().to_owned())
                .collect()
        };
        tell(
            &mut node,
            Stage::Draining { machines: 1 },
            ("new memory", at(0)),
        );
        assert_eq!(holds(&node), ["MaintenancePlanned", "DrainInProgress"]);
        let told = node.clone();
        tell(
            &mut node,
            Stage::Draining { machines: 1 },
            ("new memory", at(9)),
        );
        assert_eq!(node, told);
        tell(&mut node, Stage::Aborted, ("new memory", at(10)));
        assert_eq!(holds(&node), ["MaintenancePlanned"]);
        tell(&mut node, Stage::Drained, ("new memory", at(11)));
        assert_eq!(holds(&node), ["Drained", "MaintenanceInProgress"]);
    }
}
