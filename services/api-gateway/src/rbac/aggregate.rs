//! Cluster roles that are put together from others, chosen by label.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use godwit_apimachinery::object::label;
use godwit_apimachinery::{LabelSelector, Stored};
use serde_json::Value;

use super::rule::Rule;

/// Cluster roles by name, in the order in which rules are put together.
pub(super) type ClusterRoles<'a> = BTreeMap<&'a str, &'a Value>;

pub(super) fn by_name(roles: &[Arc<Stored>]) -> ClusterRoles<'_> {
    let named = roles.iter().map(|role| (role.name().name, role.object()));
    named.collect()
}

/// Whether its rules come from other roles.
pub(super) fn is_aggregated(role: &Value) -> bool {
    role["aggregationRule"].is_object()
}

/// The rules of a role: its own, or those of all that its selectors choose, and of what those are
/// put together from.
pub(super) fn rules(role: &Value, all: &ClusterRoles<'_>) -> Vec<Rule> {
    if !is_aggregated(role) {
        return Rule::list(&role["rules"]);
    }
    let mut rules: Vec<Rule> = Vec::new();
    let mut known: HashSet<Rule> = HashSet::new();
    for chosen in closure(role, all) {
        for rule in Rule::list(&chosen["rules"]) {
            if known.insert(rule.clone()) {
                rules.push(rule);
            }
        }
    }
    rules
}

/// Every role without selectors of its own that `role` reaches, each once and by name.
fn closure<'a>(role: &'a Value, all: &ClusterRoles<'a>) -> Vec<&'a Value> {
    let mut reached: BTreeMap<&str, &Value> = BTreeMap::new();
    let mut open = vec![role];
    while let Some(role) = open.pop() {
        for selector in selectors(role) {
            for (name, chosen) in all {
                if selector.fits(|key| label(chosen, key)) && reached.insert(name, chosen).is_none()
                {
                    open.push(chosen);
                }
            }
        }
    }
    reached
        .into_values()
        .filter(|role| !is_aggregated(role))
        .collect()
}

/// One that can't be read chooses nothing; validation refuses it.
fn selectors(role: &Value) -> Vec<LabelSelector> {
    let list = role["aggregationRule"]["clusterRoleSelectors"].as_array();
    list.into_iter()
        .flatten()
        .filter_map(|selector| LabelSelector::from_json(selector).ok())
        .collect()
}
