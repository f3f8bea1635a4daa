//! Nobody grants what they don't hold themselves.

use std::collections::{BTreeMap, BTreeSet};

use godwit_apimachinery::UserInfo;

use super::rule::{Rule, quoted};
use super::snapshot::Snapshot;

/// What of `wanted` isn't among `held`, each part on its own.
pub(crate) fn missing_rights(held: &[&Rule], wanted: &[Rule]) -> Vec<Rule> {
    let parts = wanted.iter().flat_map(Rule::break_down);
    parts
        .filter(|part| !held.iter().any(|rule| rule.covers(part)))
        .collect()
}

/// Why `user` may not grant `wanted` in `namespace` (everywhere when that is empty), in Kubernetes'
/// words. `None` when they hold all of it.
pub(crate) fn not_held(
    snapshot: &Snapshot,
    user: &UserInfo,
    namespace: &str,
    wanted: &[Rule],
) -> Option<String> {
    let held = snapshot.held(user, namespace);
    let missing = missing_rights(&held.rules, wanted);
    if held.all || missing.is_empty() {
        return None;
    }
    let lines: BTreeSet<String> = compact(missing).iter().map(Rule::text).collect();
    let lines: Vec<String> = lines.into_iter().collect();
    let mut text = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        lines.join("\n")
    );
    if !held.errors.is_empty() {
        text = format!("{text}; resolution errors: [{}]", held.errors.join(", "));
    }
    Some(text)
}

/// Puts together what differs by its verb alone, as Kubernetes does it.
fn compact(parts: Vec<Rule>) -> Vec<Rule> {
    let mut merged: BTreeMap<Rule, Vec<String>> = BTreeMap::new();
    let mut rest = Vec::new();
    for mut part in parts {
        if part.resources.len() != 1 || !part.non_resource_urls.is_empty() {
            rest.push(part);
            continue;
        }
        let verbs = std::mem::take(&mut part.verbs);
        let known = merged.entry(part).or_default();
        for verb in verbs {
            if !known.contains(&verb) {
                known.push(verb);
            }
        }
    }
    let merged = merged
        .into_iter()
        .map(|(rule, verbs)| Rule { verbs, ..rule });
    merged.chain(rest).collect()
}
