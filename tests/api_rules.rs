//! What the API refuses, and to whom, in the words that people and tests know.

use anyhow::Result;
use godwit_testkit::api::Method;
use godwit_testkit::kubectl::Release;
use serde_json::{Value, json};

use crate::api_env::{Api, example};
use crate::api_play as play;

const RELEASES: [Release; 2] = [Release::Debian, Release::Newest];

fn object(api_version: &str, kind: &str, spec: &Value) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "a"}, "spec": spec})
}

fn migration(spec: &Value) -> Value {
    object("kubevirt.io/v1", "VirtualMachineInstanceMigration", spec)
}

#[tokio::test]
async fn bad_input_is_refused_in_kubevirts_words_and_changes_nothing() -> Result<()> {
    let api = Api::start().await?;
    let maintenance = json!({"nodeName": "worker9"});
    let machine = json!({
        "running": true, "runStrategy": "Always",
        "template": {"spec": {"domain": {"devices": {}}}},
    });
    let mut homeless = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    homeless["metadata"] = json!({"name": "c", "namespace": "nowhere"});
    let cases = [
        (migration(&json!({})), "vmiName is missing"),
        (
            migration(&json!({"vmiName": "nobody"})),
            "the VMI \"default/nobody\" does not exist",
        ),
        (migration(&json!({"vmiNam": "nobody"})), "unknown field"),
        (
            object("kubevirt.io/v1alpha1", "NodeMaintenance", &maintenance),
            "invalid nodeName, no node with name worker9 found",
        ),
        (
            object("kubevirt.io/v1", "VirtualMachine", &machine),
            "Running and RunStrategy are mutually exclusive",
        ),
        (homeless, "namespaces \"nowhere\" not found"),
    ];
    let before = api.ledger.revision().await?;
    for release in RELEASES {
        let kubectl = api.admin(release).await?;
        for (object, wanted) in &cases {
            let file = api.file("bad.json", &object.to_string())?;
            let refused = kubectl.fails(&["create", "-f", &file]).await?;
            assert!(refused.contains(wanted), "{release:?} {wanted}: {refused}");
        }
    }
    assert_eq!(api.ledger.revision().await?, before);
    Ok(())
}

#[tokio::test]
async fn only_administrators_move_machines() -> Result<()> {
    let api = Api::start().await?;
    play::node(&api.ledger, "worker2").await?;
    for release in RELEASES {
        let viewer = api.viewer(release).await?;
        let refused = viewer
            .fails(&["create", "-f", &example("migration-job.yaml")])
            .await?;
        let wanted = "virtualmachineinstancemigrations.kubevirt.io is forbidden: User \"vera\" \
                      cannot create resource \"virtualmachineinstancemigrations\" in API group \
                      \"kubevirt.io\" in the namespace \"default\"";
        assert!(refused.contains(wanted), "{refused}");
        let refused = viewer
            .fails(&["create", "-f", &example("worker2-maintenance.yaml")])
            .await?;
        assert!(
            refused.contains("\"nodemaintenances\" in API group \"kubevirt.io\""),
            "{refused}"
        );
        viewer.ok(&["get", "nodes"]).await?;
        viewer.fails(&["get", "secrets"]).await?;
        assert_eq!(
            viewer
                .run(&["auth", "can-i", "create", "vmim"])
                .await?
                .stdout
                .trim(),
            "no"
        );
        assert_eq!(
            viewer.ok(&["auth", "can-i", "get", "vmi"]).await?.trim(),
            "yes"
        );
        let admin = api.admin(release).await?;
        assert_eq!(
            admin.ok(&["auth", "can-i", "create", "vmim"]).await?.trim(),
            "yes"
        );
        admin.ok(&["auth", "can-i", "--list"]).await?;
    }
    let new = api.viewer(Release::Newest).await?;
    assert!(new.ok(&["auth", "whoami"]).await?.contains("vera"));
    let refused = new.fails(&["get", "nodes", "--as=admin"]).await?;
    let wanted = "users \"admin\" is forbidden: User \"vera\" cannot impersonate resource \
                  \"users\" in API group \"\" at the cluster scope";
    assert!(refused.contains(wanted), "{refused}");
    Ok(())
}

#[tokio::test]
async fn machines_and_their_configuration_are_kept_as_written() -> Result<()> {
    let api = Api::start().await?;
    for release in RELEASES {
        let kubectl = api.admin(release).await?;
        let file = example("vm-rhel8-server-nfs.yaml");
        assert!(
            kubectl
                .ok(&["apply", "-f", &file])
                .await?
                .ends_with("created\n")
        );
        assert!(
            kubectl
                .ok(&["apply", "-f", &file])
                .await?
                .ends_with("unchanged\n")
        );
        let patch = json!({"spec": {"runStrategy": "Halted"}}).to_string();
        kubectl
            .ok(&[
                "patch",
                "vm",
                "rhel8-server-nfs",
                "--type=merge",
                "-p",
                &patch,
            ])
            .await?;
        let strategy = [
            "get",
            "vm",
            "rhel8-server-nfs",
            "-o",
            "jsonpath={.spec.runStrategy}",
        ];
        assert_eq!(kubectl.ok(&strategy).await?, "Halted");
        kubectl
            .ok(&["annotate", "vm", "rhel8-server-nfs", "note=mine"])
            .await?;
        for other in ["kubevirt-config.yaml", "kubevirt.yaml"] {
            kubectl.ok(&["apply", "-f", &example(other)]).await?;
            assert!(
                kubectl
                    .ok(&["apply", "-f", &example(other)])
                    .await?
                    .ends_with("unchanged\n")
            );
        }
        kubectl
            .ok(&["apply", "--server-side", "--force-conflicts", "-f", &file])
            .await?;
        assert_eq!(kubectl.ok(&strategy).await?, "Always");
        let explained = kubectl.ok(&["explain", "vmim.spec.vmiName"]).await?;
        assert!(
            explained.contains("The name of the VMI to perform the migration on"),
            "{explained}"
        );
        kubectl.ok(&["delete", "vm", "rhel8-server-nfs"]).await?;
        kubectl
            .ok(&["delete", "-f", &example("kubevirt.yaml")])
            .await?;
        kubectl
            .ok(&["delete", "-f", &example("kubevirt-config.yaml")])
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_namespace_is_made_filled_emptied_and_removed() -> Result<()> {
    let api = Api::start().await?;
    for release in RELEASES {
        let kubectl = api.admin(release).await?;
        kubectl.ok(&["create", "namespace", "team-a"]).await?;
        kubectl
            .ok(&[
                "-n",
                "team-a",
                "create",
                "configmap",
                "c",
                "--from-literal=k=v",
            ])
            .await?;
        kubectl
            .ok(&[
                "-n",
                "team-a",
                "create",
                "secret",
                "generic",
                "s",
                "--from-literal=k=v",
            ])
            .await?;
        // What is in it goes with it.
        kubectl.ok(&["delete", "namespace", "team-a"]).await?;
        let gone = kubectl
            .ok(&["-n", "team-a", "get", "cm,secret", "--ignore-not-found"])
            .await?;
        assert_eq!(gone, "");
        let refused = kubectl.fails(&["delete", "namespace", "default"]).await?;
        assert!(refused.contains("may not be deleted"), "{refused}");
        assert!(kubectl.ok(&["get", "projects"]).await?.contains("default"));
    }
    Ok(())
}

#[tokio::test]
async fn of_many_who_ask_at_once_one_gets_the_machine_and_one_the_node() -> Result<()> {
    let api = Api::start().await?;
    play::node(&api.ledger, "worker2").await?;
    let kubectl = api.admin(Release::Newest).await?;
    let spec = json!({
        "domain": {
            "memory": {"guest": "128Mi"},
            "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]},
        },
        "volumes": [{
            "name": "root",
            "hostDisk": {"path": "/d.img", "type": "Disk", "shared": true},
        }],
    });
    let instance = object("kubevirt.io/v1", "VirtualMachineInstance", &spec);
    let file = api.file("instance.json", &instance.to_string())?;
    kubectl.ok(&["create", "-f", &file]).await?;
    let wishes = [
        (
            migration(&json!({"vmiName": "a"})),
            "in-flight migration detected",
        ),
        (
            object(
                "kubevirt.io/v1alpha1",
                "NodeMaintenance",
                &json!({"nodeName": "worker2"}),
            ),
            "a NodeMaintenance for node worker2 already exists",
        ),
    ];
    for (wish, refusal) in wishes {
        let mut asking = tokio::task::JoinSet::new();
        for number in 0..6 {
            let mut wish = wish.clone();
            wish["metadata"]["name"] = json!(format!("wish-{number}"));
            let file = api.file(&format!("wish-{number}.json"), &wish.to_string())?;
            let kubectl = kubectl.clone();
            asking.spawn(async move { kubectl.run(&["create", "-f", &file]).await });
        }
        let ended = asking
            .join_all()
            .await
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let (won, lost): (Vec<_>, Vec<_>) = ended.iter().partition(|ended| ended.ok);
        assert_eq!(won.len(), 1, "{ended:?}");
        assert!(
            lost.iter().all(|ended| ended.stderr.contains(refusal)),
            "{lost:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_and_keeps_nothing() -> Result<()> {
    let api = Api::start().await?;
    let before = api.ledger.revision().await?;
    for release in RELEASES {
        let kubectl = api.admin(release).await?;
        let file = example("vm-rhel8-server-nfs.yaml");
        let said = kubectl
            .ok(&["apply", "--dry-run=server", "-f", &file])
            .await?;
        assert!(said.contains("created (server dry run)"), "{said}");
        assert_eq!(kubectl.ok(&["get", "vm"]).await?, "");
    }
    assert_eq!(api.ledger.revision().await?, before);
    Ok(())
}

#[tokio::test]
async fn what_the_control_plane_tells_is_not_for_users_to_write() -> Result<()> {
    let api = Api::start().await?;
    play::node(&api.ledger, "worker2").await?;
    let kubectl = api.admin(Release::Newest).await?;
    kubectl
        .ok(&["apply", "-f", &example("vm-rhel8-server-nfs.yaml")])
        .await?;
    let patch = json!({"status": {"ready": true}}).to_string();
    for target in ["vm/rhel8-server-nfs", "node/worker2"] {
        let arguments = [
            "patch",
            target,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ];
        let refused = kubectl.fails(&arguments).await?;
        assert!(
            refused.contains("status is written by the control plane alone"),
            "{refused}"
        );
    }
    let large = api.file("large", &"x".repeat(2 << 20))?;
    let from = format!("--from-file={large}");
    let refused = kubectl
        .fails(&["create", "configmap", "large", &from])
        .await?;
    assert!(refused.contains("the limit is 1048576"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn no_object_can_stop_the_reading_of_all_others() -> Result<()> {
    let api = Api::start().await?;
    let mut connection = api.client()?.connect().await?;
    let place = "/apis/kubevirt.io/v1/namespaces/default/kubevirts";
    for (at, number) in [f64::MAX, f64::MIN, 1e300, f64::MIN_POSITIVE, 0.1]
        .into_iter()
        .enumerate()
    {
        let network = json!({"configuration": {"network": {"a": [number]}}});
        let mut object = object("kubevirt.io/v1", "KubeVirt", &network);
        object["metadata"]["name"] = json!(format!("a{at}"));
        let answer = connection.call(Method::POST, place, Some(&object)).await?;
        let wanted = if number.abs() > 1e300 { 400 } else { 201 };
        assert_eq!(answer.status, wanted, "{number}: {}", answer.body);
        // Read by the cache, which reads the ledger's changes in order.
        let all = connection.call(Method::GET, place, None).await?;
        assert_eq!(all.status, 200, "after {number}: {}", all.body);
    }
    Ok(())
}
