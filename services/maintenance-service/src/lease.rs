//! The lease of a node, by which medik8s' operators keep out of each other's way.
//!
//! A maintenance takes it before it touches the node and gives it back at its end. While somebody
//! else holds it, nothing is done to the node; a maintenance that loses it fails.

use std::time::Duration;

use godwit_ledger::{NewObject, Object};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::look::lease_key;

/// Who holds the leases of nodes under maintenance: the name of medik8s' operator.
const HOLDER: &str = "node-maintenance";
/// For how long: the operator's.
const LASTS: SignedDuration = SignedDuration::from_secs(3600);
/// Looks at a lost lease before the maintenance fails: the operator's.
pub(crate) const LOST_MAX: u64 = 3;
/// Time between two of them: the operator's.
pub(crate) const LOST_PAUSE: Duration = Duration::from_secs(5);

/// Whether the node may be touched.
#[derive(Debug, PartialEq)]
pub(crate) enum Hold {
    /// It is ours.
    Ours,
    /// It becomes ours when this is written.
    Create(Box<NewObject>),
    /// It becomes ours, or ours for longer, when this is written.
    Take(Box<Object>),
    /// Somebody else holds it.
    Theirs(String),
}

/// Whether the node may be touched, its lease being `lease`.
pub(crate) fn hold(lease: Option<&Object>, node: &Object, now: Timestamp) -> Hold {
    let Some(lease) = lease else {
        return Hold::Create(Box::new(new(node, now)));
    };
    let spec = lease.spec();
    let holder = spec["holderIdentity"].as_str().unwrap_or_default();
    let left = ends(spec).map_or(SignedDuration::ZERO, |end| end.duration_since(now));
    match holder == HOLDER {
        true if left * 2 > LASTS => Hold::Ours,
        false if left > SignedDuration::ZERO => Hold::Theirs(holder.to_owned()),
        true | false => Hold::Take(Box::new(taken(lease, holder, now))),
    }
}

/// Whether the lease is given back at the end of a maintenance.
pub(crate) fn is_ours(lease: &Object) -> bool {
    lease.spec()["holderIdentity"] == HOLDER
}

/// When it runs out; `None` for one that nobody holds.
fn ends(spec: &Value) -> Option<Timestamp> {
    let renewed: Timestamp = spec["renewTime"].as_str()?.parse().ok()?;
    let lasts = spec["leaseDurationSeconds"].as_i64()?;
    renewed.checked_add(SignedDuration::from_secs(lasts)).ok()
}

fn new(node: &Object, now: Timestamp) -> NewObject {
    let owner = json!({
        "apiVersion": "v1", "kind": "Node", "name": node.key.name, "uid": node.uid,
    });
    NewObject {
        key: lease_key(&node.key.name),
        uid: None,
        metadata: json!({ "ownerReferences": [owner] }),
        body: json!({ "spec": {
            "holderIdentity": HOLDER,
            "leaseDurationSeconds": LASTS.as_secs(),
            "acquireTime": micros(now),
            "renewTime": micros(now),
            "leaseTransitions": 0,
        } }),
        status: None,
    }
}

fn taken(lease: &Object, holder: &str, now: Timestamp) -> Object {
    let mut lease = lease.clone();
    let spec = &mut lease.body["spec"];
    if holder != HOLDER {
        let transitions = spec["leaseTransitions"].as_i64().unwrap_or(0);
        spec["leaseTransitions"] = json!(transitions + 1);
        spec["acquireTime"] = json!(micros(now));
    }
    spec["holderIdentity"] = json!(HOLDER);
    spec["leaseDurationSeconds"] = json!(LASTS.as_secs());
    spec["renewTime"] = json!(micros(now));
    lease
}

/// A time as Kubernetes writes it in leases.
fn micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_ledger::ObjectKey;
    use godwit_model::Revision;

    fn object(key: ObjectKey, body: Value) -> Object {
        Object {
            key,
            uid: "n".to_owned(),
            metadata: json!({}),
            body,
            status: None,
            revision: Revision(1),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_lease_is_taken_renewed_and_left_to_whoever_holds_it() {
        let node = object(ObjectKey::new("nodes", "", "worker2"), json!({}));
        let Hold::Create(new) = hold(None, &node, at(0)) else {
            panic!("not taken");
        };
        assert_eq!(new.key.name, "node-worker2");
        let mut lease = object(new.key, new.body);
        assert_eq!(hold(Some(&lease), &node, at(1700)), Hold::Ours);
        let Hold::Take(renewed) = hold(Some(&lease), &node, at(1900)) else {
            panic!("not renewed");
        };
        assert_eq!(renewed.spec()["leaseTransitions"], 0);
        assert_eq!(hold(Some(&renewed), &node, at(3600)), Hold::Ours);
        lease.body["spec"]["holderIdentity"] = json!("healthcheck");
        assert_eq!(
            hold(Some(&lease), &node, at(3599)),
            Hold::Theirs("healthcheck".to_owned())
        );
        let Hold::Take(taken) = hold(Some(&lease), &node, at(3601)) else {
            panic!("it has run out");
        };
        assert_eq!(taken.spec()["leaseTransitions"], 1);
        assert!(is_ours(&taken) && !is_ours(&lease));
    }
}
