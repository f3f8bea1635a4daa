//! Carrying the proof to the target's agent: again and again, until it is taken, or refused for
//! ever.

use std::time::{Duration, Instant};

use tracing::warn;

use godwit_rpc::agent::v1::agent_client::AgentClient;
use godwit_rpc::agent::v1::{Proof, TargetState};
use godwit_rpc::client::part_of;
use godwit_rpc::{Channel, Request};
use godwit_runtime::failpoint;

use crate::metrics::{Metrics, Piece};

/// Longest wait for one answer; the target answers when its guest runs.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// First and longest pause between two attempts: the guest is stopped meanwhile.
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How the target took it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is on the target's disk.
    Taken,
    /// The target's copy is gone, for ever.
    Refused(String),
}

/// Delivers `proof` as a part of the copy's `trace`; returns when the target has decided.
pub(crate) async fn deliver(
    channel: Channel,
    (proof, trace): (Proof, &str),
    metrics: &Metrics,
) -> Outcome {
    let mut client = AgentClient::new(channel);
    let mut pause = RETRY_FIRST;
    loop {
        failpoint!("proof.sent.before");
        let began = Instant::now();
        let mut request = Request::new(proof.clone());
        part_of(&mut request, trace);
        let call = client.deliver_proof(request);
        let answer = tokio::time::timeout(ANSWER_LIMIT, call).await;
        failpoint!("proof.sent.after");
        let why = match answer {
            Ok(Ok(answer)) => {
                let fact = answer.into_inner();
                match fact.state() {
                    TargetState::Continuing | TargetState::Fetching | TargetState::Running => {
                        metrics.blackout(Piece::Proof, began.elapsed());
                        return Outcome::Taken;
                    }
                    TargetState::MemoryLost => return Outcome::Taken,
                    TargetState::Lost if fact.continued => return Outcome::Taken,
                    TargetState::Discarded | TargetState::Lost => {
                        return Outcome::Refused(fact.reason);
                    }
                    // It isn't completely loaded, or is none of this version.
                    TargetState::Unspecified
                    | TargetState::Absent
                    | TargetState::Preparing
                    | TargetState::Prepared
                    | TargetState::Loaded => format!("target is {}", fact.state().as_str_name()),
                }
            }
            Ok(Err(status)) => status.to_string(),
            Err(_) => format!("no answer within {} s", ANSWER_LIMIT.as_secs()),
        };
        warn!(why, "proof not taken yet");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}
