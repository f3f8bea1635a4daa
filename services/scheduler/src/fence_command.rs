//! The operator's own way to make sure that a silent node is dead, such as a call to its BMC.
//!
//! Only success of the command declares the node dead, by a NodeFence as a person would write it.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_ledger::{LedgerError, NewObject, NodeRow, ObjectKey, Tx};
use godwit_model::NodeName;
use godwit_runtime::backoff::Backoff;
use serde_json::json;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::FenceCommand;
use crate::fence::{self, BY};
use crate::machines::Machines;
use crate::world::FENCES;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Of what the command says, so much is kept, bytes.
const WORDS_MAX: usize = 400;

/// A node that says nothing.
#[derive(Debug)]
struct Silent {
    backoff: Backoff,
    /// Not before then, the command is called.
    due: Instant,
    under_way: bool,
}

type Outcome = (NodeRow, Result<String, String>);

/// Calls the command for each node that stays silent and has machines, until it succeeds.
pub(crate) async fn run(machines: Arc<Machines>) {
    let Some(fence) = machines.config.fence_command.clone() else {
        return;
    };
    let mut silent: HashMap<NodeName, Silent> = HashMap::new();
    let mut calls: JoinSet<Outcome> = JoinSet::new();
    loop {
        tokio::select! {
            () = machines.shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {} // poll
            Some(done) = calls.join_next() => match done {
                Ok(outcome) => settle(&machines, &mut silent, outcome).await,
                Err(error) => warn!(%error, "a fence command was lost"),
            },
        }
        let due = match look(&machines, &fence, &mut silent).await {
            Ok(due) => due,
            Err(error) => {
                warn!(%error, "silent nodes could not be read");
                continue;
            }
        };
        for node in due {
            calls.spawn(call(fence.clone(), node));
        }
    }
}

/// The nodes for which the command is to be called now.
async fn look(
    machines: &Machines,
    fence: &FenceCommand,
    silent: &mut HashMap<NodeName, Silent>,
) -> Result<Vec<NodeRow>, LedgerError> {
    let mut dead = machines.ledger.nodes().await?;
    dead.retain(|node| !node.ready && machines.inventory.said(&node.name).is_none());
    if !dead.is_empty() {
        let rows = machines.ledger.instances().await?;
        let fences = machines.ledger.list(FENCES).await?;
        dead.retain(|node| {
            rows.iter().any(|row| fence::is_taken(row, &node.name))
                && !fence::is_declared(&fences, node)
        });
    }
    silent.retain(|name, known| known.under_way || dead.iter().any(|node| node.name == *name));
    let now = Instant::now();
    let mut due = vec![];
    for node in dead {
        let known = silent.entry(node.name.clone()).or_insert_with(|| Silent {
            backoff: Backoff::new(fence.after(), fence.after() * 10),
            due: now + fence.after(),
            under_way: false,
        });
        if !known.under_way && known.due <= now {
            known.under_way = true;
            due.push(node.clone());
        }
    }
    Ok(due)
}

/// What the command says last, or why it did not work.
async fn call(fence: FenceCommand, node: NodeRow) -> Outcome {
    info!(node = %node.name, program = fence.program, "node stays silent: fence command called");
    let child = Command::new(&fence.program)
        .args(&fence.arguments)
        .env("GODWIT_NODE", node.name.as_str())
        .env("GODWIT_BOOT_ID", &node.boot_id)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let result = match timeout(fence.limit(), child).await {
        Err(_) => Err(format!("no end within {} s", fence.limit().as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) if output.status.success() => Ok(words(&output.stdout)),
        Ok(Ok(output)) => Err(format!("{}: {}", output.status, words(&output.stderr))),
    };
    (node, result)
}

/// The last line that says something.
fn words(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines = text.lines().map(str::trim);
    let last = lines.rev().find(|line| !line.is_empty());
    let last = last.unwrap_or("it said nothing");
    last.chars().take(WORDS_MAX).collect()
}

async fn settle(
    machines: &Machines,
    silent: &mut HashMap<NodeName, Silent>,
    (node, result): Outcome,
) {
    let told = machines
        .write(async |tx| match &result {
            Ok(words) => declare(tx, &node, &machines.config, words).await,
            Err(why) => complain(tx, &node, why).await,
        })
        .await;
    if let Err(error) = &told {
        machines.failed(node.name.as_str(), error);
    }
    if let Err(why) = &result {
        warn!(node = %node.name, why, "fence command failed");
    } else {
        machines.inventory.machines_changed.notify_one();
    }
    if let Some(known) = silent.get_mut(&node.name) {
        known.under_way = false;
        known.due = Instant::now() + known.backoff.pause();
    }
}

/// Writes the NodeFence, as a person would.
async fn declare(
    tx: &mut Tx,
    node: &NodeRow,
    config: &crate::config::Config,
    words: &str,
) -> Result<(), LedgerError> {
    let program = config.fence_command.as_ref();
    let program = program.map_or("", |fence| fence.program.as_str());
    let statement = format!("{program} made sure of it: {words}");
    let name = format!("{}-{}", node.name, tx.now().as_second());
    tx.create(NewObject {
        key: ObjectKey::new(FENCES, "", &name),
        uid: None,
        metadata: json!({ "annotations": { (BY): "godwit-scheduler" } }),
        body: json!({ "spec": {
            "nodeName": node.name, "bootID": node.boot_id, "statement": statement,
        } }),
        status: None,
    })
    .await
    .map(drop)
}

async fn complain(tx: &mut Tx, node: &NodeRow, why: &str) -> Result<(), LedgerError> {
    let note = format!("the fence command failed, so that no machine is started elsewhere: {why}");
    fence::node_event(tx, &node.name, "FencingFailed", note).await
}
