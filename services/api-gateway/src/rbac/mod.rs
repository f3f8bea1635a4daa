//! Role-based access control, as Kubernetes does it: who may do what, from the objects that say so.
//!
//! `rule`, `snapshot`, `aggregate` and `escalation` decide, and neither wait nor read anything.
//! [`Policies`] keeps what they decide by compiled; `defaults` are the objects of the first start,
//! and `upkeep` shows in each aggregated role what it has become.

mod aggregate;
mod defaults;
mod escalation;
mod policies;
mod rule;
mod snapshot;
#[cfg(test)]
mod tests;
mod upkeep;

pub(crate) use defaults::make as make_defaults;
pub(crate) use escalation::{missing_rights, not_held};
pub(crate) use policies::Policies;
pub(crate) use rule::Rule;
pub(crate) use snapshot::{RoleRef, Snapshot, Verdict};
pub(crate) use upkeep::{run as keep_up, settle as settle_aggregated};

/// The group of all four kinds.
pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
/// Resource keys of the four kinds, as the ledger knows them.
pub(crate) const ROLES: &str = "roles.rbac.authorization.k8s.io";
pub(crate) const CLUSTER_ROLES: &str = "clusterroles.rbac.authorization.k8s.io";
pub(crate) const ROLE_BINDINGS: &str = "rolebindings.rbac.authorization.k8s.io";
pub(crate) const CLUSTER_ROLE_BINDINGS: &str = "clusterrolebindings.rbac.authorization.k8s.io";
/// All of them, in the order in which [`Snapshot::compile`] takes them.
pub(crate) const RESOURCES: [&str; 4] =
    [ROLES, CLUSTER_ROLES, ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS];
