//! Verdicts as people are shown them: not of each node of a large fleet.

use crate::NodeName;
use serde::Serialize;

use super::Verdict;

/// Some nodes, and how many there are beside them. Becomes a part of an object's status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// Those first that are nearest to taking the machine.
    pub verdicts: Vec<Line>,
    /// How many are left out.
    #[serde(skip_serializing_if = "is_none")]
    pub verdicts_not_shown: usize,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Which.
    pub node: NodeName,
    /// What speaks against it.
    pub reasons: Vec<String>,
}

impl Shown {
    /// At most `most` of `verdicts`.
    pub fn of(verdicts: &[Verdict], most: usize) -> Self {
        let mut all: Vec<&Verdict> = verdicts.iter().collect();
        all.sort_by_key(|verdict| (verdict.obstacles.len(), &verdict.node));
        let verdicts = all.iter().take(most).map(|verdict| Line {
            node: verdict.node.clone(),
            reasons: verdict.obstacles.iter().map(ToString::to_string).collect(),
        });
        Self {
            verdicts: verdicts.collect(),
            verdicts_not_shown: all.len().saturating_sub(most),
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the form that serde asks for"
)]
fn is_none(count: &usize) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::PageSize;
    use crate::placement::Obstacle;
    use serde_json::json;

    #[test]
    fn the_nodes_that_are_nearest_to_taking_it_come_first_and_the_rest_is_counted() {
        let verdict = |node: &str, obstacles: &[Obstacle]| Verdict {
            node: NodeName::parse(node).expect("a name"),
            obstacles: obstacles.to_vec(),
        };
        let full = [Obstacle::Cpu, Obstacle::Hugepages(PageSize::Mi2)];
        let verdicts = [
            verdict("worker1", &full),
            verdict("worker3", &[Obstacle::Memory]),
            verdict("worker2", &[Obstacle::Cordoned]),
        ];
        let shown = serde_json::to_value(Shown::of(&verdicts, 2)).expect("JSON");
        let expected = json!({
            "verdicts": [
                { "node": "worker2", "reasons": ["node(s) were unschedulable"] },
                { "node": "worker3", "reasons": ["Insufficient memory"] },
            ],
            "verdictsNotShown": 1,
        });
        assert_eq!(shown, expected);
        let shown = serde_json::to_value(Shown::of(&verdicts[..1], 2)).expect("JSON");
        assert_eq!(
            shown["verdicts"][0]["reasons"],
            json!(["Insufficient cpu", "Insufficient hugepages-2Mi"])
        );
        assert!(shown["verdictsNotShown"].is_null());
    }
}
