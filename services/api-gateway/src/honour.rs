//! Asks the model whether a machine's spec can be honoured, and turns its problems into causes.

use godwit_apimachinery::Cause;
use godwit_model::MachineId;
use godwit_model::instance::{FieldProblem, HUGEPAGES, HostDefaults, Identity, machine_spec};
use godwit_model::vmi::VmiSpec;
use serde::Deserialize;
use serde_json::Value;

/// Stands for a machine that has no UID yet; what is refused doesn't depend on it.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";
/// Stand for what the hosts will offer; what is refused doesn't depend on them.
const DEFAULTS: HostDefaults<'_> = HostDefaults {
    machine_type: "pc-q35-7.2",
    cpu_model: "qemu64",
};
/// Judged before, in KubeVirt's words.
const EVICTION_STRATEGY: &str = "evictionStrategy";

/// Every field of `spec` that can't be honoured, under `path`.
pub(crate) fn problems(path: &str, metadata: &Value, spec: &Value) -> Vec<Cause> {
    let text = |key: &str| metadata[key].as_str().unwrap_or_default();
    let id = MachineId::parse(text("uid")).or_else(|_| MachineId::parse(NOBODY));
    let (Ok(id), Ok(spec)) = (id, VmiSpec::deserialize(spec)) else {
        // The schema has let it pass, so it is a number that doesn't fit.
        return vec![cause(path, "holds a value that is out of range")];
    };
    let identity = Identity {
        id: &id,
        namespace: text("namespace"),
        name: text("name"),
    };
    let problems = machine_spec(&spec, identity, DEFAULTS)
        .err()
        .unwrap_or_default();
    problems
        .into_iter()
        .filter(|problem| ![EVICTION_STRATEGY, HUGEPAGES].contains(&&*problem.path))
        .map(
            |FieldProblem {
                 path: below,
                 message,
             }| cause(&format!("{path}.{below}"), &message),
        )
        .collect()
}

fn cause(field: &str, message: &str) -> Cause {
    Cause {
        reason: "FieldValueNotSupported",
        message: message.to_owned(),
        field: field.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(spec: &Value) -> Vec<String> {
        let metadata = json!({"name": "a", "namespace": "default"});
        problems("spec", &metadata, spec)
            .into_iter()
            .map(|cause| cause.field)
            .collect()
    }

    #[test]
    fn the_machine_of_the_lab_can_be_honoured() {
        let text = include_str!("../../../examples/vm-rhel8-server-nfs.yaml");
        let machine: Value = serde_yaml_ng::from_str(text).unwrap();
        assert_eq!(
            fields(&machine["spec"]["template"]["spec"]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_plain_hosts_lack_is_named_by_its_path() {
        let spec = json!({
            "evictionStrategy": "LiveMigrate",
            "domain": {
                "memory": {"guest": "128Mi", "hugepages": {"pageSize": "64Ki"}},
                "cpu": {"model": "host-passthrough"},
                "devices": {"gpus": [{"name": "g"}], "disks": [{"name": "root"}]},
            },
            "volumes": [{"name": "root", "containerDisk": {"image": "x"}}],
        });
        let fields = fields(&spec);
        for field in [
            "spec.domain.cpu.model",
            "spec.domain.devices.gpus",
            "spec.domain.memory.hugepages",
            "spec.volumes[0]",
        ] {
            assert!(
                fields.iter().any(|found| found.starts_with(field)),
                "{field}: {fields:?}"
            );
        }
    }
}
