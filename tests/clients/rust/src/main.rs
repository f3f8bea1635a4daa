//! kube-rs, with which controllers are written in Rust, against a running lab.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch,
    PatchParams, PostParams,
};
use kube::runtime::wait::{await_condition, delete::delete_and_finalize};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, Discovery, ResourceExt};
use serde_json::json;

const VMI: &str = "rhel8-server-nfs";
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::try_default().await?;
    typed(client.clone()).await.context("typed objects")?;
    println!("ok typed objects");
    discovery(client.clone()).await.context("discovery")?;
    println!("ok discovery");
    reflected(client.clone()).await.context("a reflector")?;
    println!("ok a reflector");
    moved(client).await.context("a migration")?;
    println!("ok a migration");
    Ok(())
}

fn kind(client: Client, version: &str, kind: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("kubevirt.io", version, kind);
    Api::namespaced_with(client, "default", &ApiResource::from_gvk(&kind))
}

async fn typed(client: Client) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    ensure!(nodes.list(&ListParams::default()).await?.items.len() >= 2);
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let map = ConfigMap {
        data: Some(BTreeMap::from([("a".to_owned(), "1".to_owned())])),
        ..serde_json::from_value(json!({"metadata": {"name": "rust-map"}}))?
    };
    maps.create(&PostParams::default(), &map).await?;
    let again = maps.create(&PostParams::default(), &map).await;
    ensure!(matches!(again, Err(kube::Error::Api(status)) if status.code == 409));
    let apply = PatchParams::apply("rust").force();
    let wish = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"b": "2"}});
    let applied = maps.patch("rust-map", &apply, &Patch::Apply(&wish)).await?;
    let data = applied.data.clone().unwrap_or_default();
    ensure!(data.len() == 2, "{data:?}");
    let mut stale = map.clone();
    stale.metadata.resource_version = Some("1".to_owned());
    let lost = maps.replace("rust-map", &PostParams::default(), &stale).await;
    ensure!(matches!(lost, Err(kube::Error::Api(status)) if status.code == 409));
    delete_and_finalize(maps.clone(), "rust-map", &DeleteParams::default()).await?;
    ensure!(maps.get_opt("rust-map").await?.is_none());
    Ok(())
}

async fn discovery(client: Client) -> Result<()> {
    let discovery = Discovery::new(client).run().await?;
    let wanted = [
        ("kubevirt.io", "VirtualMachineInstanceMigration"),
        ("nodemaintenance.kubevirt.io", "NodeMaintenance"),
        ("rbac.authorization.k8s.io", "ClusterRole"),
    ];
    for (group, kind) in wanted {
        let group = discovery.groups().find(|found| found.name() == group);
        let found = group.and_then(|group| group.recommended_kind(kind));
        found.with_context(|| format!("{kind} isn't found"))?;
    }
    Ok(())
}

async fn reflected(client: Client) -> Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let (reader, writer) = reflector::store();
    // Both ways of beginning: by lists, and by a watch that sends what there is.
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let found = watcher(maps.clone(), config.labels("rust=reflected"));
        let mut first = std::pin::pin!(found);
        let begun = tokio::time::timeout(PATIENCE, first.next()).await?;
        begun.context("the watch ended")??;
    }
    let config = watcher::Config::default().labels("rust=reflected").streaming_lists();
    let events = reflector(writer, watcher(maps.clone(), config));
    let follow = tokio::spawn(events.applied_objects().try_for_each(|_| async { Ok(()) }));
    reader.wait_until_ready().await?;
    let map: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": "rust-reflected", "labels": {"rust": "reflected"}},
    }))?;
    maps.create(&PostParams::default(), &map).await?;
    let seen = async {
        while !reader.state().iter().any(|map| map.name_any() == "rust-reflected") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await?;
    maps.delete("rust-reflected", &DeleteParams::default()).await?;
    let gone = async {
        while !reader.state().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await?;
    follow.abort();
    Ok(())
}

async fn moved(client: Client) -> Result<()> {
    let instances = kind(client.clone(), "v1", "VirtualMachineInstance");
    let before = instances.get(VMI).await?.data["status"]["nodeName"].clone();
    let migrations = kind(client, "v1alpha3", "VirtualMachineInstanceMigration");
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(
        "kubevirt.io",
        "v1alpha3",
        "VirtualMachineInstanceMigration",
    ));
    let wish = DynamicObject::new("rust-move", &resource).data(json!({"spec": {"vmiName": VMI}}));
    migrations.create(&PostParams::default(), &wish).await?;
    let ended = |found: Option<&DynamicObject>| {
        let phase = found.and_then(|found| found.data["status"]["phase"].as_str());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    let ended = await_condition(migrations.clone(), "rust-move", ended);
    let ended = tokio::time::timeout(PATIENCE, ended).await??;
    let phase = ended.context("it is gone")?.data["status"]["phase"].clone();
    ensure!(phase == "Succeeded", "{phase}");
    let after = instances.get(VMI).await?.data["status"]["nodeName"].clone();
    ensure!(after != before, "it is still on {before}");
    migrations.delete("rust-move", &DeleteParams::default()).await?;
    Ok(())
}
