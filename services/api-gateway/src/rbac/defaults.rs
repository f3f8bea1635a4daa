//! The roles and bindings that every cluster has, from `defaults.yaml`.
//!
//! Made at every start, as kube-apiserver does: what is missing in a rule or a list of subjects is
//! added, what was added by hand stays, and who annotates an object keeps it as it is.

use std::collections::{BTreeMap, HashMap};

use godwit_apimachinery::object::annotation;
use godwit_ledger::{Ledger, LedgerError, NewObject, Object, ObjectKey};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::rule::Rule;
use super::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, GROUP, missing_rights};

/// Set to `false`, an object is left as it is.
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const BOOTSTRAPPING: (&str, &str) = ("kubernetes.io/bootstrapping", "rbac-defaults");
const AGGREGATE: &str = "rbac.authorization.k8s.io";
const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    roles: BTreeMap<String, Role>,
    bindings: BTreeMap<String, Binding>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Role {
    #[serde(default)]
    rules: Vec<String>,
    label: Option<String>,
    aggregates: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Binding {
    role: String,
    groups: Vec<String>,
}

/// An object as it is at the first start.
struct Builtin {
    resource: &'static str,
    name: String,
    labels: Value,
    body: Value,
}

/// Makes what isn't there, and completes what is.
///
/// # Errors
/// When the ledger can't be reached or written.
pub(crate) async fn make(ledger: &Ledger) -> Result<(), LedgerError> {
    let mut tx = ledger.begin().await?;
    let mut found = HashMap::new();
    for resource in [CLUSTER_ROLES, CLUSTER_ROLE_BINDINGS] {
        let objects = tx.list(resource).await?;
        found.extend(
            objects
                .into_iter()
                .map(|object| (object.key.clone(), object)),
        );
    }
    let mut written = false;
    for builtin in builtins() {
        let key = ObjectKey::new(builtin.resource, "", &builtin.name);
        if let Some(found) = found.get_mut(&key) {
            if complete(found, &builtin) {
                tx.put(found).await?;
                written = true;
            }
        } else {
            tx.create(builtin.into_object(key)).await?;
            written = true;
        }
    }
    if !written {
        return Ok(());
    }
    match tx.commit().await {
        // Tried again it finds out.
        Err(LedgerError::Unknown(why)) => Err(LedgerError::Unavailable(why)),
        committed => committed.map(drop),
    }
}

impl Builtin {
    fn into_object(self, key: ObjectKey) -> NewObject {
        let annotations = json!({ AUTO_UPDATE: "true" });
        NewObject {
            key,
            uid: None,
            metadata: json!({"labels": self.labels, "annotations": annotations}),
            body: self.body,
            status: None,
        }
    }
}

/// Adds what an object of an older version, or of somebody's hand, lacks. Answers whether it did.
fn complete(found: &mut Object, builtin: &Builtin) -> bool {
    let object = json!({ "metadata": found.metadata });
    if annotation(&object, AUTO_UPDATE) == Some("false") {
        return false;
    }
    let mut changed = false;
    for (label, value) in builtin.labels.as_object().into_iter().flatten() {
        if found.metadata["labels"][label] != *value {
            found.metadata["labels"][label] = value.clone();
            changed = true;
        }
    }
    changed
        | complete_rules(&mut found.body, &builtin.body)
        | complete_list(&mut found.body, &builtin.body, "/subjects")
        | complete_list(
            &mut found.body,
            &builtin.body,
            "/aggregationRule/clusterRoleSelectors",
        )
}

fn complete_rules(found: &mut Value, default: &Value) -> bool {
    if default["aggregationRule"].is_object() || default["rules"].is_null() {
        return false;
    }
    let held = Rule::list(&found["rules"]);
    let held: Vec<&Rule> = held.iter().collect();
    let wanted = Rule::list(&default["rules"]);
    let lacks = |rule: &&Rule| !missing_rights(&held, std::slice::from_ref(*rule)).is_empty();
    let missing: Vec<Value> = wanted
        .iter()
        .filter(lacks)
        .map(|rule| json!(rule))
        .collect();
    add(&mut found["rules"], missing)
}

fn complete_list(found: &mut Value, default: &Value, pointer: &str) -> bool {
    let Some(Value::Array(wanted)) = default.pointer(pointer) else {
        return false;
    };
    let known = found.pointer(pointer).and_then(Value::as_array);
    let lacks = |item: &&Value| known.is_none_or(|known| !known.contains(item));
    let missing: Vec<Value> = wanted.iter().filter(lacks).cloned().collect();
    match found.pointer_mut(pointer) {
        Some(list) => add(list, missing),
        None => {
            let parent = pointer.split('/').nth(1).unwrap_or_default();
            found[parent] = default[parent].clone();
            true
        }
    }
}

fn add(list: &mut Value, items: Vec<Value>) -> bool {
    if items.is_empty() {
        return false;
    }
    match list.as_array_mut() {
        Some(list) => list.extend(items),
        None => *list = Value::Array(items),
    }
    true
}

fn builtins() -> Vec<Builtin> {
    let text = include_str!("defaults.yaml");
    let document: Document =
        serde_yaml_ng::from_str(text).expect("the built-in roles are read by a unit test");
    let roles = document.roles.into_iter().map(|(name, role)| Builtin {
        resource: CLUSTER_ROLES,
        labels: labels(role.label.as_deref()),
        body: role.body(),
        name,
    });
    let bindings = document
        .bindings
        .into_iter()
        .map(|(name, binding)| Builtin {
            resource: CLUSTER_ROLE_BINDINGS,
            labels: labels(None),
            body: binding.body(),
            name,
        });
    roles.chain(bindings).collect()
}

fn labels(aggregated_to: Option<&str>) -> Value {
    let mut labels = Map::new();
    labels.insert(BOOTSTRAPPING.0.to_owned(), json!(BOOTSTRAPPING.1));
    if let Some(label) = aggregated_to {
        labels.insert(format!("{AGGREGATE}/{label}"), json!("true"));
    }
    Value::Object(labels)
}

impl Role {
    fn body(&self) -> Value {
        let rules: Vec<Rule> = self.rules.iter().map(|text| read_rule(text)).collect();
        match &self.aggregates {
            None => json!({ "rules": rules }),
            Some(label) => {
                let labels = json!({ format!("{AGGREGATE}/{label}"): "true" });
                let selectors = json!([{ "matchLabels": labels }]);
                json!({"aggregationRule": {"clusterRoleSelectors": selectors}, "rules": rules})
            }
        }
    }
}

impl Binding {
    fn body(&self) -> Value {
        let subject = |group: &String| json!({"apiGroup": GROUP, "kind": "Group", "name": group});
        let subjects: Vec<Value> = self.groups.iter().map(subject).collect();
        json!({
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": self.role},
            "subjects": subjects,
        })
    }
}

/// `verbs of resources in groups`, or `verbs at paths`.
fn read_rule(text: &str) -> Rule {
    let words = |text: &str| -> Vec<String> {
        let words = text.split(' ').flat_map(|word| match word {
            "read" => READ.to_vec(),
            "write" => WRITE.to_vec(),
            "core" => vec![""],
            word => vec![word],
        });
        words.map(str::to_owned).collect()
    };
    if let Some((verbs, paths)) = text.split_once(" at ") {
        return Rule {
            verbs: words(verbs),
            non_resource_urls: words(paths),
            ..Rule::default()
        };
    }
    let (verbs, rest) = text.split_once(" of ").expect("a built-in rule says `of`");
    let (resources, groups) = rest.split_once(" in ").expect("a built-in rule says `in`");
    Rule {
        verbs: words(verbs),
        resources: words(resources),
        api_groups: words(groups),
        ..Rule::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_model::Revision;

    fn found(builtin: &Builtin) -> Object {
        Object {
            key: ObjectKey::new(builtin.resource, "", &builtin.name),
            uid: "u".to_owned(),
            metadata: json!({"labels": builtin.labels}),
            body: builtin.body.clone(),
            status: None,
            revision: Revision(1),
        }
    }

    #[test]
    fn what_is_there_is_left_alone_and_what_is_missing_comes_back() {
        let all = builtins();
        for builtin in &all {
            assert!(!complete(&mut found(builtin), builtin), "{}", builtin.name);
        }
        let by_name = |name: &str| all.iter().find(|builtin| builtin.name == name).unwrap();
        let view = by_name("kubevirt.io:view");
        let mut changed = found(view);
        changed.body["rules"] = json!([{"apiGroups": ["x"], "resources": ["y"], "verbs": ["z"]}]);
        assert!(complete(&mut changed, view));
        assert_eq!(changed.body["rules"][0]["apiGroups"][0], "x");
        assert!(!complete(&mut changed, view));
        let viewers = by_name("godwit.io:viewers");
        let mut changed = found(viewers);
        changed.body["subjects"] = json!([{"apiGroup": GROUP, "kind": "User", "name": "ann"}]);
        assert!(complete(&mut changed, viewers));
        assert_eq!(changed.body["subjects"].as_array().unwrap().len(), 2);
        changed.body["subjects"] = json!([]);
        changed.metadata["annotations"] = json!({ AUTO_UPDATE: "false" });
        assert!(!complete(&mut changed, viewers));
    }

    #[test]
    fn every_binding_binds_a_role_that_is_there_and_only_one_moves_machines() {
        let document: Document = serde_yaml_ng::from_str(include_str!("defaults.yaml")).unwrap();
        for binding in document.bindings.values() {
            assert!(
                document.roles.contains_key(&binding.role),
                "{}",
                binding.role
            );
        }
        let migrates = |(name, role): (&String, &Role)| {
            let moves = role.rules.iter().any(|rule| {
                rule.contains("write of virtualmachineinstancemigrations")
                    || rule.contains("virtualmachines/migrate")
            });
            moves.then(|| name.clone())
        };
        let movers: Vec<String> = document.roles.iter().filter_map(migrates).collect();
        assert_eq!(movers, ["kubevirt.io:migrate"]);
        assert_eq!(document.roles["kubevirt.io:migrate"].label, None);
    }
}
