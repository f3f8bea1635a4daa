//! What a request asks for, read off its method and URI alone, before anything is looked up.

use http::{Method, Uri};

use crate::context::AccessRequest;
use crate::path::{self, ResourcePath, Target};

impl AccessRequest {
    /// Reads a request as kube-apiserver's `RequestInfo` does. Nothing is checked: the resource may
    /// not exist.
    pub fn of(method: &Method, uri: &Uri) -> Self {
        let Target::Resource(found) = path::parse(uri.path()) else {
            return Self {
                verb: method.as_str().to_lowercase(),
                path: uri.path().to_owned(),
                ..Self::default()
            };
        };
        Self {
            verb: verb(method, &found, uri.query().unwrap_or_default()).to_owned(),
            group: found.group,
            version: found.version,
            resource: found.resource,
            subresource: found.subresource,
            namespace: found.namespace.unwrap_or_default(),
            name: found.name.unwrap_or_default(),
            path: uri.path().to_owned(),
        }
    }
}

fn verb(method: &Method, path: &ResourcePath, query: &str) -> &'static str {
    let watches = || {
        query
            .split('&')
            .any(|pair| matches!(pair, "watch=true" | "watch=1" | "watch"))
    };
    let single = path.name.is_some();
    match method.as_str() {
        "GET" | "HEAD" if single => "get",
        "GET" | "HEAD" if watches() => "watch",
        "GET" | "HEAD" => "list",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if single => "delete",
        "DELETE" => "deletecollection",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: &Method, uri: &'static str) -> AccessRequest {
        AccessRequest::of(method, &Uri::from_static(uri))
    }

    #[test]
    fn a_request_says_what_it_asks_for() {
        let machine = of(
            &Method::PUT,
            "/apis/subresources.kubevirt.io/v1/namespaces/a/virtualmachines/vm1/start?dryRun=All",
        );
        assert_eq!(machine.verb, "update");
        assert_eq!(machine.group, "subresources.kubevirt.io");
        assert_eq!((&*machine.namespace, &*machine.name), ("a", "vm1"));
        assert_eq!(machine.subresource, "start");

        let cases = [
            (Method::GET, "/api/v1/nodes", "list"),
            (Method::GET, "/api/v1/nodes?limit=5&watch=1", "watch"),
            (Method::GET, "/api/v1/nodes/worker1", "get"),
            (Method::DELETE, "/api/v1/nodes/worker1", "delete"),
            (Method::DELETE, "/api/v1/nodes", "deletecollection"),
            (Method::POST, "/api/v1/namespaces", "create"),
            (Method::POST, "/version", "post"),
        ];
        for (method, uri, verb) in cases {
            assert_eq!(of(&method, uri).verb, verb, "{uri}");
        }
    }
}
