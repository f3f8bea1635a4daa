//! Migration policies: limits for the instances that carry certain labels, as KubeVirt's
//! MigrationPolicy means them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::limits::{MigrationLimits, MigrationSettings};

/// Labels of an object, or labels asked for.
pub type Labels = BTreeMap<String, String>;

/// One policy.
#[derive(Debug, Clone, PartialEq)]
pub struct MigrationPolicy {
    /// Unique in the cluster.
    pub name: String,
    /// Whom it is for. Without selectors it is for nobody.
    pub selectors: Option<Selectors>,
    /// What it sets; the rest stays as the cluster has it.
    pub settings: MigrationSettings,
}

/// Whom a policy is for: who has all of these labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selectors {
    /// Labels of the instance's namespace.
    pub namespace_selector: Labels,
    /// Labels of the instance.
    pub virtual_machine_instance_selector: Labels,
}

impl MigrationPolicy {
    /// The policy for an instance: the one that names most of its labels; of those the one that
    /// names most of the instance's own; of those the first by name.
    pub fn chosen<'a>(
        policies: &'a [Self],
        instance: &Labels,
        namespace: &Labels,
    ) -> Option<&'a Self> {
        let fitting = policies.iter().filter_map(|policy| {
            let selectors = policy.selectors.as_ref()?;
            let own = &selectors.virtual_machine_instance_selector;
            let place = &selectors.namespace_selector;
            let fits = has(instance, own) && has(namespace, place);
            let score = (own.len() + place.len(), own.len());
            fits.then_some((score, policy))
        });
        let best = fitting.max_by(|(left, one), (right, other)| {
            left.cmp(right).then_with(|| other.name.cmp(&one.name))
        });
        best.map(|(_, policy)| policy)
    }
}

impl MigrationLimits {
    /// These limits with what a policy sets; a value that can't be used changes nothing.
    #[must_use]
    pub fn under(&self, policy: &MigrationPolicy) -> Self {
        let set = &policy.settings;
        let (asked, _) = Self::resolve(self, set, &MigrationSettings::default());
        let mut limits = self.clone();
        if set.bandwidth_per_migration.is_some() {
            limits.bandwidth = asked.bandwidth;
        }
        if set.completion_timeout_per_gib.is_some() {
            limits.completion_timeout_per_gib = asked.completion_timeout_per_gib;
        }
        if set.max_downtime_ms.is_some() {
            limits.max_downtime_ms = asked.max_downtime_ms;
        }
        if set.allow_auto_converge.is_some() {
            limits.allow_auto_converge = asked.allow_auto_converge;
        }
        if set.allow_post_copy.is_some() {
            limits.allow_post_copy = asked.allow_post_copy;
        }
        // Unsaid, it follows post-copy.
        if set.allow_workload_disruption.is_some() || set.allow_post_copy.is_some() {
            limits.allow_workload_disruption = asked.allow_workload_disruption;
        }
        limits
    }
}

fn has(labels: &Labels, wanted: &Labels) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BytesPerSecond;
    use crate::limits::Setting;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    fn policy(
        name: &str,
        instance: &[(&str, &str)],
        namespace: &[(&str, &str)],
    ) -> MigrationPolicy {
        MigrationPolicy {
            name: name.to_owned(),
            selectors: Some(Selectors {
                namespace_selector: labels(namespace),
                virtual_machine_instance_selector: labels(instance),
            }),
            settings: MigrationSettings::default(),
        }
    }

    fn chosen(policies: &[MigrationPolicy], instance: &[(&str, &str)]) -> Option<String> {
        let namespace = labels(&[("team", "a")]);
        let found = MigrationPolicy::chosen(policies, &labels(instance), &namespace);
        found.map(|policy| policy.name.clone())
    }

    #[test]
    fn the_policy_that_names_most_wins_and_the_instance_counts_more() {
        let all = [
            policy("wide", &[], &[("team", "a")]),
            policy("own", &[("app", "db")], &[]),
            policy("both", &[("app", "db")], &[("team", "a")]),
            policy("a-both", &[("app", "db")], &[("team", "a")]),
        ];
        assert_eq!(chosen(&all, &[("app", "db")]).as_deref(), Some("a-both"));
        assert_eq!(chosen(&all[..2], &[("app", "db")]).as_deref(), Some("own"));
        assert_eq!(chosen(&all, &[("app", "web")]).as_deref(), Some("wide"));
        assert_eq!(chosen(&all, &[]).as_deref(), Some("wide"));
        assert_eq!(chosen(&all[1..2], &[]), None);
    }

    #[test]
    fn a_policy_without_selectors_is_for_nobody_and_with_empty_ones_for_all() {
        let mut nobody = policy("p", &[], &[]);
        assert_eq!(chosen(&[nobody.clone()], &[]).as_deref(), Some("p"));
        nobody.selectors = None;
        assert_eq!(chosen(&[nobody], &[]), None);
    }

    #[test]
    fn a_policy_changes_what_it_sets_and_nothing_else() {
        let base = MigrationLimits {
            completion_timeout_per_gib: 7,
            ..MigrationLimits::default()
        };
        let mut policy = policy("p", &[], &[]);
        policy.settings.bandwidth_per_migration = Some(Setting::Text("64Mi".to_owned()));
        policy.settings.allow_auto_converge = Some(Setting::Bool(true));
        policy.settings.max_downtime_ms = Some(Setting::Text("soon".to_owned()));
        let limits = base.under(&policy);
        assert_eq!(limits.bandwidth, BytesPerSecond(64 << 20));
        assert!(limits.allow_auto_converge);
        let rest = MigrationLimits {
            bandwidth: base.bandwidth,
            allow_auto_converge: false,
            ..limits
        };
        assert_eq!(rest, base);
    }
}
