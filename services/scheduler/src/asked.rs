//! What people asked of a virtual machine by hand: `status.stateChangeRequests`, in KubeVirt's form.
//! The API adds to it, and what is done is taken out here.

use godwit_model::run_strategy::Wish;
use serde_json::{Map, Value};

/// Field of a virtual machine's status.
const REQUESTS: &str = "stateChangeRequests";

/// A request that isn't done yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To start it, with its guest paused or not.
    Start { paused: bool },
    /// To stop the instance that it had then.
    Stop,
}

impl Asked {
    /// Takes out what is done, and answers the first that is left. `alive` is the UID of the
    /// machine's instance and whether that has not ended.
    pub(crate) fn first(
        status: &mut Map<String, Value>,
        instance: Option<(&str, bool)>,
    ) -> Option<Self> {
        let list = status.get_mut(REQUESTS).and_then(Value::as_array_mut)?;
        let first = loop {
            let Some(request) = list.first() else {
                break None;
            };
            let uid = instance.map(|(uid, _)| uid);
            let paused = request["data"]["paused"] == "true";
            match request["action"].as_str() {
                Some("Stop") if uid.is_some_and(|uid| request["uid"] == uid) => {
                    break Some(Self::Stop);
                }
                Some("Start") if !instance.is_some_and(|(_, alive)| alive) => {
                    break Some(Self::Start { paused });
                }
                Some(_) | None => drop(list.remove(0)),
            }
        };
        if list.is_empty() {
            status.remove(REQUESTS);
        }
        first
    }

    /// What it makes of a machine's wish.
    pub(crate) fn wish(self) -> Wish {
        match self {
            Self::Start { .. } => Wish::Run,
            Self::Stop => Wish::Halt,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(requests: Value) -> Map<String, Value> {
        let mut status = Map::new();
        status.insert(REQUESTS.to_owned(), requests);
        status
    }

    #[test]
    fn a_restart_is_a_stop_and_then_a_start() {
        let mut told = status(json!([
            {"action": "Stop", "uid": "i1"}, {"action": "Start"},
        ]));
        let before = told.clone();
        assert_eq!(
            Asked::first(&mut told, Some(("i1", true))),
            Some(Asked::Stop)
        );
        assert_eq!(told, before);
        let start = Some(Asked::Start { paused: false });
        assert_eq!(Asked::first(&mut told, None), start);
        assert_eq!(told[REQUESTS], json!([{"action": "Start"}]));
        // It runs again, under another UID.
        assert_eq!(Asked::first(&mut told, Some(("i2", true))), None);
        assert_eq!(told.get(REQUESTS), None);
    }

    #[test]
    fn a_machine_that_ended_can_be_started_and_one_that_runs_cannot() {
        let requests = json!([{"action": "Start", "data": {"paused": "true"}}]);
        let mut told = status(requests.clone());
        let start = Some(Asked::Start { paused: true });
        assert_eq!(Asked::first(&mut told, Some(("i1", false))), start);
        assert_eq!(
            Asked::first(&mut status(requests), Some(("i1", true))),
            None
        );
        assert_eq!(Asked::first(&mut Map::new(), None), None);
    }
}
