//! Who may start, who waits, and for what.
//!
//! Called by `migration-coordinator/src/queue.rs` with all open jobs and the limits in force.

use std::collections::HashMap;

use super::job::JobState;
use crate::{JobId, NodeName};

/// How many migrations may be under way at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// In the cluster.
    pub per_cluster: u32,
    /// Away from one node.
    pub outbound_per_node: u32,
    /// Towards one node.
    pub inbound_per_node: u32,
}

/// An open job, as the queue sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The job.
    pub id: JobId,
    /// Its state.
    pub state: JobState,
    /// Higher goes first.
    pub priority: i32,
    /// Order of arrival: microseconds since the Unix epoch.
    pub created_at_us: i64,
    /// Node that the machine is on; `None` when it is on none.
    pub source: Option<NodeName>,
    /// Node that is reserved; `None` before.
    pub target: Option<NodeName>,
}

/// Whether a pending job may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Start now.
    Start,
    /// Wait for a slot.
    Wait(QueueWait),
}

/// Why a pending job waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueWait {
    /// Which limit is reached, for people.
    pub limit: String,
    /// Place among the waiting, 1 is next.
    pub place: usize,
    /// How many wait in all.
    pub waiting: usize,
}

/// Slots that are in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slots {
    /// In the cluster.
    pub cluster: usize,
    /// Away from the node in question.
    pub outbound: usize,
}

/// Whether it is the turn of the pending job `id` among all open `entries`.
pub fn turn(id: &JobId, entries: &[Entry], limits: QueueLimits) -> Turn {
    turns(entries, limits).remove(id).unwrap_or_else(|| {
        Turn::Wait(QueueWait {
            limit: "the job is not in the queue".into(),
            place: 0,
            waiting: 0,
        })
    })
}

/// Whose turn it is of the pending jobs among all open `entries`.
///
/// Earlier jobs that could start now count as started, so two jobs never take one slot.
pub fn turns(entries: &[Entry], limits: QueueLimits) -> HashMap<JobId, Turn> {
    let mut waiting: Vec<&Entry> = entries
        .iter()
        .filter(|entry| entry.state == JobState::Pending)
        .collect();
    waiting.sort_by_key(|entry| (-entry.priority, entry.created_at_us, &entry.id));
    let mut taken = Taken::default();
    for entry in entries.iter().filter(|entry| entry.state.holds_slot()) {
        taken.take(entry);
    }
    let total = waiting.len();
    let mut turns = HashMap::with_capacity(total);
    for (at, entry) in waiting.into_iter().enumerate() {
        let turn = match limit_reached(entry.source.as_ref(), taken.slots(entry), limits) {
            None => {
                taken.take(entry);
                Turn::Start
            }
            Some(limit) => Turn::Wait(QueueWait {
                limit,
                place: at + 1,
                waiting: total,
            }),
        };
        turns.insert(entry.id.clone(), turn);
    }
    turns
}

/// Slots of the cluster and of each node.
#[derive(Debug, Default)]
struct Taken<'a> {
    cluster: usize,
    outbound: HashMap<&'a NodeName, usize>,
}

impl<'a> Taken<'a> {
    fn take(&mut self, entry: &'a Entry) {
        self.cluster += 1;
        if let Some(source) = &entry.source {
            *self.outbound.entry(source).or_default() += 1;
        }
    }

    fn slots(&self, entry: &Entry) -> Slots {
        let outbound = entry
            .source
            .as_ref()
            .and_then(|node| self.outbound.get(node));
        Slots {
            cluster: self.cluster,
            outbound: outbound.copied().unwrap_or_default(),
        }
    }
}

/// How many open jobs move machines towards `node`.
pub fn inbound(entries: &[Entry], node: &NodeName) -> usize {
    entries
        .iter()
        .filter(|entry| entry.state.holds_slot() && entry.target.as_ref() == Some(node))
        .count()
}

/// The limit, for people, that keeps a job away from `source` from starting beside those that have
/// `slots`; `None` when none does.
pub fn limit_reached(
    source: Option<&NodeName>,
    slots: Slots,
    limits: QueueLimits,
) -> Option<String> {
    if slots.cluster >= limits.per_cluster as usize {
        return Some(format!(
            "{} of {} migrations of the cluster are under way",
            slots.cluster, limits.per_cluster
        ));
    }
    let source = source?;
    (slots.outbound >= limits.outbound_per_node as usize).then(|| {
        format!(
            "{} of {} migrations from node {source} are under way",
            slots.outbound, limits.outbound_per_node
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: QueueLimits = QueueLimits {
        per_cluster: 3,
        outbound_per_node: 2,
        inbound_per_node: 2,
    };

    fn id(number: u32) -> JobId {
        JobId::parse(format!("{number:08x}-0000-4000-8000-000000000000")).expect("a uuid")
    }

    fn entry(number: u32, state: JobState, source: &str) -> Entry {
        Entry {
            id: id(number),
            state,
            priority: 0,
            created_at_us: i64::from(number),
            source: Some(NodeName::parse(source).expect("a name")),
            target: None,
        }
    }

    #[test]
    fn the_first_of_the_queue_starts_and_the_third_of_a_node_waits_with_its_place() {
        let queue: Vec<Entry> = (1..=4)
            .map(|number| entry(number, JobState::Pending, "worker1"))
            .collect();
        assert_eq!(turn(&id(1), &queue, LIMITS), Turn::Start);
        assert_eq!(turn(&id(2), &queue, LIMITS), Turn::Start);
        let Turn::Wait(wait) = turn(&id(3), &queue, LIMITS) else {
            panic!("a third started")
        };
        assert_eq!((wait.place, wait.waiting), (3, 4));
        assert_eq!(
            wait.limit,
            "2 of 2 migrations from node worker1 are under way"
        );
    }

    #[test]
    fn another_nodes_job_passes_a_full_node_but_not_a_full_cluster() {
        let mut queue = vec![
            entry(1, JobState::Copying, "worker1"),
            entry(2, JobState::Copying, "worker1"),
            entry(3, JobState::Pending, "worker1"),
            entry(4, JobState::Pending, "worker2"),
        ];
        assert_eq!(turn(&id(4), &queue, LIMITS), Turn::Start);
        queue.push(entry(5, JobState::Aborting, "worker3"));
        assert!(matches!(turn(&id(4), &queue, LIMITS), Turn::Wait(_)));
    }

    #[test]
    fn priority_goes_before_age() {
        let mut queue = vec![
            entry(1, JobState::Copying, "worker1"),
            entry(2, JobState::Pending, "worker1"),
            entry(3, JobState::Pending, "worker1"),
        ];
        queue[2].priority = 100;
        assert_eq!(turn(&id(3), &queue, LIMITS), Turn::Start);
        assert!(matches!(turn(&id(2), &queue, LIMITS), Turn::Wait(_)));
    }
}
