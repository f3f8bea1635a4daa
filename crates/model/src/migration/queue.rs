//! Who may start, who waits, and for what.
//!
//! Called by `migration-coordinator/src/drive.rs` with all open jobs and the limits in force.

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

/// Whether it is the turn of the pending job `id` among all open `entries`.
///
/// Earlier jobs that could start now count as started, so two jobs never take one slot.
pub fn turn(id: &JobId, entries: &[Entry], limits: QueueLimits) -> Turn {
    let mut waiting: Vec<&Entry> = entries
        .iter()
        .filter(|entry| entry.state == JobState::Pending)
        .collect();
    waiting.sort_by_key(|entry| (-entry.priority, entry.created_at_us, entry.id.clone()));
    let mut running: Vec<&Entry> = entries
        .iter()
        .filter(|entry| entry.state.holds_slot())
        .collect();
    let total = waiting.len();
    for (at, entry) in waiting.into_iter().enumerate() {
        let reached = limit_reached(entry, &running, limits);
        if entry.id == *id {
            return match reached {
                None => Turn::Start,
                Some(limit) => Turn::Wait(QueueWait {
                    limit,
                    place: at + 1,
                    waiting: total,
                }),
            };
        }
        if reached.is_none() {
            running.push(entry);
        }
    }
    Turn::Wait(QueueWait {
        limit: "the job is not in the queue".into(),
        place: 0,
        waiting: total,
    })
}

/// How many open jobs move machines towards `node`.
pub fn inbound(entries: &[Entry], node: &NodeName) -> usize {
    entries
        .iter()
        .filter(|entry| entry.state.holds_slot() && entry.target.as_ref() == Some(node))
        .count()
}

fn limit_reached(entry: &Entry, running: &[&Entry], limits: QueueLimits) -> Option<String> {
    if running.len() >= limits.per_cluster as usize {
        return Some(format!(
            "{} of {} migrations of the cluster are under way",
            running.len(),
            limits.per_cluster
        ));
    }
    let source = entry.source.as_ref()?;
    let outbound = running
        .iter()
        .filter(|other| other.source.as_ref() == Some(source))
        .count();
    (outbound >= limits.outbound_per_node as usize).then(|| {
        format!(
            "{outbound} of {} migrations from node {source} are under way",
            limits.outbound_per_node
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
