//! The other services, played by writing to the ledger what they would.

use anyhow::{Context as _, Result, ensure};
use godwit_ledger::{
    EventKind, EventRecord, JobChange, JobStep, Ledger, NewObject, ObjectKey, ObjectRef,
};
use godwit_model::migration::job::JobState;
use serde_json::{Value, json};
use std::time::Duration;

pub(crate) const INSTANCES: &str = "virtualmachineinstances.kubevirt.io";
pub(crate) const MIGRATIONS: &str = "virtualmachineinstancemigrations.kubevirt.io";
pub(crate) const MAINTENANCES: &str = "nodemaintenances";

/// The scheduler: a host registered and is alive.
pub(crate) async fn node(ledger: &Ledger, name: &str) -> Result<()> {
    let mut tx = ledger.begin().await?;
    tx.create(NewObject {
        key: ObjectKey::new("nodes", "", name),
        uid: None,
        metadata: json!({"labels": {
            "kubernetes.io/hostname": name, "node-role.kubernetes.io/worker": "",
        }}),
        body: json!({"spec": {}}),
        status: Some(json!({
            "capacity": {"cpu": "2", "memory": "4Gi"},
            "allocatable": {"cpu": "2", "memory": "4Gi"},
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady",
                "message": "agent reports", "lastHeartbeatTime": "2026-01-01T00:00:00Z",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
            "addresses": [{"type": "InternalIP", "address": "10.77.0.11"}],
            "nodeInfo": {
                "kubeletVersion": "v0.1.0", "osImage": "Debian GNU/Linux 12 (bookworm)",
                "kernelVersion": "6.1.0", "containerRuntimeVersion": "qemu://7.2",
                "machineID": "m", "systemUUID": "s", "bootID": "b", "kubeProxyVersion": "",
                "operatingSystem": "linux", "architecture": "amd64",
            },
        })),
    })
    .await?;
    tx.commit().await?;
    Ok(())
}

/// The scheduler: an instance runs on a node.
pub(crate) async fn running(ledger: &Ledger, instance: &str, node: &str) -> Result<()> {
    let status = json!({
        "phase": "Running", "nodeName": node, "migrationMethod": "LiveMigration",
        "interfaces": [{"name": "lab", "ipAddress": "192.168.123.62/24"}],
        "conditions": [
            {"type": "Ready", "status": "True", "lastProbeTime": null},
            {"type": "LiveMigratable", "status": "True", "lastProbeTime": null},
        ],
    });
    status_merge(
        ledger,
        &ObjectKey::new(INSTANCES, "default", instance),
        status,
    )
    .await
}

/// Anyone: what is known of an object changed.
pub(crate) async fn status_merge(ledger: &Ledger, key: &ObjectKey, status: Value) -> Result<()> {
    let mut tx = ledger.begin().await?;
    tx.status_merge(key, status).await?;
    tx.commit().await?;
    Ok(())
}

/// The coordinator: the phase of a migration.
pub(crate) async fn phase(ledger: &Ledger, migration: &str, phase: &str) -> Result<()> {
    let key = ObjectKey::new(MIGRATIONS, "default", migration);
    status_merge(ledger, &key, json!({"phase": phase})).await
}

/// The coordinator: the only open job ends, as failed, and its object with it.
pub(crate) async fn end_job(ledger: &Ledger) -> Result<()> {
    let lease = ledger.job_claim("test", Duration::from_secs(10)).await?;
    let lease = lease.context("no open job")?;
    let step = JobStep {
        from: JobState::Pending,
        to: JobState::Failed,
        reason: "played".to_owned(),
        set: JobChange::default(),
    };
    let mut tx = ledger.begin().await?;
    let recorded = tx.job_record(&lease, step).await?;
    ensure!(recorded.is_now(), "{recorded:?}");
    let mut object = tx.get(&lease.job.key).await?.context("no migration")?;
    object.status = Some(json!({"phase": "Failed"}));
    if object.deleting() {
        object.metadata["finalizers"] = json!([]);
    }
    tx.put(&object).await?;
    tx.commit().await?;
    Ok(())
}

/// Whoever holds an object that is being deleted lets it go.
pub(crate) async fn release(ledger: &Ledger, key: &ObjectKey) -> Result<()> {
    let mut tx = ledger.begin().await?;
    let mut object = tx.get(key).await?.context("no object")?;
    ensure!(object.deleting(), "nobody asked to delete it");
    object.metadata["finalizers"] = json!([]);
    tx.put(&object).await?;
    tx.commit().await?;
    Ok(())
}

/// A node-agent, through its coordinator: something happened to an instance, `times` times.
pub(crate) async fn event(ledger: &Ledger, instance: &str, times: usize) -> Result<()> {
    let key = ObjectKey::new(INSTANCES, "default", instance);
    let object = ledger.get(&key).await?.context("no instance")?;
    for _ in 0..times {
        let mut tx = ledger.begin().await?;
        tx.event(EventRecord {
            regarding: ObjectRef {
                api_version: "kubevirt.io/v1".to_owned(),
                kind: "VirtualMachineInstance".to_owned(),
                resource: INSTANCES.to_owned(),
                namespace: "default".to_owned(),
                name: instance.to_owned(),
                uid: object.uid.clone(),
            },
            reason: "Created".to_owned(),
            note: "VirtualMachineInstance defined.".to_owned(),
            kind: EventKind::Normal,
            component: "virt-handler".to_owned(),
            host: "worker1".to_owned(),
        })
        .await?;
        tx.commit().await?;
    }
    Ok(())
}
