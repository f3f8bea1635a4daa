//! `pods/eviction`: `kubectl drain` asks every machine to leave its node.
//!
//! A machine that moves is marked, and the maintenance-service has it moved; until it is gone the
//! answer is 429, on which clients ask again. One that nobody may move is stopped, as its pod would
//! be; its virtual machine starts it elsewhere.

use std::sync::Arc;

use async_trait::async_trait;
use axum::response::Response;
use godwit_apimachinery::object::{is_deleting, name, namespace, time, uid};
use godwit_apimachinery::{
    Connect, ConnectRequest, ExtraResource, RequestContext, Status, Store, json_response,
};
use godwit_ledger::{Object, ObjectKey};
use godwit_model::instance::{EvictionStrategy, live_migratable};
use godwit_model::vmi::VmiSpec;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Desk, failure};
use crate::kinds::{launched, resource, webhook_text};

const WEBHOOK: &str = "virt-launcher-eviction-interceptor.kubevirt.io";
/// Versions in which clients send one.
const VERSIONS: [&str; 2] = ["policy/v1", "policy/v1beta1"];

pub(super) fn declare(desk: Desk) -> ExtraResource {
    ExtraResource {
        kind: "Eviction",
        kind_group: "policy",
        handler: Some(Arc::new(Handler(desk))),
        ..ExtraResource::new("", "v1", "pods/eviction")
    }
}

struct Handler(Desk);

#[async_trait]
impl Connect for Handler {
    async fn call(
        &self,
        ctx: &RequestContext,
        request: ConnectRequest,
    ) -> Result<Response, Status> {
        let Desk { store, facts, .. } = &self.0;
        let found = store.get(resource::PODS, &ctx.namespace, &ctx.name).await;
        let not_found = || Status::not_found("", resource::PODS, &ctx.name);
        let pod = found
            .map_err(|error| failure(error, ("", resource::PODS, &ctx.name)))?
            .ok_or_else(not_found)?;
        check(&request.body, pod.object())?;
        let ctx = RequestContext {
            dry_run: ctx.dry_run || is_dry(&request.body),
            ..ctx.clone()
        };
        let vmi = launched(&ctx.name).unwrap_or_default();
        let instance = facts.instance(&ctx.namespace, vmi).ok_or_else(not_found)?;
        let node = pod.object()["spec"]["nodeName"].as_str();
        let node = node.unwrap_or_default();
        let verdict = verdict(instance.object(), self.strategy(instance.object()), node);
        let key = ObjectKey::new(resource::INSTANCES, &ctx.namespace, vmi);
        let change = store.change(&ctx, &key, |row| {
            // The machine may have left since.
            let told = row
                .status
                .as_ref()
                .map_or(&Value::Null, |told| &told["nodeName"]);
            if row.uid != uid(instance.object()) || *told != node {
                return Err(not_found());
            }
            verdict.carry_out(row, node, &time(ctx.now));
            Ok(())
        });
        change
            .await
            .map_err(|error| failure(error, ("", resource::PODS, &ctx.name)))?;
        store.peers.evicted();
        match verdict.refusal(&key) {
            Some(refusal) => Err(refusal),
            None => Ok(json_response(StatusCode::CREATED, &success())),
        }
    }
}

impl Handler {
    /// The strategy in force: as the maintenance-service sees it.
    fn strategy(&self, instance: &Value) -> EvictionStrategy {
        let facts = &self.0.facts;
        let cluster = facts.kubevirt();
        let cluster = cluster.as_ref().map(|cluster| cluster.object());
        let cluster = cluster.and_then(|cluster| {
            cluster
                .pointer("/spec/configuration/evictionStrategy")?
                .as_str()
        });
        let own = instance["spec"]["evictionStrategy"].as_str();
        let owners = instance["metadata"]["ownerReferences"].as_array();
        let mut owners = owners.into_iter().flatten();
        let owned = owners.any(|owner| owner["kind"] == "VirtualMachine");
        let owner = owned.then(|| facts.machine(namespace(instance), name(instance)));
        let owner = owner.flatten();
        let newer = owner.as_ref().and_then(|owner| {
            let newer = owner
                .object()
                .pointer("/spec/template/spec/evictionStrategy")?;
            newer.as_str()
        });
        EvictionStrategy::effective(own, cluster).or_newer(newer)
    }
}

/// What becomes of a machine whose launcher is evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is stopped, as its pod would be.
    Stops,
    /// It is marked, and shall move.
    Moves,
    /// It was marked before.
    Moving,
    /// It may not be stopped and can't move.
    Stays,
}

fn verdict(instance: &Value, strategy: EvictionStrategy, node: &str) -> Verdict {
    let spec = VmiSpec::deserialize(&instance["spec"]).ok();
    let movable = spec.is_some_and(|spec| live_migratable(&spec).is_ok());
    let marked = instance["status"]["evacuationNodeName"] == node;
    match strategy {
        _ if is_deleting(instance) => Verdict::Stops,
        EvictionStrategy::None => Verdict::Stops,
        EvictionStrategy::LiveMigrateIfPossible if !movable => Verdict::Stops,
        EvictionStrategy::LiveMigrate if !movable => Verdict::Stays,
        EvictionStrategy::LiveMigrate
        | EvictionStrategy::LiveMigrateIfPossible
        | EvictionStrategy::External => match marked {
            true => Verdict::Moving,
            false => Verdict::Moves,
        },
    }
}

impl Verdict {
    fn carry_out(self, instance: &mut Object, node: &str, now: &str) {
        match self {
            Self::Stops if !instance.deleting() => {
                instance.metadata["deletionTimestamp"] = json!(now);
                instance.metadata["deletionGracePeriodSeconds"] = json!(0);
            }
            Self::Moves => {
                let status = instance.status.get_or_insert_with(|| json!({}));
                status["evacuationNodeName"] = json!(node);
            }
            Self::Stops | Self::Moving | Self::Stays => {}
        }
    }

    /// KubeVirt's words; `None` where the eviction was carried out.
    fn refusal(self, vmi: &ObjectKey) -> Option<Status> {
        let (namespace, name) = (&vmi.namespace, &vmi.name);
        let triggered = format!("Eviction triggered evacuation of VMI \"{namespace}/{name}\"");
        let text = match self {
            Self::Stops => return None,
            Self::Moves => triggered,
            Self::Moving => format!("Evacuation in progress: {triggered}"),
            Self::Stays => format!(
                "VMI {name} is configured with an eviction strategy but is not live-migratable"
            ),
        };
        Some(Status::too_many_requests(webhook_text(WEBHOOK, &text)))
    }
}

/// Refuses what isn't an eviction of this pod.
fn check(eviction: &Value, pod: &Value) -> Result<(), Status> {
    let version = eviction["apiVersion"].as_str().unwrap_or(VERSIONS[0]);
    if !VERSIONS.contains(&version) || eviction["kind"].as_str().unwrap_or("Eviction") != "Eviction"
    {
        let text = "the body is no Eviction of policy/v1 or policy/v1beta1";
        return Err(Status::bad_request(text));
    }
    let wanted = eviction["metadata"]["name"].as_str().unwrap_or_default();
    if !wanted.is_empty() && wanted != name(pod) {
        let text = "name in URL does not match name in Eviction object";
        return Err(Status::bad_request(text));
    }
    match eviction["deleteOptions"]["preconditions"]["uid"].as_str() {
        Some(wanted) if wanted != uid(pod) => {
            let why = format!("the UID in the precondition ({wanted}) is not {}", uid(pod));
            Err(Status::conflict("", resource::PODS, name(pod), &why))
        }
        Some(_) | None => Ok(()),
    }
}

fn is_dry(eviction: &Value) -> bool {
    let modes = eviction["deleteOptions"]["dryRun"].as_array();
    modes.is_some_and(|modes| modes.iter().any(|mode| mode == "All"))
}

fn success() -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(shared: bool) -> Value {
        let disk = json!({"name": "root", "hostDisk": {"path": "/a", "shared": shared}});
        json!({
            "metadata": {"name": "vm1", "namespace": "default", "uid": "u"},
            "spec": {"volumes": [disk]},
            "status": {"phase": "Running", "nodeName": "worker1"},
        })
    }

    #[test]
    fn each_strategy_does_what_kubevirts_does() {
        use EvictionStrategy as S;
        use Verdict as V;
        for (strategy, movable, stuck) in [
            (S::None, V::Stops, V::Stops),
            (S::LiveMigrate, V::Moves, V::Stays),
            (S::LiveMigrateIfPossible, V::Moves, V::Stops),
            (S::External, V::Moves, V::Moves),
        ] {
            assert_eq!(
                verdict(&instance(true), strategy, "worker1"),
                movable,
                "{strategy:?}"
            );
            assert_eq!(
                verdict(&instance(false), strategy, "worker1"),
                stuck,
                "{strategy:?}"
            );
        }
    }

    #[test]
    fn a_mark_counts_for_its_node_alone() {
        let mut marked = instance(true);
        marked["status"]["evacuationNodeName"] = json!("worker1");
        let judge = |node| verdict(&marked, EvictionStrategy::LiveMigrate, node);
        assert_eq!(judge("worker1"), Verdict::Moving);
        assert_eq!(judge("worker2"), Verdict::Moves);
    }

    #[test]
    fn refusals_read_as_kubevirts_and_tell_clients_to_ask_again() {
        let vmi = ObjectKey::new(resource::INSTANCES, "default", "vm1");
        let refusal = Verdict::Moves.refusal(&vmi).unwrap();
        assert_eq!(
            (refusal.code().as_u16(), refusal.reason()),
            (429, "TooManyRequests")
        );
        assert_eq!(
            refusal.message(),
            "admission webhook \"virt-launcher-eviction-interceptor.kubevirt.io\" denied the \
             request: Eviction triggered evacuation of VMI \"default/vm1\""
        );
        assert!(Verdict::Moving.refusal(&vmi).unwrap().message().ends_with(
            "Evacuation in progress: Eviction triggered evacuation of VMI \"default/vm1\""
        ));
        assert!(Verdict::Stays.refusal(&vmi).unwrap().message().ends_with(
            "VMI vm1 is configured with an eviction strategy but is not live-migratable"
        ));
        assert!(Verdict::Stops.refusal(&vmi).is_none());
    }

    #[test]
    fn an_eviction_of_something_else_is_refused() {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}});
        let code = |eviction: Value| check(&eviction, &pod).err().map(|no| no.code().as_u16());
        assert_eq!(code(Value::Null), None);
        let good = json!({"apiVersion": "policy/v1beta1", "kind": "Eviction",
            "metadata": {"name": "p"}, "deleteOptions": {"preconditions": {"uid": "u"}}});
        assert_eq!(code(good), None);
        assert_eq!(code(json!({"apiVersion": "v1", "kind": "Pod"})), Some(400));
        assert_eq!(code(json!({"metadata": {"name": "q"}})), Some(400));
        let other = json!({"deleteOptions": {"preconditions": {"uid": "v"}}});
        assert_eq!(code(other), Some(409));
    }
}
