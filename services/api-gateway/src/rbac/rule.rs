//! One rule of a role: what it matches, and whether it covers another.

use godwit_apimachinery::AccessRequest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Stands for every verb, group, resource or path.
const ALL: &str = "*";

/// `PolicyRule` of rbac.authorization.k8s.io.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) api_groups: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub(crate) non_resource_urls: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) resource_names: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) resources: Vec<String>,
    pub(crate) verbs: Vec<String>,
}

impl Rule {
    /// The rules in an object's `rules`. What has another form than its schema says allows nothing.
    pub(crate) fn list(rules: &Value) -> Vec<Self> {
        let items = rules.as_array().into_iter().flatten();
        items
            .map(|rule| Self::deserialize(rule).unwrap_or_default())
            .collect()
    }

    /// Everything.
    pub(crate) fn full_authority() -> [Self; 2] {
        let all = || vec![ALL.to_owned()];
        let resources = Self {
            verbs: all(),
            api_groups: all(),
            resources: all(),
            ..Self::default()
        };
        let paths = Self {
            verbs: all(),
            non_resource_urls: all(),
            ..Self::default()
        };
        [resources, paths]
    }

    /// Whether what is asked for is in here.
    pub(crate) fn allows(&self, access: &AccessRequest) -> bool {
        if !has(&self.verbs, &access.verb) {
            return false;
        }
        if access.resource.is_empty() {
            return self.has_path(&access.path);
        }
        has(&self.api_groups, &access.group)
            && self.has_resource(&access.resource, &access.subresource)
            && (self.resource_names.is_empty() || self.resource_names.contains(&access.name))
    }

    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|mine| {
            if mine == ALL {
                return true;
            }
            match (mine.split_once('/'), subresource) {
                (None, "") => mine == resource,
                (Some((ALL, sub)), asked) => !asked.is_empty() && sub == asked,
                (Some((of, sub)), asked) => of == resource && sub == asked,
                (None, _) => false,
            }
        })
    }

    fn has_path(&self, path: &str) -> bool {
        let matches = |mine: &String| match mine.strip_suffix('*') {
            Some(start) => path.starts_with(start),
            None => mine == path,
        };
        self.non_resource_urls.iter().any(matches)
    }

    /// This rule as rules that name one thing each.
    pub(super) fn break_down(&self) -> Vec<Self> {
        let mut parts = Vec::new();
        for verb in &self.verbs {
            let one = || Self {
                verbs: vec![verb.clone()],
                ..Self::default()
            };
            for group in &self.api_groups {
                for resource in &self.resources {
                    let part = Self {
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        ..one()
                    };
                    if self.resource_names.is_empty() {
                        parts.push(part);
                        continue;
                    }
                    parts.extend(self.resource_names.iter().map(|name| Self {
                        resource_names: vec![name.clone()],
                        ..part.clone()
                    }));
                }
            }
            parts.extend(self.non_resource_urls.iter().map(|path| Self {
                non_resource_urls: vec![path.clone()],
                ..one()
            }));
        }
        parts
    }

    /// Whether everything that `other`, which is broken down, allows is allowed by this rule.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let groups = other
            .api_groups
            .iter()
            .all(|group| has(&self.api_groups, group));
        let names = self.resource_names.is_empty()
            || (!other.resource_names.is_empty()
                && other
                    .resource_names
                    .iter()
                    .all(|name| self.resource_names.contains(name)));
        other.verbs.iter().all(|verb| has(&self.verbs, verb))
            && groups
            && other
                .resources
                .iter()
                .all(|resource| self.covers_resource(resource))
            && names
            && other
                .non_resource_urls
                .iter()
                .all(|path| self.has_path(path))
    }

    fn covers_resource(&self, resource: &str) -> bool {
        if has(&self.resources, resource) {
            return true;
        }
        match resource.split_once('/') {
            Some((_, sub)) => self.resources.contains(&format!("{ALL}/{sub}")),
            None => false,
        }
    }

    /// As Kubernetes writes a rule in a message.
    pub(super) fn text(&self) -> String {
        let lists = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let parts: Vec<String> = lists
            .into_iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| format!("{name}:{}", quoted(list)))
            .collect();
        format!("{{{}}}", parts.join(", "))
    }
}

/// A list as Go's `%q` prints it: `["a" "b"]`.
pub(super) fn quoted(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == ALL || item == wanted)
}
