//! Who is asking: tokens of an issuer and of a file, nobody, and callers who act as somebody else.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use godwit_api_gateway::OidcConfig;
use godwit_testkit::api::{Connection, Method, Request};
use godwit_testkit::kubectl::Release;
use serde_json::{Value, json};

use crate::api_env::{Api, Kubectl, example};
use crate::api_issuer::{Issuer, Key};

const SELF_REVIEWS: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// Longest time until a changed file or a new key counts.
const SOON: Duration = Duration::from_secs(30);

fn claims(issuer: &Issuer, with: &Value) -> Value {
    let expires = jiff::Timestamp::now().as_second() + 600;
    let mut claims = json!({
        "iss": issuer.url, "aud": "godwit", "sub": "7", "exp": expires,
        "name": "olga", "roles": ["godwit:viewers"],
    });
    for (key, value) in with.as_object().unwrap() {
        claims[key] = value.clone();
    }
    claims
}

async fn api_of(issuer: &Issuer) -> Result<Api> {
    let oidc: OidcConfig = serde_json::from_value(json!({
        "issuer_url": issuer.url, "client_ids": ["godwit", "other"], "ca_file": issuer.ca_file,
        "signing_algs": ["RS256", "ES256"], "username_claim": "name", "username_prefix": "id:",
        "groups_claim": "roles",
    }))?;
    Api::start_configured(|config, _| {
        config.oidc = Some(oidc);
        Ok(())
    })
    .await
}

/// Who the server says a token is of; `None` when it doesn't believe it.
async fn whose(connection: &mut Connection, token: &str) -> Result<Option<Value>> {
    whoami(connection, &[("authorization", &format!("Bearer {token}"))]).await
}

async fn whoami(connection: &mut Connection, headers: &[(&str, &str)]) -> Result<Option<Value>> {
    let (code, text) = ask(connection, ("POST", SELF_REVIEWS), headers, "{}").await?;
    if code == 401 {
        let status: Value = serde_json::from_str(&text)?;
        ensure!(status["message"] == "Unauthorized" && status["reason"] == "Unauthorized");
        return Ok(None);
    }
    ensure!(code == 201, "{code}: {text}");
    let review: Value = serde_json::from_str(&text)?;
    Ok(Some(review["status"]["userInfo"].clone()))
}

async fn ask(
    connection: &mut Connection,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: &str,
) -> Result<(u16, String)> {
    let mut request = Request::builder().method(method).uri(path);
    request = request.header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = connection.exchange(request.body(body.to_owned())?).await?;
    Ok((answer.status().as_u16(), answer.into_body()))
}

/// Waits until a token is believed, or isn't any more.
async fn until(connection: &mut Connection, token: &str, believed: bool) -> Result<()> {
    let began = Instant::now();
    while whose(connection, token).await?.is_some() != believed {
        ensure!(began.elapsed() < SOON, "believed is not {believed} in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// `kubectl auth whoami` for those that can, and what it does by hand for those that can't.
async fn who(kubectl: &Kubectl, release: Release, file: &str, with: &[&str]) -> Result<Value> {
    let newest = ["auth", "whoami", "-o", "json"];
    let by_hand = ["create", "--raw", SELF_REVIEWS, "-f", file];
    let command: &[&str] = match release {
        Release::Trixie | Release::Newest => &newest,
        Release::Debian => &by_hand,
    };
    let text = kubectl.ok(&[command, with].concat()).await?;
    let review: Value = serde_json::from_str(&text).context(text)?;
    Ok(review["status"]["userInfo"].clone())
}

fn self_review(api: &Api) -> Result<String> {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview",
    });
    api.file("review.json", &review.to_string())
}

#[tokio::test]
async fn kubectl_is_who_its_issuers_token_says() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let issuer = Issuer::start(dir.path()).await?;
    let api = api_of(&issuer).await?;
    let review = self_review(&api)?;
    let token = issuer.key().sign(&claims(&issuer, &json!({"jti": "t1"})))?;
    // The keys are fetched on the side.
    until(&mut api.client_of(None)?.connect().await?, &token, true).await?;
    let token = format!("--token={token}");
    let expired = issuer.key().sign(&claims(&issuer, &json!({"exp": 1})))?;
    let expired = format!("--token={expired}");
    for release in Release::ENDS {
        let kubectl = api.bearer(release).await?;
        let user = who(&kubectl, release, &review, &[&token]).await?;
        assert_eq!(user["username"], "id:olga");
        assert_eq!(
            user["groups"],
            json!(["godwit:viewers", "system:authenticated"])
        );
        let id = &user["extra"]["authentication.kubernetes.io/credential-id"];
        assert_eq!(*id, json!(["JTI=t1"]));
        kubectl.ok(&["get", "nodes", &token]).await?;
        let machine = example("migration-job.yaml");
        let refused = kubectl.fails(&["create", "-f", &machine, &token]).await?;
        assert!(
            refused.contains("User \"id:olga\" cannot create"),
            "{refused}"
        );
        let refused = kubectl.fails(&["get", "nodes", &expired]).await?;
        assert!(
            refused.contains("You must be logged in to the server"),
            "{refused}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn tokens_that_are_not_the_issuers_are_refused_without_a_reason() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let issuer = Issuer::start(dir.path()).await?;
    let api = api_of(&issuer).await?;
    let mut connection = api.client_of(None)?.connect().await?;
    let good = issuer.key().sign(&claims(&issuer, &json!({})))?;
    until(&mut connection, &good, true).await?;
    let (message, _) = good.rsplit_once('.').context("a token")?;
    let (_, payload) = message.split_once('.').context("a token")?;
    let none = "eyJhbGciOiJub25lIn0";
    let with = |claims: Value, key: &Key| key.sign(&claims);
    let key = issuer.key();
    let bad = [
        with(claims(&issuer, &json!({"aud": "somebody"})), &key)?,
        with(claims(&issuer, &json!({"exp": 1})), &key)?,
        with(claims(&issuer, &json!({"nbf": 4_000_000_000_u32})), &key)?,
        with(
            claims(&issuer, &json!({"iss": "https://127.0.0.1:1"})),
            &key,
        )?,
        with(claims(&issuer, &json!({"name": ""})), &key)?,
        with(claims(&issuer, &json!({})), &Key::new("k1")?)?,
        format!("{none}.{payload}."),
        format!("{message}."),
        "nonsense".to_owned(),
    ];
    for token in &bad {
        assert_eq!(whose(&mut connection, token).await?, None, "{token}");
    }
    assert!(whose(&mut connection, &good).await?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_new_key_is_fetched_and_strangers_can_not_make_us_ask_often() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let issuer = Issuer::start(dir.path()).await?;
    let api = api_of(&issuer).await?;
    let mut connection = api.client_of(None)?.connect().await?;
    let old = issuer.key().sign(&claims(&issuer, &json!({})))?;
    until(&mut connection, &old, true).await?;

    let began = Instant::now();
    let asked = issuer.asked_for_keys();
    for at in 0..200 {
        let stranger = Key::new(&format!("stranger{at}"))?;
        let token = stranger.sign(&claims(&issuer, &json!({})))?;
        assert_eq!(whose(&mut connection, &token).await?, None);
    }
    let allowed = usize::try_from(began.elapsed().as_secs() / 10 + 1)?;
    assert!(issuer.asked_for_keys() - asked <= allowed);

    let new = issuer.replace_key("k2")?;
    let new = new.sign(&claims(&issuer, &json!({})))?;
    until(&mut connection, &new, true).await?;
    assert_eq!(whose(&mut connection, &old).await?, None);
    Ok(())
}

#[tokio::test]
async fn the_keys_may_be_in_a_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let issuer = Issuer::start(dir.path()).await?;
    let (url, key) = (issuer.url.clone(), issuer.key());
    let api = Api::start_configured(|config, dir| {
        let file = dir.join("jwks.json");
        std::fs::write(&file, issuer.key_set().to_string())?;
        config.oidc = Some(serde_json::from_value(json!({
            "issuer_url": url, "client_ids": ["godwit"], "jwks_file": file,
            "signing_algs": ["ES256"],
        }))?);
        Ok(())
    })
    .await?;
    let mut connection = api.client_of(None)?.connect().await?;
    let token = key.sign(&claims(&issuer, &json!({})))?;
    let user = whose(&mut connection, &token).await?.context("a user")?;
    assert_eq!(user["username"], format!("{url}#7"));
    assert_eq!(issuer.asked_for_keys(), 0);

    let new = issuer.replace_key("k2")?;
    api.file("jwks.json", &issuer.key_set().to_string())?;
    let new = new.sign(&claims(&issuer, &json!({})))?;
    until(&mut connection, &new, true).await?;
    Ok(())
}

#[tokio::test]
async fn the_token_file_is_read_again_and_a_bad_one_changes_nothing() -> Result<()> {
    let api = Api::start().await?;
    let mut connection = api.client_of(None)?.connect().await?;
    assert!(whose(&mut connection, "viewer-token").await?.is_some());
    api.file(
        "tokens.csv",
        "robot-token,system:serviceaccount:ci:robot,9,x\n",
    )?;
    until(&mut connection, "robot-token", true).await?;
    assert_eq!(whose(&mut connection, "viewer-token").await?, None);
    let robot = whose(&mut connection, "robot-token")
        .await?
        .context("a user")?;
    let groups = [
        "x",
        "system:serviceaccounts",
        "system:serviceaccounts:ci",
        "system:authenticated",
    ];
    assert_eq!(robot["groups"], json!(groups));
    assert_eq!(robot["uid"], "9");

    // Long enough for it to be read several times.
    api.file("tokens.csv", "viewer-token,vera\n")?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(whose(&mut connection, "robot-token").await?.is_some());
    assert_eq!(whose(&mut connection, "viewer-token").await?, None);
    api.file("tokens.csv", "viewer-token,vera,7\n")?;
    until(&mut connection, "viewer-token", true).await?;
    Ok(())
}

#[tokio::test]
async fn nobody_gets_further_than_health_unless_they_are_let_in() -> Result<()> {
    let api = Api::start().await?;
    let mut connection = api.client_of(None)?.connect().await?;
    for (path, wanted) in [
        ("/healthz", 200),
        ("/version", 200),
        ("/api", 401),
        ("/nowhere", 401),
    ] {
        assert_eq!(
            ask(&mut connection, ("GET", path), &[], "").await?.0,
            wanted,
            "{path}"
        );
    }
    let api = Api::start_configured(|config, _| {
        config.anonymous = true;
        Ok(())
    })
    .await?;
    let mut connection = api.client_of(None)?.connect().await?;
    let nodes = ("GET", "/api/v1/nodes");
    let (code, text) = ask(&mut connection, nodes, &[], "").await?;
    assert_eq!(code, 403, "{text}");
    assert!(
        text.contains("User \\\"system:anonymous\\\" cannot list resource"),
        "{text}"
    );
    // A wrong token is wrong all the same.
    let wrong = [("authorization", "Bearer wrong")];
    assert_eq!(ask(&mut connection, nodes, &wrong, "").await?.0, 401);
    Ok(())
}

#[tokio::test]
async fn administrators_act_as_others_by_kubectl() -> Result<()> {
    let api = Api::start().await?;
    let review = self_review(&api)?;
    for release in Release::ENDS {
        let admin = api.admin(release).await?;
        let alice = ["--as=alice", "--as-group=dev"];
        let user = who(&admin, release, &review, &alice).await?;
        assert_eq!(user["username"], "alice");
        assert_eq!(user["groups"], json!(["dev", "system:authenticated"]));
        // They are alice, with what she may do and no more.
        let machine = example("migration-job.yaml");
        let refused = admin
            .fails(&[&["create", "-f", &machine], &alice[..]].concat())
            .await?;
        assert!(
            refused.contains("User \"alice\" cannot create"),
            "{refused}"
        );
        let robot = ["--as=system:serviceaccount:ci:robot"];
        let user = who(&admin, release, &review, &robot).await?;
        let groups = [
            "system:serviceaccounts",
            "system:serviceaccounts:ci",
            "system:authenticated",
        ];
        assert_eq!(user["groups"], json!(groups));
        let viewer = api.viewer(release).await?;
        // An old kubectl that is refused discovery believes that there are no nodes.
        viewer.ok(&["get", "nodes"]).await?;
        for (with, wanted) in [
            (
                "--as=admin",
                "users \"admin\" is forbidden: User \"vera\" cannot impersonate \
                            resource \"users\" in API group \"\" at the cluster scope",
            ),
            (
                robot[0],
                "serviceaccounts \"robot\" is forbidden: User \"vera\" cannot impersonate \
                        resource \"serviceaccounts\" in API group \"\" in the namespace \"ci\"",
            ),
        ] {
            let refused = viewer.fails(&["get", "nodes", with]).await?;
            assert!(refused.contains(wanted), "{refused}");
        }
    }
    let newest = api.admin(Release::Newest).await?;
    let uid = ["--as=alice", "--as-uid=77"];
    assert_eq!(
        who(&newest, Release::Newest, &review, &uid).await?["uid"],
        "77"
    );
    Ok(())
}

#[tokio::test]
async fn acting_as_others_follows_kube_apiserver_to_the_letter() -> Result<()> {
    let api = Api::start_configured(|config, dir| {
        let file = dir.join("boss.csv");
        std::fs::write(&file, "boss-token,boss,1,system:masters\n")?;
        config.token_file = Some(file);
        Ok(())
    })
    .await?;
    let mut connection = api.client_of(None)?.connect().await?;
    let boss = ("authorization", "Bearer boss-token");
    let extra = ("impersonate-extra-acme.com%2Fscope", "read");
    let user = [
        boss,
        ("impersonate-user", "alice"),
        extra,
        ("impersonate-uid", "7"),
    ];
    let user = whoami(&mut connection, &user).await?.context("a user")?;
    let wanted = json!({
        "username": "alice", "uid": "7", "groups": ["system:authenticated"],
        "extra": {"acme.com/scope": ["read"]},
    });
    assert_eq!(user, wanted);

    let nodes = ("GET", "/api/v1/nodes");
    let group = [boss, ("impersonate-group", "dev")];
    let (code, text) = ask(&mut connection, nodes, &group, "").await?;
    let wanted = "Internal Server Error: \"/api/v1/nodes\": requested [{Group  dev    }] without \
                  impersonating a user\n";
    assert_eq!((code, text.as_str()), (500, wanted));

    let nobody = [boss, ("impersonate-user", "system:anonymous")];
    let (code, text) = ask(&mut connection, nodes, &nobody, "").await?;
    assert_eq!(code, 403, "{text}");
    // Without credentials there is nobody who could act as somebody.
    let alone = [("impersonate-user", "boss")];
    assert_eq!(ask(&mut connection, nodes, &alone, "").await?.0, 401);
    let (code, _) = ask(&mut connection, ("GET", "/version"), &alone, "").await?;
    assert_eq!(code, 403);
    Ok(())
}

#[tokio::test]
async fn whose_a_token_is_is_told_to_those_who_may_ask() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let issuer = Issuer::start(dir.path()).await?;
    let api = api_of(&issuer).await?;
    let token = issuer.key().sign(&claims(&issuer, &json!({})))?;
    until(&mut api.client_of(None)?.connect().await?, &token, true).await?;
    let mut admin = api.client()?.connect().await?;
    let review = |token: &str, audiences: &[&str]| {
        json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token, "audiences": audiences},
        })
    };
    let answer = admin.post(TOKEN_REVIEWS, &review(&token, &[])).await?;
    let wanted = json!({"authenticated": true, "user": {
        "username": "id:olga", "groups": ["godwit:viewers", "system:authenticated"],
    }});
    assert_eq!(answer["status"], wanted);
    let answer = admin
        .post(TOKEN_REVIEWS, &review(&token, &["x", "other"]))
        .await?;
    assert_eq!(answer["status"]["audiences"], json!(["other"]));
    for refused in [review("wrong", &[]), review(&token, &["x"])] {
        let answer = admin.post(TOKEN_REVIEWS, &refused).await?;
        assert_eq!(
            answer["status"],
            json!({"user": {}, "error": "invalid bearer token"})
        );
    }
    let empty = review("", &[]);
    let empty = admin.call(Method::POST, TOKEN_REVIEWS, Some(&empty));
    assert_eq!(empty.await?.status, 400);
    let viewer = [("authorization", "Bearer viewer-token")];
    let mut connection = api.client_of(None)?.connect().await?;
    let asked = ("POST", TOKEN_REVIEWS);
    let body = review(&token, &[]).to_string();
    assert_eq!(ask(&mut connection, asked, &viewer, &body).await?.0, 403);
    Ok(())
}
