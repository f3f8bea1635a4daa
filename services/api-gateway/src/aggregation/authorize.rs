//! Who may do what, where two know users: our rules for ours, the cluster for its own.

use std::sync::Arc;

use async_trait::async_trait;
use godwit_apimachinery::{AccessRequest, Authorizer, Decision, Realm, UserInfo};

use super::Cluster;
use crate::auth::AUTHENTICATED;
use crate::authorize::Rules;

/// Open to all of the cluster's users: a probe must not depend on another server.
const HEALTH: [&str; 3] = ["/healthz", "/livez", "/readyz"];
/// Open to everyone that the cluster knows: kube-apiserver asks for these as users that have no
/// rights, and a group whose discovery fails blocks the deletion of every namespace.
const DISCOVERY: [&str; 4] = ["/api", "/apis", "/openapi", "/version"];

/// Asks whoever knows the user.
pub(crate) struct Delegating {
    own: Rules,
    /// `None` if no cluster has users here.
    cluster: Option<Arc<Cluster>>,
}

impl Delegating {
    pub(crate) fn new(own: Rules, cluster: Option<Arc<Cluster>>) -> Self {
        Self { own, cluster }
    }
}

#[async_trait]
impl Authorizer for Delegating {
    async fn authorize(&self, user: &UserInfo, access: &AccessRequest) -> Decision {
        match (user.realm, &self.cluster) {
            (Realm::Own, _) => self.own.authorize(user, access).await,
            (Realm::Cluster, _) if is_open(user, access) => Decision::Allow,
            (Realm::Cluster, Some(cluster)) => cluster.decide(user, access).await,
            (Realm::Cluster, None) => Decision::Deny("no cluster is configured".to_owned()),
        }
    }
}

fn is_open(user: &UserInfo, access: &AccessRequest) -> bool {
    if !access.resource.is_empty() || !["get", "head"].contains(&access.verb.as_str()) {
        return false;
    }
    let below = |root: &&str| {
        let rest = access.path.strip_prefix(*root);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let known = user.groups.iter().any(|group| group == AUTHENTICATED);
    HEALTH.iter().any(below) || (known && DISCOVERY.iter().any(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(group: &str, verb: &str, path: &str) -> bool {
        let user = UserInfo {
            groups: vec![group.to_owned()],
            realm: Realm::Cluster,
            ..UserInfo::default()
        };
        let access = AccessRequest {
            verb: verb.to_owned(),
            path: path.to_owned(),
            ..AccessRequest::default()
        };
        is_open(&user, &access)
    }

    #[test]
    fn discovery_is_open_to_whom_the_cluster_knows_and_health_to_all() {
        for path in ["/apis", "/apis/godwit.io/v1alpha1", "/openapi/v2", "/livez"] {
            assert!(open(AUTHENTICATED, "get", path), "{path}");
        }
        assert!(open("system:unauthenticated", "get", "/readyz/ledger"));
        assert!(!open("system:unauthenticated", "get", "/apis"));
        assert!(!open(AUTHENTICATED, "post", "/apis"));
        assert!(!open(AUTHENTICATED, "get", "/metrics"));
        assert!(!open(AUTHENTICATED, "get", "/apisx"));
    }
}
