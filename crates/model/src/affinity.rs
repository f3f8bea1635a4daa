//! Where a machine may run and what it wants near, as users of Kubernetes write it.
//!
//! The meaning is that of Kubernetes for pods
//! (<https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/>); what is left out is
//! refused by name when a machine is made.

use crate::vmi::Rest;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Labels of a node or of a machine.
pub type Labels = BTreeMap<String, String>;

/// `spec.affinity`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    /// Rules about nodes.
    pub node_affinity: NodeAffinity,
    /// What the machine wants near.
    pub pod_affinity: PodAffinity,
    /// What the machine doesn't want near.
    pub pod_anti_affinity: PodAffinity,
    /// Fields that aren't known.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.affinity.nodeAffinity`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAffinity {
    /// What must hold when the machine is placed.
    pub required_during_scheduling_ignored_during_execution: Option<NodeSelector>,
    /// What should hold.
    pub preferred_during_scheduling_ignored_during_execution: Vec<PreferredNode>,
    /// Fields that aren't known.
    #[serde(flatten)]
    pub rest: Rest,
}

/// Terms of which one must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    /// Any of them is enough; none of them matches nothing.
    pub node_selector_terms: Vec<NodeTerm>,
}

/// Requirements that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeTerm {
    /// About labels.
    pub match_expressions: Vec<Requirement>,
    /// About `metadata.name`, the only field there is.
    pub match_fields: Vec<Requirement>,
}

/// A term with a weight of 1 to 100.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct PreferredNode {
    /// How much it counts.
    pub weight: i32,
    /// What should hold.
    pub preference: NodeTerm,
}

/// One requirement of labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct Requirement {
    /// Key of the label.
    pub key: String,
    /// How the label is compared.
    pub operator: Operator,
    /// What with.
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum Operator {
    /// It has one of the values.
    #[default]
    In,
    /// It is absent, or has none of the values.
    NotIn,
    /// It is there.
    Exists,
    /// It isn't there.
    DoesNotExist,
    /// It is a larger number.
    Gt,
    /// It is a smaller number.
    Lt,
}

/// `podAffinity` or `podAntiAffinity`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodAffinity {
    /// What must hold when the machine is placed.
    pub required_during_scheduling_ignored_during_execution: Vec<PodTerm>,
    /// What should hold.
    pub preferred_during_scheduling_ignored_during_execution: Vec<PreferredPod>,
    /// Fields that aren't known.
    #[serde(flatten)]
    pub rest: Rest,
}

/// A term with a weight of 1 to 100.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PreferredPod {
    /// How much it counts.
    pub weight: i32,
    /// What should hold.
    pub pod_affinity_term: PodTerm,
}

/// Machines, and how far "near" them reaches.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodTerm {
    /// Which machines, by their labels; none matches nothing.
    pub label_selector: Option<LabelSelector>,
    /// Namespaces of those machines; none means the machine's own.
    pub namespaces: Vec<String>,
    /// `{}` means every namespace.
    pub namespace_selector: Option<LabelSelector>,
    /// Nodes with the same value of this label are near each other.
    pub topology_key: String,
    /// Fields that aren't known.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `metav1.LabelSelector`
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Labels that must be so.
    pub match_labels: Labels,
    /// Requirements that must hold.
    pub match_expressions: Vec<Requirement>,
}

/// `spec.topologySpreadConstraints[]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopologySpread {
    /// By how many machines a domain may be fuller than the emptiest.
    pub max_skew: i32,
    /// Nodes with the same value of this label are one domain.
    pub topology_key: String,
    /// `DoNotSchedule` or `ScheduleAnyway`.
    pub when_unsatisfiable: String,
    /// Which machines count.
    pub label_selector: Option<LabelSelector>,
    /// With fewer domains than this the emptiest counts as empty.
    pub min_domains: Option<i32>,
    /// Only `Honor`, the default.
    pub node_affinity_policy: Option<String>,
    /// Only `Ignore`, the default.
    pub node_taints_policy: Option<String>,
    /// Fields that aren't known.
    #[serde(flatten)]
    pub rest: Rest,
}

impl Requirement {
    /// Whether `labels` are so.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.holds(labels.get(&self.key).map(String::as_str))
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let among = |value: &str| self.values.iter().any(|known| known == value);
        match self.operator {
            Operator::In => value.is_some_and(among),
            Operator::NotIn => !value.is_some_and(among),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => self.compare(value).is_some_and(|(have, than)| have > than),
            Operator::Lt => self.compare(value).is_some_and(|(have, than)| have < than),
        }
    }

    fn compare(&self, value: Option<&str>) -> Option<(i64, i64)> {
        let than = self.values.first()?.parse().ok()?;
        Some((value?.parse().ok()?, than))
    }
}

impl LabelSelector {
    /// Whether `labels` are so; an empty selector matches everything.
    pub fn matches(&self, labels: &Labels) -> bool {
        let same = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.match_labels.iter().all(same)
            && self.match_expressions.iter().all(|one| one.matches(labels))
    }
}

impl NodeSelector {
    /// Whether the node `name` with `labels` is one of those that are meant.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        let mut terms = self.node_selector_terms.iter();
        terms.any(|term| term.matches(name, labels))
    }
}

impl NodeTerm {
    /// Whether all of it holds; an empty term matches nothing, as in Kubernetes.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        let empty = self.match_expressions.is_empty() && self.match_fields.is_empty();
        !empty
            && self.match_expressions.iter().all(|one| one.matches(labels))
            && self.match_fields.iter().all(|one| one.holds(Some(name)))
    }
}

/// Which machines a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Crowd {
    /// Their namespaces; `None` means all.
    pub namespaces: Option<BTreeSet<String>>,
    /// Their labels; `None` matches nothing.
    pub selector: Option<LabelSelector>,
}

impl Crowd {
    /// Whether a machine is one of them.
    pub fn has(&self, namespace: &str, labels: &Labels) -> bool {
        let mut spaces = self.namespaces.iter();
        spaces.all(|spaces| spaces.contains(namespace))
            && self
                .selector
                .as_ref()
                .is_some_and(|one| one.matches(labels))
    }
}

impl PodTerm {
    /// Whom it means, when a machine of `namespace` says it.
    pub fn crowd(&self, namespace: &str) -> Crowd {
        let own = || BTreeSet::from([namespace.to_owned()]);
        let namespaces = match (&self.namespace_selector, self.namespaces.is_empty()) {
            // Only the empty selector is let in.
            (Some(_), _) => None,
            (None, true) => Some(own()),
            (None, false) => Some(self.namespaces.iter().cloned().collect()),
        };
        Crowd {
            namespaces,
            selector: self.label_selector.clone(),
        }
    }
}

impl TopologySpread {
    /// Whom it counts, when a machine of `namespace` says it.
    pub fn crowd(&self, namespace: &str) -> Crowd {
        Crowd {
            namespaces: Some(BTreeSet::from([namespace.to_owned()])),
            selector: self.label_selector.clone(),
        }
    }
}
