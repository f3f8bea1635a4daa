//! Roles and bindings, written with real kubectls and in force at once.

use anyhow::{Context as _, Result};
use godwit_testkit::api::{Connection, Method};
use godwit_testkit::kubectl::Release;
use serde_json::{Value, json};
use std::time::Duration;

use crate::api_env::{Api, Kubectl, cells};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const NOT_HELD: &str = "is attempting to grant RBAC permissions not currently held:";

async fn can(kubectl: &Kubectl, question: &[&str]) -> Result<bool> {
    let command = [&["auth", "can-i"], question].concat();
    let ended = kubectl.run(&command).await?;
    let answer = ended.stdout.trim();
    assert_eq!(ended.ok, answer == "yes", "{question:?}: {ended:?}");
    Ok(ended.ok)
}

/// A namespace, `ann` in it as `role`, and the kubectls of an administrator and of her.
async fn team(release: Release, role: &str) -> Result<(Api, Kubectl, Kubectl)> {
    let api = Api::start().await?;
    let (admin, ann) = (api.admin(release).await?, api.user(release, "ann").await?);
    admin.ok(&["create", "namespace", "team-a"]).await?;
    let role = format!("--clusterrole={role}");
    grant(&admin, &role).await?;
    Ok((api, admin, ann))
}

async fn grant(admin: &Kubectl, role: &str) -> Result<()> {
    let binding = ["create", "rolebinding", "ann", "-n", "team-a", "--user=ann"];
    admin.ok(&[&binding[..], &[role]].concat()).await?;
    Ok(())
}

async fn a_grant_in_one_namespace_is_in_force_at_once_and_so_is_its_end(
    release: Release,
) -> Result<()> {
    let (_api, admin, ann) = team(release, "edit").await?;
    for (namespace, allowed) in [("team-a", true), ("default", false)] {
        let here = ["-n", namespace];
        let ask = async |question: &[&str]| can(&ann, &[question, &here].concat()).await;
        assert_eq!(ask(&["create", "virtualmachines"]).await?, allowed);
        assert_eq!(ask(&["get", "vmim"]).await?, allowed);
        for never in [
            ["create", "vmim"],
            ["create", "rolebindings"],
            ["get", "nodes"],
        ] {
            assert!(!ask(&never).await?, "{never:?}");
        }
    }
    let make = |namespace| ["create", "configmap", "c", "-n", namespace];
    ann.ok(&make("team-a")).await?;
    let wanted = "User \"ann\" cannot create resource \"configmaps\" in API group \"\" in the \
                  namespace \"default\"";
    let refused = ann.fails(&make("default")).await?;
    assert!(refused.contains(wanted), "{refused}");
    let nodes = ann.fails(&["get", "nodes"]).await?;
    let wanted = "nodes is forbidden: User \"ann\" cannot list resource \"nodes\" in API group \
                  \"\" at the cluster scope";
    assert!(nodes.contains(wanted), "{nodes}");
    let list = ann.ok(&["auth", "can-i", "--list", "-n", "team-a"]).await?;
    let has = |line: &str| {
        list.lines()
            .any(|found| found.split_whitespace().next() == Some(line))
    };
    assert!(has("virtualmachines.kubevirt.io"), "{list}");
    let elsewhere = ann.ok(&["auth", "can-i", "--list"]).await?;
    assert!(
        !elsewhere.contains("virtualmachines.kubevirt.io"),
        "{elsewhere}"
    );

    admin
        .ok(&["delete", "rolebinding", "ann", "-n", "team-a"])
        .await?;
    let refused = ann
        .fails(&["get", "configmap", "c", "-n", "team-a"])
        .await?;
    assert!(
        refused.contains("configmaps \"c\" is forbidden"),
        "{refused}"
    );
    grant(&admin, "--clusterrole=view").await?;
    ann.ok(&["get", "configmap", "c", "-n", "team-a"]).await?;
    ann.fails(&["delete", "configmap", "c", "-n", "team-a"])
        .await?;
    ann.fails(&["get", "secrets", "-n", "team-a"]).await?;
    Ok(())
}

#[tokio::test]
async fn a_grant_is_in_force_at_once_for_debians_kubectl() -> Result<()> {
    a_grant_in_one_namespace_is_in_force_at_once_and_so_is_its_end(Release::Debian).await
}

#[tokio::test]
async fn a_grant_is_in_force_at_once_for_the_newest_kubectl() -> Result<()> {
    a_grant_in_one_namespace_is_in_force_at_once_and_so_is_its_end(Release::Newest).await
}

/// The words of a command, carried out in the namespace of the team.
fn in_team(command: &str) -> Vec<&str> {
    ["-n", "team-a"]
        .into_iter()
        .chain(command.split(' '))
        .collect()
}

#[tokio::test]
async fn nobody_grants_more_than_they_hold() -> Result<()> {
    for release in Release::ENDS {
        let (_api, admin, ann) = team(release, "admin").await?;
        let movers = in_team("create role movers --verb=create --resource=vmim");
        let refused = ann.fails(&movers).await?;
        let wanted = "roles.rbac.authorization.k8s.io \"movers\" is forbidden: user \"ann\" \
                      (groups=[\"system:authenticated\"])";
        assert!(refused.contains(wanted), "{refused}");
        let rule = "{APIGroups:[\"kubevirt.io\"], \
                    Resources:[\"virtualmachineinstancemigrations\"], Verbs:[\"create\"]}";
        assert!(
            refused.contains(NOT_HELD) && refused.contains(rule),
            "{refused}"
        );
        let reader = in_team("create role reader --verb=get --resource=secrets");
        ann.ok(&reader).await?;
        let bound = in_team("create rolebinding reader --role=reader --user=bob");
        ann.ok(&bound).await?;
        let mut patch = in_team("patch role reader --type=json -p");
        patch.push(r#"[{"op": "add", "path": "/rules/0/apiGroups/-", "value": "apps"}]"#);
        assert!(ann.fails(&patch).await?.contains(NOT_HELD));

        // What she doesn't hold she may let go of, and no more.
        admin.ok(&movers).await?;
        let patch = |what| [&in_team("patch role movers -p")[..], &[what]].concat();
        ann.ok(&patch(r#"{"metadata": {"finalizers": ["example.com/x"]}}"#))
            .await?;
        ann.ok(&patch(r#"{"metadata": {"finalizers": null}}"#))
            .await?;
        let refused = ann
            .fails(&patch(r#"{"metadata": {"labels": {"a": "b"}}}"#))
            .await?;
        assert!(refused.contains(NOT_HELD), "{refused}");
        only_what_is_held_is_bound(&admin, &ann).await?;
    }
    Ok(())
}

async fn only_what_is_held_is_bound(admin: &Kubectl, ann: &Kubectl) -> Result<()> {
    let bind = in_team("create rolebinding me --clusterrole=kubevirt.io:migrate --user=ann");
    let refused = ann.fails(&bind).await?;
    let wanted = "rolebindings.rbac.authorization.k8s.io \"me\" is forbidden: user \"ann\"";
    assert!(
        refused.contains(wanted) && refused.contains(NOT_HELD),
        "{refused}"
    );
    let nothing = in_team("create rolebinding n --clusterrole=nothing --user=ann");
    let refused = ann.fails(&nothing).await?;
    let wanted = "clusterroles.rbac.authorization.k8s.io \"nothing\" not found";
    assert!(refused.contains(wanted), "{refused}");
    let binder = "create clusterrole binder --verb=bind --resource=clusterroles \
                  --resource-name=kubevirt.io:migrate";
    let words: Vec<&str> = binder.split(' ').collect();
    admin.ok(&words).await?;
    let grant = in_team("create rolebinding binder --clusterrole=binder --user=ann");
    admin.ok(&grant).await?;
    ann.ok(&bind).await?;
    assert!(can(ann, &["create", "vmim", "-n", "team-a"]).await?);
    assert!(!can(ann, &["create", "vmim"]).await?);
    Ok(())
}

#[tokio::test]
async fn who_may_escalate_grants_what_they_like_and_a_sum_is_for_administrators() -> Result<()> {
    let api = Api::start().await?;
    let admin = api.admin(Release::Newest).await?;
    let ann = api.user(Release::Newest, "ann").await?;
    let role = |name: &'static str, verbs: &'static str| {
        [
            "create",
            "clusterrole",
            name,
            verbs,
            "--resource=clusterroles",
        ]
    };
    let bind = |name: &'static str, role: &'static str| {
        ["create", "clusterrolebinding", name, role, "--user=ann"]
    };
    admin.ok(&role("writer", "--verb=create,get,patch")).await?;
    admin
        .ok(&bind("ann-writes", "--clusterrole=writer"))
        .await?;
    let nodes = [
        "create",
        "clusterrole",
        "nodes",
        "--verb=get",
        "--resource=nodes",
    ];
    assert!(ann.fails(&nodes).await?.contains(NOT_HELD));
    let sum = ["create", "clusterrole", "sum", "--aggregation-rule=a=b"];
    let refused = ann.fails(&sum).await?;
    let wanted = "clusterroles.rbac.authorization.k8s.io \"sum\" is forbidden: must have \
                  cluster-admin privileges to use the aggregationRule";
    assert!(refused.contains(wanted), "{refused}");
    admin.ok(&role("escalator", "--verb=escalate")).await?;
    admin
        .ok(&bind("ann-escalates", "--clusterrole=escalator"))
        .await?;
    ann.ok(&nodes).await?;
    ann.ok(&sum).await?;
    // To make a role is not to hold it, and a binding is not hers to write.
    ann.fails(&["get", "nodes"]).await?;
    let refused = ann.fails(&bind("mine", "--clusterrole=nodes")).await?;
    assert!(
        refused.contains("cannot create resource \"clusterrolebindings\""),
        "{refused}"
    );
    Ok(())
}

const RECONCILED: &str = "
apiVersion: v1
kind: List
items:
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRole
  metadata: {name: reader}
  rules: [{apiGroups: [''], resources: [pods, secrets], verbs: [get]}]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: RoleBinding
  metadata: {name: readers, namespace: default}
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
  subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: bob}]
";

async fn kubectl_makes_shows_and_reconciles(release: Release) -> Result<()> {
    let api = Api::start().await?;
    let admin = api.admin(release).await?;
    let verbs = "--verb=get,list,watch";
    admin
        .ok(&["create", "role", "r", verbs, "--resource=pods"])
        .await?;
    admin
        .ok(&[
            "create",
            "clusterrole",
            "reader",
            verbs,
            "--resource=pods,vmi",
        ])
        .await?;
    let docs = [
        "create",
        "clusterrole",
        "docs",
        "--verb=get",
        "--non-resource-url=/docs/*",
    ];
    admin.ok(&docs).await?;
    let aggregated = [
        "create",
        "clusterrole",
        "sum",
        "--aggregation-rule=part-of=sum",
    ];
    admin.ok(&aggregated).await?;
    let whom = [
        "--user=bob",
        "--group=devs",
        "--serviceaccount=default:robot",
    ];
    let binding = ["create", "rolebinding", "readers", "--clusterrole=reader"];
    admin.ok(&[&binding[..], &whom].concat()).await?;
    let binding = [
        "create",
        "clusterrolebinding",
        "readers",
        "--clusterrole=reader",
    ];
    admin.ok(&[&binding[..], &whom].concat()).await?;
    kubectl_shows(&admin).await?;
    kubectl_changes(&api, &admin).await
}

async fn kubectl_shows(admin: &Kubectl) -> Result<()> {
    for kind in ["rolebinding", "clusterrolebinding"] {
        let table = cells(&admin.ok(&["get", kind, "readers", "-o", "wide"]).await?);
        let head = ["NAME", "ROLE", "AGE", "USERS", "GROUPS", "SERVICEACCOUNTS"];
        assert_eq!(table[0], head);
        assert_eq!(table[1][..2], ["readers", "ClusterRole/reader"]);
        assert_eq!(table[1][3..], ["bob", "devs", "default/robot"]);
    }
    for kind in ["role/r", "clusterrole/reader"] {
        let table = cells(&admin.ok(&["get", kind]).await?);
        assert_eq!(table[0], ["NAME", "CREATED", "AT"]);
        assert!(table[1][1].ends_with('Z'), "{table:?}");
    }
    let described = admin.ok(&["describe", "clusterrole", "view"]).await?;
    assert!(
        described.contains("virtualmachineinstancemigrations.kubevirt.io"),
        "{described}"
    );
    assert!(
        described.contains("kubernetes.io/bootstrapping=rbac-defaults"),
        "{described}"
    );
    assert!(!described.contains("secrets"), "{described}");
    let bound = admin
        .ok(&["describe", "clusterrolebinding", "godwit.io:viewers"])
        .await?;
    assert!(bound.contains("godwit:viewers"), "{bound}");
    Ok(())
}

async fn kubectl_changes(api: &Api, admin: &Kubectl) -> Result<()> {
    let edited = r#"{"roleRef": {"name": "view"}}"#;
    let refused = admin
        .fails(&["patch", "rolebinding", "readers", "-p", edited])
        .await?;
    assert!(refused.contains("cannot change roleRef"), "{refused}");
    let bad = r#"{"rules": [{"verbs": ["get"], "resources": ["pods"]}]}"#;
    let refused = admin.fails(&["patch", "role", "r", "-p", bad]).await?;
    let wanted = "rules[0].apiGroups: Required value: resource rules must supply at least one api \
                  group";
    assert!(refused.contains(wanted), "{refused}");

    let file = api.file("rbac.yaml", RECONCILED)?;
    admin.ok(&["auth", "reconcile", "-f", &file]).await?;
    let role = admin
        .ok(&["get", "clusterrole", "reader", "-o", "json"])
        .await?;
    assert!(
        role.contains("secrets") && role.contains("virtualmachineinstances"),
        "{role}"
    );
    let binding = admin
        .ok(&["get", "rolebinding", "readers", "-o", "json"])
        .await?;
    let binding: Value = serde_json::from_str(&binding)?;
    assert_eq!(binding["roleRef"]["name"], "view");
    admin.ok(&["apply", "-f", &file]).await?;
    admin.ok(&["delete", "-f", &file]).await?;
    Ok(())
}

#[tokio::test]
async fn debians_kubectl_makes_shows_and_reconciles() -> Result<()> {
    kubectl_makes_shows_and_reconciles(Release::Debian).await
}

#[tokio::test]
async fn the_newest_kubectl_makes_shows_and_reconciles() -> Result<()> {
    kubectl_makes_shows_and_reconciles(Release::Newest).await
}

#[tokio::test]
async fn a_part_of_a_role_counts_at_once_and_shows_soon() -> Result<()> {
    let (api, admin, ann) = team(Release::Newest, "view").await?;
    let part = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {
            "name": "widgets", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"},
        },
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}],
    });
    let mut client = api.client()?.connect().await?;
    let shows = async |client: &mut Connection, role: &str, wanted: bool| -> Result<()> {
        let path = format!("{RBAC}/clusterroles/{role}");
        let wait = async {
            loop {
                let role = client.call(Method::GET, &path, None).await?.object()?;
                if role["rules"].to_string().contains("\"secrets\"") == wanted {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await; // poll
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await?
    };
    shows(&mut client, "view", false).await?;
    ann.fails(&["get", "secrets", "-n", "team-a"]).await?;
    client.post(&format!("{RBAC}/clusterroles"), &part).await?;
    ann.ok(&["get", "secrets", "-n", "team-a"]).await?;
    shows(&mut client, "view", true).await?;
    admin.ok(&["delete", "clusterrole", "widgets"]).await?;
    ann.fails(&["get", "secrets", "-n", "team-a"]).await?;
    shows(&mut client, "view", false).await
}

#[tokio::test]
async fn who_may_not_look_learns_nothing_of_what_is_there() -> Result<()> {
    let api = Api::start().await?;
    let mut admin = api.client()?.connect().await?;
    let mut ann = api.client_of(Some("ann"))?.connect().await?;
    let secret = json!({"metadata": {"name": "s"}});
    let paths = [
        "/api/v1/namespaces/default/secrets/s",
        "/api/v1/namespaces/nowhere/secrets/s",
        "/apis/kubevirt.io/v1/namespaces/default/virtualmachines/s",
        "/apis/example.com/v1/namespaces/default/things/s",
    ];
    for method in [Method::GET, Method::PUT, Method::PATCH, Method::DELETE] {
        for path in paths {
            let answer = ann.call(method.clone(), path, Some(&secret)).await?;
            assert_eq!(answer.status, 403, "{method} {path}: {}", answer.body);
        }
    }
    let before = ann.call(Method::GET, paths[0], None).await?;
    admin
        .post("/api/v1/namespaces/default/secrets", &secret)
        .await?;
    let after = ann.call(Method::GET, paths[0], None).await?;
    assert_eq!((before.status, &before.body), (after.status, &after.body));
    let text = "secrets \"s\" is forbidden: User \"ann\" cannot get resource \"secrets\" in API \
                group \"\" in the namespace \"default\"";
    assert_eq!(after.body["message"], text);
    Ok(())
}

#[tokio::test]
async fn reviews_say_what_the_objects_say() -> Result<()> {
    let (api, _admin, _ann) = team(Release::Newest, "view").await?;
    let mut admin = api.client()?.connect().await?;
    let mut ann = api.client_of(Some("ann"))?.connect().await?;
    let group = "/apis/authorization.k8s.io/v1";
    let attributes = json!({"verb": "list", "resource": "pods", "namespace": "team-a"});
    let of_ann = json!({"spec": {"user": "ann", "resourceAttributes": attributes}});
    let path = format!("{group}/subjectaccessreviews");
    let said = admin.post(&path, &of_ann).await?;
    assert_eq!(said["status"]["allowed"], true);
    let why = "RBAC: allowed by RoleBinding \"ann/team-a\" of ClusterRole \"view\" to User \"ann\"";
    assert_eq!(said["status"]["reason"], why);
    assert_eq!(
        ann.call(Method::POST, &path, Some(&of_ann)).await?.status,
        403
    );
    let here = format!("{group}/namespaces/team-a/localsubjectaccessreviews");
    assert_eq!(admin.post(&here, &of_ann).await?["status"]["allowed"], true);
    let elsewhere = here.replace("team-a", "default");
    let refused = admin.call(Method::POST, &elsewhere, Some(&of_ann)).await?;
    assert_eq!(refused.status, 422, "{}", refused.body);
    let nobody = json!({"spec": {"resourceAttributes": attributes}});
    let refused = admin.call(Method::POST, &path, Some(&nobody)).await?;
    assert_eq!(refused.status, 422, "{}", refused.body);

    let own = format!("{group}/selfsubjectaccessreviews");
    let mine = json!({"spec": {"resourceAttributes": attributes}});
    assert_eq!(ann.post(&own, &mine).await?["status"]["allowed"], true);
    let start = json!({
        "verb": "update", "group": "subresources.kubevirt.io", "resource": "virtualmachines",
        "subresource": "start", "namespace": "team-a",
    });
    let start = json!({"spec": {"resourceAttributes": start}});
    assert_eq!(ann.post(&own, &start).await?["status"]["allowed"], false);
    assert_eq!(admin.post(&own, &start).await?["status"]["allowed"], true);
    let paths = json!({"spec": {"nonResourceAttributes": {"path": "/docs", "verb": "get"}}});
    assert_eq!(
        ann.post(&own, &paths).await?["status"],
        json!({"allowed": false})
    );
    let rules = format!("{group}/selfsubjectrulesreviews");
    let asked = json!({"spec": {"namespace": "team-a"}});
    let said = ann.post(&rules, &asked).await?;
    let listed = said["status"]["resourceRules"]
        .as_array()
        .context("no rules")?;
    let machines = listed.iter().find(|rule| {
        let resources = rule["resources"].as_array();
        resources.is_some_and(|list| list.contains(&json!("virtualmachines")))
    });
    let machines = machines.context("no rule about machines")?;
    assert_eq!(machines["verbs"], json!(["get", "list", "watch"]));
    let said = admin.post(&rules, &asked).await?;
    assert_eq!(said["status"]["resourceRules"][0]["verbs"], json!(["*"]));
    Ok(())
}
