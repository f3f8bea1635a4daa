//! All declarations, checked and put where requests find them.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::connect::ExtraResource;
use crate::kind::{Kind, View, api_version};
use crate::openapi::object_meta;
use crate::schema::{self, Schema};
use crate::table::Columns;

/// One kind in one of its views: what a path of the API names.
pub(crate) struct Resource {
    pub(crate) kind: Arc<Kind>,
    pub(crate) view: View,
    /// `group/version`.
    pub(crate) api_version: String,
    pub(crate) schema: Schema,
    pub(crate) columns: Columns,
}

impl Resource {
    fn new(kind: &Arc<Kind>, view: &View) -> Result<Self, String> {
        let api_version = view.api_version();
        let at = |why: String| format!("{} in {api_version}: {why}", kind.kind);
        let schema = schema::compile(&with_meta(view.schema.as_ref().unwrap_or(&kind.schema)));
        let columns = Columns::new(view.columns.as_ref().unwrap_or(&kind.columns));
        Ok(Self {
            kind: Arc::clone(kind),
            view: view.clone(),
            schema: schema.map_err(at)?,
            columns: columns.map_err(at)?,
            api_version: view.api_version(),
        })
    }

    /// The schema as it was declared.
    pub(crate) fn declared_schema(&self) -> &Value {
        self.view.schema.as_ref().unwrap_or(&self.kind.schema)
    }
}

/// Adds what every object has to the schema of its kind.
fn with_meta(declared: &Value) -> Value {
    let mut schema = declared.clone();
    schema["type"] = json!("object");
    schema["properties"]["apiVersion"] = json!({"type": "string"});
    schema["properties"]["kind"] = json!({"type": "string"});
    schema["properties"]["metadata"] = object_meta();
    schema
}

/// A group as discovery shows it.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    /// The preferred one first.
    pub(crate) versions: Vec<Version>,
}

/// A version as discovery shows it.
pub(crate) struct Version {
    pub(crate) name: &'static str,
    pub(crate) resources: Vec<Arc<Resource>>,
    pub(crate) extras: Vec<Arc<ExtraResource>>,
}

/// Everything that is served. Core, if it is, comes first.
pub(crate) struct Registry {
    pub(crate) groups: Vec<Group>,
    resources: HashMap<(String, String, String), Arc<Resource>>,
    /// One view of each stored resource: its storage form.
    stored: Vec<Arc<Resource>>,
    extras: HashMap<(String, String, String), Arc<ExtraResource>>,
}

impl Registry {
    pub(crate) fn new(kinds: Vec<Kind>, extras: Vec<ExtraResource>) -> Result<Self, String> {
        let mut registry = Self {
            groups: Vec::new(),
            resources: HashMap::new(),
            stored: Vec::new(),
            extras: HashMap::new(),
        };
        for kind in kinds {
            registry.add_kind(&Arc::new(kind))?;
        }
        for extra in extras {
            registry.add_extra(&Arc::new(extra))?;
        }
        registry.groups.sort_by_key(|group| !group.name.is_empty());
        for group in &mut registry.groups {
            group.versions.sort_by_key(|version| priority(version.name));
        }
        Ok(registry)
    }

    fn add_kind(&mut self, kind: &Arc<Kind>) -> Result<(), String> {
        if kind.views.is_empty() {
            return Err(format!("{} has no view", kind.kind));
        }
        for view in &kind.views {
            let resource = Arc::new(Resource::new(kind, view)?);
            let key = key(view.group, view.version, kind.plural);
            if self.resources.insert(key, Arc::clone(&resource)).is_some() {
                return Err(format!(
                    "{} in {} stands twice",
                    kind.plural,
                    view.api_version()
                ));
            }
            let is_known = |known: &Arc<Resource>| known.kind.resource == kind.resource;
            if !self.stored.iter().any(is_known) {
                self.stored.push(Arc::clone(&resource));
            }
            self.version(view.group, view.version)
                .resources
                .push(resource);
        }
        Ok(())
    }

    fn add_extra(&mut self, extra: &Arc<ExtraResource>) -> Result<(), String> {
        let key = key(extra.group, extra.version, extra.name);
        if self.resources.contains_key(&key) || self.extras.insert(key, Arc::clone(extra)).is_some()
        {
            let place = api_version(extra.group, extra.version);
            return Err(format!("{} in {place} stands twice", extra.name));
        }
        self.version(extra.group, extra.version)
            .extras
            .push(Arc::clone(extra));
        Ok(())
    }

    fn version(&mut self, group: &'static str, version: &'static str) -> &mut Version {
        let at = self
            .groups
            .iter()
            .position(|known| known.name == group)
            .unwrap_or_else(|| {
                self.groups.push(Group {
                    name: group,
                    versions: Vec::new(),
                });
                self.groups.len() - 1
            });
        let versions = &mut self.groups[at].versions;
        let at = versions
            .iter()
            .position(|known| known.name == version)
            .unwrap_or_else(|| {
                versions.push(Version {
                    name: version,
                    resources: Vec::new(),
                    extras: Vec::new(),
                });
                versions.len() - 1
            });
        &mut versions[at]
    }

    pub(crate) fn resource(
        &self,
        group: &str,
        version: &str,
        plural: &str,
    ) -> Option<&Arc<Resource>> {
        self.resources.get(&key(group, version, plural))
    }

    /// Every stored resource once, in its storage form.
    pub(crate) fn stored(&self) -> &[Arc<Resource>] {
        &self.stored
    }

    /// The kind that an owner reference means.
    pub(crate) fn by_kind(&self, group: &str, kind: &str) -> Option<&Kind> {
        let mut all = self.resources.values();
        let found = all.find(|resource| resource.view.group == group && resource.kind.kind == kind);
        found.map(|resource| &*resource.kind)
    }

    /// `name` is `resource` or `resource/subresource`.
    pub(crate) fn extra(
        &self,
        group: &str,
        version: &str,
        name: &str,
    ) -> Option<&Arc<ExtraResource>> {
        self.extras.get(&key(group, version, name))
    }

    pub(crate) fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }
}

fn key(group: &str, version: &str, name: &str) -> (String, String, String) {
    (group.to_owned(), version.to_owned(), name.to_owned())
}

/// Sorts versions as Kubernetes does: v2, v1, v1beta2, v1beta1, v1alpha1, and then the rest.
fn priority(version: &str) -> (u8, std::cmp::Reverse<(u32, u32)>, String) {
    let rest = |number| (3, std::cmp::Reverse((number, 0)), version.to_owned());
    let Some(text) = version.strip_prefix('v') else {
        return rest(0);
    };
    for (level, word) in [(1, "beta"), (2, "alpha")] {
        if let Some((major, minor)) = text.split_once(word) {
            return match (major.parse(), minor.parse()) {
                (Ok(major), Ok(minor)) => (level, std::cmp::Reverse((major, minor)), String::new()),
                _ => rest(0),
            };
        }
    }
    text.parse().map_or_else(
        |_| rest(0),
        |major| (0, std::cmp::Reverse((major, 0)), String::new()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_stand_in_the_order_of_their_maturity() {
        let mut versions = [
            "v1alpha1", "v1beta1", "v10", "foo", "v2", "v1alpha3", "v1beta2",
        ];
        versions.sort_by_key(|version| priority(version));
        assert_eq!(
            versions,
            [
                "v10", "v2", "v1beta2", "v1beta1", "v1alpha3", "v1alpha1", "foo"
            ]
        );
    }

    #[test]
    fn a_resource_that_stands_twice_is_refused() {
        let kind = || Kind::custom("Toy", "toys", vec![View::new("x.io", "v1")]);
        assert!(Registry::new(vec![kind(), kind()], Vec::new()).is_err());
    }
}
