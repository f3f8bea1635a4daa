//! The endpoints that virtctl calls, over the wire: status codes, texts, and what is in the ledger
//! afterwards. The scheduler is played; none can be reached.

use std::time::Duration;

use anyhow::{Context as _, Result};
use godwit_ledger::{Object, ObjectKey};
use godwit_testkit::api::{Answer, Connection, Method};
use godwit_testkit::kubectl::Release;
use serde_json::{Value, json};

use crate::api_env::Api;
use crate::api_lab::INSTANCE;
use crate::api_play as play;

const MACHINES: &str = "virtualmachines.kubevirt.io";
const GROUP: &str = "/apis/subresources.kubevirt.io";

struct Scene {
    api: Api,
    client: Connection,
}

impl Scene {
    /// A virtual machine `vm1` of this strategy; its instance runs if `node` is named.
    async fn new(strategy: &str, node: Option<&str>) -> Result<Self> {
        let api = Api::start().await?;
        play::node(&api.ledger, "worker1").await?;
        let kubectl = api.admin(Release::Newest).await?;
        let instance: Value = serde_yaml_ng::from_str(INSTANCE)?;
        let vm = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": {"name": "vm1"},
            "spec": {"runStrategy": strategy, "template": {"spec": instance["spec"]}},
        });
        let mut objects = vec![("vm.json", vm)];
        if node.is_some() {
            let mut instance = instance;
            instance["metadata"]["name"] = json!("vm1");
            objects.push(("vmi.json", instance));
        }
        for (name, object) in objects {
            let file = api.file(name, &object.to_string())?;
            kubectl.ok(&["apply", "-f", &file]).await?;
        }
        if let Some(node) = node {
            play::running(&api.ledger, "vm1", node).await?;
        }
        let client = api.client()?.connect().await?;
        let mut scene = Self { api, client };
        if node.is_some() {
            scene.seen(|told| told["phase"] == "Running").await?;
        }
        Ok(scene)
    }

    /// The gateway hears of what others write a moment later than the ledger.
    async fn seen(&mut self, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/vm1";
        let wait = async {
            loop {
                let found = self.client.call(Method::GET, path, None).await?;
                if is_so(&found.object()?["status"]) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await; // poll
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await?
    }

    async fn put(&mut self, path: &str, options: Value) -> Result<Answer> {
        let path = format!("{GROUP}/v1/namespaces/default/{path}");
        let options = Some(&options).filter(|options| !options.is_null());
        self.client.call(Method::PUT, &path, options).await
    }

    async fn get(&mut self, path: &str) -> Result<Answer> {
        let path = format!("{GROUP}/{path}");
        self.client.call(Method::GET, &path, None).await
    }

    async fn object(&self, resource: &str) -> Result<Object> {
        let key = ObjectKey::new(resource, "default", "vm1");
        self.api.ledger.get(&key).await?.context("no object")
    }
}

fn refused(answer: &Answer, code: u16, text: &str) {
    assert_eq!(answer.status, code, "{}", answer.body);
    let message = answer.body["message"].as_str().unwrap_or_default();
    assert!(message.contains(text), "{message}");
}

#[tokio::test]
async fn a_machine_is_started_stopped_and_restarted_as_virtctl_expects() -> Result<()> {
    let mut scene = Scene::new("Halted", None).await?;
    let dry = json!({"dryRun": ["All"]});
    let start = "virtualmachines/vm1/start";
    assert_eq!(scene.put(start, dry).await?.status, 202);
    assert_eq!(
        scene.object(MACHINES).await?.spec()["runStrategy"],
        "Halted"
    );
    let started = scene.put(start, Value::Null).await?;
    assert_eq!((started.status, started.body), (202, json!("")));
    assert_eq!(
        scene.object(MACHINES).await?.spec()["runStrategy"],
        "Always"
    );
    let text = "Always does not support manual start requests";
    refused(&scene.put(start, Value::Null).await?, 409, text);
    let nobody = scene.put("virtualmachines/vm2/start", Value::Null).await?;
    refused(&nobody, 404, "virtualmachine.kubevirt.io \"vm2\" not found");

    let mut scene = Scene::new("Manual", Some("worker1")).await?;
    refused(
        &scene.put(start, Value::Null).await?,
        409,
        "VM is already running",
    );
    let restart = "virtualmachines/vm1/restart";
    assert_eq!(scene.put(restart, Value::Null).await?.status, 202);
    let uid = scene.object(play::INSTANCES).await?.uid;
    let asked = json!([{"action": "Stop", "uid": uid}, {"action": "Start"}]);
    let told = scene.object(MACHINES).await?.status.context("no status")?;
    assert_eq!(told["stateChangeRequests"], asked);
    let stop = scene.put("virtualmachines/vm1/stop", Value::Null).await?;
    refused(&stop, 409, "stop/start already underway");
    Ok(())
}

#[tokio::test]
async fn a_forced_stop_shortens_the_grace() -> Result<()> {
    let mut scene = Scene::new("Always", Some("worker1")).await?;
    let force = json!({"gracePeriod": 0});
    let stopped = scene.put("virtualmachines/vm1/stop", force).await?;
    assert_eq!(stopped.status, 202, "{}", stopped.body);
    assert_eq!(
        scene.object(MACHINES).await?.spec()["runStrategy"],
        "Halted"
    );
    let grace = &scene.object(play::INSTANCES).await?.body["spec"]["terminationGracePeriodSeconds"];
    assert_eq!(*grace, 0);
    Ok(())
}

#[tokio::test]
async fn a_migration_is_made_once_and_by_the_rules() -> Result<()> {
    let mut scene = Scene::new("Always", Some("worker1")).await?;
    let migrate = "virtualmachines/vm1/migrate";
    let options = json!({"addedNodeSelector": {"zone": "a"}});
    assert_eq!(scene.put(migrate, options).await?.status, 202);
    let made = scene.api.ledger.list(play::MIGRATIONS).await?;
    let [made] = made.as_slice() else {
        panic!("{made:?}");
    };
    assert!(
        made.key.name.starts_with("kubevirt-migrate-vm-"),
        "{made:?}"
    );
    assert_eq!(made.spec()["vmiName"], "vm1");
    assert_eq!(made.spec()["addedNodeSelector"], json!({"zone": "a"}));
    assert_eq!(made.label("kubevirt.io/vmi-name"), Some("vm1"));
    assert_eq!(scene.api.ledger.jobs_open().await?.len(), 1);
    // A webhook's refusal comes as KubeVirt passes it on.
    let again = scene.put(migrate, Value::Null).await?;
    refused(&again, 500, "in-flight migration detected");
    let mut scene = Scene::new("Halted", None).await?;
    let none = scene.put(migrate, Value::Null).await?;
    refused(
        &none,
        404,
        "virtualmachineinstance.kubevirt.io \"vm1\" not found",
    );
    Ok(())
}

#[tokio::test]
async fn pausing_says_what_is_in_the_way() -> Result<()> {
    let mut scene = Scene::new("Always", Some("worker1")).await?;
    let (pause, unpause) = (
        "virtualmachineinstances/vm1/pause",
        "virtualmachineinstances/vm1/unpause",
    );
    refused(
        &scene.put(unpause, Value::Null).await?,
        409,
        "VMI is not paused",
    );
    let dry = json!({"dryRun": ["All"]});
    assert_eq!(scene.put(pause, dry).await?.status, 200);
    let alone = scene.put(pause, Value::Null).await?;
    refused(&alone, 503, "no scheduler can be reached");
    let key = ObjectKey::new(play::INSTANCES, "default", "vm1");
    let paused = json!({"conditions": [{"type": "Paused", "status": "True"}]});
    play::status_merge(&scene.api.ledger, &key, paused).await?;
    scene
        .seen(|told| told["conditions"][0]["type"] == "Paused")
        .await?;
    refused(
        &scene.put(pause, Value::Null).await?,
        409,
        "VMI is already paused",
    );
    Ok(())
}

#[tokio::test]
async fn an_evacuation_is_taken_back() -> Result<()> {
    let mut scene = Scene::new("Always", Some("worker1")).await?;
    let cancel = "virtualmachineinstances/vm1/evacuate/cancel";
    assert_eq!(scene.put(cancel, Value::Null).await?.status, 200);
    let name = scene.pod().await?;
    let evict = format!("/api/v1/namespaces/default/pods/{name}/eviction");
    let evicted = scene.client.call(Method::POST, &evict, None).await?;
    refused(
        &evicted,
        429,
        "Eviction triggered evacuation of VMI \"default/vm1\"",
    );
    let again = scene.client.call(Method::POST, &evict, None).await?;
    refused(&again, 429, "Evacuation in progress: Eviction triggered");
    assert_eq!(scene.put(cancel, Value::Null).await?.status, 200);
    let told = scene
        .object(play::INSTANCES)
        .await?
        .status
        .context("no status")?;
    assert_eq!(told["evacuationNodeName"], Value::Null);
    Ok(())
}

impl Scene {
    async fn pod(&mut self) -> Result<String> {
        let pods = "/api/v1/namespaces/default/pods";
        let pods = self.client.call(Method::GET, pods, None).await?.object()?;
        let name = pods["items"][0]["metadata"]["name"].as_str();
        Ok(name.context("no pod")?.to_owned())
    }
}

#[tokio::test]
async fn the_rest_answers_as_kubevirt_without_the_feature() -> Result<()> {
    let mut scene = Scene::new("Always", Some("worker1")).await?;
    for version in ["v1", "v1alpha3"] {
        let told = scene.get(&format!("{version}/version")).await?.object()?;
        assert!(
            told["gitVersion"]
                .as_str()
                .is_some_and(|v| v.starts_with('v')),
            "{told}"
        );
        let health = scene.get(&format!("{version}/healthz")).await?.object()?;
        assert_eq!(health["apiserver"]["connectivity"], "ok");
    }
    let add = scene
        .put("virtualmachines/vm1/addvolume", json!({}))
        .await?;
    refused(&add, 400, "HotplugVolumes feature gate is not enabled");
    let freeze = scene
        .put("virtualmachineinstances/vm1/freeze", Value::Null)
        .await?;
    refused(&freeze, 409, "VMI does not have guest agent connected");
    let console = "v1/namespaces/default/virtualmachineinstances/vm1/console";
    refused(
        &scene.get(console).await?,
        400,
        "No serial consoles are present.",
    );
    let screen = "v1/namespaces/default/virtualmachineinstances/vm1/vnc/screenshot";
    refused(
        &scene.get(screen).await?,
        400,
        "No graphics devices are present.",
    );
    let listed = scene.get("v1").await?.object()?;
    let names: Vec<&str> = listed["resources"]
        .as_array()
        .context("no resources")?
        .iter()
        .filter_map(|resource| resource["name"].as_str())
        .collect();
    for name in [
        "virtualmachines/migrate",
        "virtualmachines/evacuate/cancel",
        "version",
    ] {
        assert!(names.contains(&name), "{name} not in {names:?}");
    }
    Ok(())
}
