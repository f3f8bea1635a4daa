//! Lists, watches, discovery and OpenAPI over the API.

mod support;

use std::sync::Arc;

use async_trait::async_trait;
use godwit_apimachinery::{AccessRequest, Authorizer, Decision, UserInfo};
use http::StatusCode;
use serde_json::{Value, json};
use support::{Client, MemoryStore, TABLE, WIDGETS};

const JSON: &str = "application/json";

#[tokio::test]
async fn a_list_is_paged_over_one_snapshot() {
    let client = Client::new();
    for name in ["a", "b", "c", "d", "e"] {
        client.widget(name, json!({})).await;
    }
    let first = client.get(&format!("{WIDGETS}?limit=2")).await;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let token = first["metadata"]["continue"]
        .as_str()
        .expect("token")
        .to_owned();
    client.call("DELETE", &format!("{WIDGETS}/c"), "").await;
    client.widget("cc", json!({})).await;
    let second = client
        .get(&format!("{WIDGETS}?limit=5&continue={token}"))
        .await;
    assert_eq!(names(&second), ["c", "d", "e"]);
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    assert!(second["metadata"].get("continue").is_none());
    let bad = client
        .call("GET", &format!("{WIDGETS}?limit=5&continue=nonsense"), "")
        .await;
    assert_eq!(bad.code, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_page_that_comes_too_late_is_410() {
    let client = Client::new();
    client.widget("a", json!({})).await;
    client.widget("b", json!({})).await;
    // A token of a revision that nobody remembers, as after a restart.
    let token = "E7JVHER4uMF7ImFmdGVyIjoiYSIsIm5zIjoiZGVmYXVsdCIsInJ2IjoxfQ";
    let answer = client
        .call("GET", &format!("{WIDGETS}?limit=1&continue={token}"), "")
        .await;
    let status = answer.json();
    assert_eq!(
        (answer.code, &status["reason"]),
        (StatusCode::GONE, &json!("Expired"))
    );
    // Whoever takes the rest as it is now goes on behind the last object.
    let fresh = status["metadata"]["continue"].as_str().expect("token");
    client.widget("c", json!({})).await;
    let rest = client
        .get(&format!("{WIDGETS}?limit=1&continue={fresh}"))
        .await;
    assert_eq!(names(&rest), ["b"]);
    let token = rest["metadata"]["continue"].as_str().expect("token");
    let rest = client
        .get(&format!("{WIDGETS}?limit=1&continue={token}"))
        .await;
    assert_eq!(names(&rest), ["c"]);
}

#[tokio::test]
async fn a_page_at_a_revision_shows_exactly_that() {
    let client = Client::new();
    client.widget("a", json!({})).await;
    client.widget("b", json!({})).await;
    let path = format!("{WIDGETS}?limit=1&resourceVersion=101");
    let gone = client.call("GET", &path, "").await;
    assert_eq!(gone.code, StatusCode::GONE);
    assert_eq!(
        gone.json()["message"],
        "The resourceVersion for the provided list is too old."
    );
    let path = format!("{WIDGETS}?resourceVersion=101");
    assert_eq!(names(&client.get(&path).await), ["a", "b"]);
}

#[tokio::test]
async fn selectors_narrow_lists_and_bad_ones_are_400() {
    let client = Client::new();
    client.widget("a", json!({"colour": "red"})).await;
    client.widget("b", json!({"colour": "blue"})).await;
    for (selector, expected) in [
        ("labelSelector=app%3Da", vec!["a"]),
        ("labelSelector=app%21%3Da", vec!["b"]),
        ("fieldSelector=metadata.name%3Db", vec!["b"]),
        ("fieldSelector=spec.colour%21%3Dblue", vec!["a"]),
        (
            "labelSelector=app&fieldSelector=spec.colour%3Dgreen",
            vec![],
        ),
    ] {
        let list = client.get(&format!("{WIDGETS}?{selector}")).await;
        assert_eq!(names(&list), expected, "{selector}");
    }
    for bad in [
        "fieldSelector=spec.size%3D1",
        "labelSelector=%3D",
        "limit=x",
        "dryRun=Some",
    ] {
        let answer = client.call("GET", &format!("{WIDGETS}?{bad}"), "").await;
        assert_eq!(answer.code, StatusCode::BAD_REQUEST, "{bad}");
    }
}

#[tokio::test]
async fn revisions_too_new_or_wrongly_matched_are_refused() {
    let client = Client::new();
    let newer = client
        .call("GET", &format!("{WIDGETS}?resourceVersion=99999"), "")
        .await;
    assert_eq!(newer.code, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(
        newer.json()["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
    let path = format!("{WIDGETS}?resourceVersionMatch=Exact");
    assert_eq!(client.call("GET", &path, "").await.code, 422);
    let path = format!("{WIDGETS}?watch=1&sendInitialEvents=true");
    assert_eq!(client.call("GET", &path, "").await.code, 422);
}

#[tokio::test]
async fn a_watch_from_a_list_tells_every_change_once() {
    let client = Client::new();
    client.widget("old", json!({})).await;
    let revision = client.get(WIDGETS).await["metadata"]["resourceVersion"].clone();
    let path = format!(
        "{WIDGETS}?watch=true&resourceVersion={}",
        revision.as_str().expect("rv")
    );
    let mut watch = client.watch(&path, JSON).await;
    client.widget("a", json!({})).await;
    let patch = r#"{"spec":{"size":2}}"#;
    client
        .call("PATCH merge-patch+json", &format!("{WIDGETS}/a"), patch)
        .await;
    client.call("DELETE", &format!("{WIDGETS}/a"), "").await;
    assert_eq!(watch.brief().await, "ADDED a");
    assert_eq!(watch.brief().await, "MODIFIED a");
    let deleted = watch.next().await.expect("event");
    assert_eq!(deleted["type"], "DELETED");
    let at = |value: &Value| {
        value
            .as_str()
            .and_then(|v| v.parse::<u64>().ok())
            .expect("rv")
    };
    assert!(at(&deleted["object"]["metadata"]["resourceVersion"]) > at(&revision) + 2);
}

#[tokio::test]
async fn a_watch_from_nothing_or_zero_begins_with_what_is_there() {
    let client = Client::new();
    client.widget("a", json!({})).await;
    for start in ["", "&resourceVersion=0", "&resourceVersion="] {
        let mut watch = client
            .watch(&format!("{WIDGETS}?watch=1{start}"), JSON)
            .await;
        assert_eq!(watch.brief().await, "ADDED a", "{start}");
    }
}

#[tokio::test]
async fn initial_events_end_with_a_marked_bookmark() {
    let client = Client::new();
    client.widget("a", json!({})).await;
    let path = format!(
        "{WIDGETS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
         &allowWatchBookmarks=true"
    );
    let mut watch = client.watch(&path, JSON).await;
    assert_eq!(watch.brief().await, "ADDED a");
    let bookmark = watch.next().await.expect("event");
    assert_eq!(
        bookmark,
        json!({"type": "BOOKMARK", "object": {
        "kind": "Widget", "apiVersion": "toy.example.com/v1", "metadata": {
            "resourceVersion": "101",
            "annotations": {"k8s.io/initial-events-end": "true"}}}})
    );
    client.widget("b", json!({})).await;
    assert_eq!(watch.brief().await, "ADDED b");
}

#[tokio::test]
async fn objects_that_enter_or_leave_a_selector_are_added_or_deleted() {
    let client = Client::new();
    client.widget("a", json!({"colour": "red"})).await;
    let path = format!("{WIDGETS}?watch=1&fieldSelector=spec.colour%3Dblue&resourceVersion=100");
    let mut watch = client.watch(&path, JSON).await;
    for colour in ["blue", "green", "red", "blue"] {
        let patch = json!({"spec": {"colour": colour}}).to_string();
        client
            .call("PATCH merge-patch+json", &format!("{WIDGETS}/a"), patch)
            .await;
    }
    let patch = r#"{"spec":{"size":5}}"#;
    client
        .call("PATCH merge-patch+json", &format!("{WIDGETS}/a"), patch)
        .await;
    assert_eq!(watch.brief().await, "ADDED a");
    let left = watch.next().await.expect("event");
    assert_eq!(
        (&left["type"], &left["object"]["spec"]["colour"]),
        (&json!("DELETED"), &json!("blue"))
    );
    assert_eq!(left["object"]["metadata"]["resourceVersion"], "103");
    assert_eq!(watch.brief().await, "ADDED a");
    assert_eq!(watch.brief().await, "MODIFIED a");
}

#[tokio::test]
async fn a_table_watch_defines_its_columns_once() {
    let client = Client::new();
    client.widget("a", json!({})).await;
    client.widget("b", json!({})).await;
    let mut watch = client
        .watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=1"), TABLE)
        .await;
    let first = watch.next().await.expect("event")["object"].clone();
    assert_eq!(
        (&first["kind"], &first["rows"][0]["cells"][0]),
        (&json!("Table"), &json!("a"))
    );
    assert_eq!(first["columnDefinitions"][0]["name"], "Name");
    let second = watch.next().await.expect("event")["object"].clone();
    assert!(second["columnDefinitions"].is_null());
    assert_eq!(watch.next().await, None, "the watch ends after its time");
}

#[tokio::test]
async fn a_watch_from_a_forgotten_revision_is_410() {
    let client = Client::new();
    client.widget("a", json!({})).await;
    client.store.compact();
    let mut watch = client
        .watch(&format!("{WIDGETS}?watch=1&resourceVersion=100"), JSON)
        .await;
    let last = watch.next().await.expect("event");
    let (kind, status) = (&last["type"], &last["object"]);
    assert_eq!((kind, &status["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(status["message"], "too old resource version: 100 (101)");
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn discovery_lists_every_group_version_and_resource() {
    let client = Client::new();
    let groups = client.get("/apis").await;
    let toy = &groups["groups"][0];
    assert_eq!(toy["name"], "toy.example.com");
    assert_eq!(toy["preferredVersion"]["version"], "v1");
    assert_eq!(
        toy["versions"][1]["groupVersion"],
        "toy.example.com/v1alpha1"
    );
    let resources = client.get("/apis/toy.example.com/v1").await;
    let resources = resources["resources"].as_array().expect("list");
    let names: Vec<&str> = resources
        .iter()
        .filter_map(|r| r["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "widgets",
            "widgets/status",
            "gears",
            "memos",
            "widgets/eviction"
        ]
    );
    assert_eq!(
        (&resources[4]["group"], &resources[4]["version"]),
        (&json!("policy"), &json!("v1"))
    );
    assert_eq!(client.get("/api").await["versions"], json!(["v1"]));

    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let all = client.get_as("/apis", accept).await;
    assert_eq!(all.header("content-type"), accept);
    let widgets = &all.json()["items"][0]["versions"][0]["resources"][0];
    assert_eq!(widgets["responseKind"]["kind"], "Widget");
    assert_eq!(widgets["subresources"][1]["subresource"], "eviction");
    let tag = all.header("etag").to_owned();
    let request = http::Request::get("/apis")
        .header("accept", accept)
        .header("if-none-match", tag);
    let again = client
        .send(request.body(axum::body::Body::empty()).expect("request"))
        .await;
    assert_eq!(
        (again.code, again.text.as_str()),
        (StatusCode::NOT_MODIFIED, "")
    );
}

#[tokio::test]
async fn openapi_tells_both_generations_of_clients_about_patches() {
    let client = Client::new();
    let root = client.get("/openapi/v3").await;
    let url = root["paths"]["apis/toy.example.com/v1"]["serverRelativeURL"].clone();
    let answer = client.call("GET", url.as_str().expect("url"), "").await;
    assert!(answer.header("cache-control").contains("immutable"));
    let v3 = answer.json();
    let patch =
        &v3["paths"]["/apis/toy.example.com/v1/namespaces/{namespace}/widgets/{name}"]["patch"];
    assert!(parameters(patch).contains(&"fieldValidation"));
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Widget");
    assert!(
        patch["requestBody"]["content"]
            .get("application/apply-patch+yaml")
            .is_some()
    );
    let object = "/apis/toy.example.com/v1/namespaces/{namespace}/widgets/{name}";
    let answer = &v3["paths"][object]["delete"]["responses"]["200"]["content"]["application/json"];
    let one_of = answer["schema"]["anyOf"].as_array().expect("several");
    assert_eq!(one_of.len(), 2, "a Status, or the object while it is held");
    let schema = &v3["components"]["schemas"]["com.example.toy.v1.Widget"];
    assert_eq!(
        schema["properties"]["spec"]["properties"]["size"]["description"],
        "How big it is."
    );

    let v2 = client.get("/openapi/v2").await;
    let patch = &v2["paths"]["/api/v1/nodes/{name}"]["patch"];
    assert!(parameters(patch).contains(&"dryRun"));
    let accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let protobuf = client.get_as("/openapi/v2", accept).await;
    // The answer leaves out the `@`: kubectl 1.20 does not parse it in a media type.
    assert_eq!(protobuf.header("content-type"), accept.replace("@", "."));
    assert!(protobuf.text.contains("com.example.toy.v1.Widget"));
}

struct OnlyRead;

#[async_trait]
impl Authorizer for OnlyRead {
    async fn authorize(&self, user: &UserInfo, access: &AccessRequest) -> Decision {
        let reads = ["get", "list", "watch"].contains(&access.verb.as_str());
        match reads && user.name == "system:anonymous" {
            true => Decision::Allow,
            false => Decision::Deny("only reading".to_owned()),
        }
    }
}

#[tokio::test]
async fn who_may_not_is_told_what() {
    let store = MemoryStore::new();
    let router = support::server(&store, Arc::new(OnlyRead));
    let client = Client { router, store };
    assert_eq!(client.call("GET", WIDGETS, "").await.code, StatusCode::OK);
    let refused = client.call("POST", WIDGETS, "{}").await;
    assert_eq!(refused.code, StatusCode::FORBIDDEN);
    assert_eq!(
        refused.json()["message"],
        "widgets.toy.example.com is forbidden: User \"system:anonymous\" cannot create resource \
         \"widgets\" in API group \"toy.example.com\" in the namespace \"default\": only reading"
    );
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items").iter();
    items
        .filter_map(|item| item["metadata"]["name"].as_str())
        .collect()
}

fn parameters(operation: &Value) -> Vec<&str> {
    let list = operation["parameters"]
        .as_array()
        .expect("parameters")
        .iter();
    list.filter_map(|parameter| parameter["name"].as_str())
        .collect()
}
