//! The hosts' side of the conversation: one warm channel a host, and the facts each one streams.
//!
//! A host that doesn't answer has no facts: silence is a fact of its own, never a guess.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use godwit_ledger::JobRow;
use godwit_model::migration::fact::{SourceFact, TargetFact};
use godwit_model::migration::source::SourceState;
use godwit_model::migration::target::TargetState;
use godwit_model::{Epoch, JobId, MachineId, NodeName};
use godwit_rpc::agent::v1 as wire;
use godwit_rpc::agent::v1::agent_client::AgentClient;
use godwit_rpc::{Channel, Credentials, Status, client};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// First pause before a lost stream is opened again; doubles up to [`REOPEN_MAX`].
const REOPEN_MIN: Duration = Duration::from_millis(50);
/// Longest pause before a lost stream is opened again.
const REOPEN_MAX: Duration = Duration::from_secs(2);

/// Warm channels to the agents, by address.
pub(crate) struct Hosts {
    credentials: Option<Credentials>,
    channels: Mutex<HashMap<String, Channel>>,
}

impl Hosts {
    /// No channels yet; `credentials` are what this service shows.
    pub(crate) fn new(credentials: Option<Credentials>) -> Self {
        Self {
            credentials,
            channels: Mutex::default(),
        }
    }

    /// A client of the agent at `address`.
    ///
    /// # Errors
    /// `InvalidArgument` when the address can't be used.
    pub(crate) fn agent(&self, address: &str) -> Result<AgentClient<Channel>, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(AgentClient::new(channel.clone()));
        }
        let channel = client::connect(address, self.credentials.as_ref())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(AgentClient::new(channel))
    }
}

/// What one host says of both halves of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) source: SourceFact,
    pub(crate) target: TargetFact,
}

impl Facts {
    /// Of a host that knows nothing of the job.
    fn none() -> Self {
        Self {
            source: SourceFact::bare(SourceState::Absent, false),
            target: TargetFact::bare(TargetState::Absent),
        }
    }
}

/// The newest facts, and how many the stream has brought.
#[derive(Debug, Default)]
struct Latest {
    streamed: u64,
    /// `None` while the host is silent.
    facts: Option<Facts>,
}

/// How far a stream was when a command was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark(u64);

/// One host's stream of facts about a job; ends when dropped.
pub(crate) struct HostWatch {
    /// The host.
    pub(crate) node: NodeName,
    /// Where its agent listens.
    pub(crate) address: String,
    agent: AgentClient<Channel>,
    latest: watch::Sender<Latest>,
    changes: watch::Receiver<Latest>,
    task: AbortHandle,
}

impl HostWatch {
    /// Opens the stream, and again whenever it breaks.
    pub(crate) fn open(
        node: NodeName,
        (address, agent): (String, AgentClient<Channel>),
        job: wire::JobRef,
    ) -> Self {
        let (latest, changes) = watch::channel(Latest::default());
        let task = tokio::spawn(listen(agent.clone(), job, latest.clone())).abort_handle();
        Self {
            node,
            address,
            agent,
            latest,
            changes,
            task,
        }
    }

    /// A client of its agent.
    pub(crate) fn agent(&self) -> AgentClient<Channel> {
        self.agent.clone()
    }

    /// What the host last said; `None` while it is silent.
    pub(crate) fn latest(&self) -> Option<Facts> {
        self.latest.borrow().facts.clone()
    }

    /// Waits for the next change.
    pub(crate) async fn changed(&mut self) {
        // The sender lives as long as this value, so this can't fail.
        let _ = self.changes.changed().await;
    }

    /// To be taken before a command is sent, and given with its answer.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.latest.borrow().streamed)
    }

    /// Takes the source half from the answer to a command.
    pub(crate) fn heard_source(&self, mark: Mark, fact: SourceFact) {
        self.heard(mark, |facts| facts.source = fact);
    }

    /// Takes the target half from the answer to a command.
    pub(crate) fn heard_target(&self, mark: Mark, fact: TargetFact) {
        self.heard(mark, |facts| facts.target = fact);
    }

    /// An answer may arrive after newer facts, which nobody would say again. So it counts only when
    /// the stream said nothing since the command was sent; else the stream has or brings its news.
    fn heard(&self, mark: Mark, take: impl FnOnce(&mut Facts)) {
        self.latest.send_if_modified(|latest| {
            let newest = latest.streamed == mark.0;
            if newest {
                take(latest.facts.get_or_insert_with(Facts::none));
            }
            newest
        });
    }
}

impl Drop for HostWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(mut agent: AgentClient<Channel>, job: wire::JobRef, latest: watch::Sender<Latest>) {
    let mut pause = REOPEN_MIN;
    loop {
        if let Ok(stream) = agent.watch_job(job.clone()).await {
            let mut stream = stream.into_inner();
            while let Ok(Some(facts)) = stream.message().await {
                pause = REOPEN_MIN;
                match read(facts) {
                    Ok(facts) => {
                        latest.send_modify(|latest| {
                            latest.streamed += 1;
                            latest.facts = Some(facts);
                        });
                    }
                    Err(error) => tracing::warn!(%error, "a host's facts make no sense"),
                }
            }
        }
        latest.send_modify(|latest| latest.facts = None);
        tokio::time::sleep(pause).await; // back-off
        pause = (pause * 2).min(REOPEN_MAX);
    }
}

fn read(facts: wire::JobFacts) -> Result<Facts, Status> {
    Ok(Facts {
        source: facts.source.map_or_else(
            || Ok(SourceFact::bare(SourceState::Absent, false)),
            SourceFact::try_from,
        )?,
        target: facts.target.map_or_else(
            || Ok(TargetFact::bare(TargetState::Absent)),
            TargetFact::try_from,
        )?,
    })
}

/// The reference that every command and stream carries.
pub(crate) fn job_ref(job: &JobRow, epoch: Epoch) -> wire::JobRef {
    reference(&job.machine, &job.id, epoch)
}

fn reference(machine: &MachineId, job: &JobId, epoch: Epoch) -> wire::JobRef {
    wire::JobRef {
        machine: machine.to_string(),
        job: job.to_string(),
        epoch: epoch.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(state: SourceState) -> Facts {
        let source = SourceFact {
            state,
            ..SourceFact::bare(SourceState::Absent, false)
        };
        Facts {
            source,
            ..Facts::none()
        }
    }

    fn watch() -> HostWatch {
        let (latest, changes) = watch::channel(Latest::default());
        let channel = client::connect("http://127.0.0.1:1", None).unwrap();
        HostWatch {
            node: NodeName::parse("worker1").unwrap(),
            address: String::new(),
            agent: AgentClient::new(channel),
            latest,
            changes,
            task: tokio::spawn(async {}).abort_handle(),
        }
    }

    fn streams(host: &HostWatch, state: SourceState) {
        host.latest.send_modify(|latest| {
            latest.streamed += 1;
            latest.facts = Some(source(state));
        });
    }

    #[tokio::test]
    async fn an_answer_is_news_unless_the_stream_spoke_since_the_command() {
        let host = watch();
        let mark = host.mark();
        host.heard_source(mark, source(SourceState::Copying).source);
        assert_eq!(host.latest(), Some(source(SourceState::Copying)));

        let mark = host.mark();
        streams(&host, SourceState::Completed);
        host.heard_source(mark, source(SourceState::Switching).source);
        assert_eq!(host.latest(), Some(source(SourceState::Completed)));
    }
}
