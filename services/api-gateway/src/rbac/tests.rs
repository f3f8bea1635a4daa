//! Who may do what, for roles and bindings as users write them.

use std::sync::Arc;

use godwit_apimachinery::{AccessRequest, Stored, UserInfo};
use serde_json::{Value, json};

use super::*;

fn stored(name: &str, namespace: &str, mut object: Value) -> Arc<Stored> {
    object["metadata"]["name"] = json!(name);
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    Stored::new(object, 1)
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn binding(kind: &str, role: &str, subjects: &Value) -> Value {
    json!({"roleRef": {"kind": kind, "name": role}, "subjects": subjects})
}

fn user(name: &str, groups: &[&str]) -> UserInfo {
    UserInfo {
        name: name.to_owned(),
        groups: groups.iter().map(|&group| group.to_owned()).collect(),
        ..UserInfo::default()
    }
}

/// `verb resource[/subresource] [name]` of the core group in `namespace`.
fn asked(namespace: &str, text: &str) -> AccessRequest {
    let mut words = text.split(' ');
    let mut word = || words.next().unwrap_or_default().to_owned();
    let (verb, what, name) = (word(), word(), word());
    let (resource, subresource) = what.split_once('/').unwrap_or((&what, ""));
    AccessRequest {
        verb,
        group: String::new(),
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        subresource: subresource.to_owned(),
        namespace: namespace.to_owned(),
        name,
        path: String::new(),
    }
}

fn path(verb: &str, path: &str) -> AccessRequest {
    AccessRequest {
        path: path.to_owned(),
        ..asked("", verb)
    }
}

fn one_rule(rule: &Value) -> Rule {
    Rule::list(&json!([rule])).remove(0)
}

#[test]
fn a_rule_matches_resources_subresources_and_names_as_kubernetes_does() {
    let cases = [
        (&["pods"][..], "get pods", true),
        (&["pods"], "get pods/log", false),
        (&["pods/log"], "get pods/log", true),
        (&["pods/log"], "get pods", false),
        (&["*/log"], "get pods/log", true),
        (&["*/log"], "get pods", false),
        (&["pods/*"], "get pods/log", false),
        (&["*"], "get pods", true),
        (&["*"], "get pods/log", true),
        (&["vms/evacuate/cancel"], "get vms/evacuate/cancel", true),
        (&["*/evacuate/cancel"], "get vms/evacuate/cancel", true),
        (&["vms/evacuate"], "get vms/evacuate/cancel", false),
    ];
    for (resources, question, wanted) in cases {
        let rule = one_rule(&rule(&[""], resources, &["get"]));
        assert_eq!(
            rule.allows(&asked("", question)),
            wanted,
            "{resources:?} {question}"
        );
        let other_verb = question.replacen("get", "delete", 1);
        assert!(!rule.allows(&asked("", &other_verb)));
    }
    let mut named = rule(&[""], &["secrets"], &["get", "list"]);
    named["resourceNames"] = json!(["a", "b"]);
    let named = one_rule(&named);
    assert!(named.allows(&asked("x", "get secrets b")));
    assert!(!named.allows(&asked("x", "get secrets c")));
    // A list without a name asks for all of them.
    assert!(!named.allows(&asked("x", "list secrets")));
    let other_group = one_rule(&rule(&["apps"], &["*"], &["*"]));
    assert!(!other_group.allows(&asked("", "get pods")));
    assert!(one_rule(&rule(&["*"], &["pods"], &["*"])).allows(&asked("", "impersonate pods")));
}

#[test]
fn a_path_matches_by_its_start_only_where_the_rule_says_so() {
    let cases = [
        ("/healthz", "/healthz", true),
        ("/healthz", "/healthz/ping", false),
        ("/healthz/*", "/healthz/ping", true),
        ("/healthz/*", "/healthz", false),
        ("/api*", "/apis", true),
        ("*", "/anything", true),
    ];
    for (url, asked, wanted) in cases {
        let rule = one_rule(&json!({"nonResourceURLs": [url], "verbs": ["get"]}));
        assert_eq!(rule.allows(&path("get", asked)), wanted, "{url} {asked}");
        assert!(!rule.allows(&path("post", asked)));
    }
    // All resources are no path, and the other way round.
    assert!(!one_rule(&rule(&["*"], &["*"], &["*"])).allows(&path("get", "/healthz")));
    let paths = one_rule(&json!({"nonResourceURLs": ["*"], "verbs": ["*"]}));
    assert!(!paths.allows(&asked("", "get pods")));
}

fn cluster() -> Snapshot {
    let reader = json!({"rules": [rule(&[""], &["pods"], &["get"])]});
    let writer = json!({"rules": [
        rule(&[""], &["pods"], &["create"]), {"nonResourceURLs": ["/docs"], "verbs": ["get"]},
    ]});
    let account = json!([{"kind": "ServiceAccount", "name": "robot"}]);
    let both = json!([{"kind": "User", "name": "ann"}, {"kind": "Group", "name": "devs"}]);
    Snapshot::compile(&[
        vec![stored("reader", "a", reader)],
        vec![stored("writer", "", writer)],
        vec![
            stored("read", "a", binding("Role", "reader", &both)),
            stored("write", "a", binding("ClusterRole", "writer", &both)),
            stored("robots", "a", binding("Role", "reader", &account)),
            // Of the same name, but a role of another namespace.
            stored("read", "b", binding("Role", "reader", &both)),
        ],
        vec![
            stored(
                "write",
                "",
                binding(
                    "ClusterRole",
                    "writer",
                    &json!([
                        {"kind": "User", "name": "eve"},
                        {"kind": "ServiceAccount", "name": "robot", "namespace": "b"},
                    ]),
                ),
            ),
            stored(
                "wrong",
                "",
                binding("Role", "reader", &json!([{"kind": "User", "name": "eve"}])),
            ),
        ],
    ])
}

fn may(snapshot: &Snapshot, user: &UserInfo, access: &AccessRequest) -> bool {
    matches!(snapshot.decide(user, access), Verdict::Allowed(_))
}

#[test]
fn a_binding_grants_to_its_subjects_in_its_namespace() {
    let cluster = cluster();
    let granted = [
        (user("ann", &[]), "a", "get pods x", true),
        (user("bob", &["devs"]), "a", "create pods", true),
        (user("bob", &["ops"]), "a", "create pods", false),
        (user("ann", &[]), "b", "create pods", false),
        (user("ann", &[]), "", "create pods", false),
        (user("ann", &[]), "a", "delete pods x", false),
        (user("eve", &[]), "b", "create pods", true),
        (user("eve", &[]), "", "create pods", true),
        (user("eve", &[]), "a", "get pods x", false),
        (
            user("system:serviceaccount:a:robot", &[]),
            "a",
            "get pods x",
            true,
        ),
        (
            user("system:serviceaccount:b:robot", &[]),
            "a",
            "get pods x",
            false,
        ),
        (
            user("system:serviceaccount:b:robot", &[]),
            "a",
            "create pods",
            true,
        ),
        // A user named like a group is not the group.
        (user("devs", &[]), "a", "get pods x", false),
        (
            user("x", &["system:masters"]),
            "z",
            "delete everything y",
            true,
        ),
    ];
    for (who, namespace, question, wanted) in granted {
        let access = asked(namespace, question);
        assert_eq!(
            may(&cluster, &who, &access),
            wanted,
            "{} {question}",
            who.name
        );
    }
    // A role binding opens no paths, whatever it binds.
    assert!(may(&cluster, &user("eve", &[]), &path("get", "/docs")));
    assert!(!may(&cluster, &user("ann", &[]), &path("get", "/docs")));
}

#[test]
fn acting_as_others_is_granted_by_name() {
    let role = json!({"rules": [
        {"apiGroups": [""], "resources": ["users", "groups"], "verbs": ["impersonate"],
         "resourceNames": ["bob", "devs"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scopes"],
         "verbs": ["impersonate"]},
    ]});
    let subjects = json!([{"kind": "User", "name": "ann"}]);
    let roles = vec![stored("actor", "", role)];
    let bindings = vec![stored("a", "", binding("ClusterRole", "actor", &subjects))];
    let cluster = Snapshot::compile(&[vec![], roles, vec![], bindings]);
    let ann = user("ann", &[]);
    let cases = [
        ("impersonate users bob", true),
        ("impersonate users eve", false),
        ("impersonate groups devs", true),
        ("impersonate groups system:masters", false),
        ("impersonate serviceaccounts robot", false),
    ];
    for (question, wanted) in cases {
        assert_eq!(
            may(&cluster, &ann, &asked("", question)),
            wanted,
            "{question}"
        );
    }
    for (extra, wanted) in [("scopes", true), ("other", false)] {
        let access = AccessRequest {
            group: "authentication.k8s.io".to_owned(),
            ..asked("", &format!("impersonate userextras/{extra} value"))
        };
        assert_eq!(may(&cluster, &ann, &access), wanted, "{extra}");
    }
}

#[test]
fn a_verdict_says_who_granted_it_and_which_role_is_missing() {
    let cluster = cluster();
    let Verdict::Allowed(why) = cluster.decide(&user("bob", &["devs"]), &asked("a", "get pods"))
    else {
        panic!("not allowed");
    };
    assert_eq!(
        why,
        "RBAC: allowed by RoleBinding \"read/a\" of Role \"reader\" to Group \"devs\""
    );
    let missing = cluster.decide(&user("ann", &[]), &asked("b", "get pods"));
    let text = "RBAC: role.rbac.authorization.k8s.io \"reader\" not found";
    assert_eq!(missing, Verdict::Denied(text.to_owned()));
    let nothing = cluster.decide(&user("joe", &[]), &asked("b", "get pods"));
    assert_eq!(nothing, Verdict::Denied(String::new()));
}

#[test]
fn an_aggregated_role_is_all_that_its_labels_choose() {
    let part = |label: &str, resource: &str| {
        let rules = [rule(&[""], &[resource], &["get"])];
        json!({"metadata": {"labels": {label: "true"}}, "rules": rules})
    };
    let whole = |chosen: &str, label: &str| {
        json!({
            "metadata": {"labels": {label: "true"}},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {chosen: "true"}}]},
            // What stands here is not asked: it may be of yesterday.
            "rules": [rule(&["*"], &["*"], &["*"])],
        })
    };
    let roles = vec![
        stored("part-1", "", part("to-view", "pods")),
        stored("part-2", "", part("to-edit", "secrets")),
        stored("view", "", whole("to-view", "to-edit")),
        stored("edit", "", whole("to-edit", "to-admin")),
        // Around in a circle ends all the same.
        stored("circle", "", whole("to-circle", "to-circle")),
    ];
    let ann = json!([{"kind": "User", "name": "ann"}]);
    let bound = |role| vec![stored("b", "", binding("ClusterRole", role, &ann))];
    let compile = |role| Snapshot::compile(&[vec![], roles.clone(), vec![], bound(role)]);
    let ann = user("ann", &[]);
    let (view, edit, circle) = (compile("view"), compile("edit"), compile("circle"));
    assert!(may(&view, &ann, &asked("", "get pods x")));
    assert!(!may(&view, &ann, &asked("", "get secrets x")));
    assert!(may(&edit, &ann, &asked("", "get pods x")));
    assert!(may(&edit, &ann, &asked("", "get secrets x")));
    assert!(!may(&edit, &ann, &asked("", "delete pods x")));
    assert!(!may(&circle, &ann, &asked("", "get pods x")));
}

#[test]
fn nobody_grants_more_than_they_hold() {
    let cluster = cluster();
    let ann = user("ann", &["devs"]);
    let wanted = [
        one_rule(&rule(&[""], &["pods", "secrets"], &["get", "create"])),
        one_rule(&rule(&["apps"], &["*"], &["*"])),
    ];
    let why = not_held(&cluster, &ann, "a", &wanted);
    let text = "user \"ann\" (groups=[\"devs\"]) is attempting to grant RBAC permissions not \
                currently held:\n\
                {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"create\"]}\n\
                {APIGroups:[\"apps\"], Resources:[\"*\"], Verbs:[\"*\"]}";
    assert_eq!(why.as_deref(), Some(text));
    assert_eq!(
        not_held(
            &cluster,
            &ann,
            "a",
            &[one_rule(&rule(&[""], &["pods"], &["get"]))]
        ),
        None
    );
    assert!(
        not_held(
            &cluster,
            &ann,
            "b",
            &[one_rule(&rule(&[""], &["pods"], &["get"]))]
        )
        .is_some()
    );
}

#[test]
fn covering_knows_stars_subresources_names_and_paths() {
    let covers = |mine: Value, wanted: Value| {
        let mine = one_rule(&mine);
        missing_rights(&[&mine], &[one_rule(&wanted)]).is_empty()
    };
    let named = |name: &str| {
        let mut rule = rule(&[""], &["pods"], &["get"]);
        rule["resourceNames"] = json!([name]);
        rule
    };
    let urls = |url: &str| json!({"nonResourceURLs": [url], "verbs": ["get"]});
    let all = || rule(&["*"], &["*"], &["*"]);
    assert!(covers(all(), rule(&["apps"], &["x/y"], &["list"])));
    assert!(covers(
        rule(&[""], &["*/log"], &["get"]),
        rule(&[""], &["pods/log"], &["get"])
    ));
    assert!(!covers(
        rule(&[""], &["pods"], &["get"]),
        rule(&[""], &["pods/log"], &["get"])
    ));
    assert!(!covers(
        rule(&[""], &["pods"], &["get"]),
        rule(&[""], &["*"], &["get"])
    ));
    assert!(!covers(rule(&[""], &["pods"], &["get"]), all()));
    assert!(covers(rule(&[""], &["pods"], &["get"]), named("a")));
    assert!(!covers(named("a"), rule(&[""], &["pods"], &["get"])));
    assert!(!covers(named("a"), named("b")));
    assert!(covers(urls("/a/*"), urls("/a/b")));
    assert!(covers(urls("/a/*"), urls("/a/*")));
    assert!(!covers(urls("/a/*"), urls("*")));
    assert!(!covers(all(), urls("/a")));
}
