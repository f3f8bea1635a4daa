//! VirtualMachineInstance: a running machine. Its spec is fixed, its status in the main resource.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use godwit_apimachinery::object::{child_mut, label, metadata_mut, name};
use godwit_apimachinery::{
    Admission, Cause, Column, ColumnType, Kind, RequestContext, Status, Stored,
};
use godwit_model::vmi::Quantity;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    add_finalizer, denied_fields, keep_finalizer, kubevirt_views, ladder, plain_cause,
    restore_status, schema, set_label,
};
use crate::facts::Facts;
use crate::honour;

const KIND: &str = "VirtualMachineInstance";
/// Holds the object until its machine is gone from the host.
const FINALIZER: &str = "kubevirt.io/foregroundDeleteVirtualMachine";
/// Names the machine, for selectors.
const DOMAIN_LABEL: &str = "kubevirt.io/domain";
/// Labels that the control plane alone writes.
const RESERVED_LABELS: [&str; 6] = [
    "kubevirt.io/created-by",
    "kubevirt.io/install-strategy",
    "kubevirt.io/migrationJobUID",
    "kubevirt.io/migrationTargetNodeName",
    "kubevirt.io/nodeName",
    "kubevirt.io/schedulable",
];
const CREATE_WEBHOOK: &str = "virtualmachineinstances-create-validator.kubevirt.io";
const UPDATE_WEBHOOK: &str = "virtualmachineinstances-update-validator.kubevirt.io";
/// KubeVirt's strategies.
const EVICTION_STRATEGIES: [&str; 4] = ["None", "LiveMigrate", "LiveMigrateIfPossible", "External"];
/// Kubernetes' words for what is no quantity.
const QUANTITY_FORMAT: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
/// KubeVirt's default, in seconds.
const GRACE_SECONDS: i64 = 30;

pub(crate) fn kind(facts: &Facts) -> Kind {
    let mut schema = json!({"type": "object", "required": ["spec"]});
    schema["description"] = json!("A running machine.");
    schema["properties"] = json!({"spec": spec_schema(), "status": status_schema()});
    Kind {
        short_names: vec!["vmi", "vmis"],
        categories: vec!["all"],
        // KubeVirt has no /status here: clients write the main resource.
        has_status: false,
        schema,
        columns: columns(),
        selectable_fields: vec!["status.phase", "status.nodeName", "spec.evictionStrategy"],
        admission: Arc::new(Rules {
            facts: facts.clone(),
        }),
        ..Kind::custom(KIND, "virtualmachineinstances", kubevirt_views())
    }
}

/// Schema of `spec`, also of a VirtualMachine's template.
pub(super) fn spec_schema() -> Value {
    schema::parse(include_str!("schema/instance_spec.yaml"))
}

fn status_schema() -> Value {
    let mut status = schema::parse(include_str!("schema/instance_status.yaml"));
    status["properties"]["conditions"] = schema::parse(include_str!("schema/conditions.yaml"));
    status["properties"]["migrationState"] =
        schema::parse(include_str!("schema/migration_state.yaml"));
    status
}

fn columns() -> Vec<Column> {
    let text = |name, path| Column::path(name, ColumnType::String, path, "");
    vec![
        Column::age(),
        text("Phase", ".status.phase"),
        text("IP", ".status.interfaces[0].ipAddress"),
        text("NodeName", ".status.nodeName"),
        text("Ready", ".status.conditions[?(@.type=='Ready')].status"),
        text(
            "Live-Migratable",
            ".status.conditions[?(@.type=='LiveMigratable')].status",
        )
        .wide(),
        text("Paused", ".status.conditions[?(@.type=='Paused')].status").wide(),
    ]
}

struct Rules {
    facts: Facts,
}

#[async_trait]
impl Admission for Rules {
    async fn on_create(
        &self,
        ctx: &RequestContext,
        object: &mut Value,
    ) -> Result<Vec<String>, Status> {
        let cluster = self.facts.kubevirt();
        complete(object, cluster.as_deref().map(Stored::object), ctx.now);
        check_spec(object)?;
        Ok(Vec::new())
    }

    async fn on_update(
        &self,
        _ctx: &RequestContext,
        old: &Value,
        new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        restore_status(old, new);
        check_update(old, new)?;
        Ok(Vec::new())
    }
}

/// What KubeVirt's mutating webhook adds: defaults, the finalizer, the first phase.
fn complete(object: &mut Value, cluster: Option<&Value>, now: Timestamp) {
    let configuration = cluster.map_or(&Value::Null, |cluster| &cluster["spec"]["configuration"]);
    let strategy = configuration["evictionStrategy"]
        .as_str()
        .unwrap_or("None")
        .to_owned();
    let machine_type = configuration["machineType"]
        .as_str()
        .unwrap_or("q35")
        .to_owned();
    let name = name(object).to_owned();
    add_finalizer(object, FINALIZER);
    if label(object, DOMAIN_LABEL).is_none() {
        set_label(object, DOMAIN_LABEL, &name);
    }
    let spec = child_mut_of(object, "spec");
    spec.entry("evictionStrategy")
        .or_insert_with(|| json!(strategy));
    spec.entry("terminationGracePeriodSeconds")
        .or_insert_with(|| json!(GRACE_SECONDS));
    let machine = child_mut(child_mut(spec, "domain"), "machine");
    if machine
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .is_empty()
    {
        machine.insert("type".to_owned(), json!(machine_type));
    }
    object["status"] = json!({
        "phase": "Pending",
        "phaseTransitionTimestamps": [
            {"phase": "Pending", "phaseTransitionTimestamp": seconds(now)},
        ],
        "guestOSInfo": {},
    });
}

fn child_mut_of<'a>(object: &'a mut Value, key: &str) -> &'a mut serde_json::Map<String, Value> {
    // `metadata_mut` makes the object a map; every request body already is one.
    metadata_mut(object);
    child_mut(
        object
            .as_object_mut()
            .expect("made a map in the line above"),
        key,
    )
}

/// A time as Kubernetes writes it: whole seconds.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn check_spec(object: &Value) -> Result<(), Status> {
    let causes = spec_causes("spec", &object["metadata"], &object["spec"]);
    match causes.is_empty() {
        true => Ok(()),
        false => Err(denied_fields(CREATE_WEBHOOK, causes)),
    }
}

/// Everything in a spec that can't be honoured, with `path` before each field.
pub(super) fn spec_causes(path: &str, metadata: &Value, spec: &Value) -> Vec<Cause> {
    let mut causes: Vec<Cause> = eviction_cause(path, &spec["evictionStrategy"])
        .into_iter()
        .collect();
    causes.extend(ladder::annotation_cause(path, metadata));
    causes.extend(hugepages_cause(path, &spec["domain"]));
    causes.extend(honour::problems(path, metadata, spec));
    causes.extend(base64_causes(path, spec));
    causes
}

/// The refusal of memory that isn't made of whole huge pages. KubeVirt speaks of the request, which it
/// fills in from the guest's memory; here it is always that memory that the pages are for.
fn hugepages_cause(path: &str, domain: &Value) -> Option<Cause> {
    let memory = &domain["memory"];
    let size = memory["hugepages"].get("pageSize")?;
    let request = &domain["resources"]["requests"]["memory"];
    let guest = [&memory["guest"], request]
        .into_iter()
        .find(|one| !one.is_null())?;
    let bytes = |value: &Value| Quantity::deserialize(value).ok()?.whole().ok();
    let written = |value: &Value| match value.as_str() {
        Some(text) => text.to_owned(),
        None => value.to_string(),
    };
    let size_field = format!("{path}.domain.hugepages.size");
    let field = format!("{path}.domain.resources.requests.memory");
    let (guest_text, size_text) = (written(guest), written(size));
    let Some(page) = bytes(size).filter(|page| *page > 0) else {
        let message = format!("{size_field} '{size_text}': {QUANTITY_FORMAT}");
        return Some(plain_cause(&size_field, message));
    };
    // What is no quantity is told of elsewhere.
    let message = match bytes(guest)? {
        less if less < page => format!(
            "{field} '{guest_text}' must be equal to or larger than page size {size_field} \
             '{size_text}'"
        ),
        odd if !odd.is_multiple_of(page) => format!(
            "{field} '{guest_text}' is not a multiple of the page size {size_field} '{size_text}'"
        ),
        _ => return None,
    };
    Some(plain_cause(&field, message))
}

/// What is said to be base64 and isn't. The text stays out of the message: it may be secret.
fn base64_causes(path: &str, spec: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    for (at, volume) in volumes.enumerate() {
        for kind in ["cloudInitNoCloud", "cloudInitConfigDrive"] {
            for key in ["userDataBase64", "networkDataBase64"] {
                let text = volume[kind][key].as_str().unwrap_or_default();
                let packed: String = text.split_ascii_whitespace().collect();
                if STANDARD.decode(packed).is_err() {
                    let field = format!("{path}.volumes[{at}].{kind}.{key}");
                    let why = format!("{field} is not a valid base64 value.");
                    causes.push(plain_cause(&field, why));
                }
            }
        }
    }
    causes
}

/// The refusal of an eviction strategy that doesn't exist.
pub(super) fn eviction_cause(path: &str, strategy: &Value) -> Option<Cause> {
    let strategy = strategy.as_str()?;
    if EVICTION_STRATEGIES.contains(&strategy) {
        return None;
    }
    let field = format!("{path}.evictionStrategy");
    let message = format!("{field} is set with an unrecognized option: {strategy}");
    Some(plain_cause(&field, message))
}

fn check_update(old: &Value, new: &mut Value) -> Result<(), Status> {
    let refused = |message: &str| {
        let cause = Cause {
            reason: "FieldValueNotSupported",
            message: message.to_owned(),
            field: String::new(),
        };
        Err(denied_fields(UPDATE_WEBHOOK, vec![cause]))
    };
    if old["spec"] != new["spec"] {
        return refused("update of VMI object is restricted");
    }
    if RESERVED_LABELS
        .iter()
        .any(|key| label(old, key) != label(new, key))
    {
        return refused(
            "modification of the following reserved kubevirt.io/ labels on a VMI object is \
             prohibited",
        );
    }
    let annotated = |object: &Value| object["metadata"]["annotations"].clone();
    if annotated(old) != annotated(new)
        && let Some(cause) = ladder::annotation_cause("spec", &new["metadata"])
    {
        return Err(denied_fields(UPDATE_WEBHOOK, vec![cause]));
    }
    keep_finalizer(old, new, (KIND, FINALIZER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> Value {
        json!({
            "metadata": {
                "name": "rhel8-server-nfs", "namespace": "default", "finalizers": [FINALIZER],
                "labels": {"kubevirt.io/nodeName": "worker1"},
            },
            "spec": {"domain": {"devices": {}}},
        })
    }

    #[test]
    fn what_is_not_base64_is_refused_without_telling_it() {
        let volume = json!({"name": "s", "cloudInitNoCloud": {"userDataBase64": "hunter2!"}});
        let causes = base64_causes("spec", &json!({"volumes": [volume]}));
        assert_eq!(causes.len(), 1);
        let told = "spec.volumes[0].cloudInitNoCloud.userDataBase64 is not a valid base64 value.";
        assert_eq!(causes[0].message, told);
    }

    #[test]
    fn memory_that_is_not_made_of_whole_pages_is_refused_in_kubevirts_words() {
        let told = |guest: &str, size: &str| {
            let memory = json!({"guest": guest, "hugepages": {"pageSize": size}});
            let cause = hugepages_cause("spec", &json!({"memory": memory}));
            cause.map(|cause| cause.message)
        };
        assert_eq!(told("256Mi", "2Mi"), None);
        let memory = "spec.domain.resources.requests.memory";
        let size = "spec.domain.hugepages.size";
        assert_eq!(
            told("255Mi", "2Mi").unwrap(),
            format!("{memory} '255Mi' is not a multiple of the page size {size} '2Mi'")
        );
        assert_eq!(
            told("256Mi", "1Gi").unwrap(),
            format!("{memory} '256Mi' must be equal to or larger than page size {size} '1Gi'")
        );
        let told = told("256Mi", "big").unwrap();
        assert!(told.starts_with(&format!("{size} 'big': quantities must")));
    }

    #[test]
    fn a_new_instance_gets_what_its_owner_left_out() {
        let cluster = json!({"spec": {"configuration": {"evictionStrategy": "LiveMigrate"}}});
        let mut object = instance();
        object["metadata"]["finalizers"] = json!([]);
        complete(
            &mut object,
            Some(&cluster),
            "2026-01-01T00:00:00.5Z".parse().unwrap(),
        );
        assert_eq!(object["spec"]["evictionStrategy"], "LiveMigrate");
        assert_eq!(object["spec"]["terminationGracePeriodSeconds"], 30);
        assert_eq!(object["spec"]["domain"]["machine"]["type"], "q35");
        assert_eq!(object["metadata"]["finalizers"], json!([FINALIZER]));
        assert_eq!(
            object["metadata"]["labels"][DOMAIN_LABEL],
            "rhel8-server-nfs"
        );
        assert_eq!(object["status"]["phase"], "Pending");
        assert_eq!(
            object["status"]["phaseTransitionTimestamps"][0]["phaseTransitionTimestamp"],
            "2026-01-01T00:00:00Z"
        );
    }

    #[test]
    fn what_the_owner_said_stays() {
        let mut object = instance();
        object["spec"]["evictionStrategy"] = json!("External");
        object["spec"]["domain"]["machine"] = json!({"type": "pc-q35-7.2"});
        complete(&mut object, None, Timestamp::UNIX_EPOCH);
        assert_eq!(object["spec"]["evictionStrategy"], "External");
        assert_eq!(object["spec"]["domain"]["machine"]["type"], "pc-q35-7.2");
    }

    #[test]
    fn an_unknown_eviction_strategy_is_refused_in_kubevirt_words() {
        let cause = eviction_cause("spec", &json!("Sometimes")).unwrap();
        assert_eq!(
            cause.message,
            "spec.evictionStrategy is set with an unrecognized option: Sometimes"
        );
        assert!(
            EVICTION_STRATEGIES
                .iter()
                .all(|s| eviction_cause("spec", &json!(s)).is_none())
        );
    }

    #[test]
    fn a_running_instance_keeps_its_spec_and_its_reserved_labels() {
        let old = instance();
        let mut new = old.clone();
        new["spec"]["domain"]["cpu"] = json!({"cores": 4});
        let status = check_update(&old, &mut new).unwrap_err();
        assert_eq!(status.code(), 422);
        assert!(
            status
                .message()
                .ends_with("update of VMI object is restricted")
        );

        let mut new = old.clone();
        new["metadata"]["labels"]["kubevirt.io/nodeName"] = json!("worker2");
        assert!(
            check_update(&old, &mut new)
                .unwrap_err()
                .message()
                .contains("reserved kubevirt.io/")
        );

        let mut new = old.clone();
        new["metadata"]["annotations"] = json!({"note": "mine"});
        assert!(check_update(&old, &mut new).is_ok());
    }

    #[test]
    fn a_client_that_writes_a_status_changes_nothing() {
        let mut old = instance();
        old["status"] = json!({"phase": "Running"});
        let mut new = old.clone();
        new["status"]["phase"] = json!("Failed");
        restore_status(&old, &mut new);
        assert_eq!(new, old);
    }
}
