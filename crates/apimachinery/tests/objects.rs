//! Objects over the API: creation, reading, tables, updates, patches, deletion.

mod support;

use http::StatusCode;
use serde_json::{Value, json};
use support::{Client, TABLE, WIDGETS};

#[tokio::test]
async fn a_created_object_is_completed_and_read_back_in_every_view() {
    let client = Client::new();
    let made = client.widget("a", json!({"colour": "red"})).await;
    assert_eq!(made["spec"], json!({"colour": "red", "size": 1}));
    assert_eq!(made["metadata"]["generation"], 1);
    assert!(
        made["metadata"]["uid"]
            .as_str()
            .is_some_and(|uid| uid.len() == 36)
    );
    assert_eq!(client.get(&format!("{WIDGETS}/a")).await, made);

    let path = "/apis/legacy.example.com/v1/namespaces/default/widgets";
    let mut legacy = client.get(&format!("{path}/a")).await;
    assert_eq!(legacy["apiVersion"], "legacy.example.com/v1");
    legacy["apiVersion"] = made["apiVersion"].clone();
    assert_eq!(legacy, made);
    let list = client.get(path).await;
    assert_eq!(list["apiVersion"], "legacy.example.com/v1");
    assert_eq!(list["items"][0]["apiVersion"], "legacy.example.com/v1");
}

#[tokio::test]
async fn a_deprecated_view_warns() {
    let client = Client::new();
    let path = "/apis/toy.example.com/v1alpha1/namespaces/default/widgets";
    let answer = client.call("GET", path, "").await;
    assert_eq!(
        answer.header("warning"),
        "299 - \"toy.example.com/v1alpha1 Widget is deprecated\""
    );
}

#[tokio::test]
async fn names_are_generated_required_and_taken_once() {
    let client = Client::new();
    let body = json!({"metadata": {"generateName": "w-"}, "spec": {}});
    let answer = client.call("POST", WIDGETS, body.to_string()).await;
    let name = answer.json()["metadata"]["name"]
        .as_str()
        .expect("name")
        .to_owned();
    assert!(name.starts_with("w-") && name.len() == 7, "{name}");

    let nameless = client
        .call("POST", WIDGETS, r#"{"metadata":{},"spec":{}}"#)
        .await;
    assert_eq!(nameless.code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        nameless.json()["message"],
        "Widget.toy.example.com \"\" is invalid: metadata.name: Required value: name or \
         generateName is required"
    );

    client.widget("a", json!({})).await;
    let body = json!({"metadata": {"name": "a"}, "spec": {}}).to_string();
    let taken = client.call("POST", WIDGETS, body).await.json();
    assert_eq!(taken["reason"], "AlreadyExists");
    assert_eq!(
        taken["message"],
        "widgets.toy.example.com \"a\" already exists"
    );
}

#[tokio::test]
async fn what_the_schema_or_the_rules_refuse_is_422_with_the_field() {
    let client = Client::new();
    for (spec, field) in [
        (json!({"size": 0}), "spec.size"),
        (json!({"colour": "pink"}), "spec.colour"),
        (json!({"parts": [{"count": 1}]}), "spec.parts[0].name"),
        (json!({"size": 13}), "spec.size"),
    ] {
        let body = json!({"metadata": {"name": "a"}, "spec": spec}).to_string();
        let answer = client.call("POST", WIDGETS, body).await;
        assert_eq!(
            answer.code,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{}",
            answer.text
        );
        assert_eq!(answer.json()["details"]["causes"][0]["field"], field);
    }
}

#[tokio::test]
async fn unknown_and_double_fields_are_refused_warned_about_or_dropped() {
    let client = Client::new();
    let body = r#"{"metadata":{"name":"a"},"spec":{"size":2,"size":3,"nope":1}}"#;
    let strict = client
        .call("POST", &format!("{WIDGETS}?fieldValidation=Strict"), body)
        .await;
    assert_eq!(strict.code, StatusCode::BAD_REQUEST);
    let message = strict.json()["message"]
        .as_str()
        .expect("message")
        .to_owned();
    assert!(
        message.ends_with(
            "strict decoding error: unknown field \"spec.nope\", duplicate field \"spec.size\""
        ),
        "{message}"
    );
    let warned = client.call("POST", WIDGETS, body).await;
    let warnings: Vec<_> = warned.headers.get_all("warning").iter().collect();
    assert_eq!(warnings.len(), 2);
    assert_eq!(warned.json()["spec"], json!({"size": 3}));
}

#[tokio::test]
async fn bodies_come_as_json_yaml_or_without_a_type_and_not_too_large() {
    let client = Client::new();
    let yaml = "metadata: {name: y}\nspec:\n  size: 7\n";
    assert_eq!(
        client.call("POST yaml", WIDGETS, yaml).await.json()["spec"]["size"],
        7
    );

    let request = http::Request::post(WIDGETS);
    let body = r#"{"metadata":{"name":"bare"},"spec":{}}"#;
    let answer = client
        .send(request.body(body.into()).expect("request"))
        .await;
    assert_eq!(answer.code, StatusCode::CREATED);

    assert_eq!(client.call("POST xml", WIDGETS, "<a/>").await.code, 415);
    let huge = client.call("POST", WIDGETS, "x".repeat(100_001)).await;
    assert_eq!(
        (huge.code, &huge.json()["reason"]),
        (
            StatusCode::PAYLOAD_TOO_LARGE,
            &json!("RequestEntityTooLarge")
        )
    );
    let body = json!({"metadata": {"name": "b"}, "spec": {"free": {"x": "x".repeat(60_000)}}});
    assert_eq!(
        client.call("POST", WIDGETS, body.to_string()).await.code,
        413
    );
}

#[tokio::test]
async fn a_dry_run_keeps_nothing() {
    let client = Client::new();
    let body = json!({"metadata": {"name": "a"}, "spec": {}}).to_string();
    let answer = client
        .call("POST", &format!("{WIDGETS}?dryRun=All"), body)
        .await;
    assert_eq!(answer.code, StatusCode::CREATED);
    assert_eq!(
        client.call("GET", &format!("{WIDGETS}/a"), "").await.code,
        404
    );
    client.widget("b", json!({})).await;
    let path = format!("{WIDGETS}/b?dryRun=All");
    client
        .call("PATCH merge-patch+json", &path, r#"{"spec":{"size":9}}"#)
        .await;
    client.call("DELETE", &path, "").await;
    assert_eq!(client.get(&format!("{WIDGETS}/b")).await["spec"]["size"], 1);
}

#[tokio::test]
async fn an_object_is_shown_as_table_metadata_or_yaml() {
    let client = Client::new();
    client
        .widget("a", json!({"colour": "red", "size": 3}))
        .await;
    let table = client.get_as(WIDGETS, TABLE).await.json();
    let names: Vec<&Value> = table["columnDefinitions"]
        .as_array()
        .expect("columns")
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["Name", "Phase", "Size", "Colour", "Age"]);
    let cells = &table["rows"][0]["cells"];
    assert_eq!(
        (&cells[0], &cells[1], &cells[2], &cells[3]),
        (&json!("a"), &Value::Null, &json!(3), &json!("red"))
    );
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");

    let accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let partial = client.get_as(WIDGETS, accept).await.json();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert!(partial["items"][0].get("spec").is_none());

    let yaml = client
        .get_as(&format!("{WIDGETS}/a"), "application/yaml")
        .await;
    assert!(yaml.text.contains("colour: red"), "{}", yaml.text);
    assert_eq!(client.get_as(WIDGETS, "text/html").await.code, 406);
}

#[tokio::test]
async fn an_update_needs_the_revision_it_was_made_from() {
    let client = Client::new();
    let made = client.widget("a", json!({})).await;
    let path = format!("{WIDGETS}/a");
    let mut wish = made.clone();
    wish["spec"]["size"] = json!(5);
    wish["status"] = json!({"phase": "Forged"});
    let updated = client.call("PUT", &path, wish.to_string()).await.json();
    assert_eq!(
        (&updated["spec"]["size"], &updated["metadata"]["generation"]),
        (&json!(5), &json!(2))
    );
    assert!(updated.get("status").is_none());

    wish["spec"]["size"] = json!(6);
    let stale = client.call("PUT", &path, wish.to_string()).await;
    assert_eq!(
        (stale.code, &stale.json()["reason"]),
        (StatusCode::CONFLICT, &json!("Conflict"))
    );
    wish["metadata"]["resourceVersion"] = json!("");
    assert_eq!(client.call("PUT", &path, wish.to_string()).await.code, 422);
    let same = client.call("PUT", &path, updated.to_string()).await.json();
    assert_eq!(
        same, updated,
        "a write that changes nothing keeps the revision"
    );
}

#[tokio::test]
async fn status_is_written_through_its_own_path_only() {
    let client = Client::new();
    let mut wish = client.widget("a", json!({})).await;
    wish["spec"]["size"] = json!(9);
    wish["metadata"]["labels"]["new"] = json!("x");
    wish["status"] = json!({"phase": "Running"});
    let path = format!("{WIDGETS}/a/status");
    let updated = client.call("PUT", &path, wish.to_string()).await.json();
    assert_eq!(updated["spec"]["size"], 1);
    assert_eq!(updated["status"]["phase"], "Running");
    assert!(updated["metadata"]["labels"].get("new").is_none());
    assert_eq!(updated["metadata"]["generation"], 1);
    let patch = r#"{"status":{"phase":"Done"},"spec":{"size":4}}"#;
    let patched = client
        .call("PATCH merge-patch+json", &path, patch)
        .await
        .json();
    assert_eq!(
        (&patched["status"]["phase"], &patched["spec"]["size"]),
        (&json!("Done"), &json!(1))
    );
    let gear = "/apis/toy.example.com/v1/gears";
    client
        .call(
            "POST",
            gear,
            r#"{"metadata":{"name":"g"},"status":{"x":1}}"#,
        )
        .await;
    assert_eq!(client.get(&format!("{gear}/g")).await["status"]["x"], 1);
    assert_eq!(
        client
            .call("GET", &format!("{gear}/g/status"), "")
            .await
            .code,
        404
    );
}

#[tokio::test]
async fn patches_of_each_type_do_what_they_say() {
    let client = Client::new();
    client
        .widget("a", json!({"size": 2, "colour": "red"}))
        .await;
    let path = format!("{WIDGETS}/a");
    let merged = r#"{"spec":{"colour":null,"size":3}}"#;
    let merged = client
        .call("PATCH merge-patch+json", &path, merged)
        .await
        .json();
    assert_eq!(merged["spec"], json!({"size": 3}));
    let json = r#"[{"op":"test","path":"/spec/size","value":3},
        {"op":"add","path":"/spec/colour","value":"blue"}]"#;
    let patched = client
        .call("PATCH json-patch+json", &path, json)
        .await
        .json();
    assert_eq!(patched["spec"]["colour"], "blue");
    let failing = r#"[{"op":"test","path":"/spec/size","value":4}]"#;
    assert_eq!(
        client
            .call("PATCH json-patch+json", &path, failing)
            .await
            .code,
        422
    );
    let strategic = client
        .call("PATCH strategic-merge-patch+json", &path, "{}")
        .await;
    assert_eq!(strategic.code, 415);
    let stale = r#"{"metadata":{"resourceVersion":"1"},"spec":{"size":9}}"#;
    assert_eq!(
        client
            .call("PATCH merge-patch+json", &path, stale)
            .await
            .code,
        409
    );

    client
        .call("POST", "/api/v1/nodes", r#"{"metadata":{"name":"n"}}"#)
        .await;
    let cordon = r#"{"spec":{"unschedulable":true}}"#;
    let node = client
        .call(
            "PATCH strategic-merge-patch+json",
            "/api/v1/nodes/n",
            cordon,
        )
        .await;
    assert_eq!(node.json()["spec"]["unschedulable"], true);
    let found = client
        .get("/api/v1/nodes?fieldSelector=spec.unschedulable=false")
        .await;
    assert_eq!(found["items"], json!([]));
}

#[tokio::test]
async fn server_side_apply_creates_keeps_and_conflicts() {
    let client = Client::new();
    let path = |manager: &str| format!("{WIDGETS}/a?fieldManager={manager}");
    let config = |size: i64| {
        format!(
            "apiVersion: toy.example.com/v1\nkind: Widget\n\
             metadata: {{name: a}}\nspec: {{size: {size}}}\n"
        )
    };
    let made = client
        .call("PATCH apply-patch+yaml", &path("me"), config(2))
        .await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.text);
    let again = client
        .call("PATCH apply-patch+yaml", &path("me"), config(2))
        .await;
    assert_eq!((again.code, again.json()), (StatusCode::OK, made.json()));
    let refused = client
        .call("PATCH apply-patch+yaml", &path("you"), config(3))
        .await;
    assert_eq!(refused.code, StatusCode::CONFLICT);
    let cause = &refused.json()["details"]["causes"][0];
    assert_eq!(cause["reason"], "FieldManagerConflict");
    assert_eq!(cause["field"], ".spec.size");
    let forced = format!("{}&force=true", path("you"));
    let forced = client
        .call("PATCH apply-patch+yaml", &forced, config(3))
        .await
        .json();
    assert_eq!(forced["spec"]["size"], 3);
    let unnamed = client
        .call("PATCH apply-patch+yaml", &format!("{WIDGETS}/a"), config(3))
        .await;
    assert_eq!(unnamed.code, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn deletion_answers_a_status_or_waits_for_finalizers() {
    let client = Client::new();
    let made = client.widget("a", json!({})).await;
    let path = format!("{WIDGETS}/a");
    let wrong = json!({"preconditions": {"uid": "other"}}).to_string();
    assert_eq!(client.call("DELETE", &path, wrong).await.code, 409);
    let gone = client
        .call("DELETE", &path, r#"{"propagationPolicy":"Background"}"#)
        .await
        .json();
    assert_eq!(
        (&gone["kind"], &gone["status"]),
        (&json!("Status"), &json!("Success"))
    );
    assert_eq!(gone["details"]["uid"], made["metadata"]["uid"]);

    let body = json!({"metadata": {"name": "f", "finalizers": ["toy/x"]}, "spec": {}});
    client.call("POST", WIDGETS, body.to_string()).await;
    let path = format!("{WIDGETS}/f");
    let marked = client.call("DELETE", &path, "").await.json();
    assert_eq!(marked["kind"], "Widget");
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let more = r#"{"metadata":{"finalizers":["toy/x","toy/y"]}}"#;
    assert_eq!(
        client
            .call("PATCH merge-patch+json", &path, more)
            .await
            .code,
        422
    );
    let none = r#"{"metadata":{"finalizers":null}}"#;
    assert_eq!(
        client
            .call("PATCH merge-patch+json", &path, none)
            .await
            .code,
        200
    );
    assert_eq!(client.call("GET", &path, "").await.code, 404);
}

#[tokio::test]
async fn a_protobuf_delete_body_is_read() {
    let client = Client::new();
    client.widget("a", json!({})).await;
    let body = b"k8s\0\x0a\x13\x0a\x02v1\x12\x0dDeleteOptions\x12\x00\x1a\x00\x22\x00".to_vec();
    let answer = client
        .call(
            "DELETE vnd.kubernetes.protobuf",
            &format!("{WIDGETS}/a"),
            body,
        )
        .await;
    assert_eq!(answer.code, StatusCode::OK, "{}", answer.text);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let client = Client::new();
    for name in ["a", "b", "c"] {
        client.widget(name, json!({})).await;
    }
    let path = format!("{WIDGETS}?labelSelector=app%20in%20(a,b)");
    let gone = client.call("DELETE", &path, "").await.json();
    assert_eq!(gone["items"].as_array().map(Vec::len), Some(2));
    let left = client.get(WIDGETS).await;
    assert_eq!(left["items"][0]["metadata"]["name"], "c");
}

#[tokio::test]
async fn wrong_paths_and_methods_are_told_apart() {
    let client = Client::new();
    for (what, path, code) in [
        ("GET", "/nope", 404),
        ("GET", "/apis/nope.io/v1/things", 404),
        (
            "GET",
            "/apis/toy.example.com/v1/namespaces/default/gears",
            404,
        ),
        ("GET", "/apis/toy.example.com/v1/widgets/a", 404),
        (
            "GET",
            "/apis/toy.example.com/v1/namespaces/default/widgets/a",
            404,
        ),
        ("PUT", WIDGETS, 405),
        ("POST", "/apis/toy.example.com/v1/widgets", 405),
        ("POST", "/version", 405),
        (
            "GET",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            405,
        ),
    ] {
        let answer = client.call(what, path, "").await;
        assert_eq!(answer.code.as_u16(), code, "{what} {path}");
        assert_eq!(answer.json()["kind"], "Status", "{what} {path}");
    }
}

#[tokio::test]
async fn a_method_that_is_not_allowed_is_told_which_are() {
    let client = Client::new();
    for (what, path, allowed) in [
        ("PUT", WIDGETS, "GET, HEAD, POST, DELETE"),
        (
            "TRACE",
            &format!("{WIDGETS}/a"),
            "GET, HEAD, PUT, PATCH, DELETE",
        ),
        ("POST", "/version", "GET, HEAD"),
        (
            "PUT",
            &format!("{WIDGETS}?sendInitialEvents=true"),
            "GET, HEAD, POST, DELETE",
        ),
        (
            "GET",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            "POST",
        ),
    ] {
        let answer = client.call(what, path, "").await;
        assert_eq!(answer.header("allow"), allowed, "{what} {path}");
    }
}

#[tokio::test]
async fn what_the_ledger_cannot_hold_is_refused() {
    let client = Client::new();
    let made = r#"{"metadata":{"name":"a"},"spec":{"colour":"\u0000"}}"#;
    let refused = client.call("POST", WIDGETS, made).await;
    assert_eq!(refused.code, StatusCode::BAD_REQUEST, "{}", refused.text);
    client.widget("a", json!({})).await;
    let body = r#"{"metadata":{"name":"b"}}"#;
    let manager = format!("{WIDGETS}?fieldManager=a%00");
    let refused = client.call("POST", &manager, body).await;
    assert_eq!(refused.code, StatusCode::BAD_REQUEST, "{}", refused.text);
    let named = format!("{WIDGETS}/a%00");
    assert_eq!(
        client.call("GET", &named, "").await.code,
        StatusCode::NOT_FOUND
    );
    let patch = r#"[{"op":"add","path":"/spec/colour","value":"\u0000"}]"#;
    let refused = client
        .call("PATCH json-patch+json", &format!("{WIDGETS}/a"), patch)
        .await;
    assert_eq!(refused.code, StatusCode::BAD_REQUEST, "{}", refused.text);
}

#[tokio::test]
async fn warnings_have_an_end() {
    let client = Client::new();
    let fields: Vec<String> = (0..40)
        .map(|at| format!("\"{at}{}\":1", "k".repeat(900)))
        .collect();
    let body = format!(
        "{{\"metadata\":{{\"name\":\"a\"}},\"spec\":{{}},{}}}",
        fields.join(",")
    );
    let made = client.call("POST", WIDGETS, body).await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.text);
    let warnings = made.headers.get_all("warning").iter();
    let total: usize = warnings.map(http::HeaderValue::len).sum();
    assert!((1..6_000).contains(&total), "{total}");
}

#[tokio::test]
async fn handlers_answer_for_resources_without_a_store() {
    let client = Client::new();
    let review = r#"{"kind":"SelfSubjectAccessReview","spec":{}}"#;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(
        client.call("POST", path, review).await.json()["status"]["allowed"],
        true
    );
    let evicted = client
        .call("POST", &format!("{WIDGETS}/a/eviction"), "{}")
        .await;
    assert_eq!(evicted.json()["status"]["name"], "a");
}

#[tokio::test]
async fn a_view_of_another_shape_is_converted_both_ways() {
    let client = Client::new();
    let (old, new) = (
        "/apis/legacy.example.com/v1/namespaces/default/memos",
        "/apis/toy.example.com/v1/namespaces/default/memos",
    );
    let body = r#"{"metadata":{"name":"m"},"words":"hello"}"#;
    let made = client
        .call("POST", &format!("{old}?fieldValidation=Strict"), body)
        .await;
    assert_eq!(made.code, StatusCode::CREATED, "{}", made.text);
    assert_eq!(made.json()["words"], "hello");
    assert_eq!(client.get(&format!("{new}/m")).await["text"], "hello");
    let patch = r#"{"words":"bye"}"#;
    let patched = client
        .call("PATCH merge-patch+json", &format!("{old}/m"), patch)
        .await;
    assert_eq!(patched.json()["words"], "bye");
    let shown = client.get(new).await;
    assert_eq!(
        (&shown["items"][0]["text"], shown["items"][0].get("words")),
        (&json!("bye"), None)
    );
}

#[tokio::test]
async fn there_are_no_custom_resource_definitions_and_that_is_an_answer() {
    let client = Client::new();
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(client.get(path).await["items"], json!([]));
    let one = client.call("GET", &format!("{path}/x"), "").await;
    assert_eq!(one.json()["details"]["name"], "x");
}
