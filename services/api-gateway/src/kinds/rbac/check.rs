//! What a role or binding must look like, in Kubernetes' words.

use godwit_apimachinery::Cause;
use godwit_apimachinery::object::namespace;
use serde_json::{Value, json};

use crate::rbac::GROUP;

const USER: &str = "User";
const GROUP_KIND: &str = "Group";
const ACCOUNT: &str = "ServiceAccount";

/// What is wrong with a Role or ClusterRole.
pub(super) fn role(role: &Value) -> Vec<Cause> {
    let namespaced = !namespace(role).is_empty();
    let mut causes = Vec::new();
    for (at, rule) in items(&role["rules"]).enumerate() {
        check_rule(rule, namespaced, (&format!("rules[{at}]"), &mut causes));
    }
    let aggregation = &role["aggregationRule"];
    if aggregation.is_object() {
        let field = "aggregationRule.clusterRoleSelectors";
        let selectors = &aggregation["clusterRoleSelectors"];
        if is_empty(selectors) {
            let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            causes.push(Cause::required(field, why));
        }
        for (at, selector) in items(selectors).enumerate() {
            check_selector(selector, (&format!("{field}[{at}]"), &mut causes));
        }
    }
    causes
}

/// Where causes are collected for a field.
type Found<'a> = (&'a str, &'a mut Vec<Cause>);

fn check_rule(rule: &Value, namespaced: bool, (field, causes): Found<'_>) {
    let child = |name: &str| format!("{field}.{name}");
    let is_empty = |name: &str| is_empty(&rule[name]);
    if is_empty("verbs") {
        let why = "verbs must contain at least one value";
        causes.push(Cause::required(&child("verbs"), why));
    }
    if !is_empty("nonResourceURLs") {
        let mut refuse = |why| {
            let urls = &rule["nonResourceURLs"];
            causes.push(Cause::invalid(&child("nonResourceURLs"), urls, why));
        };
        if namespaced {
            refuse("namespaced rules cannot apply to non-resource URLs");
        }
        if !(is_empty("apiGroups") && is_empty("resources") && is_empty("resourceNames")) {
            refuse("rules cannot apply to both regular resources and non-resource URLs");
        }
        return;
    }
    if is_empty("apiGroups") {
        let why = "resource rules must supply at least one api group";
        causes.push(Cause::required(&child("apiGroups"), why));
    }
    if is_empty("resources") {
        let why = "resource rules must supply at least one resource";
        causes.push(Cause::required(&child("resources"), why));
    }
}

fn check_selector(selector: &Value, (field, causes): Found<'_>) {
    for (at, expression) in items(&selector["matchExpressions"]).enumerate() {
        let child = |name: &str| format!("{field}.matchExpressions[{at}].{name}");
        let no_values = is_empty(&expression["values"]);
        let operator = &expression["operator"];
        match operator.as_str().unwrap_or_default() {
            "In" | "NotIn" if no_values => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                causes.push(Cause::required(&child("values"), why));
            }
            "Exists" | "DoesNotExist" if !no_values => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                causes.push(Cause::forbidden(&child("values"), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => {
                let why = "not a valid selector operator";
                causes.push(Cause::invalid(&child("operator"), operator, why));
            }
        }
    }
}

/// Fills in the groups that go without saying.
pub(super) fn complete_binding(binding: &mut Value) {
    if text(&binding["roleRef"], "apiGroup").is_empty() && binding["roleRef"].is_object() {
        binding["roleRef"]["apiGroup"] = json!(GROUP);
    }
    // By index, what is absent would become null.
    let subjects = binding.get_mut("subjects").and_then(Value::as_array_mut);
    for subject in subjects.into_iter().flatten() {
        let known = matches!(text(subject, "kind"), USER | GROUP_KIND);
        if known && text(subject, "apiGroup").is_empty() {
            subject["apiGroup"] = json!(GROUP);
        }
    }
}

/// What is wrong with a RoleBinding or ClusterRoleBinding.
pub(super) fn binding(binding: &Value) -> Vec<Cause> {
    let namespaced = !namespace(binding).is_empty();
    let mut causes = Vec::new();
    let role = &binding["roleRef"];
    if text(role, "apiGroup") != GROUP {
        let field = "roleRef.apiGroup";
        causes.push(Cause::not_supported(field, &role["apiGroup"], &[GROUP]));
    }
    let kinds: &[&str] = match namespaced {
        true => &["Role", "ClusterRole"],
        false => &["ClusterRole"],
    };
    if !kinds.contains(&text(role, "kind")) {
        causes.push(Cause::not_supported("roleRef.kind", &role["kind"], kinds));
    }
    match text(role, "name") {
        "" => causes.push(Cause::required("roleRef.name", "")),
        "." | ".." => {
            let why = format!("may not be '{}'", text(role, "name"));
            causes.push(Cause::invalid("roleRef.name", &role["name"], &why));
        }
        name => {
            for bad in ['/', '%'].into_iter().filter(|bad| name.contains(*bad)) {
                let why = format!("may not contain '{bad}'");
                causes.push(Cause::invalid("roleRef.name", &role["name"], &why));
            }
        }
    }
    for (at, subject) in items(&binding["subjects"]).enumerate() {
        check_subject(
            subject,
            namespaced,
            (&format!("subjects[{at}]"), &mut causes),
        );
    }
    causes
}

fn check_subject(subject: &Value, namespaced: bool, (field, causes): Found<'_>) {
    let child = |name: &str| format!("{field}.{name}");
    if text(subject, "name").is_empty() {
        causes.push(Cause::required(&child("name"), ""));
    }
    let group = text(subject, "apiGroup");
    match text(subject, "kind") {
        ACCOUNT => {
            if !group.is_empty() {
                let found = &subject["apiGroup"];
                causes.push(Cause::not_supported(&child("apiGroup"), found, &[""]));
            }
            if !namespaced && text(subject, "namespace").is_empty() {
                causes.push(Cause::required(&child("namespace"), ""));
            }
        }
        USER | GROUP_KIND if group != GROUP => {
            let found = &subject["apiGroup"];
            causes.push(Cause::not_supported(&child("apiGroup"), found, &[GROUP]));
        }
        USER | GROUP_KIND => {}
        _ => {
            let known = [ACCOUNT, USER, GROUP_KIND];
            causes.push(Cause::not_supported(
                &child("kind"),
                &subject["kind"],
                &known,
            ));
        }
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn is_empty(list: &Value) -> bool {
    items(list).next().is_none()
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(causes: &[Cause]) -> Vec<String> {
        let lines = causes
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message));
        lines.collect()
    }

    #[test]
    fn a_rule_says_what_and_where() {
        let rules = json!([
            {"verbs": [], "apiGroups": [], "resources": ["pods"]},
            {"verbs": ["get"], "nonResourceURLs": ["/docs"], "resources": ["pods"]},
        ]);
        let in_namespace = json!({"metadata": {"namespace": "a"}, "rules": rules});
        let both = "Invalid value: [\"/docs\"]: rules cannot apply to both regular resources and \
                    non-resource URLs";
        assert_eq!(said(&role(&in_namespace)), [
            "rules[0].verbs: Required value: verbs must contain at least one value".to_owned(),
            "rules[0].apiGroups: Required value: resource rules must supply at least one api group"
                .to_owned(),
            "rules[1].nonResourceURLs: Invalid value: [\"/docs\"]: namespaced rules cannot apply \
             to non-resource URLs".to_owned(),
            format!("rules[1].nonResourceURLs: {both}"),
        ]);
        let everywhere = json!({"metadata": {}, "rules": [
            {"verbs": ["get"], "nonResourceURLs": ["/docs"]},
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
        ]});
        assert!(role(&everywhere).is_empty());
    }

    #[test]
    fn an_aggregation_chooses_by_labels_that_can_be_read() {
        let none = json!({"aggregationRule": {}});
        assert_eq!(
            said(&role(&none)),
            [
                "aggregationRule.clusterRoleSelectors: Required value: at least one \
             clusterRoleSelector required if aggregationRule is non-nil"
            ]
        );
        let odd = json!({"aggregationRule": {"clusterRoleSelectors": [
            {"matchLabels": {"a": "b"}},
            {"matchExpressions": [{"key": "k", "operator": "Like", "values": ["v"]}]},
        ]}});
        assert_eq!(
            said(&role(&odd)),
            [
                "aggregationRule.clusterRoleSelectors[1].matchExpressions[0].operator: Invalid value: \
             \"Like\": not a valid selector operator"
            ]
        );
    }

    #[test]
    fn a_binding_names_a_role_and_known_sorts_of_subjects() {
        let mut good = json!({
            "metadata": {"namespace": "a"},
            "roleRef": {"kind": "Role", "name": "r"},
            "subjects": [
                {"kind": "User", "name": "u"}, {"kind": "Group", "name": "g"},
                {"kind": "ServiceAccount", "name": "s"},
            ],
        });
        complete_binding(&mut good);
        assert!(binding(&good).is_empty());
        assert_eq!(good["subjects"][0]["apiGroup"], GROUP);
        assert_eq!(good["subjects"][2].get("apiGroup"), None);
        let mut nobody = json!({"roleRef": {"kind": "Role", "name": "r"}});
        complete_binding(&mut nobody);
        assert_eq!(nobody.get("subjects"), None);
        good["metadata"] = json!({});
        assert_eq!(
            said(&binding(&good)),
            [
                "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
                "subjects[2].namespace: Required value",
            ]
        );
        let bad = json!({
            "metadata": {"namespace": "a"},
            "roleRef": {"apiGroup": "apps", "kind": "Pod", "name": "a/b"},
            "subjects": [{"kind": "Robot", "name": ""}],
        });
        assert_eq!(
            said(&binding(&bad)),
            [
                "roleRef.apiGroup: Unsupported value: \"apps\": supported values: \
             \"rbac.authorization.k8s.io\"",
                "roleRef.kind: Unsupported value: \"Pod\": supported values: \"Role\", \"ClusterRole\"",
                "roleRef.name: Invalid value: \"a/b\": may not contain '/'",
                "subjects[0].name: Required value",
                "subjects[0].kind: Unsupported value: \"Robot\": supported values: \
             \"ServiceAccount\", \"User\", \"Group\"",
            ]
        );
    }
}
