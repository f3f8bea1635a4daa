//! Limits of migrations: from what users set in two places to the numbers in force.
//!
//! The KubeVirt object wins over the `kubevirt-config` ConfigMap, which wins over the defaults.
//! A value that can't be used keeps the last good one, and says so.

use crate::BytesPerSecond;
use crate::migration::queue::QueueLimits;
use crate::quantity;
use serde::Deserialize;
use std::fmt;

/// The limits in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationLimits {
    /// Migrations at once in the cluster.
    pub parallel_per_cluster: u32,
    /// Migrations at once away from a node.
    pub parallel_outbound_per_node: u32,
    /// Migrations at once towards a node; KubeVirt has no such limit.
    pub parallel_inbound_per_node: u32,
    /// Bytes per second of one migration; 0 is unlimited.
    pub bandwidth: BytesPerSecond,
    /// Seconds for each 10^9 bytes of memory; 0 means no deadline.
    pub completion_timeout_per_gib: u64,
    /// Seconds without progress; 0 means no limit.
    pub progress_timeout: u64,
    /// Longest stop of a guest that the switch may take, milliseconds.
    pub max_downtime_ms: u32,
    /// Whether the guest may be slowed so that the copy converges.
    pub allow_auto_converge: bool,
    /// Whether a copy that reached its time limit is completed with its guest paused, rather than
    /// given up.
    pub allow_workload_disruption: bool,
}

/// QEMU's own maximum of the downtime limit; see qapi/migration.json, downtime-limit.
pub const DOWNTIME_MAX_MS: u32 = 2_000_000;

/// Annotation of a node: what its link may carry for migrations each way, a quantity of bytes a
/// second.
pub const LINK_BUDGET: &str = "godwit.io/migration-bandwidth";

/// One end of a copy: its node's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Bytes a second for migrations that way; 0 is no limit.
    pub budget: BytesPerSecond,
    /// Migrations that may share it.
    pub parallel: u32,
}

/// What one copy gets: no more than its own `limit`, and than its share of both links. 0 is no
/// limit.
pub fn bandwidth(limit: BytesPerSecond, links: [Link; 2]) -> BytesPerSecond {
    let share = |link: Link| match link.budget.0 {
        0 => None,
        // A budget that is smaller than the number of copies is still one.
        budget => Some((budget / u64::from(link.parallel.max(1))).max(1)),
    };
    let own = Some(limit.0).filter(|limit| *limit > 0);
    let least = links.into_iter().filter_map(share).chain(own).min();
    BytesPerSecond(least.unwrap_or(0))
}

impl Default for MigrationLimits {
    /// KubeVirt's defaults, and two inbound.
    fn default() -> Self {
        Self {
            parallel_per_cluster: 5,
            parallel_outbound_per_node: 2,
            parallel_inbound_per_node: 2,
            bandwidth: BytesPerSecond(0),
            completion_timeout_per_gib: 150,
            progress_timeout: 150,
            max_downtime_ms: 100,
            allow_auto_converge: false,
            allow_workload_disruption: false,
        }
    }
}

/// What one place sets; everything may be absent, and numbers may be written as strings.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MigrationSettings {
    /// See [`MigrationLimits::parallel_per_cluster`].
    pub parallel_migrations_per_cluster: Option<Setting>,
    /// See [`MigrationLimits::parallel_outbound_per_node`].
    pub parallel_outbound_migrations_per_node: Option<Setting>,
    /// See [`MigrationLimits::parallel_inbound_per_node`].
    pub parallel_inbound_migrations_per_node: Option<Setting>,
    /// See [`MigrationLimits::bandwidth`].
    pub bandwidth_per_migration: Option<Setting>,
    /// See [`MigrationLimits::completion_timeout_per_gib`].
    #[serde(rename = "completionTimeoutPerGiB")]
    pub completion_timeout_per_gib: Option<Setting>,
    /// See [`MigrationLimits::progress_timeout`].
    pub progress_timeout: Option<Setting>,
    /// See [`MigrationLimits::max_downtime_ms`].
    pub max_downtime_ms: Option<Setting>,
    /// See [`MigrationLimits::allow_auto_converge`].
    pub allow_auto_converge: Option<Setting>,
    /// See [`MigrationLimits::allow_workload_disruption`].
    pub allow_workload_disruption: Option<Setting>,
}

/// One value as users write it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// `true`
    Bool(bool),
    /// `5`
    Number(u64),
    /// `"5"`, `"64Mi"`, `"true"`
    Text(String),
    /// Anything that makes no sense here, kept so that one bad value spoils no other.
    Other(serde::de::IgnoredAny),
}

/// A value that can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key as users write it.
    pub key: &'static str,
    /// What stands there.
    pub value: String,
    /// What should.
    pub expected: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} is not {}", self.key, self.value, self.expected)
    }
}

impl MigrationLimits {
    /// How many migrations run at once.
    pub fn queue(&self) -> QueueLimits {
        QueueLimits {
            per_cluster: self.parallel_per_cluster,
            outbound_per_node: self.parallel_outbound_per_node,
            inbound_per_node: self.parallel_inbound_per_node,
        }
    }

    /// The limits that `resource` and `config_map` ask for; `last` stands in for bad values.
    pub fn resolve(
        last: &Self,
        resource: &MigrationSettings,
        config_map: &MigrationSettings,
    ) -> (Self, Vec<Problem>) {
        let mut problems = vec![];
        let mut pick = Picker {
            resource,
            config_map,
            last,
            problems: &mut problems,
        };
        let limits = Self {
            parallel_per_cluster: pick.count(
                "parallelMigrationsPerCluster",
                |s| s.parallel_migrations_per_cluster.as_ref(),
                |l| l.parallel_per_cluster,
            ),
            parallel_outbound_per_node: pick.count(
                "parallelOutboundMigrationsPerNode",
                |s| s.parallel_outbound_migrations_per_node.as_ref(),
                |l| l.parallel_outbound_per_node,
            ),
            parallel_inbound_per_node: pick.count(
                "parallelInboundMigrationsPerNode",
                |s| s.parallel_inbound_migrations_per_node.as_ref(),
                |l| l.parallel_inbound_per_node,
            ),
            bandwidth: BytesPerSecond(pick.value(
                ("bandwidthPerMigration", "a quantity of bytes per second"),
                |s| s.bandwidth_per_migration.as_ref(),
                Setting::quantity,
                |l| l.bandwidth.0,
            )),
            completion_timeout_per_gib: pick.seconds(
                "completionTimeoutPerGiB",
                |s| s.completion_timeout_per_gib.as_ref(),
                |l| l.completion_timeout_per_gib,
            ),
            progress_timeout: pick.seconds(
                "progressTimeout",
                |s| s.progress_timeout.as_ref(),
                |l| l.progress_timeout,
            ),
            max_downtime_ms: pick.value(
                (
                    "maxDowntimeMs",
                    "a number of milliseconds from 1 to 2000000",
                ),
                |s| s.max_downtime_ms.as_ref(),
                Setting::downtime,
                |l| l.max_downtime_ms,
            ),
            allow_auto_converge: pick.switch(
                "allowAutoConverge",
                |s| s.allow_auto_converge.as_ref(),
                |l| l.allow_auto_converge,
            ),
            allow_workload_disruption: pick.switch(
                "allowWorkloadDisruption",
                |s| s.allow_workload_disruption.as_ref(),
                |l| l.allow_workload_disruption,
            ),
        };
        (limits, problems)
    }
}

struct Picker<'a> {
    resource: &'a MigrationSettings,
    config_map: &'a MigrationSettings,
    /// Stands in for bad values.
    last: &'a MigrationLimits,
    problems: &'a mut Vec<Problem>,
}

type Get = fn(&MigrationSettings) -> Option<&Setting>;
/// The same among limits.
type Of<T> = fn(&MigrationLimits) -> T;

impl Picker<'_> {
    fn count(&mut self, key: &'static str, get: Get, of: Of<u32>) -> u32 {
        self.value((key, "a number of at least 1"), get, Setting::count, of)
    }

    fn seconds(&mut self, key: &'static str, get: Get, of: Of<u64>) -> u64 {
        let key = (key, "a number of seconds");
        self.value(key, get, Setting::number, of)
    }

    fn switch(&mut self, key: &'static str, get: Get, of: Of<bool>) -> bool {
        self.value((key, "true or false"), get, Setting::boolean, of)
    }

    /// The first place that sets the key; its default when none does, the last one when it is bad.
    fn value<T>(
        &mut self,
        (key, expected): (&'static str, &'static str),
        get: Get,
        read: fn(&Setting) -> Option<T>,
        of: Of<T>,
    ) -> T {
        let Some(setting) = get(self.resource).or_else(|| get(self.config_map)) else {
            return of(&MigrationLimits::default());
        };
        read(setting).unwrap_or_else(|| {
            self.problems.push(Problem {
                key,
                value: setting.to_string(),
                expected,
            });
            of(self.last)
        })
    }
}

impl Setting {
    fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
            Self::Bool(_) | Self::Other(_) => None,
        }
    }

    pub(crate) fn count(&self) -> Option<u32> {
        self.number()
            .and_then(|number| u32::try_from(number).ok())
            .filter(|count| *count > 0)
    }

    fn downtime(&self) -> Option<u32> {
        self.count().filter(|ms| *ms <= DOWNTIME_MAX_MS)
    }

    fn quantity(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => quantity::parse(text).ok(),
            Self::Bool(_) | Self::Other(_) => None,
        }
    }

    fn boolean(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            Self::Text(text) => text.trim().parse().ok(),
            Self::Number(_) | Self::Other(_) => None,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::Other(_) => f.write_str("(something else)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Option<Setting> {
        Some(Setting::Text(value.to_owned()))
    }

    #[test]
    fn the_object_wins_over_the_config_map_and_strings_are_numbers() {
        let resource = MigrationSettings {
            parallel_migrations_per_cluster: Some(Setting::Number(9)),
            ..MigrationSettings::default()
        };
        let config_map = MigrationSettings {
            parallel_migrations_per_cluster: text("3"),
            bandwidth_per_migration: text("64Mi"),
            ..MigrationSettings::default()
        };
        let last = MigrationLimits::default();
        let (limits, problems) = MigrationLimits::resolve(&last, &resource, &config_map);
        assert_eq!(limits.parallel_per_cluster, 9);
        assert_eq!(limits.bandwidth, BytesPerSecond(64 << 20));
        assert_eq!(limits.progress_timeout, 150);
        assert!(problems.is_empty());
    }

    #[test]
    fn a_bad_value_keeps_the_last_good_one_and_says_so() {
        let last = MigrationLimits {
            parallel_per_cluster: 7,
            ..MigrationLimits::default()
        };
        let config_map = MigrationSettings {
            parallel_migrations_per_cluster: text("many"),
            ..MigrationSettings::default()
        };
        let none = MigrationSettings::default();
        let (limits, problems) = MigrationLimits::resolve(&last, &none, &config_map);
        assert_eq!(limits.parallel_per_cluster, 7);
        let said = problems.first().map(ToString::to_string);
        assert_eq!(
            said.as_deref(),
            Some("parallelMigrationsPerCluster \"many\" is not a number of at least 1")
        );
    }

    #[test]
    fn a_copy_gets_the_least_of_its_limit_and_its_shares_of_both_links() {
        let link = |budget, parallel| Link {
            budget: BytesPerSecond(budget),
            parallel,
        };
        let gets = |limit, links| bandwidth(BytesPerSecond(limit), links).0;
        assert_eq!(gets(0, [link(0, 2), link(0, 2)]), 0);
        assert_eq!(gets(50, [link(0, 2), link(0, 2)]), 50);
        assert_eq!(gets(50, [link(80, 2), link(90, 3)]), 30);
        assert_eq!(gets(10, [link(80, 2), link(90, 3)]), 10);
        assert_eq!(gets(0, [link(1, 2), link(0, 2)]), 1);
    }
}
