//! Who may do what. Thin on purpose: three groups and everyone else who is known.
//!
//! Administrators may do all. Editors may write machines and their configuration. Everyone else
//! who proved who they are may read, but no secrets. To move machines or close nodes is for
//! administrators alone, as in KubeVirt since 1.5.

use async_trait::async_trait;
use godwit_apimachinery::{AccessRequest, Authorizer, Decision, UserInfo};

/// Groups that may do everything.
const ADMINS: [&str; 2] = ["system:masters", "godwit:admins"];
/// Group that may write [`EDITABLE`].
const EDITORS: &str = "godwit:editors";
/// Groups that may read.
const READERS: [&str; 2] = ["godwit:viewers", "system:authenticated"];
/// What editors may write: group and resource.
const EDITABLE: [(&str, &str); 6] = [
    ("kubevirt.io", "virtualmachines"),
    ("kubevirt.io", "virtualmachineinstances"),
    ("subresources.kubevirt.io", "virtualmachines"),
    ("subresources.kubevirt.io", "virtualmachineinstances"),
    ("", "configmaps"),
    ("", "secrets"),
];
const READ_VERBS: [&str; 3] = ["get", "list", "watch"];
/// Asking about oneself; every known user may.
const SELF_REVIEWS: [(&str, &str); 3] = [
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authentication.k8s.io", "selfsubjectreviews"),
];
/// What readers may read of the core group, to be shown: all but secrets.
const READABLE_CORE: [&str; 5] = ["namespaces", "nodes", "events", "configmaps", "pods"];
/// Groups that readers may read, to be shown.
const OUR_GROUPS: [&str; 7] = [
    "kubevirt.io",
    "nodemaintenance.kubevirt.io",
    "nodemaintenance.medik8s.io",
    "events.k8s.io",
    "coordination.k8s.io",
    "project.openshift.io",
    "godwit.io",
];
/// Paths outside the API that anonymous users got as far as.
const OPEN_PREFIXES: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// The rules above.
pub(crate) struct Rules;

#[async_trait]
impl Authorizer for Rules {
    async fn authorize(&self, user: &UserInfo, access: &AccessRequest) -> Decision {
        match allowed(user, access) {
            true => Decision::Allow,
            false => Decision::Deny(String::new()),
        }
    }
}

/// Whether a user may do something.
pub(crate) fn allowed(user: &UserInfo, access: &AccessRequest) -> bool {
    let is_in = |group: &str| user.groups.iter().any(|mine| mine == group);
    if ADMINS.iter().any(|group| is_in(group)) {
        return true;
    }
    let reader = READERS.iter().any(|group| is_in(group)) || is_in(EDITORS);
    if access.resource.is_empty() {
        let reads = matches!(access.verb.as_str(), "get" | "head" | "options");
        let open = OPEN_PREFIXES
            .iter()
            .any(|prefix| access.path.starts_with(prefix));
        return reads && (reader || open);
    }
    let what = (access.group.as_str(), access.resource.as_str());
    // To migrate is to make a migration, whichever door it is asked at.
    let migrates = access.subresource == "migrate";
    let editable = is_in(EDITORS) && EDITABLE.contains(&what) && !migrates;
    let self_review = access.verb == "create" && SELF_REVIEWS.contains(&what);
    let secret = what == ("", "secrets");
    let reads = READ_VERBS.contains(&access.verb.as_str());
    editable || (reader && (self_review || (reads && !secret)))
}

/// What a user may do, as rules of a SelfSubjectRulesReview: verbs, groups, resources.
pub(crate) fn rules(user: &UserInfo) -> Vec<Rule> {
    let is_in = |group: &str| user.groups.iter().any(|mine| mine == group);
    if ADMINS.iter().any(|group| is_in(group)) {
        return vec![Rule::new(&["*"], &["*"], &["*"])];
    }
    let mut rules: Vec<Rule> = SELF_REVIEWS
        .iter()
        .map(|(group, resource)| Rule::new(&["create"], &[group], &[resource]))
        .collect();
    rules.push(Rule::new(&READ_VERBS, &[""], &READABLE_CORE));
    rules.push(Rule::new(&READ_VERBS, &OUR_GROUPS, &["*"]));
    if is_in(EDITORS) {
        let editable = EDITABLE.iter();
        rules.extend(editable.map(|(group, resource)| Rule::new(&["*"], &[group], &[resource])));
    }
    rules
}

/// One line of what a user may do.
pub(crate) struct Rule {
    pub(crate) verbs: Vec<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) resources: Vec<String>,
}

impl Rule {
    fn new(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Self {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        Self {
            verbs: owned(verbs),
            groups: owned(groups),
            resources: owned(resources),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(groups: &[&str], verb: &str, group: &str, resource: &str) -> bool {
        let user = UserInfo {
            name: "x".to_owned(),
            groups: groups.iter().map(|&group| group.to_owned()).collect(),
            uid: String::new(),
        };
        let access = AccessRequest {
            verb: verb.to_owned(),
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: String::new(),
            namespace: "default".to_owned(),
            name: String::new(),
            path: String::new(),
        };
        allowed(&user, &access)
    }

    #[test]
    fn only_administrators_move_machines_and_close_nodes() {
        let moves = ("kubevirt.io", "virtualmachineinstancemigrations");
        let closes = ("kubevirt.io", "nodemaintenances");
        for (group, resource) in [moves, closes] {
            for admin in ["system:masters", "godwit:admins"] {
                assert!(may(&[admin], "create", group, resource));
            }
            for other in ["godwit:viewers", "godwit:editors", "system:authenticated"] {
                assert!(!may(&[other], "create", group, resource));
                assert!(!may(&[other], "delete", group, resource));
                assert!(may(&[other], "watch", group, resource));
            }
        }
    }

    #[test]
    fn secrets_are_not_for_readers() {
        assert!(!may(&["system:authenticated"], "get", "", "secrets"));
        assert!(may(&["godwit:editors"], "get", "", "secrets"));
        assert!(may(&["system:authenticated"], "get", "", "configmaps"));
    }

    #[test]
    fn everyone_known_may_ask_about_themselves() {
        let review = ("authorization.k8s.io", "selfsubjectaccessreviews");
        assert!(may(&["system:authenticated"], "create", review.0, review.1));
        assert!(!may(
            &["system:unauthenticated"],
            "create",
            review.0,
            review.1
        ));
        assert!(!may(&[], "get", "", "nodes"));
    }
}
