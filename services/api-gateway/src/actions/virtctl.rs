//! `subresources.kubevirt.io`: what virtctl calls, with KubeVirt's status codes and texts.

use std::sync::Arc;

use async_trait::async_trait;
use axum::response::{IntoResponse, Response};
use godwit_apimachinery::object::{time, uid};
use godwit_apimachinery::{
    Connect, ConnectRequest, ExtraResource, RequestContext, Status, Store, Stored, Verb,
    generated_name, json_response,
};
use godwit_ledger::{Object, ObjectKey};
use godwit_rpc::Code;
use http::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use super::unsupported::{REFUSALS, Refusal};
use super::{Desk, failure, machine};
use crate::kinds::{KUBEVIRT, condition, resource};

const GROUP: &str = "subresources.kubevirt.io";
const VERSIONS: [&str; 2] = ["v1", "v1alpha3"];
/// KubeVirt's word for the kind in its answers.
const INSTANCE: &str = "virtualmachineinstance";
/// Taint of a node that is being emptied.
const DRAIN_TAINT: &str = "kubevirt.io/drain";

/// What is done for which path.
const ACTIONS: [(&str, Action); 8] = [
    ("virtualmachines/start", Action::Switch(Switch::Start)),
    ("virtualmachines/stop", Action::Switch(Switch::Stop)),
    ("virtualmachines/restart", Action::Switch(Switch::Restart)),
    ("virtualmachines/migrate", Action::Migrate),
    ("virtualmachines/evacuate/cancel", Action::CancelEvacuation),
    (
        "virtualmachineinstances/evacuate/cancel",
        Action::CancelEvacuation,
    ),
    ("virtualmachineinstances/pause", Action::Pause(true)),
    ("virtualmachineinstances/unpause", Action::Pause(false)),
];

#[derive(Clone, Copy)]
enum Action {
    Switch(Switch),
    Migrate,
    CancelEvacuation,
    /// Whether it pauses; else it lets the guest go on.
    Pause(bool),
    Refuse(&'static Refusal),
    Version,
    Health,
}

#[derive(Clone, Copy)]
enum Switch {
    Start,
    Stop,
    Restart,
}

pub(super) fn declare(desk: &Desk) -> Vec<ExtraResource> {
    let handler = |action| -> Option<Arc<dyn Connect>> {
        Some(Arc::new(Handler {
            desk: desk.clone(),
            action,
        }))
    };
    let mut all = vec![];
    for version in VERSIONS {
        for (name, action) in ACTIONS {
            all.push(ExtraResource {
                verbs: vec![Verb::Update],
                handler: handler(action),
                ..ExtraResource::new(GROUP, version, name)
            });
        }
        for refusal in &REFUSALS {
            all.push(ExtraResource {
                verbs: vec![refusal.verb],
                handler: handler(Action::Refuse(refusal)),
                ..ExtraResource::new(GROUP, version, refusal.name)
            });
        }
        for (name, action) in [("version", Action::Version), ("healthz", Action::Health)] {
            all.push(ExtraResource {
                namespaced: false,
                verbs: vec![Verb::Get],
                handler: handler(action),
                ..ExtraResource::new(GROUP, version, name)
            });
        }
    }
    all
}

struct Handler {
    desk: Desk,
    action: Action,
}

#[async_trait]
impl Connect for Handler {
    async fn call(
        &self,
        ctx: &RequestContext,
        request: ConnectRequest,
    ) -> Result<Response, Status> {
        let options = request.body;
        let dry = options["dryRun"].as_array();
        let dry = dry.is_some_and(|modes| modes.iter().any(|mode| mode == "All"));
        let ctx = &RequestContext {
            dry_run: ctx.dry_run || dry,
            ..ctx.clone()
        };
        let version = || self.desk.version.to_json();
        let code = match self.action {
            Action::Switch(switch) => {
                self.switch(ctx, switch, &options).await?;
                StatusCode::ACCEPTED
            }
            Action::Migrate => {
                self.migrate(ctx, &options).await?;
                StatusCode::ACCEPTED
            }
            Action::CancelEvacuation => {
                self.cancel_evacuation(ctx, &options).await?;
                StatusCode::OK
            }
            Action::Pause(paused) => {
                self.pause(ctx, paused).await?;
                StatusCode::OK
            }
            Action::Refuse(refusal) => {
                self.instance(ctx).await?;
                return Err(refusal.status(&ctx.name));
            }
            Action::Version => return Ok(json_response(StatusCode::OK, &version())),
            Action::Health => {
                let health = json!({
                    "apiserver": { "connectivity": "ok", "version": version() },
                });
                return Ok(json_response(StatusCode::OK, &health));
            }
        };
        Ok(code.into_response())
    }
}

impl Handler {
    async fn find(
        &self,
        ctx: &RequestContext,
        (resource, kind): (&str, &str),
    ) -> Result<Option<Arc<Stored>>, Status> {
        let found = self.desk.store.get(resource, &ctx.namespace, &ctx.name);
        found
            .await
            .map_err(|error| failure(error, (KUBEVIRT, kind, &ctx.name)))
    }

    async fn instance(&self, ctx: &RequestContext) -> Result<Arc<Stored>, Status> {
        let found = self.find(ctx, (resource::INSTANCES, INSTANCE)).await?;
        found.ok_or_else(|| Status::not_found(KUBEVIRT, INSTANCE, &ctx.name))
    }

    async fn change(
        &self,
        ctx: &RequestContext,
        (resource, kind): (&str, &str),
        change: impl Fn(&mut Object) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let key = ObjectKey::new(resource, &ctx.namespace, &ctx.name);
        let changed = self.desk.store.change(ctx, &key, change).await;
        changed
            .map(drop)
            .map_err(|error| failure(error, (KUBEVIRT, kind, &ctx.name)))
    }

    async fn switch(
        &self,
        ctx: &RequestContext,
        switch: Switch,
        options: &Value,
    ) -> Result<(), Status> {
        let found = self.find(ctx, (resource::INSTANCES, INSTANCE)).await?;
        let instance = found.as_ref().map(|instance| instance.object());
        let grace = match switch {
            Switch::Start => None,
            Switch::Stop => options["gracePeriod"].as_u64(),
            Switch::Restart => options["gracePeriodSeconds"].as_u64(),
        };
        let shorter = grace.filter(|grace| instance.is_some_and(|i| *grace < grace_of(i)));
        let vm = (resource::MACHINES, machine::KIND);
        self.change(ctx, vm, |vm| match switch {
            Switch::Start => machine::start(vm, instance, options),
            Switch::Stop => machine::stop(vm, instance, shorter.is_some()),
            Switch::Restart => machine::restart(vm, instance, options),
        })
        .await?;
        let Some(grace) = shorter else { return Ok(()) };
        let id = instance.map(uid).unwrap_or_default().to_owned();
        let vmi = (resource::INSTANCES, INSTANCE);
        self.change(ctx, vmi, |instance| {
            if instance.uid == id {
                instance.body["spec"]["terminationGracePeriodSeconds"] = json!(grace);
            }
            Ok(())
        })
        .await
    }

    async fn migrate(&self, ctx: &RequestContext, options: &Value) -> Result<(), Status> {
        let vm = self.find(ctx, (resource::MACHINES, machine::KIND)).await?;
        vm.ok_or_else(|| Status::not_found(KUBEVIRT, machine::KIND, &ctx.name))?;
        let instance = self.instance(ctx).await?;
        let mut migration = machine::migration(&ctx.name, instance.object(), options)?;
        let metadata = &mut migration["metadata"];
        metadata["name"] = json!(generated_name(meta_base(metadata)));
        metadata["namespace"] = json!(ctx.namespace);
        metadata["uid"] = json!(Uuid::new_v4());
        metadata["creationTimestamp"] = json!(time(ctx.now));
        metadata["generation"] = json!(1);
        let admitted = self.desk.migrations.on_create(ctx, &mut migration).await;
        admitted.map_err(|refusal| machine::webhook_refusal(&refusal))?;
        let store = &self.desk.store;
        let made = store.create(ctx, resource::MIGRATIONS, migration).await;
        made.map(drop).map_err(|error| {
            let refusal = failure(error, (KUBEVIRT, "virtualmachineinstancemigrations", ""));
            machine::webhook_refusal(&refusal)
        })
    }

    async fn cancel_evacuation(&self, ctx: &RequestContext, options: &Value) -> Result<(), Status> {
        let instance = self.instance(ctx).await?;
        let told = &instance.object()["status"];
        let Some(node) = told["evacuationNodeName"].as_str() else {
            return Ok(());
        };
        let wanted = options["evacuationNodeName"].as_str().unwrap_or_default();
        if !wanted.is_empty() && wanted != node {
            let why = format!("VMI is marked to leave {node}");
            return Err(Status::conflict(KUBEVIRT, INSTANCE, &ctx.name, &why));
        }
        let host = self.desk.facts.node(node);
        let taints = host.as_ref().map(|host| &host.object()["spec"]["taints"]);
        let taints = taints.and_then(Value::as_array).into_iter().flatten();
        if taints.into_iter().any(|taint| taint["key"] == DRAIN_TAINT) {
            let text = format!("node {node} has the taint {DRAIN_TAINT}: it is being emptied");
            return Err(Status::bad_request(text));
        }
        self.change(ctx, (resource::INSTANCES, INSTANCE), |instance| {
            if let Some(Value::Object(told)) = &mut instance.status {
                told.remove("evacuationNodeName");
            }
            Ok(())
        })
        .await
    }

    async fn pause(&self, ctx: &RequestContext, paused: bool) -> Result<(), Status> {
        let instance = self.instance(ctx).await?;
        let instance = instance.object();
        let conflict = |why: &str| Status::conflict(KUBEVIRT, INSTANCE, &ctx.name, why);
        if let Some(why) = cannot_pause(instance, paused) {
            return Err(conflict(why));
        }
        if ctx.dry_run {
            return Ok(());
        }
        let refusal = self.desk.store.peers.pause(uid(instance), paused).await;
        refusal.map_err(|refusal| {
            let (code, text) = (refusal.code(), refusal.message());
            // Its host says no, or knows no such machine any more.
            if [Code::FailedPrecondition, Code::Aborted, Code::NotFound].contains(&code) {
                conflict(text)
            } else if [Code::Unavailable, Code::DeadlineExceeded].contains(&code) {
                Status::unavailable(text)
            } else {
                Status::internal(text)
            }
        })
    }
}

/// Why a machine can't be paused, or can't go on; `None` when it can.
fn cannot_pause(instance: &Value, paused: bool) -> Option<&'static str> {
    let is_paused = condition(instance, "Paused").is_some_and(|is| is["status"] == "True");
    let runs = instance["status"]["phase"] == "Running";
    match (paused, runs, is_paused) {
        (true, false, _) => Some("VM is not running"),
        (true, true, true) => Some("VMI is already paused"),
        (false, false, _) => Some("VMI is not running"),
        (false, true, false) => Some("VMI is not paused"),
        (true, true, false) | (false, true, true) => None,
    }
}

fn meta_base(metadata: &Value) -> &str {
    metadata["generateName"].as_str().unwrap_or_default()
}

/// Seconds; KubeVirt's default where nothing is said.
fn grace_of(instance: &Value) -> u64 {
    let said = &instance["spec"]["terminationGracePeriodSeconds"];
    said.as_u64().unwrap_or(30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_be_paused_is_said_in_kubevirts_words() {
        let instance = |phase: &str, paused: &str| {
            json!({"status": {
                "phase": phase, "conditions": [{"type": "Paused", "status": paused}],
            }})
        };
        let running = instance("Running", "False");
        let stopped = instance("Running", "True");
        let pending = instance("Pending", "False");
        assert_eq!(cannot_pause(&running, true), None);
        assert_eq!(cannot_pause(&stopped, false), None);
        assert_eq!(cannot_pause(&stopped, true), Some("VMI is already paused"));
        assert_eq!(cannot_pause(&running, false), Some("VMI is not paused"));
        assert_eq!(cannot_pause(&pending, true), Some("VM is not running"));
        assert_eq!(cannot_pause(&pending, false), Some("VMI is not running"));
    }
}
