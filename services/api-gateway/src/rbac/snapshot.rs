//! All roles and bindings of one moment, compiled: who asks finds what they were granted at once.

use std::collections::HashMap;
use std::sync::Arc;

use godwit_apimachinery::{AccessRequest, Realm, Stored, UserInfo};
use serde_json::Value;

use super::aggregate;
use super::rule::Rule;

/// Members may do everything, whatever the objects say: a way in when they are broken.
const MASTERS: &str = "system:masters";
/// Namespace of what is granted everywhere.
const EVERYWHERE: &str = "";

/// What the objects say. Never changes.
#[derive(Default)]
pub(crate) struct Snapshot {
    /// By namespace, [`EVERYWHERE`] for all of them.
    granted: HashMap<String, Grants>,
    /// By namespace and name; cluster roles have no namespace.
    roles: HashMap<(String, String), Arc<[Rule]>>,
}

/// By user (`u:name`) or group (`g:name`).
type Grants = HashMap<String, Vec<Arc<Grant>>>;

struct Grant {
    /// `None` where the role that is bound isn't there.
    rules: Option<Arc<[Rule]>>,
    role: RoleRef,
    /// Such as `ClusterRoleBinding "a" of ClusterRole "b" to Group "c"`.
    source: String,
}

/// What a binding binds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RoleRef {
    /// `Role` or `ClusterRole`.
    pub(crate) kind: String,
    pub(crate) name: String,
}

/// Whether somebody may do something.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// And which binding says so; empty for [`MASTERS`].
    Allowed(String),
    /// And what was broken on the way, such as a role that isn't there; mostly empty.
    Denied(String),
}

/// What somebody may do in a namespace, and everywhere.
pub(crate) struct Held<'a> {
    /// Whether they may do everything, whatever `rules` say.
    pub(crate) all: bool,
    pub(crate) rules: Vec<&'a Rule>,
    /// What was broken on the way.
    pub(crate) errors: Vec<String>,
}

impl RoleRef {
    /// What an object's `roleRef` says.
    pub(crate) fn of(binding: &Value) -> Self {
        let text = |key: &str| {
            binding["roleRef"][key]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        Self {
            kind: text("kind"),
            name: text("name"),
        }
    }

    fn missing(&self) -> String {
        let kind = self.kind.to_lowercase();
        format!("{kind}.{} {:?} not found", super::GROUP, self.name)
    }
}

impl Snapshot {
    /// From the objects of [`RESOURCES`](super::RESOURCES), in that order.
    pub(crate) fn compile(objects: &[Vec<Arc<Stored>>; 4]) -> Self {
        let [roles, cluster_roles, bindings, cluster_bindings] = objects;
        let mut snapshot = Self::default();
        for role in roles {
            let rules = Rule::list(&role.object()["rules"]);
            snapshot.roles.insert(key(role), rules.into());
        }
        let by_name = aggregate::by_name(cluster_roles);
        for role in cluster_roles {
            let rules = aggregate::rules(role.object(), &by_name);
            snapshot.roles.insert(key(role), rules.into());
        }
        for binding in cluster_bindings.iter().chain(bindings) {
            snapshot.bind(binding);
        }
        snapshot
    }

    fn bind(&mut self, binding: &Stored) {
        let (name, object) = (binding.name(), binding.object());
        let role = RoleRef::of(object);
        let rules = self.role(&role, name.namespace);
        let head = match name.namespace {
            EVERYWHERE => format!("ClusterRoleBinding {:?}", name.name),
            space => format!("RoleBinding {:?}", format!("{}/{space}", name.name)),
        };
        let head = format!("{head} of {} {:?}", role.kind, role.name);
        let here = self.granted.entry(name.namespace.to_owned()).or_default();
        for subject in object["subjects"].as_array().into_iter().flatten() {
            let Some((key, text)) = subject_key(subject, name.namespace) else {
                continue;
            };
            let grant = Grant {
                rules: rules.clone(),
                role: role.clone(),
                source: format!("{head} to {text}"),
            };
            here.entry(key).or_default().push(Arc::new(grant));
        }
    }

    /// The rules of what a binding in `namespace` binds (empty for a cluster role binding). `None`
    /// when it isn't there.
    pub(crate) fn role(&self, role: &RoleRef, namespace: &str) -> Option<Arc<[Rule]>> {
        let space = match role.kind.as_str() {
            "Role" if namespace.is_empty() => return None,
            "Role" => namespace,
            "ClusterRole" => EVERYWHERE,
            _ => return None,
        };
        let key = (space.to_owned(), role.name.clone());
        self.roles.get(&key).cloned()
    }

    /// Whether `user` may do what `access` says.
    pub(crate) fn decide(&self, user: &UserInfo, access: &AccessRequest) -> Verdict {
        if is_master(user) {
            return Verdict::Allowed(String::new());
        }
        let mut errors = Vec::new();
        for grant in self.grants(user, &access.namespace) {
            let Some(rules) = &grant.rules else {
                errors.push(grant.role.missing());
                continue;
            };
            if rules.iter().any(|rule| rule.allows(access)) {
                return Verdict::Allowed(format!("RBAC: allowed by {}", grant.source));
            }
        }
        errors.dedup();
        Verdict::Denied(match errors.as_slice() {
            [] => String::new(),
            [error] => format!("RBAC: {error}"),
            errors => format!("RBAC: [{}]", errors.join(", ")),
        })
    }

    /// What `user` holds in `namespace`; only what is granted everywhere when that is empty.
    pub(crate) fn held(&self, user: &UserInfo, namespace: &str) -> Held<'_> {
        let mut held = Held {
            all: is_master(user),
            rules: Vec::new(),
            errors: Vec::new(),
        };
        for grant in self.grants(user, namespace) {
            match &grant.rules {
                Some(rules) => held.rules.extend(rules.iter()),
                None => held.errors.push(grant.role.missing()),
            }
        }
        held
    }

    fn grants<'a>(
        &'a self,
        user: &UserInfo,
        namespace: &str,
    ) -> impl Iterator<Item = &'a Arc<Grant>> {
        let keys: Vec<String> = std::iter::once(format!("u:{}", user.name))
            .chain(user.groups.iter().map(|group| format!("g:{group}")))
            // Our rules are about our users: another realm may have somebody of the same name.
            .filter(|_| user.realm == Realm::Own)
            .collect();
        let inside = match namespace {
            EVERYWHERE => None,
            namespace => self.granted.get(namespace),
        };
        let places = [self.granted.get(EVERYWHERE), inside];
        places.into_iter().flatten().flat_map(move |grants| {
            let found: Vec<&Arc<Grant>> = keys
                .iter()
                .filter_map(|key| grants.get(key))
                .flatten()
                .collect();
            found
        })
    }
}

/// Whether no object can take anything from them.
fn is_master(user: &UserInfo) -> bool {
    user.realm == Realm::Own && user.groups.iter().any(|group| group == MASTERS)
}

fn key(role: &Stored) -> (String, String) {
    let name = role.name();
    (name.namespace.to_owned(), name.name.to_owned())
}

/// Under what a subject's grants are found, and how a reason names it. An account of no namespace is
/// one of the binding's.
fn subject_key(subject: &Value, namespace: &str) -> Option<(String, String)> {
    let text = |key: &str| subject[key].as_str().unwrap_or_default();
    let name = text("name");
    match text("kind") {
        "User" => Some((format!("u:{name}"), format!("User {name:?}"))),
        "Group" => Some((format!("g:{name}"), format!("Group {name:?}"))),
        "ServiceAccount" => {
            let said = [text("namespace"), namespace];
            let space = said.into_iter().find(|space| !space.is_empty())?;
            let user = format!("u:system:serviceaccount:{space}:{name}");
            Some((
                user,
                format!("ServiceAccount {:?}", format!("{name}/{space}")),
            ))
        }
        _ => None,
    }
}
