//! Answers that are the same for everyone: built at start, told apart by their hash.

use std::collections::HashMap;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::discovery;
use crate::kind::api_version;
use crate::negotiate::{self, Discovery};
use crate::openapi;
use crate::registry::Registry;
use crate::server::VersionInfo;

/// Title of the OpenAPI documents.
const TITLE: &str = "Kubernetes";
const GNOSTIC: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// What is answered to [`GNOSTIC`], as by kube-apiserver: `@` is no part of a media type, and
/// kubectl 1.20 gives up on it.
const GNOSTIC_ANSWER: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// One encoded document.
pub(crate) struct Document {
    bytes: Bytes,
    content_type: HeaderValue,
    /// Hex, without quotes.
    hash: String,
}

/// All of them.
pub(crate) struct Documents {
    version: Document,
    core_versions: Document,
    groups: Document,
    aggregated_core: [Document; 2],
    aggregated_groups: [Document; 2],
    group: HashMap<String, Document>,
    resources: HashMap<(String, String), Document>,
    openapi_v2: Document,
    openapi_v2_protobuf: Document,
    openapi_v3_root: Document,
    openapi_v3: HashMap<(String, String), Document>,
}

/// Versions of the aggregated form, in the order of the arrays in [`Documents`].
const AGGREGATED: [&str; 2] = ["v2", "v2beta1"];

impl Documents {
    pub(crate) fn new(registry: &Registry, info: &VersionInfo) -> Self {
        let aggregated = |core| {
            AGGREGATED.map(|version| {
                let content_type = format!(
                    "application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
                );
                let body = discovery::aggregated(registry, core, version);
                Document::new(body.to_string().into(), &content_type)
            })
        };
        let mut group = HashMap::new();
        let mut resources = HashMap::new();
        let mut openapi_v3 = HashMap::new();
        for g in &registry.groups {
            group.insert(g.name.to_owned(), Document::json(&discovery::group(g)));
            for v in &g.versions {
                let key = (g.name.to_owned(), v.name.to_owned());
                resources.insert(key.clone(), Document::json(&discovery::resource_list(g, v)));
                let document = openapi::v3(v, TITLE, &info.git_version);
                openapi_v3.insert(key, Document::json(&document));
            }
        }
        let v2 = openapi::v2(registry, TITLE, &info.git_version);
        Self {
            version: Document::json(&info.to_json()),
            core_versions: Document::json(&discovery::core_versions(registry)),
            groups: Document::json(&discovery::group_list(registry)),
            aggregated_core: aggregated(true),
            aggregated_groups: aggregated(false),
            group,
            resources,
            openapi_v2_protobuf: Document::new(openapi::to_protobuf(&v2).into(), GNOSTIC_ANSWER),
            openapi_v2: Document::json(&v2),
            openapi_v3_root: Document::json(&v3_root(registry, &openapi_v3)),
            openapi_v3,
        }
    }

    pub(crate) fn version(&self, headers: &HeaderMap) -> Response {
        self.version.answer(headers)
    }

    /// `/api`, or for `core == false` `/apis`.
    pub(crate) fn root(&self, core: bool, headers: &HeaderMap) -> Response {
        let (plain, aggregated) = match core {
            true => (&self.core_versions, &self.aggregated_core),
            false => (&self.groups, &self.aggregated_groups),
        };
        let document = match negotiate::discovery(headers) {
            Discovery::Plain => plain,
            Discovery::Aggregated(wanted) => {
                let at = AGGREGATED.iter().position(|version| *version == wanted);
                &aggregated[at.unwrap_or_default()]
            }
        };
        let mut response = document.answer(headers);
        response
            .headers_mut()
            .insert(header::VARY, HeaderValue::from_static("Accept"));
        response
    }

    pub(crate) fn group(&self, group: &str, headers: &HeaderMap) -> Option<Response> {
        self.group
            .get(group)
            .map(|document| document.answer(headers))
    }

    pub(crate) fn resources(
        &self,
        key: &(String, String),
        headers: &HeaderMap,
    ) -> Option<Response> {
        self.resources
            .get(key)
            .map(|document| document.answer(headers))
    }

    pub(crate) fn openapi_v2(&self, headers: &HeaderMap) -> Response {
        let document = match negotiate::prefers(headers, GNOSTIC) {
            true => &self.openapi_v2_protobuf,
            false => &self.openapi_v2,
        };
        let mut response = document.answer(headers);
        response
            .headers_mut()
            .insert(header::VARY, HeaderValue::from_static("Accept"));
        response
    }

    pub(crate) fn openapi_v3_bytes(&self, key: &(String, String)) -> Option<Bytes> {
        Some(self.openapi_v3.get(key)?.bytes.clone())
    }

    pub(crate) fn openapi_v3_root(&self, headers: &HeaderMap) -> Response {
        self.openapi_v3_root.answer(headers)
    }

    /// With the right `hash` in the query, clients may keep the answer for ever.
    pub(crate) fn openapi_v3(
        &self,
        key: &(String, String),
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Option<Response> {
        let document = self.openapi_v3.get(key)?;
        let mut response = document.answer(headers);
        let hash = query
            .unwrap_or_default()
            .split('&')
            .find_map(|pair| pair.strip_prefix("hash="));
        if hash == Some(&document.hash) {
            let forever = HeaderValue::from_static("public, immutable, max-age=31536000");
            response
                .headers_mut()
                .insert(header::CACHE_CONTROL, forever);
        }
        Some(response)
    }
}

impl Document {
    fn json(value: &Value) -> Self {
        Self::new((value.to_string() + "\n").into(), "application/json")
    }

    fn new(bytes: Bytes, content_type: &str) -> Self {
        let hash = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02X}"))
            .collect();
        let content_type =
            HeaderValue::from_str(content_type).expect("content types are ASCII literals");
        Self {
            bytes,
            content_type,
            hash,
        }
    }

    fn answer(&self, headers: &HeaderMap) -> Response {
        let tag = format!("\"{}\"", self.hash);
        let known = headers
            .get(header::IF_NONE_MATCH)
            .and_then(|value| value.to_str().ok());
        let mut response = match known {
            Some(known) if known == tag => StatusCode::NOT_MODIFIED.into_response(),
            _ => Body::from(self.bytes.clone()).into_response(),
        };
        let out = response.headers_mut();
        out.insert(header::CONTENT_TYPE, self.content_type.clone());
        out.insert(
            header::ETAG,
            HeaderValue::from_str(&tag).expect("hex is ASCII"),
        );
        // Clients ask again each time and mostly get 304.
        out.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
        response
    }
}

fn v3_root(registry: &Registry, documents: &HashMap<(String, String), Document>) -> Value {
    let mut paths = Map::new();
    for group in &registry.groups {
        for version in &group.versions {
            let root = if group.name.is_empty() { "api" } else { "apis" };
            let path = format!("{root}/{}", api_version(group.name, version.name));
            let hash = &documents[&(group.name.to_owned(), version.name.to_owned())].hash;
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({ "serverRelativeURL": url }));
        }
    }
    json!({ "paths": paths })
}
