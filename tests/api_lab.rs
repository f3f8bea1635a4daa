//! The lab's commands, typed into real kubectls, against a gateway whose neighbours are played.

use anyhow::{Context as _, Result, ensure};
use godwit_ledger::ObjectKey;
use godwit_testkit::kubectl::Release;
use serde_json::json;

use crate::api_env::{Api, Kubectl, cells, example};
use crate::api_play as play;
use crate::api_wire::until;

/// The machine of the lab as an instance of its own.
pub(crate) const INSTANCE: &str = "
apiVersion: kubevirt.io/v1alpha3
kind: VirtualMachineInstance
metadata:
  name: rhel8-server-nfs
spec:
  evictionStrategy: LiveMigrate
  domain:
    memory: {guest: 256Mi}
    devices:
      disks: [{name: root, disk: {bus: virtio}}]
      interfaces: [{name: lab, bridge: {}}]
  networks: [{name: lab, multus: {networkName: lab-net}}]
  volumes:
  - name: root
    hostDisk: {path: /var/lib/godwit/shared/r.img, type: DiskOrCreate, capacity: 64Mi, shared: true}
";

struct Lab {
    api: Api,
    kubectl: Kubectl,
}

/// Two nodes, and the machine running on the first.
async fn lab(release: Release) -> Result<Lab> {
    let api = Api::start().await?;
    let kubectl = api.admin(release).await?;
    for node in ["worker1", "worker2"] {
        play::node(&api.ledger, node).await?;
    }
    let instance = api.file("instance.yaml", INSTANCE)?;
    kubectl.ok(&["apply", "-f", &instance]).await?;
    play::running(&api.ledger, "rhel8-server-nfs", "worker1").await?;
    Ok(Lab { api, kubectl })
}

async fn tables_show_what_the_lab_shows(release: Release) -> Result<()> {
    let Lab { api, kubectl } = lab(release).await?;
    let nodes = cells(&kubectl.ok(&["get", "nodes"]).await?);
    assert_eq!(nodes[0], ["NAME", "STATUS", "ROLES", "AGE", "VERSION"]);
    assert_eq!(nodes[1][..3], ["worker1", "Ready", "worker"]);
    assert_eq!(nodes[1][4], "v0.1.0");

    let instances = cells(&kubectl.ok(&["get", "vmi"]).await?);
    assert_eq!(
        instances[0],
        ["NAME", "AGE", "PHASE", "IP", "NODENAME", "READY"]
    );
    assert_eq!(instances[1][0], "rhel8-server-nfs");
    assert_eq!(
        instances[1][2..],
        ["Running", "192.168.123.62/24", "worker1", "True"]
    );
    let wide = cells(&kubectl.ok(&["get", "vmi", "-o", "wide"]).await?);
    assert_eq!(wide[0][6..], ["LIVE-MIGRATABLE", "PAUSED"]);
    assert_eq!(wide[1][6], "True");

    let described = kubectl.ok(&["describe", "vmi", "rhel8-server-nfs"]).await?;
    for line in [
        "Eviction Strategy:  LiveMigrate",
        "Migration Method:  LiveMigration",
    ] {
        assert!(described.contains(line), "{line} not in\n{described}");
    }
    play::event(&api.ledger, "rhel8-server-nfs", 13).await?;
    let described = kubectl.ok(&["describe", "vmi", "rhel8-server-nfs"]).await?;
    assert!(described.contains("(x13 over"), "{described}");
    assert!(described.contains("virt-handler  "), "{described}");
    let events = cells(&kubectl.ok(&["get", "events"]).await?);
    assert_eq!(
        events[0],
        ["LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
    );
    assert_eq!(events[1][3], "virtualmachineinstance/rhel8-server-nfs");
    let host = ["get", "events", "-o", "jsonpath={.items[0].source.host}"];
    assert_eq!(kubectl.ok(&host).await?, "worker1");
    Ok(())
}

#[tokio::test]
async fn debians_kubectl_shows_the_labs_tables() -> Result<()> {
    tables_show_what_the_lab_shows(Release::Debian).await
}

#[tokio::test]
async fn the_newest_kubectl_shows_the_labs_tables() -> Result<()> {
    tables_show_what_the_lab_shows(Release::Newest).await
}

async fn a_migration_is_applied_once(release: Release) -> Result<()> {
    let Lab { api, kubectl } = lab(release).await?;
    let (job, job2) = (
        example("migration-job.yaml"),
        example("migration-job2.yaml"),
    );
    let applied = kubectl.run(&["apply", "-f", &job]).await?;
    let name = "virtualmachineinstancemigration.kubevirt.io/migration-job";
    assert_eq!(
        applied.stdout,
        format!("{name} created\n"),
        "{}",
        applied.stderr
    );
    assert!(
        applied
            .stderr
            .contains("kubevirt.io/v1alpha3 is now deprecated"),
        "{applied:?}"
    );
    assert_eq!(
        kubectl.ok(&["apply", "-f", &job]).await?,
        format!("{name} unchanged\n")
    );

    let refused = kubectl.fails(&["apply", "-f", &job2]).await?;
    assert!(
        refused.contains("in-flight migration detected. Active migration job ("),
        "{refused}"
    );
    let key = ObjectKey::new(play::MIGRATIONS, "default", "migration-job");
    let stored = api.ledger.get(&key).await?.context("no migration")?;
    assert_eq!(
        stored.label("kubevirt.io/vmi-name"),
        Some("rhel8-server-nfs")
    );
    assert_eq!(
        stored.finalizers().collect::<Vec<_>>(),
        ["kubevirt.io/migrationJobFinalize"]
    );

    play::phase(&api.ledger, "migration-job", "Scheduling").await?;
    let table = cells(&kubectl.ok(&["get", "vmim"]).await?);
    assert_eq!(table[0], ["NAME", "PHASE", "VMI"]);
    assert_eq!(
        table[1],
        ["migration-job", "Scheduling", "rhel8-server-nfs"]
    );
    let yaml = kubectl.ok(&[
        "get",
        "virtualmachineinstancemigration/migration-job",
        "-o",
        "yaml",
    ]);
    assert!(yaml.await?.contains("\n  phase: Scheduling\n"));

    play::end_job(&api.ledger).await?;
    kubectl.ok(&["apply", "-f", &job2]).await?;
    let deleted = kubectl.ok(&["delete", "vmim/migration-job"]).await?;
    assert!(deleted.contains("\"migration-job\" deleted"), "{deleted}");
    Ok(())
}

#[tokio::test]
async fn debians_kubectl_applies_a_migration_once() -> Result<()> {
    a_migration_is_applied_once(Release::Debian).await
}

#[tokio::test]
async fn the_newest_kubectl_applies_a_migration_once() -> Result<()> {
    a_migration_is_applied_once(Release::Newest).await
}

async fn a_running_migration_is_cancelled_by_deleting_it(release: Release) -> Result<()> {
    let Lab { api, kubectl } = lab(release).await?;
    kubectl
        .ok(&["apply", "-f", &example("migration-job.yaml")])
        .await?;
    let waiting = kubectl.clone();
    let deleting = tokio::spawn(async move { waiting.ok(&["delete", "vmim/migration-job"]).await });
    let wish = async {
        loop {
            let jobs = api.ledger.jobs_open().await?;
            if jobs.iter().any(|job| job.cancel.is_some()) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), wish).await??;
    ensure!(!deleting.is_finished(), "deleted before the job ended");
    play::end_job(&api.ledger).await?;
    let deleted = deleting.await??;
    assert!(deleted.contains("\"migration-job\" deleted"), "{deleted}");
    Ok(())
}

#[tokio::test]
async fn debians_kubectl_cancels_a_migration() -> Result<()> {
    a_running_migration_is_cancelled_by_deleting_it(Release::Debian).await
}

#[tokio::test]
async fn the_newest_kubectl_cancels_a_migration() -> Result<()> {
    a_running_migration_is_cancelled_by_deleting_it(Release::Newest).await
}

#[tokio::test]
async fn every_phase_is_seen_by_a_watch_and_the_end_by_a_wait() -> Result<()> {
    let Lab { api, kubectl } = lab(Release::Newest).await?;
    kubectl
        .ok(&["apply", "-f", &example("migration-job.yaml")])
        .await?;
    let watcher = kubectl.clone();
    let watching = tokio::spawn(async move {
        let arguments = ["get", "vmim", "migration-job", "-w", "--request-timeout=8s"];
        watcher.run(&arguments).await
    });
    let waiter = kubectl.clone();
    let waiting = tokio::spawn(async move {
        let arguments = [
            "wait",
            "--for=jsonpath={.status.phase}=Succeeded",
            "vmim/migration-job",
        ];
        waiter.ok(&arguments).await
    });
    // Only what happens after they began is seen.
    until(&api, "apiserver_longrunning_requests", |open| open >= 2.0).await?;
    let phases = [
        "Pending",
        "Scheduling",
        "Scheduled",
        "PreparingTarget",
        "TargetReady",
        "Running",
        "Succeeded",
    ];
    for phase in phases {
        play::phase(&api.ledger, "migration-job", phase).await?;
    }
    assert!(waiting.await??.contains("condition met"));
    let seen = watching.await??.stdout;
    let seen: Vec<String> = cells(&seen)
        .into_iter()
        .filter_map(|row| row.into_iter().nth(1))
        .collect();
    let wanted: Vec<&str> = phases.into();
    let at = seen
        .iter()
        .position(|phase| phase == "Pending")
        .context("no Pending")?;
    assert_eq!(seen[at..], wanted);
    Ok(())
}

async fn maintenance_has_three_faces(release: Release) -> Result<()> {
    let Lab { api, kubectl } = lab(release).await?;
    let file = example("worker2-maintenance.yaml");
    let name = "nodemaintenance.kubevirt.io";
    let applied = kubectl.ok(&["apply", "-f", &file]).await?;
    assert_eq!(applied, format!("{name}/worker2-maintenance created\n"));
    let applied = kubectl.ok(&["apply", "-f", &file]).await?;
    assert_eq!(applied, format!("{name}/worker2-maintenance unchanged\n"));
    let table = cells(&kubectl.ok(&["get", "nodemaintenance"]).await?);
    assert_eq!(table[0], ["NAME", "AGE"]);
    for group in [
        "kubevirt.io",
        "nodemaintenance.kubevirt.io",
        "nodemaintenance.medik8s.io",
    ] {
        let resource = format!("nodemaintenances.{group}");
        let node = [
            "get",
            &resource,
            "worker2-maintenance",
            "-o",
            "jsonpath={.spec.nodeName}",
        ];
        assert_eq!(kubectl.ok(&node).await?, "worker2", "{group}");
    }
    let again = api.file(
        "again.yaml",
        &std::fs::read_to_string(&file)?.replace("name: w", "name: x"),
    )?;
    let refused = kubectl.fails(&["create", "-f", &again]).await?;
    assert!(
        refused.contains("invalid nodeName, a NodeMaintenance for node worker2 already exists"),
        "{refused}"
    );
    kubectl
        .ok(&[
            "delete",
            "nodemaintenance/worker2-maintenance",
            "--wait=false",
        ])
        .await?;
    let key = ObjectKey::new(play::MAINTENANCES, "", "worker2-maintenance");
    play::release(&api.ledger, &key).await?;
    kubectl.ok(&["apply", "-f", &file]).await?;
    Ok(())
}

#[tokio::test]
async fn debians_kubectl_finds_maintenance_in_three_groups() -> Result<()> {
    maintenance_has_three_faces(Release::Debian).await
}

#[tokio::test]
async fn the_newest_kubectl_finds_maintenance_in_three_groups() -> Result<()> {
    maintenance_has_three_faces(Release::Newest).await
}

async fn nodes_are_cordoned_labelled_and_described(release: Release) -> Result<()> {
    let Lab { api, kubectl } = lab(release).await?;
    kubectl.ok(&["cordon", "worker2"]).await?;
    let nodes = cells(&kubectl.ok(&["get", "nodes", "worker2"]).await?);
    assert_eq!(nodes[1][1], "Ready,SchedulingDisabled");
    kubectl.ok(&["uncordon", "worker2"]).await?;
    kubectl.ok(&["label", "node", "worker2", "zone=a"]).await?;
    kubectl
        .ok(&["taint", "node", "worker2", "dedicated=lab:NoSchedule"])
        .await?;
    let described = kubectl.ok(&["describe", "node", "worker2"]).await?;
    for text in [
        "zone=a",
        "dedicated=lab:NoSchedule",
        "InternalIP:  10.77.0.11",
    ] {
        assert!(described.contains(text), "{text} not in\n{described}");
    }
    let refused = kubectl.fails(&["delete", "node", "worker2"]).await?;
    assert!(refused.contains("stop the agent first"), "{refused}");
    let key = ObjectKey::new("nodes", "", "worker2");
    let down = json!({"conditions": [{"type": "Ready", "status": "Unknown"}]});
    play::status_merge(&api.ledger, &key, down).await?;
    kubectl.ok(&["delete", "node", "worker2"]).await?;
    Ok(())
}

#[tokio::test]
async fn debians_kubectl_handles_nodes() -> Result<()> {
    nodes_are_cordoned_labelled_and_described(Release::Debian).await
}

#[tokio::test]
async fn the_newest_kubectl_handles_nodes() -> Result<()> {
    nodes_are_cordoned_labelled_and_described(Release::Newest).await
}
