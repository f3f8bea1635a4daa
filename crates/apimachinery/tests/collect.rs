//! Deletion of what belongs to something that is deleted.

mod support;

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use support::{Client, WIDGETS};

/// A widget that belongs to others.
async fn owned(client: &Client, name: &str, owners: &[&Value]) -> Value {
    let references: Vec<Value> = owners
        .iter()
        .map(|owner| {
            json!({
                "apiVersion": owner["apiVersion"], "kind": owner["kind"],
                "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
                "blockOwnerDeletion": true,
            })
        })
        .collect();
    let body = json!({"metadata": {"name": name, "ownerReferences": references}, "spec": {}});
    let answer = client.call("POST", WIDGETS, body.to_string()).await;
    assert_eq!(answer.code, StatusCode::CREATED, "{}", answer.text);
    answer.json()
}

fn path(name: &str) -> String {
    format!("{WIDGETS}/{name}")
}

async fn delete(client: &Client, name: &str, policy: &str) -> Value {
    let options = json!({"propagationPolicy": policy}).to_string();
    let answer = client.call("DELETE", &path(name), options).await;
    assert_eq!(answer.code, StatusCode::OK, "{}", answer.text);
    answer.json()
}

#[tokio::test]
async fn what_belongs_to_nobody_any_more_goes_and_its_own_with_it() {
    let client = Client::new();
    let top = client.widget("top", json!({})).await;
    let middle = owned(&client, "middle", &[&top]).await;
    owned(&client, "leaf", &[&middle]).await;
    let other = client.widget("other", json!({})).await;
    owned(&client, "shared", &[&top, &other]).await;
    delete(&client, "top", "Background").await;
    client.until(&path("leaf"), StatusCode::NOT_FOUND).await;
    client.until(&path("middle"), StatusCode::NOT_FOUND).await;
    // Who has another owner stays with that one.
    let left = async || client.get(&path("shared")).await["metadata"]["ownerReferences"].clone();
    let wait = async {
        while left().await.as_array().map(Vec::len) != Some(1) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait)
        .await
        .unwrap();
    assert_eq!(left().await[0]["uid"], other["metadata"]["uid"]);
}

#[tokio::test]
async fn in_the_foreground_the_owner_goes_last() {
    let client = Client::new();
    let top = client.widget("top", json!({})).await;
    let held = owned(&client, "held", &[&top]).await;
    let hold = r#"{"metadata":{"finalizers":["toy/x"]}}"#;
    let held_path = path("held");
    client
        .call("PATCH merge-patch+json", &held_path, hold)
        .await;
    owned(&client, "leaf", &[&held]).await;
    let marked = delete(&client, "top", "Foreground").await;
    assert_eq!(
        marked["metadata"]["finalizers"],
        json!(["foregroundDeletion"])
    );
    client.until(&path("leaf"), StatusCode::NOT_FOUND).await;
    let waits = client.get(&held_path).await;
    assert!(
        waits["metadata"]["deletionTimestamp"].is_string(),
        "{waits}"
    );
    assert_eq!(client.call("GET", &path("top"), "").await.code, 200);
    let release = r#"{"metadata":{"finalizers":null}}"#;
    client
        .call("PATCH merge-patch+json", &held_path, release)
        .await;
    client.until(&path("top"), StatusCode::NOT_FOUND).await;
    client.until(&held_path, StatusCode::NOT_FOUND).await;
}

#[tokio::test]
async fn an_orphan_stays_and_names_no_owner() {
    let client = Client::new();
    let top = client.widget("top", json!({})).await;
    owned(&client, "child", &[&top]).await;
    // The way it was said before there were policies.
    let options = json!({"orphanDependents": true}).to_string();
    let marked = client.call("DELETE", &path("top"), options).await.json();
    assert_eq!(marked["metadata"]["finalizers"], json!(["orphan"]));
    client.until(&path("top"), StatusCode::NOT_FOUND).await;
    let child = client.get(&path("child")).await;
    assert!(child["metadata"]["ownerReferences"].is_null(), "{child}");
}

#[tokio::test]
async fn an_owner_of_a_kind_unknown_here_is_taken_as_there() {
    let client = Client::new();
    let stranger = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d", "uid": "1"}});
    let impostor = client.widget("impostor", json!({})).await;
    let mut former = impostor.clone();
    former["metadata"]["uid"] = json!("2");
    owned(&client, "stays", &[&stranger]).await;
    owned(&client, "goes", &[&former]).await;
    client.until(&path("goes"), StatusCode::NOT_FOUND).await;
    assert_eq!(client.call("GET", &path("stays"), "").await.code, 200);
}

#[tokio::test]
async fn an_owner_that_is_not_named_whole_is_refused() {
    let client = Client::new();
    let owners = json!([
        {"apiVersion": "v1", "kind": "Node", "name": "n", "controller": true},
        {"apiVersion": "v1", "kind": "Node", "name": "m", "uid": "2", "controller": true},
    ]);
    let body = json!({"metadata": {"name": "a", "ownerReferences": owners}, "spec": {}});
    let answer = client.call("POST", WIDGETS, body.to_string()).await;
    assert_eq!(answer.code, 422, "{}", answer.text);
    assert!(
        answer.text.contains("metadata.ownerReferences[0].uid"),
        "{}",
        answer.text
    );
    assert!(
        answer
            .text
            .contains("Only one reference can have Controller"),
        "{}",
        answer.text
    );
}

#[tokio::test]
async fn a_namespace_takes_its_content_with_it_and_says_what_it_waits_for() {
    let client = Client::new();
    let spaces = "/api/v1/namespaces";
    let body = json!({"metadata": {"name": "team-a"}}).to_string();
    client.call("POST", spaces, body).await;
    let inside = "/apis/toy.example.com/v1/namespaces/team-a/widgets";
    for (name, finalizers) in [("free", json!([])), ("held", json!(["toy/x"]))] {
        let body = json!({"metadata": {"name": name, "finalizers": finalizers}, "spec": {}});
        client.call("POST", inside, body.to_string()).await;
    }
    let space = format!("{spaces}/team-a");
    let marked = client.call("DELETE", &space, "").await.json();
    assert_eq!(marked["status"]["phase"], "Terminating", "{marked}");
    client
        .until(&format!("{inside}/free"), StatusCode::NOT_FOUND)
        .await;
    let says = async {
        loop {
            let found = client.get(&space).await;
            let message = &found["status"]["conditions"][1]["message"];
            let told = "Some content in the namespace has finalizers remaining: toy/x in 1 \
                        resource instances";
            if *message == told {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), says)
        .await
        .unwrap();
    let release = r#"{"metadata":{"finalizers":null}}"#;
    let held = format!("{inside}/held");
    client.call("PATCH merge-patch+json", &held, release).await;
    client.until(&space, StatusCode::NOT_FOUND).await;
}
