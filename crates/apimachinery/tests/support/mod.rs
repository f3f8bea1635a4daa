//! Toy kinds over a store in memory, and a client that stays inside the process.

#![allow(dead_code, reason = "each test binary uses its own part")]

mod store;

use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, BodyDataStream};
use futures::StreamExt;
use godwit_apimachinery::{
    Admission, AdmitAll, AllowAll, ApiServer, Authorizer, Cause, Column, ColumnType, Connect,
    ConnectRequest, ExtraResource, Kind, Limits, Parts, RequestContext, Status, VersionInfo, View,
    json_response,
};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

pub(crate) use store::MemoryStore;

/// Two groups with toys: `widgets` in three views, `gears` that live in no namespace and have no
/// `/status`, and built-in `nodes` and `namespaces`.
pub(crate) fn server(store: &Arc<MemoryStore>, authorizer: Arc<dyn Authorizer>) -> Router {
    let version = VersionInfo {
        major: "1".to_owned(),
        minor: "33".to_owned(),
        git_version: "v1.33.0+toy".to_owned(),
        git_commit: "none".to_owned(),
        build_date: "2026-01-01T00:00:00Z".to_owned(),
    };
    let parts = Parts {
        kinds: vec![
            namespaces(),
            nodes(),
            config_maps(),
            events(),
            widgets(),
            gears(),
            memos(),
        ],
        extras: extras(),
        store: Arc::clone(store) as Arc<_>,
        authorizer,
        admission: Arc::new(AdmitAll),
        version,
        limits: Limits {
            body_bytes: 100_000,
            object_bytes: 50_000,
            watch_seconds: 60,
            ..Limits::default()
        },
    };
    let server = ApiServer::new(parts).expect("the toys are declared correctly");
    tokio::spawn(Arc::clone(&server).collect());
    server.router()
}

fn widgets() -> Kind {
    let old = View::new("toy.example.com", "v1alpha1")
        .deprecated("toy.example.com/v1alpha1 Widget is deprecated");
    let views = vec![
        View::new("toy.example.com", "v1"),
        old,
        View::new("legacy.example.com", "v1"),
    ];
    Kind {
        short_names: vec!["wd", "wds"],
        categories: vec!["all"],
        columns: vec![
            Column::path(
                "Phase",
                ColumnType::String,
                ".status.phase",
                "Where it stands.",
            ),
            Column::path("Size", ColumnType::Integer, ".spec.size", "How big it is."),
            Column::path("Colour", ColumnType::String, ".spec.colour", "Paint.").wide(),
            Column::age(),
        ],
        schema: widget_schema(),
        selectable_fields: vec!["spec.colour", "status.phase"],
        admission: Arc::new(WidgetRules),
        ..Kind::custom("Widget", "widgets", views)
    }
}

fn widget_schema() -> Value {
    json!({
        "type": "object",
        "description": "A toy.",
        "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object",
                "description": "What is wanted.",
                "properties": {
                    "size": {"type": "integer", "minimum": 1, "default": 1,
                        "description": "How big it is."},
                    "colour": {"type": "string", "enum": ["red", "green", "blue"]},
                    "parts": {"type": "array", "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["name"],
                        "items": {"type": "object", "required": ["name"], "properties": {
                            "name": {"type": "string"}, "count": {"type": "integer"}}}},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                },
            },
            "status": {"type": "object", "properties": {
                "phase": {"type": "string"},
                "conditions": {"type": "array", "items": {"type": "object", "properties": {
                    "type": {"type": "string"}, "status": {"type": "string"}}}}}},
        },
    })
}

fn gears() -> Kind {
    Kind {
        namespaced: false,
        has_status: false,
        schema: json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {"teeth": {"type": "integer"}}},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}),
        ..Kind::custom("Gear", "gears", vec![View::new("toy.example.com", "v1")])
    }
}

/// A kind whose old view calls its one field otherwise.
fn memos() -> Kind {
    let schema = |field: &str| json!({"type": "object", "properties": {field: {"type": "string"}}});
    let mut old = View::new("legacy.example.com", "v1");
    old.present = Some(|object| rename_field(object, "text", "words"));
    old.absorb = Some(|object| rename_field(object, "words", "text"));
    old.schema = Some(schema("words"));
    Kind {
        has_status: false,
        schema: schema("text"),
        ..Kind::custom(
            "Memo",
            "memos",
            vec![View::new("toy.example.com", "v1"), old],
        )
    }
}

fn rename_field(mut object: Value, from: &str, to: &str) -> Value {
    let map = object.as_object_mut().expect("an object");
    if let Some(value) = map.remove(from) {
        map.insert(to.to_owned(), value);
    }
    object
}

fn nodes() -> Kind {
    Kind {
        namespaced: false,
        strategic_merge: true,
        selectable_fields: vec!["spec.unschedulable=false"],
        schema: json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "unschedulable": {"type": "boolean"},
                "taints": {"type": "array", "x-kubernetes-list-type": "atomic",
                    "items": {"type": "object", "properties": {
                        "key": {"type": "string"}, "value": {"type": "string"},
                        "effect": {"type": "string"}, "timeAdded": {"type": "string"}}}}}},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}),
        ..Kind::custom("Node", "nodes", vec![View::new("", "v1")])
    }
}

fn namespaces() -> Kind {
    Kind {
        namespaced: false,
        strategic_merge: true,
        short_names: vec!["ns"],
        ..Kind::custom("Namespace", "namespaces", vec![View::new("", "v1")])
    }
}

fn config_maps() -> Kind {
    let data = json!({"type": "object", "additionalProperties": {"type": "string"}});
    Kind {
        has_status: false,
        strategic_merge: true,
        short_names: vec!["cm"],
        columns: vec![
            Column::computed(
                "Data",
                |object, _| json!(object["data"].as_object().map_or(0, serde_json::Map::len)),
                "Number of entries.",
            ),
            Column::age(),
        ],
        schema: json!({"type": "object", "properties": {"data": data}}),
        ..Kind::custom("ConfigMap", "configmaps", vec![View::new("", "v1")])
    }
}

fn events() -> Kind {
    Kind {
        has_status: false,
        strategic_merge: true,
        selectable_fields: vec![
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.kind",
            "involvedObject.uid",
        ],
        ..Kind::custom("Event", "events", vec![View::new("", "v1")])
    }
}

fn extras() -> Vec<ExtraResource> {
    let review = ExtraResource {
        kind: "SelfSubjectAccessReview",
        namespaced: false,
        handler: Some(Arc::new(Echo)),
        ..ExtraResource::new("authorization.k8s.io", "v1", "selfsubjectaccessreviews")
    };
    let evict = ExtraResource {
        kind: "Eviction",
        kind_group: "policy",
        handler: Some(Arc::new(Echo)),
        ..ExtraResource::new("toy.example.com", "v1", "widgets/eviction")
    };
    vec![review, evict]
}

struct WidgetRules;

#[async_trait]
impl Admission for WidgetRules {
    async fn on_create(
        &self,
        ctx: &RequestContext,
        object: &mut Value,
    ) -> Result<Vec<String>, Status> {
        if object["spec"]["size"] == 13 {
            let cause = Cause::invalid("spec.size", &json!(13), "is unlucky");
            return Err(Status::invalid(
                &ctx.group,
                "Widget",
                &ctx.name,
                vec![cause],
            ));
        }
        let large = object["spec"]["size"]
            .as_i64()
            .is_some_and(|size| size > 100);
        Ok(if large {
            vec!["that is \"large\"".to_owned()]
        } else {
            Vec::new()
        })
    }
}

/// Answers what it was sent, and that all is allowed.
struct Echo;

#[async_trait]
impl Connect for Echo {
    async fn call(
        &self,
        ctx: &RequestContext,
        request: ConnectRequest,
    ) -> Result<axum::response::Response, Status> {
        let mut body = request.body;
        body["status"] = json!({"allowed": true, "name": ctx.name});
        Ok(json_response(StatusCode::CREATED, &body))
    }
}

/// A client that calls the router directly.
pub(crate) struct Client {
    pub(crate) router: Router,
    pub(crate) store: Arc<MemoryStore>,
}

/// An answer read to its end.
pub(crate) struct Answer {
    pub(crate) code: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("text"))
    }
}

impl Client {
    pub(crate) fn new() -> Self {
        let store = MemoryStore::new();
        Self {
            router: server(&store, Arc::new(AllowAll)),
            store,
        }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self
            .router
            .clone()
            .oneshot(request)
            .await
            .expect("infallible");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("body").to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Answer {
            code: parts.status,
            headers: parts.headers,
            text,
        }
    }

    /// `call("PATCH merge-patch+json", path, body)`; JSON if no content type is said.
    pub(crate) async fn call(&self, what: &str, path: &str, body: impl Into<Body>) -> Answer {
        let (method, kind) = what.split_once(' ').unwrap_or((what, "json"));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", format!("application/{kind}"))
            .header("user-agent", "toyctl/v1 (test)");
        self.send(request.body(body.into()).expect("request")).await
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.call("GET", path, "").await.json()
    }

    pub(crate) async fn get_as(&self, path: &str, accept: &str) -> Answer {
        let request = Request::get(path).header("accept", accept);
        self.send(request.body(Body::empty()).expect("request"))
            .await
    }

    pub(crate) async fn watch(&self, path: &str, accept: &str) -> Lines {
        let request = Request::get(path)
            .header("accept", accept)
            .body(Body::empty());
        let response = self.router.clone().oneshot(request.expect("request")).await;
        let response = response.expect("infallible");
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        Lines {
            body: response.into_body().into_data_stream(),
            rest: String::new(),
        }
    }

    /// Waits, at most five seconds, until `path` answers `code`.
    pub(crate) async fn until(&self, path: &str, code: StatusCode) {
        let limit = std::time::Duration::from_secs(5);
        let wait = async {
            while self.call("GET", path, "").await.code != code {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(limit, wait).await;
        waited.unwrap_or_else(|_| panic!("{path} doesn't answer {code}"));
    }

    /// Makes a widget with this spec in `default`.
    pub(crate) async fn widget(&self, name: &str, spec: Value) -> Value {
        let body = json!({"apiVersion": "toy.example.com/v1", "kind": "Widget",
            "metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        let answer = self.call("POST", WIDGETS, body.to_string()).await;
        assert_eq!(answer.code, StatusCode::CREATED, "{}", answer.text);
        answer.json()
    }
}

pub(crate) const WIDGETS: &str = "/apis/toy.example.com/v1/namespaces/default/widgets";
pub(crate) const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// The events of a watch.
pub(crate) struct Lines {
    body: BodyDataStream,
    rest: String,
}

impl Lines {
    /// The next event, waited for at most five seconds; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.rest.split_once('\n') {
                let event = serde_json::from_str(line).expect("a line is JSON");
                self.rest = rest.to_owned();
                return Some(event);
            }
            let limit = std::time::Duration::from_secs(5);
            let chunk = tokio::time::timeout(limit, self.body.next())
                .await
                .expect("an event");
            let chunk = chunk?.expect("body");
            self.rest
                .push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        }
    }

    /// Type and name of the next event, and its revision if it is a bookmark.
    pub(crate) async fn brief(&mut self) -> String {
        let event = self.next().await.expect("the watch goes on");
        let object = &event["object"];
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        format!("{} {name}", event["type"].as_str().unwrap_or_default())
            .trim_end()
            .to_owned()
    }
}
