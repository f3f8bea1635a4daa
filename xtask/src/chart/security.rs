//! The Pod Security Standard "restricted", over every rendered pod but the agent's; and what the
//! house wants beside it.

use serde_json::Value;

use super::render::{Manifest, component, pod, title};

/// The one component that is privileged; its template says why.
const PRIVILEGED: &str = "node-agent";
/// The one component that talks to the cluster.
const WITH_TOKEN: &str = "certificates";
/// What a restricted pod may mount.
const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// All that is not allowed.
pub(super) fn violations(manifests: &[Manifest]) -> Vec<String> {
    let mut wrong = vec![];
    for manifest in manifests {
        let Some(pod) = pod(manifest) else {
            continue;
        };
        let mut found = of_house(pod, component(manifest));
        let restricted = of_pod(pod);
        match component(manifest) {
            // A rule that it kept would be one that the check doesn't see.
            PRIVILEGED if restricted.is_empty() => found.push("needs no exception".to_owned()),
            PRIVILEGED => {}
            _ => found.extend(restricted),
        }
        let title = title(manifest);
        wrong.extend(found.into_iter().map(|what| format!("{title}: {what}")));
    }
    wrong
}

fn of_house(pod: &Value, component: &str) -> Vec<String> {
    let mut wrong = vec![];
    let token = pod["automountServiceAccountToken"].as_bool();
    if token != Some(component == WITH_TOKEN) {
        wrong.push(format!("automountServiceAccountToken is {token:?}"));
    }
    if pod["enableServiceLinks"] != false {
        wrong.push("enableServiceLinks is on".to_owned());
    }
    for container in containers(pod) {
        let name = &container["name"];
        if !container["resources"].is_object() {
            wrong.push(format!("container {name} has no resources"));
        }
        let writes = container["securityContext"]["readOnlyRootFilesystem"] != true;
        if writes && component != PRIVILEGED {
            wrong.push(format!("container {name} may write to its image"));
        }
    }
    wrong
}

fn of_pod(pod: &Value) -> Vec<String> {
    let mut wrong = vec![];
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        if pod[key] == true {
            wrong.push(format!("{key} is on"));
        }
    }
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let kinds = volume.as_object().into_iter().flat_map(|map| map.keys());
        for kind in kinds.filter(|kind| *kind != "name" && !VOLUMES.contains(&kind.as_str())) {
            wrong.push(format!("volume {} is a {kind}", volume["name"]));
        }
    }
    for container in containers(pod) {
        let found = of_container(pod, container).into_iter();
        wrong.extend(found.map(|what| format!("container {}: {what}", container["name"])));
    }
    wrong
}

fn of_container(pod: &Value, container: &Value) -> Vec<String> {
    let (outer, own) = (&pod["securityContext"], &container["securityContext"]);
    let either = |key: &str| {
        if own[key].is_null() {
            &outer[key]
        } else {
            &own[key]
        }
    };
    let mut wrong = vec![];
    let mut check = |good: bool, what: &str| {
        if !good {
            wrong.push(what.to_owned());
        }
    };
    check(own["privileged"] != true, "privileged");
    check(
        own["allowPrivilegeEscalation"] == false,
        "allowPrivilegeEscalation",
    );
    check(either("runAsNonRoot") == true, "runAsNonRoot");
    check(either("runAsUser") != 0, "runs as root");
    let seccomp = either("seccompProfile")["type"].as_str();
    check(
        matches!(seccomp, Some("RuntimeDefault" | "Localhost")),
        "seccompProfile",
    );
    let listed = |key: &str| {
        own["capabilities"][key]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    check(
        listed("drop").iter().any(|name| name == "ALL"),
        "capabilities",
    );
    let bind = |name: &Value| name == "NET_BIND_SERVICE";
    check(listed("add").iter().all(bind), "capabilities are added");
    let ports = container["ports"].as_array().cloned().unwrap_or_default();
    check(
        ports.iter().all(|port| port["hostPort"].is_null()),
        "hostPort",
    );
    wrong
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["initContainers", "containers"].map(|key| pod[key].as_array());
    lists.into_iter().flatten().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(change: impl FnOnce(&mut Value)) -> Vec<Manifest> {
        let mut pod = json!({
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "a",
                "resources": {},
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
            "volumes": [{"name": "a", "emptyDir": {}}],
        });
        change(&mut pod);
        let spec = json!({"template": {"spec": pod}});
        vec![json!({"kind": "Deployment", "metadata": {"name": "a"}, "spec": spec})]
    }

    #[test]
    fn a_restricted_pod_is_allowed_and_each_loosened_rule_is_told() {
        assert_eq!(violations(&deployment(|_| ())), Vec::<String>::new());
        type Change = fn(&mut Value);
        let changes: [Change; 9] = [
            |pod| pod["hostNetwork"] = json!(true),
            |pod| pod["volumes"][0] = json!({"name": "a", "hostPath": {"path": "/"}}),
            |pod| pod["securityContext"]["runAsNonRoot"] = json!(false),
            |pod| pod["securityContext"]["seccompProfile"] = json!(null),
            |pod| pod["containers"][0]["securityContext"]["privileged"] = json!(true),
            |pod| pod["containers"][0]["securityContext"]["runAsUser"] = json!(0),
            |pod| pod["containers"][0]["securityContext"]["capabilities"] = json!({}),
            |pod| pod["containers"][0]["ports"] = json!([{"hostPort": 1}]),
            |pod| pod["automountServiceAccountToken"] = json!(true),
        ];
        for change in changes {
            assert_eq!(violations(&deployment(change)).len(), 1);
        }
    }
}
