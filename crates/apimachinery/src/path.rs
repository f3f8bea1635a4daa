//! What a request path means.

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Version,
    /// `/api`
    CoreRoot,
    /// `/apis`
    GroupsRoot,
    /// `/apis/G`
    Group(String),
    /// `/api/V` with an empty group, or `/apis/G/V`
    GroupVersion(String, String),
    OpenApiV2,
    OpenApiV3Root,
    /// Group and version.
    OpenApiV3(String, String),
    Resource(ResourcePath),
    Nothing,
}

/// A path below a group and version.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct ResourcePath {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) namespace: Option<String>,
    pub(crate) resource: String,
    pub(crate) name: Option<String>,
    /// Empty for the resource itself.
    pub(crate) subresource: String,
    /// What follows the subresource.
    pub(crate) subpath: String,
}

/// The resource whose objects the others live in.
pub(crate) const NAMESPACES: &str = "namespaces";

/// Subresources of `namespaces` itself; any other third segment is a resource inside one.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

/// Reads a path. Segments are percent-decoded after splitting, so a name can't add segments. Nothing
/// has a NUL in its name: the ledger's texts can't hold one.
pub(crate) fn parse(path: &str) -> Target {
    let trimmed = path.trim_start_matches('/').trim_end_matches('/');
    let parts: Option<Vec<String>> = trimmed.split('/').map(percent_decode).collect();
    let Some(parts) = parts else {
        return Target::Nothing;
    };
    let words: Vec<&str> = parts.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["version"] => Target::Version,
        ["api"] => Target::CoreRoot,
        ["apis"] => Target::GroupsRoot,
        ["api", version] => Target::GroupVersion(String::new(), (*version).to_owned()),
        ["apis", group] => Target::Group((*group).to_owned()),
        ["apis", group, version] => {
            Target::GroupVersion((*group).to_owned(), (*version).to_owned())
        }
        ["openapi", "v2"] => Target::OpenApiV2,
        ["openapi", "v3"] => Target::OpenApiV3Root,
        ["openapi", "v3", "api", version] => {
            Target::OpenApiV3(String::new(), (*version).to_owned())
        }
        ["openapi", "v3", "apis", group, version] => {
            Target::OpenApiV3((*group).to_owned(), (*version).to_owned())
        }
        ["api", version, rest @ ..] => resource("", version, rest),
        ["apis", group, version, rest @ ..] => resource(group, version, rest),
        _ => Target::Nothing,
    }
}

fn resource(group: &str, version: &str, rest: &[&str]) -> Target {
    if rest.iter().any(|word| word.is_empty()) {
        return Target::Nothing;
    }
    let mut path = ResourcePath {
        group: group.to_owned(),
        version: version.to_owned(),
        ..ResourcePath::default()
    };
    let rest = match rest {
        [NAMESPACES, namespace, inner @ ..] => {
            path.namespace = Some((*namespace).to_owned());
            match inner {
                [] => rest,
                [word, ..] if NAMESPACE_SUBRESOURCES.contains(word) => rest,
                _ => inner,
            }
        }
        _ => rest,
    };
    let mut words = rest.iter().copied();
    path.resource = words.next().unwrap_or_default().to_owned();
    path.name = words.next().map(str::to_owned);
    path.subresource = words.next().unwrap_or_default().to_owned();
    path.subpath = words.collect::<Vec<_>>().join("/");
    Target::Resource(path)
}

fn percent_decode(segment: &str) -> Option<String> {
    if !segment.contains('%') {
        return Some(segment.to_owned());
    }
    let mut bytes = segment.bytes();
    let mut out = Vec::with_capacity(segment.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let high = char::from(bytes.next()?).to_digit(16)?;
        let low = char::from(bytes.next()?).to_digit(16)?;
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out)
        .ok()
        .filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> ResourcePath {
        let Target::Resource(path) = parse(text) else {
            panic!("{text} is no resource path");
        };
        path
    }

    #[test]
    fn a_namespaced_subresource_is_taken_apart() {
        let path = path("/apis/kubevirt.io/v1/namespaces/default/vms/web/portforward/80/tcp");
        assert_eq!(path.group, "kubevirt.io");
        assert_eq!(path.namespace.as_deref(), Some("default"));
        assert_eq!(path.resource, "vms");
        assert_eq!(path.name.as_deref(), Some("web"));
        assert_eq!(path.subresource, "portforward");
        assert_eq!(path.subpath, "80/tcp");
    }

    #[test]
    fn a_namespace_is_an_object_and_a_place() {
        let object = path("/api/v1/namespaces/default");
        assert_eq!(
            (object.resource.as_str(), object.name.as_deref()),
            ("namespaces", Some("default"))
        );
        let status = path("/api/v1/namespaces/default/status");
        assert_eq!(
            (status.resource.as_str(), status.subresource.as_str()),
            ("namespaces", "status")
        );
        let inside = path("/api/v1/namespaces/default/events");
        assert_eq!((inside.resource.as_str(), inside.name), ("events", None));
    }

    #[test]
    fn an_encoded_slash_stays_inside_its_segment() {
        assert_eq!(path("/api/v1/nodes/a%2Fb").name.as_deref(), Some("a/b"));
        assert_eq!(parse("/api/v1/nodes/a%zz"), Target::Nothing);
        assert_eq!(parse("/api/v1/nodes/a%00"), Target::Nothing);
        assert_eq!(parse("/api/v1//nodes"), Target::Nothing);
    }
}
