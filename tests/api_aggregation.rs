//! Two gateways: one plays a cluster's kube-apiserver, with users and rules of its own, the other is
//! reached through it. Who is believed when a front proxy speaks for users, and who decides.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use godwit_api_gateway::AggregationConfig;
use godwit_testkit::api::{Api as Client, Connection, Method, Request};
use godwit_testkit::certs::{Ca, Subject};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api_env::Api;

const SETTINGS: &str = "/api/v1/namespaces/kube-system/configmaps";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const WHOAMI: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const CAN_I: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const MACHINES: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
const PROXY: &str = "front-proxy-client";
/// Longest time until changed settings count.
const SOON: Duration = Duration::from_secs(30);

/// A cluster, its authorities, and a Godwit behind it.
struct Scene {
    cluster: Api,
    godwit: Api,
    front: Authority,
    /// Makes the certificates of the cluster's users.
    users: Authority,
}

/// An authority in a folder of its own. All of them have the same name.
struct Authority {
    dir: TempDir,
    ca: Ca,
}

impl Authority {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let ca = Ca::load_or_create(dir.path())?;
        Ok(Self { dir, ca })
    }

    fn pem(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.path().join("ca.crt"))?)
    }

    /// A client of `godwit` that shows a certificate of this authority.
    fn client(&self, godwit: &Api, name: &str) -> Result<Client> {
        let pem = self.ca.issue(Subject {
            name,
            organizations: &[],
            served_as: &[],
        })?;
        let server = std::fs::read(authority_of(godwit)?)?;
        let own = (pem.cert.as_bytes(), pem.key.as_bytes());
        Client::at(&godwit.address, &server, own)
    }
}

fn authority_of(api: &Api) -> Result<PathBuf> {
    Ok(api.identity_of("somebody", "nothing")?.ca)
}

impl Scene {
    async fn start() -> Result<Self> {
        let (front, users) = (Authority::new()?, Authority::new()?);
        let cluster = Api::start_configured(|config, dir| {
            let tokens = dir.join("cluster-tokens.csv");
            std::fs::write(&tokens, "g,gateway,\nrobots-token,robot,9,\"movers\"\n")?;
            config.token_file = Some(tokens);
            Ok(())
        })
        .await?;
        let mut admin = cluster.client()?.connect().await?;
        let settings = settings(&front, &users)?;
        admin.post(SETTINGS, &settings).await?;
        grant(
            &mut admin,
            "gateway",
            &json!([
                {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
                {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"],
                 "verbs": ["create"]},
                {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"],
                 "verbs": ["create"]},
            ]),
            &json!({"kind": "User", "name": "gateway"}),
        )
        .await?;
        grant(
            &mut admin,
            "movers",
            &json!([
                {"apiGroups": ["kubevirt.io"], "resources": ["virtualmachineinstances"],
                 "verbs": ["list"]},
            ]),
            &json!({"kind": "Group", "name": "movers"}),
        )
        .await?;
        let godwit = behind(&cluster.address, authority_of(&cluster)?).await?;
        Ok(Self {
            cluster,
            godwit,
            front,
            users,
        })
    }

    async fn proxy(&self) -> Result<Connection> {
        self.front.client(&self.godwit, PROXY)?.connect().await
    }
}

/// A Godwit behind the cluster at `server`.
async fn behind(server: &str, ca_file: PathBuf) -> Result<Api> {
    Api::start_configured(|config, dir| {
        let token_file = dir.join("cluster-token");
        std::fs::write(&token_file, "g\n")?;
        config.aggregation = Some(AggregationConfig {
            server: server.to_owned(),
            ca_file,
            token_file,
        });
        Ok(())
    })
    .await
}

/// What kube-apiserver writes for the servers that extend it.
fn settings(front: &Authority, users: &Authority) -> Result<Value> {
    Ok(json!({
        "metadata": {"name": "extension-apiserver-authentication"},
        "data": {
            "client-ca-file": users.pem()?,
            "requestheader-client-ca-file": front.pem()?,
            "requestheader-allowed-names": format!("[{PROXY:?}]"),
            "requestheader-username-headers": r#"["X-Remote-User"]"#,
            "requestheader-uid-headers": r#"["X-Remote-Uid"]"#,
            "requestheader-group-headers": r#"["X-Remote-Group"]"#,
            "requestheader-extra-headers-prefix": r#"["X-Remote-Extra-"]"#,
        },
    }))
}

async fn grant(admin: &mut Connection, name: &str, rules: &Value, to: &Value) -> Result<()> {
    let role = json!({"metadata": {"name": name}, "rules": rules});
    admin.post(&format!("{RBAC}/clusterroles"), &role).await?;
    let binding = json!({
        "metadata": {"name": name}, "subjects": [to],
        "roleRef": {"kind": "ClusterRole", "name": name},
    });
    let path = format!("{RBAC}/clusterrolebindings");
    admin.post(&path, &binding).await?;
    Ok(())
}

type Headers<'a> = &'a [(&'a str, &'a str)];

const MIA: Headers = &[
    ("X-Remote-User", "mia"),
    ("X-Remote-Uid", "7"),
    ("X-Remote-Group", "movers"),
    ("X-Remote-Group", "night"),
    ("X-Remote-Extra-Acme.com%2fShift", "late"),
];

async fn ask(
    connection: &mut Connection,
    (method, path): (&str, &str),
    headers: Headers<'_>,
    body: &Value,
) -> Result<(u16, Value)> {
    let mut request = Request::builder().method(method).uri(path);
    request = request.header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = match body.is_null() {
        true => String::new(),
        false => body.to_string(),
    };
    let answer = connection.exchange(request.body(body)?).await?;
    let code = answer.status().as_u16();
    let body = serde_json::from_str(&answer.into_body()).unwrap_or_default();
    Ok((code, body))
}

async fn get(connection: &mut Connection, path: &str, headers: Headers<'_>) -> Result<u16> {
    let (code, _) = ask(connection, ("GET", path), headers, &Value::Null).await?;
    Ok(code)
}

/// Whom the server takes the sender for; `null` for nobody.
async fn whoami(connection: &mut Connection, headers: Headers<'_>) -> Result<Value> {
    let (code, review) = ask(connection, ("POST", WHOAMI), headers, &json!({})).await?;
    if code == 401 {
        return Ok(Value::Null);
    }
    ensure!(code == 201, "{code}: {review}");
    Ok(review["status"]["userInfo"].clone())
}

/// The same by name.
async fn name(client: &Client, headers: Headers<'_>) -> Result<Value> {
    let user = whoami(&mut client.connect().await?, headers).await?;
    Ok(user["username"].clone())
}

async fn wait_until<F: AsyncFnMut() -> Result<bool>>(what: &str, mut done: F) -> Result<()> {
    let began = Instant::now();
    while !done().await? {
        ensure!(began.elapsed() < SOON, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[tokio::test]
async fn the_front_proxy_says_who_asks_and_the_cluster_what_they_may_do() -> Result<()> {
    let scene = Scene::start().await?;
    let mut proxy = scene.proxy().await?;
    assert_eq!(
        whoami(&mut proxy, MIA).await?,
        json!({
            "username": "mia", "uid": "7", "extra": {"acme.com/shift": ["late"]},
            "groups": ["movers", "night", "system:authenticated"],
        })
    );
    assert_eq!(get(&mut proxy, MACHINES, MIA).await?, 200);
    let (code, refused) = ask(&mut proxy, ("DELETE", MACHINES), MIA, &Value::Null).await?;
    assert_eq!(code, 403, "{refused}");
    let can_i = |verb: &str| {
        json!({"spec": {"resourceAttributes": {
            "verb": verb, "group": "kubevirt.io", "resource": "virtualmachineinstances",
            "namespace": "default",
        }}})
    };
    for (verb, may) in [("list", true), ("delete", false)] {
        let (_, review) = ask(&mut proxy, ("POST", CAN_I), MIA, &can_i(verb)).await?;
        assert_eq!(review["status"]["allowed"], may, "{verb}");
    }

    // kube-apiserver asks for discovery as somebody without groups, and passes nobody on, too.
    let aggregator = &[("X-Remote-User", "system:kube-aggregator")];
    for path in [
        "/apis",
        "/apis/kubevirt.io/v1",
        "/openapi/v2",
        "/openapi/v3",
    ] {
        assert_eq!(get(&mut proxy, path, aggregator).await?, 200, "{path}");
    }
    let nobody = &[
        ("X-Remote-User", "system:anonymous"),
        ("X-Remote-Group", "system:unauthenticated"),
    ];
    assert_eq!(get(&mut proxy, "/apis", nobody).await?, 403);
    assert_eq!(get(&mut proxy, "/livez", nobody).await?, 200);
    Ok(())
}

#[tokio::test]
async fn a_clusters_user_is_not_ours_whatever_the_name() -> Result<()> {
    let scene = Scene::start().await?;
    let mut proxy = scene.proxy().await?;
    let mut admin = scene.godwit.client()?.connect().await?;
    let everything = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
    let ann = json!({"kind": "User", "name": "ann"});
    grant(&mut admin, "all", &everything, &ann).await?;
    let own = scene.godwit.client_of(Some("ann"))?;
    wait_until("the rule counts", async || {
        let answer = own
            .connect()
            .await?
            .call(Method::GET, MACHINES, None)
            .await?;
        Ok(answer.status == 200)
    })
    .await?;
    let theirs = &[("X-Remote-User", "ann")];
    assert_eq!(get(&mut proxy, MACHINES, theirs).await?, 403);
    // Nor may the cluster's ann be made Godwit's by way of one of the cluster's masters.
    let master = &[
        ("X-Remote-User", "root"),
        ("X-Remote-Group", "system:masters"),
        ("Impersonate-User", "ann"),
    ];
    let (code, refused) = ask(&mut proxy, ("GET", MACHINES), master, &Value::Null).await?;
    let said = |refused: &Value, what| refused["message"].to_string().contains(what);
    assert!(code == 403 && said(&refused, "cannot list"), "{refused}");
    let path = format!("{RBAC}/clusterrolebindings");
    let binding = json!({
        "metadata": {"name": "more"}, "subjects": [ann],
        "roleRef": {"kind": "ClusterRole", "name": "cluster-admin"},
    });
    let (code, refused) = ask(&mut proxy, ("POST", &path), &master[..2], &binding).await?;
    let why = "attempting to grant RBAC permissions not currently held";
    assert!(code == 403 && said(&refused, why), "{refused}");
    Ok(())
}

#[tokio::test]
async fn the_clusters_own_tokens_and_certificates_stand_for_its_users() -> Result<()> {
    let scene = Scene::start().await?;
    let mut anybody = scene.godwit.client_of(None)?.connect().await?;
    let robot = &[("Authorization", "Bearer robots-token")];
    let user = whoami(&mut anybody, robot).await?;
    assert_eq!(user["username"], "robot");
    assert_eq!(user["groups"], json!(["movers", "system:authenticated"]));
    assert_eq!(get(&mut anybody, MACHINES, robot).await?, 200);
    let path = "/api/v1/nodes";
    assert_eq!(get(&mut anybody, path, robot).await?, 403);
    let wrong = &[("Authorization", "Bearer nobodys-token")];
    assert_eq!(whoami(&mut anybody, wrong).await?, Value::Null);

    let mut ina = scene.users.client(&scene.godwit, "ina")?.connect().await?;
    assert_eq!(whoami(&mut ina, &[]).await?["username"], "ina");
    assert_eq!(get(&mut ina, MACHINES, &[]).await?, 403);
    assert_eq!(get(&mut ina, "/apis/kubevirt.io/v1", &[]).await?, 200);
    Ok(())
}

#[tokio::test]
async fn headers_of_anybody_but_a_listed_front_proxy_mean_nothing() -> Result<()> {
    let scene = Scene::start().await?;
    let godwit = &scene.godwit;
    // An authority's name is no proof: all of these have the same.
    let unlisted = scene.front.client(godwit, "other-client")?;
    assert_eq!(name(&unlisted, MIA).await?, Value::Null);
    assert_eq!(name(&godwit.client_of(None)?, MIA).await?, Value::Null);
    let own = godwit.member(PROXY, "godwit:viewers")?;
    assert_eq!(name(&own, MIA).await?, PROXY);
    let clusters = scene.users.client(godwit, PROXY)?;
    assert_eq!(name(&clusters, MIA).await?, PROXY);
    assert_eq!(
        get(&mut clusters.connect().await?, MACHINES, MIA).await?,
        403
    );
    let stranger = Authority::new()?.client(godwit, PROXY)?;
    assert!(name(&stranger, MIA).await.is_err(), "a handshake succeeded");
    let token = &[MIA, &[("Authorization", "Bearer ann-token")]].concat();
    assert_eq!(name(&godwit.client_of(None)?, token).await?, "ann");
    assert_eq!(name(&unlisted, token).await?, "ann");

    // And by itself a front proxy is nobody, neither ours nor the cluster's.
    let proxy = scene.front.client(godwit, PROXY)?;
    assert_eq!(name(&proxy, &[]).await?, Value::Null);
    let groups = &[("X-Remote-Group", "system:masters")];
    assert_eq!(name(&proxy, groups).await?, Value::Null);
    Ok(())
}

#[tokio::test]
async fn a_front_proxys_authority_may_be_replaced_but_not_by_nonsense() -> Result<()> {
    let scene = Scene::start().await?;
    let mut admin = scene.cluster.client()?.connect().await?;
    let (path, next) = (
        format!("{SETTINGS}/extension-apiserver-authentication"),
        Authority::new()?,
    );
    let mut before = scene.proxy().await?;
    assert_eq!(whoami(&mut before, MIA).await?["username"], "mia");

    let mut change = settings(&next, &scene.users)?;
    admin
        .call(Method::PUT, &path, Some(&change))
        .await?
        .object()?;
    // Also where a connection is open.
    wait_until("the old authority is forgotten", async || {
        Ok(whoami(&mut before, MIA).await?.is_null())
    })
    .await?;
    let mut after = next.client(&scene.godwit, PROXY)?.connect().await?;
    assert_eq!(whoami(&mut after, MIA).await?["username"], "mia");

    // What doesn't count can't be waited for. What comes after it can.
    change["data"]["requestheader-client-ca-file"] = json!("nonsense");
    change["data"]["client-ca-file"] = json!(scene.front.pem()?);
    admin
        .call(Method::PUT, &path, Some(&change))
        .await?
        .object()?;
    let nonsense = Instant::now();
    while nonsense.elapsed() < Duration::from_millis(1500) {
        assert_eq!(whoami(&mut after, MIA).await?["username"], "mia");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        whoami(&mut before, MIA).await?,
        Value::Null,
        "half of it was believed"
    );
    Ok(())
}

#[tokio::test]
async fn without_the_cluster_its_users_are_refused_and_ours_are_not() -> Result<()> {
    let scene = Scene::start().await?;
    let mut proxy = scene.proxy().await?;
    let nodes = "/api/v1/nodes";
    let Scene { cluster, .. } = scene;
    let gone = (cluster.address.clone(), authority_of(&cluster)?);
    let kept = std::fs::read(&gone.1)?;
    drop(cluster);
    wait_until("the cluster is away", async || {
        Ok(get(&mut proxy, nodes, MIA).await? == 503)
    })
    .await?;
    assert_eq!(get(&mut proxy, "/apis/kubevirt.io/v1", MIA).await?, 200);
    let robot = &[("Authorization", "Bearer robots-token")];
    assert_eq!(
        name(&scene.godwit.client_of(None)?, robot).await?,
        Value::Null
    );
    let mut admin = scene.godwit.client()?.connect().await?;
    assert_eq!(get(&mut admin, nodes, MIA).await?, 200);

    // Who never heard of a front proxy believes none.
    let dir = tempfile::tempdir()?;
    let ca_file = dir.path().join("ca.crt");
    std::fs::write(&ca_file, kept)?;
    let late = behind(&gone.0, ca_file).await?;
    let proxy = scene.front.client(&late, PROXY)?;
    assert!(
        name(&proxy, MIA).await.is_err(),
        "a front proxy was believed"
    );
    assert_eq!(name(&late.client()?, MIA).await?, "admin");
    Ok(())
}

#[tokio::test]
async fn the_chart_sends_every_group_here_that_is_not_the_clusters_own() -> Result<()> {
    /// Every cluster, or every OpenShift, serves these itself.
    const CLUSTERS: [&str; 7] = [
        "authentication.k8s.io",
        "authorization.k8s.io",
        "coordination.k8s.io",
        "events.k8s.io",
        "policy",
        "project.openshift.io",
        "rbac.authorization.k8s.io",
    ];
    let golden = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = golden.join("../charts/godwit/ci/golden/aggregation.yaml");
    let text = std::fs::read_to_string(golden)?;
    let mut sent = vec![];
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let manifest = Value::deserialize(document)?;
        if manifest["kind"] == "APIService" {
            sent.push(manifest["metadata"]["name"].clone());
        }
    }
    let api = Api::start().await?;
    let mut admin = api.client()?.connect().await?;
    let groups = admin.get("/apis", "application/json").await?.object()?;
    let mut served = vec![];
    for group in groups["groups"].as_array().into_iter().flatten() {
        let name = group["name"].as_str().unwrap_or_default();
        if !CLUSTERS.contains(&name) {
            let versions = group["versions"].as_array().into_iter().flatten();
            let versions = versions.filter_map(|version| version["version"].as_str());
            served.extend(versions.map(|version| json!(format!("{version}.{name}"))));
        }
    }
    let sorted = |mut names: Vec<Value>| {
        names.sort_by_key(ToString::to_string);
        names
    };
    assert_eq!(sorted(sent), sorted(served));
    Ok(())
}
