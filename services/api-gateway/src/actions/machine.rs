//! What virtctl asks of a virtual machine: start, stop, restart, migrate. KubeVirt's rules and texts.

use godwit_apimachinery::Status;
use godwit_apimachinery::object::uid;
use godwit_ledger::Object;
use godwit_model::run_strategy::RunStrategy;
use http::StatusCode;
use serde_json::{Value, json};

use crate::kinds::KUBEVIRT;

/// KubeVirt's word for the kind in its answers.
pub(super) const KIND: &str = "virtualmachine";
const NOT_RUNNING: &str = "VM is not running";
/// Field of the status in which requests wait for the scheduler.
const REQUESTS: &str = "stateChangeRequests";

/// Starts `vm`. `instance` is what it has now, `options` are StartOptions.
pub(super) fn start(
    vm: &mut Object,
    instance: Option<&Value>,
    options: &Value,
) -> Result<(), Status> {
    nothing_pending(vm)?;
    if instance.is_some_and(is_alive) {
        return Err(conflict(vm, "VM is already running"));
    }
    let failed = instance.is_some_and(|instance| instance["status"]["phase"] == "Failed");
    let paused = options["paused"] == true;
    let mut request = json!({ "action": "Start" });
    if paused {
        request["data"] = json!({ "paused": "true" });
    }
    match strategy(vm) {
        strategy @ (RunStrategy::Always | RunStrategy::Once) => {
            let why = format!(
                "{} does not support manual start requests",
                strategy.as_str()
            );
            return Err(conflict(vm, &why));
        }
        RunStrategy::RerunOnFailure if failed => {
            let why = "RerunOnFailure does not support starting VM from failed state";
            return Err(conflict(vm, why));
        }
        RunStrategy::RerunOnFailure | RunStrategy::Manual => ask(vm, vec![request]),
        RunStrategy::Halted => {
            set_running(vm, true);
            if paused {
                ask(vm, vec![request]);
            }
        }
    }
    Ok(())
}

/// Stops `vm`. `shorter` says that its grace period was made shorter for it.
pub(super) fn stop(vm: &mut Object, instance: Option<&Value>, shorter: bool) -> Result<(), Status> {
    let alive = instance.filter(|instance| is_alive(instance));
    match (strategy(vm), alive) {
        (RunStrategy::Always | RunStrategy::Once, _) | (RunStrategy::RerunOnFailure, Some(_)) => {
            set_running(vm, false);
        }
        (RunStrategy::Manual, Some(instance)) => {
            nothing_pending(vm)?;
            ask(vm, vec![stop_of(instance)]);
        }
        (RunStrategy::Halted, Some(_)) if shorter => {}
        (RunStrategy::Halted, Some(_)) => {
            let why = "Halted only supports manual stop requests with a shorter graceperiod";
            return Err(conflict(vm, why));
        }
        (RunStrategy::Manual | RunStrategy::RerunOnFailure | RunStrategy::Halted, None) => {
            return Err(conflict(vm, NOT_RUNNING));
        }
    }
    Ok(())
}

/// Starts `vm` anew. `options` are RestartOptions.
pub(super) fn restart(
    vm: &mut Object,
    instance: Option<&Value>,
    options: &Value,
) -> Result<(), Status> {
    if options["gracePeriodSeconds"].as_i64().unwrap_or(0) != 0 {
        let text = "For force restart, only gracePeriod=0 is supported for now";
        return Err(Status::bad_request(text));
    }
    let strategy = strategy(vm);
    if matches!(strategy, RunStrategy::Halted | RunStrategy::Once) {
        // The spelling is KubeVirt's.
        let why = format!(
            "RunStategy {} does not support manual restart requests",
            strategy.as_str()
        );
        return Err(conflict(vm, &why));
    }
    let Some(instance) = instance.filter(|instance| is_alive(instance)) else {
        return Err(conflict(vm, NOT_RUNNING));
    };
    nothing_pending(vm)?;
    ask(vm, vec![stop_of(instance), json!({ "action": "Start" })]);
    Ok(())
}

/// The migration that a request to migrate makes; refused where the machine doesn't run.
pub(super) fn migration(name: &str, instance: &Value, options: &Value) -> Result<Value, Status> {
    if instance["status"]["phase"] != "Running" {
        return Err(Status::conflict(KUBEVIRT, KIND, name, NOT_RUNNING));
    }
    let mut spec = json!({ "vmiName": name });
    if options["addedNodeSelector"].is_object() {
        spec["addedNodeSelector"] = options["addedNodeSelector"].clone();
    }
    Ok(json!({ "metadata": { "generateName": "kubevirt-migrate-vm-" }, "spec": spec }))
}

/// A refusal by a webhook, as KubeVirt passes it on: inside a 500.
pub(super) fn webhook_refusal(refusal: &Status) -> Status {
    match refusal.code() {
        StatusCode::SERVICE_UNAVAILABLE => refusal.clone(),
        _ => Status::internal(refusal.message()),
    }
}

/// Whether the instance has not ended.
fn is_alive(instance: &Value) -> bool {
    !matches!(
        instance["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    )
}

fn strategy(vm: &Object) -> RunStrategy {
    let spec = vm.spec();
    RunStrategy::read(spec["runStrategy"].as_str(), spec["running"].as_bool())
}

/// In the field in which the owner said it.
fn set_running(vm: &mut Object, running: bool) {
    let spec = &mut vm.body["spec"];
    if spec["running"].is_boolean() {
        spec["running"] = json!(running);
    } else {
        spec["runStrategy"] = json!(if running { "Always" } else { "Halted" });
    }
}

fn nothing_pending(vm: &Object) -> Result<(), Status> {
    let told = vm
        .status
        .as_ref()
        .and_then(|told| told[REQUESTS].as_array());
    match told.is_some_and(|requests| !requests.is_empty()) {
        true => Err(conflict(
            vm,
            "unable to complete request: stop/start already underway",
        )),
        false => Ok(()),
    }
}

fn ask(vm: &mut Object, requests: Vec<Value>) {
    let status = vm.status.get_or_insert_with(|| json!({}));
    status[REQUESTS] = Value::Array(requests);
}

fn stop_of(instance: &Value) -> Value {
    json!({ "action": "Stop", "uid": uid(instance) })
}

fn conflict(vm: &Object, why: &str) -> Status {
    Status::conflict(KUBEVIRT, KIND, &vm.key.name, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::resource;
    use godwit_ledger::ObjectKey;
    use godwit_model::Revision;

    fn vm(strategy: &str) -> Object {
        Object {
            key: ObjectKey::new(resource::MACHINES, "default", "vm1"),
            uid: "u".to_owned(),
            metadata: json!({}),
            body: json!({ "spec": { "runStrategy": strategy } }),
            status: None,
            revision: Revision(1),
        }
    }

    fn instance(phase: &str) -> Value {
        json!({ "metadata": { "uid": "i1" }, "status": { "phase": phase } })
    }

    fn why(outcome: Result<(), Status>) -> String {
        let refusal = outcome.unwrap_err();
        assert_eq!(refusal.code(), StatusCode::CONFLICT);
        let text = "Operation cannot be fulfilled on virtualmachine.kubevirt.io \"vm1\": ";
        refusal.message().strip_prefix(text).unwrap().to_owned()
    }

    #[test]
    fn a_start_does_what_the_strategy_allows() {
        let none = Value::Null;
        let mut halted = vm("Halted");
        start(&mut halted, None, &none).unwrap();
        assert_eq!(halted.spec()["runStrategy"], "Always");
        let mut old = vm("Halted");
        old.body = json!({ "spec": { "running": false } });
        start(&mut old, None, &json!({ "paused": true })).unwrap();
        assert_eq!(old.spec(), &json!({ "running": true }));
        let request = json!([{ "action": "Start", "data": { "paused": "true" } }]);
        assert_eq!(old.status.as_ref().unwrap()[REQUESTS], request);

        let mut manual = vm("Manual");
        start(&mut manual, None, &none).unwrap();
        assert_eq!(manual.spec()["runStrategy"], "Manual");
        let again = why(start(&mut manual, None, &none));
        assert!(again.ends_with("stop/start already underway"), "{again}");

        let refused = |strategy, phase: Option<&str>| {
            let instance = phase.map(instance);
            why(start(&mut vm(strategy), instance.as_ref(), &none))
        };
        assert_eq!(refused("Manual", Some("Running")), "VM is already running");
        assert_eq!(
            refused("Always", None),
            "Always does not support manual start requests"
        );
        assert_eq!(
            refused("RerunOnFailure", Some("Failed")),
            "RerunOnFailure does not support starting VM from failed state"
        );
    }

    #[test]
    fn a_stop_does_what_the_strategy_allows() {
        let running = instance("Running");
        for strategy in ["Always", "Once", "RerunOnFailure"] {
            let mut vm = vm(strategy);
            stop(&mut vm, Some(&running), false).unwrap();
            assert_eq!(vm.spec()["runStrategy"], "Halted", "{strategy}");
        }
        let mut manual = vm("Manual");
        stop(&mut manual, Some(&running), false).unwrap();
        let request = json!([{ "action": "Stop", "uid": "i1" }]);
        assert_eq!(manual.status.as_ref().unwrap()[REQUESTS], request);
        assert_eq!(why(stop(&mut vm("Manual"), None, false)), NOT_RUNNING);
        assert_eq!(why(stop(&mut vm("Halted"), None, false)), NOT_RUNNING);
        assert!(stop(&mut vm("Halted"), Some(&running), true).is_ok());
        assert_eq!(
            why(stop(&mut vm("Halted"), Some(&running), false)),
            "Halted only supports manual stop requests with a shorter graceperiod"
        );
    }

    #[test]
    fn a_restart_asks_for_both_and_only_of_a_machine_that_runs() {
        let (none, running) = (Value::Null, instance("Running"));
        let mut always = vm("Always");
        restart(&mut always, Some(&running), &none).unwrap();
        let requests = json!([{ "action": "Stop", "uid": "i1" }, { "action": "Start" }]);
        assert_eq!(always.status.as_ref().unwrap()[REQUESTS], requests);
        assert_eq!(why(restart(&mut vm("Manual"), None, &none)), NOT_RUNNING);
        assert_eq!(
            why(restart(&mut vm("Halted"), Some(&running), &none)),
            "RunStategy Halted does not support manual restart requests"
        );
        let slow = json!({ "gracePeriodSeconds": 5 });
        let refused = restart(&mut vm("Always"), Some(&running), &slow).unwrap_err();
        assert_eq!(refused.code(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn only_a_machine_that_runs_is_migrated() {
        let options = json!({ "addedNodeSelector": { "zone": "a" } });
        let made = migration("vm1", &instance("Running"), &options).unwrap();
        assert_eq!(made["spec"]["vmiName"], "vm1");
        assert_eq!(made["spec"]["addedNodeSelector"], json!({ "zone": "a" }));
        assert!(migration("vm1", &instance("Scheduling"), &Value::Null).is_err());
    }
}
