//! Closing a node and opening it again: what others did to it stays as it is.

use godwit_ledger::Object;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Taints of a node under maintenance: Kubernetes', KubeVirt's and medik8s'.
const TAINTS: [&str; 3] = [
    "node.kubernetes.io/unschedulable",
    "kubevirt.io/drain",
    "medik8s.io/drain",
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
}

/// Closes `node`, and adds to `done` what had to be done for it.
pub(crate) fn close(node: &mut Object, done: &mut Cordon) {
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
    for key in TAINTS {
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

    #[test]
    fn a_node_is_as_it_was_after_its_maintenance() {
        let foreign = json!({ "key": "dedicated", "value": "lab", "effect": "NoExecute" });
        let drained = json!({ "key": "kubevirt.io/drain", "effect": "NoSchedule" });
        for spec in [
            json!({}),
            json!({ "taints": [foreign] }),
            json!({ "unschedulable": true }),
            json!({ "unschedulable": true, "taints": [foreign, drained] }),
        ] {
            let before = node(&spec);
            let mut after = before.clone();
            let mut done = Cordon::default();
            close(&mut after, &mut done);
            assert_eq!(after.spec()["unschedulable"], true);
            assert!(TAINTS.iter().all(|taint| keys(&after).contains(taint)));
            let (closed, known) = (after.clone(), done.clone());
            close(&mut after, &mut done);
            assert_eq!((&after, &done), (&closed, &known), "closed twice");
            open(&mut after, &done);
            assert_eq!(after, before);
        }
    }

    #[test]
    fn what_a_person_did_meanwhile_is_closed_again_and_remembered() {
        let mut node = node(&json!({ "unschedulable": true }));
        let mut done = Cordon::default();
        close(&mut node, &mut done);
        assert!(!done.unschedulable);
        node.body["spec"]["unschedulable"] = json!(false);
        close(&mut node, &mut done);
        assert!(done.unschedulable);
    }
}
