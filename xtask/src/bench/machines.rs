//! The machines of the bench: the lab's example, with a heartbeat.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result};
use godwit_testkit::api::{Api, Connection};
use godwit_testkit::guest::linux;
use godwit_testkit::lab::Lab;
use serde_json::{Value, json};

use crate::tools;

/// Where VirtualMachines are.
const MACHINES: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
/// Where instances are.
pub(crate) const INSTANCES: &str =
    "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";

/// A machine to make.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Its name.
    pub(crate) name: String,
    /// Last byte of its address.
    pub(crate) last: u8,
    /// Its memory, as a quantity.
    pub(crate) memory: &'static str,
    /// What its guest is told.
    pub(crate) guest: Guest,
}

/// What a guest is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guest {
    /// Milliseconds between two ticks.
    pub(crate) tick: u32,
    /// Where each is sent to; nowhere when `None`.
    pub(crate) heartbeat: Option<SocketAddr>,
}

impl Guest {
    /// The kernel's command line, for the guest with this last byte of its address.
    pub(crate) fn arguments(self, lab: &Lab, last: u8) -> String {
        let ip = lab.network().guest(last);
        let mut text = format!(
            "{} godwit.ip={ip}/24 godwit.tick={}",
            linux::ARGUMENTS,
            self.tick
        );
        if let Some(to) = self.heartbeat {
            text.push_str(&format!(" godwit.heartbeat={to}"));
        }
        text
    }
}

/// Creates a machine and waits until its instance runs. Answers the instance and how long, in
/// seconds, that took from the request on.
pub(crate) async fn run(
    lab: &Lab,
    (api, connection): (&Api, &mut Connection),
    wanted: &Wanted,
) -> Result<(Value, f64)> {
    let manifest = manifest(lab, wanted)?;
    let path = format!("{INSTANCES}?fieldSelector=metadata.name={}", wanted.name);
    let mut watch = api.watch(&path).await?;
    let began = Instant::now();
    connection.post(MACHINES, &manifest).await?;
    let running = |object: &Value| {
        let running = object.pointer("/status/phase").and_then(Value::as_str) == Some("Running");
        running.then(|| Ok(object.clone()))
    };
    let (at, instance) = watch.until(running).await?;
    Ok((instance, at.duration_since(began).as_secs_f64()))
}

/// The lab's example, as `wanted`.
fn manifest(lab: &Lab, wanted: &Wanted) -> Result<Value> {
    let path = tools::root().join("examples/vm-rhel8-server-nfs.yaml");
    let text = std::fs::read_to_string(&path).context("read the lab's manifest")?;
    let mut object: Value = serde_yaml_ng::from_str(&text).context("understand the manifest")?;
    let name = json!(wanted.name);
    object["metadata"]["name"] = name.clone();
    let template = &mut object["spec"]["template"];
    template["metadata"]["labels"]["kubevirt.io/vm"] = name;
    let spec = &mut template["spec"];
    spec["domain"]["memory"]["guest"] = json!(wanted.memory);
    spec["domain"]["firmware"]["kernelBoot"]["kernelArgs"] =
        json!(wanted.guest.arguments(lab, wanted.last));
    let disk = lab.disks().join(format!("{}.img", wanted.name));
    spec["volumes"][0]["hostDisk"]["path"] = json!(disk);
    Ok(object)
}
