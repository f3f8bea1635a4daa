//! HTTP as curl, openssl and kubectl speak it.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use godwit_runtime::Identity;
use godwit_testkit::kubectl::Release;
use serde_json::{Value, json};

use crate::api_env::Api;
use crate::api_wire::{exchange, head};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const BUFFER: u32 = 1 << 20;

/// A command's standard output; it must end well.
async fn run(program: &'static str, arguments: Vec<String>) -> Result<String> {
    let ran = tokio::task::spawn_blocking(move || {
        let mut command = Command::new("timeout");
        command.arg("20").arg(program).args(arguments);
        command.stdin(std::process::Stdio::null()).output()
    });
    let output = ran.await?.with_context(|| format!("run {program}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {stderr}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn files(identity: &Identity) -> [String; 3] {
    [&identity.ca, &identity.cert, &identity.key].map(|path| path.display().to_string())
}

/// What curl prints for a path of the API.
async fn curl(api: &Api, user: &Identity, flags: &[&str], path: &str) -> Result<String> {
    let [ca, cert, key] = files(user);
    let own = ["-sS", "--cacert", &ca, "--cert", &cert, "--key", &key];
    let url = format!("{}{path}", api.address);
    let all = own.iter().chain(flags).copied().chain([url.as_str()]);
    run("curl", all.map(str::to_owned).collect()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_1_2_and_1_3_with_http_2_and_1_1() -> Result<()> {
    let api = Api::start().await?;
    let admin = api.identity_of("admin", "system:masters")?;
    for (flag, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        for protocol in ["h2", "http/1.1"] {
            let [ca, cert, key] = files(&admin);
            let address = api.address.trim_start_matches("https://");
            let arguments = [
                "s_client",
                "-connect",
                address,
                "-CAfile",
                &ca,
                "-cert",
                &cert,
                "-key",
                &key,
                "-verify_return_error",
                "-alpn",
                protocol,
                flag,
            ];
            let said = run("openssl", arguments.map(str::to_owned).to_vec()).await?;
            assert!(
                said.contains(&format!("ALPN protocol: {protocol}")),
                "{said}"
            );
            assert!(said.contains(version), "{said}");
        }
    }
    // Debian's own security level would not even ask for it. An alert is the gateway's word.
    let old = [
        "--tls-max",
        "1.1",
        "--tlsv1.1",
        "--ciphers",
        "DEFAULT@SECLEVEL=0",
    ];
    let refused = curl(&api, &admin, &old, "/version").await.unwrap_err();
    assert!(refused.to_string().contains("alert"), "{refused:#}");
    let show = ["-o", "/dev/null", "-w", "%{http_version} %{http_code}"];
    for (flag, wanted) in [("--http2", "2 200"), ("--http1.1", "1.1 200")] {
        let flags = [&show[..], &[flag]].concat();
        assert_eq!(curl(&api, &admin, &flags, "/version").await?, wanted);
    }
    // No certificate at all, and an open door.
    let [ca, ..] = files(&admin);
    let url = format!("{}/version", api.address);
    let bare = ["-sS".to_owned(), "--cacert".to_owned(), ca, url];
    assert!(run("curl", bare.to_vec()).await?.contains("gitVersion"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_are_compressed_for_who_asks_and_watches_never() -> Result<()> {
    let api = Api::start().await?;
    let client = api.client()?;
    let mut connection = client.connect().await?;
    let asks = [("accept-encoding", "gzip")];
    let small = exchange(
        &mut client.open(BUFFER).await?,
        &head("GET", MAPS, &asks),
        b"",
    )
    .await?;
    assert_eq!(small.header("content-encoding"), None);
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "large"}, "data": {"x": "x".repeat(200_000)},
    });
    connection.post(MAPS, &object).await?;
    let plain = exchange(
        &mut client.open(BUFFER).await?,
        &head("GET", MAPS, &[]),
        b"",
    )
    .await?;
    assert_eq!(plain.header("content-encoding"), None);
    let packed = exchange(
        &mut client.open(BUFFER).await?,
        &head("GET", MAPS, &asks),
        b"",
    )
    .await?;
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert!(
        packed
            .header("vary")
            .is_some_and(|vary| vary.contains("accept-encoding"))
    );
    assert!(packed.body.len() < 20_000, "{}", packed.body.len());
    let admin = api.identity_of("admin", "system:masters")?;
    let read: Value = serde_json::from_str(&curl(&api, &admin, &["--compressed"], MAPS).await?)?;
    assert_eq!(read["items"], plain.json()["items"]);
    let watch = format!("{MAPS}?watch=true&timeoutSeconds=1");
    let watched = exchange(
        &mut client.open(BUFFER).await?,
        &head("GET", &watch, &asks),
        b"",
    )
    .await?;
    assert_eq!(
        (watched.status(), watched.header("content-encoding")),
        (200, None)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_reads_as_in_kube_apiserver() -> Result<()> {
    let api = Api::start().await?;
    let kubectl = api.admin(Release::Newest).await?;
    let cases = [
        ("/healthz", "ok"),
        ("/livez", "ok"),
        ("/readyz", "ok"),
        ("/readyz/ping", "ok"),
        ("/readyz/watch-cache", "ok"),
        ("/livez?verbose", "[+]ping ok\nlivez check passed\n"),
        (
            "/readyz?verbose=true&exclude=ping",
            "[+]ping excluded: ok\n[+]watch-cache ok\nreadyz check passed\n",
        ),
        (
            "/readyz?verbose&exclude=nothing",
            "[+]ping ok\n[+]watch-cache ok\nwarn: some health checks cannot be excluded: no \
             matches for \"nothing\"\nreadyz check passed\n",
        ),
    ];
    for (path, text) in cases {
        assert_eq!(kubectl.ok(&["get", "--raw", path]).await?, text, "{path}");
    }
    let why = kubectl.fails(&["get", "--raw", "/readyz/nothing"]).await?;
    assert!(why.contains("NotFound"), "{why}");
    let version = kubectl.ok(&["get", "--raw", "/version"]).await?;
    assert!(version.contains("gitVersion"), "{version}");
    let listed = kubectl.ok(&["get", "--raw", MAPS]).await?;
    assert!(listed.contains("ConfigMapList"), "{listed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_for_who_may_read_them() -> Result<()> {
    let api = Api::start().await?;
    let admin = api.admin(Release::Newest).await?;
    let text = admin.ok(&["get", "--raw", "/metrics"]).await?;
    assert!(
        text.contains("apiserver_current_inflight_requests 1"),
        "{text}"
    );
    let monitoring = api.identity_of("prometheus", "system:monitoring")?;
    let text = curl(&api, &monitoring, &[], "/metrics").await?;
    assert!(
        text.contains("apiserver_current_inflight_requests 1"),
        "{text}"
    );
    let viewer = api.viewer(Release::Newest).await?;
    let why = viewer.fails(&["get", "--raw", "/metrics"]).await?;
    let wanted = "forbidden: User \"vera\" cannot get path \"/metrics\"";
    assert!(why.contains(wanted), "{why}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_answers_as_get_without_a_body() -> Result<()> {
    let api = Api::start().await?;
    let client = api.client()?;
    for path in ["/version", "/healthz", "/openapi/v2", "/docs", MAPS] {
        let got = exchange(
            &mut client.open(BUFFER).await?,
            &head("GET", path, &[]),
            b"",
        )
        .await?;
        let told = exchange(
            &mut client.open(BUFFER).await?,
            &head("HEAD", path, &[]),
            b"",
        )
        .await?;
        assert_eq!((told.status(), told.body.len()), (200, 0), "{path}");
        for name in ["content-type", "content-length"] {
            assert_eq!(told.header(name), got.header(name), "{path} {name}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_for_people_show_what_is_served_and_load_nothing_foreign() -> Result<()> {
    let api = Api::start().await?;
    let admin = api.identity_of("admin", "system:masters")?;
    let index = curl(&api, &admin, &["-i"], "/docs").await?;
    for header in [
        "content-security-policy: default-src 'none'; style-src 'self';",
        "content-type: text/html; charset=utf-8",
        "x-content-type-options: nosniff",
    ] {
        assert!(index.contains(header), "{header} is not in {index}");
    }
    assert!(index.contains("href=\"/docs/apis/kubevirt.io/v1#kind-VirtualMachineInstance\""));
    let page = curl(&api, &admin, &[], "/docs/apis/kubevirt.io/v1").await?;
    for part in [
        "GET /apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachineinstances",
        "id=\"kind-VirtualMachine\"",
        "<code>running</code>",
    ] {
        assert!(page.contains(part), "{part} is not on the page");
    }
    for (at, _) in page.match_indices("href=\"#") {
        let name = page[at + 7..].split('"').next().unwrap_or_default();
        assert!(
            page.contains(&format!("id=\"{name}\"")),
            "{name} leads nowhere"
        );
    }
    for foreign in ["<script", "src=", "http://", "style=\""] {
        let found = page
            .find(foreign)
            .map(|at| page.get(at.saturating_sub(60)..at + 60));
        assert!(!index.contains(foreign), "{foreign}");
        assert!(
            foreign == "http://" || found.is_none(),
            "{foreign}: {found:?}"
        );
    }
    assert!(
        curl(&api, &admin, &[], "/docs/style.css")
            .await?
            .contains("body")
    );
    let missing = curl(&api, &admin, &["-i"], "/docs/apis/nothing/v1").await?;
    assert!(missing.contains(" 404"), "{missing}");
    // A service is no user.
    let mut raw = api.member("nobody", "node-agent")?.open(BUFFER).await?;
    let nobody = exchange(&mut raw, &head("GET", "/docs", &[]), b"").await?;
    assert_eq!(nobody.status(), 401);
    Ok(())
}
