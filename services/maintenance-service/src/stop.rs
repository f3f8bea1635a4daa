//! Stopping a machine as `virtctl stop` and `virtctl restart` do: by what its virtual machine says.

use godwit_ledger::Object;
use godwit_model::run_strategy::RunStrategy;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::json::{seconds, told};

/// Field of a virtual machine's status in which requests wait for the scheduler.
const REQUESTS: &str = "stateChangeRequests";

/// The virtual machine, asked to stop its instance `uid` and to start another; `None` while it has
/// not done what it was asked before.
pub(crate) fn restarted(machine: &Object, uid: &str) -> Option<Object> {
    asked(
        machine,
        &[
            json!({ "action": "Stop", "uid": uid }),
            json!({ "action": "Start" }),
        ],
    )
}

/// The virtual machine, told to have no instance; `None` while it has not done what it was asked
/// before, or when it has been told already.
pub(crate) fn shut_down(machine: &Object, uid: &str) -> Option<Object> {
    let spec = machine.spec();
    match RunStrategy::read(spec["runStrategy"].as_str(), spec["running"].as_bool()) {
        RunStrategy::Always | RunStrategy::RerunOnFailure | RunStrategy::Once => {
            Some(halted(machine))
        }
        RunStrategy::Manual => asked(machine, &[json!({ "action": "Stop", "uid": uid })]),
        RunStrategy::Halted => None,
    }
}

/// The instance without a virtual machine, told to end.
pub(crate) fn ended(instance: &Object, now: Timestamp) -> Object {
    let mut instance = instance.clone();
    instance.metadata["deletionTimestamp"] = json!(seconds(now));
    instance.metadata["deletionGracePeriodSeconds"] = json!(0);
    instance
}

/// In the field in which the owner said it.
fn halted(machine: &Object) -> Object {
    let mut machine = machine.clone();
    let spec = &mut machine.body["spec"];
    if spec["running"].is_boolean() {
        spec["running"] = json!(false);
    } else {
        spec["runStrategy"] = json!("Halted");
    }
    let generation = machine.metadata["generation"].as_u64().unwrap_or(0);
    machine.metadata["generation"] = json!(generation + 1);
    machine
}

fn asked(machine: &Object, requests: &[Value]) -> Option<Object> {
    let pending = told(machine, REQUESTS).as_array();
    if pending.is_some_and(|pending| !pending.is_empty()) {
        return None;
    }
    let mut machine = machine.clone();
    let status = machine.status.get_or_insert_with(|| json!({}));
    status[REQUESTS] = json!(requests);
    Some(machine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_ledger::ObjectKey;
    use godwit_model::Revision;

    fn machine(spec: &Value) -> Object {
        Object {
            key: ObjectKey::new("virtualmachines.kubevirt.io", "default", "vm1"),
            uid: "m".to_owned(),
            metadata: json!({ "generation": 3 }),
            body: json!({ "spec": spec }),
            status: None,
            revision: Revision(1),
        }
    }

    #[test]
    fn a_stopped_machine_stays_stopped_whatever_its_strategy() {
        for spec in [
            json!({ "runStrategy": "Always" }),
            json!({ "runStrategy": "RerunOnFailure" }),
            json!({ "runStrategy": "Once" }),
        ] {
            let stopped = shut_down(&machine(&spec), "u").unwrap();
            assert_eq!(*stopped.spec(), json!({ "runStrategy": "Halted" }));
            assert_eq!(stopped.metadata["generation"], 4);
        }
        let stopped = shut_down(&machine(&json!({ "running": true })), "u").unwrap();
        assert_eq!(*stopped.spec(), json!({ "running": false }));
        let asked = shut_down(&machine(&json!({ "runStrategy": "Manual" })), "u").unwrap();
        assert_eq!(
            told(&asked, REQUESTS),
            &json!([{ "action": "Stop", "uid": "u" }])
        );
        assert_eq!(
            shut_down(&machine(&json!({ "runStrategy": "Halted" })), "u"),
            None
        );
    }

    #[test]
    fn a_machine_that_was_asked_for_something_is_not_asked_for_more() {
        let asked = restarted(&machine(&json!({ "runStrategy": "Always" })), "u").unwrap();
        assert_eq!(
            told(&asked, REQUESTS),
            &json!([{ "action": "Stop", "uid": "u" }, { "action": "Start" }])
        );
        assert_eq!(restarted(&asked, "u"), None);
    }
}
