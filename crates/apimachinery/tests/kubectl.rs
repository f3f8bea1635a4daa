//! Real kubectl binaries against toy kinds on a loopback socket.
//!
//! Uses the oldest and the newest `kubectl.1.*` beside the `kubectl` in `PATH`, and those listed
//! in `KUBECTL_EXTRA` (separated by colons). Without any it says so and passes.

#![allow(clippy::print_stdout, reason = "says what was tried")]

mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use godwit_apimachinery::AllowAll;
use godwit_testkit::kubectl::{self, Release};
use support::MemoryStore;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Longest a single command may take.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daily_commands_work_with_every_kubectl() {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../lab-cache");
    for release in Release::ALL {
        let binary = kubectl::program(&cache, release, &|_| {}).unwrap();
        println!("kubectl: {}", binary.display());
        let home = tempdir(&binary);
        let router = support::server(&MemoryStore::new(), Arc::new(AllowAll));
        let server = listen(router.clone()).await;
        let kubectl = Kubectl {
            binary,
            server,
            home,
            router,
        };
        daily(&kubectl).await;
        waiting(&kubectl).await;
        interactive(&kubectl).await;
        built_in(&kubectl).await;
        std::fs::remove_dir_all(&kubectl.home).expect("remove the cache");
    }
}

const WIDGET: &str = "apiVersion: toy.example.com/v1\nkind: Widget\nmetadata:\n  name: a\n\
    \x20 labels: {app: a}\nspec:\n  size: 3\n  colour: red\n";

async fn daily(kubectl: &Kubectl) {
    let version = kubectl.ok("version --output=json").await;
    assert!(version.contains("v1.33.0+toy"), "{version}");
    let resources = kubectl.ok("api-resources").await;
    assert!(
        resources.contains("wd,wds") && resources.contains("legacy.example.com"),
        "{resources}"
    );

    assert_eq!(
        kubectl.fed("apply -f -", WIDGET).await,
        "widget.toy.example.com/a created\n"
    );
    assert_eq!(
        kubectl.fed("apply -f -", WIDGET).await,
        "widget.toy.example.com/a unchanged\n"
    );
    let larger = WIDGET
        .replace("size: 3", "size: 4")
        .replace("  colour: red\n", "");
    assert_eq!(
        kubectl.fed("apply -f -", &larger).await,
        "widget.toy.example.com/a configured\n"
    );
    let table = kubectl.ok("get wd").await;
    assert!(
        table.starts_with("NAME   PHASE   SIZE   AGE\na              4      "),
        "{table}"
    );
    let wide = kubectl.ok("get wd -o wide -A").await;
    assert!(
        wide.starts_with("NAMESPACE   NAME   PHASE   SIZE   COLOUR   AGE"),
        "{wide}"
    );
    assert_eq!(
        kubectl.ok("get wd a -o jsonpath={.spec}").await,
        "{\"size\":4}"
    );
    assert_eq!(
        kubectl.ok("get all -o name").await,
        "widget.toy.example.com/a\n"
    );
    let described = kubectl.ok("describe wd a").await;
    assert!(
        described.contains("Size:  4") && described.contains("Events:"),
        "{described}"
    );
    let explained = kubectl.ok("explain widgets.spec.size").await;
    assert!(explained.contains("How big it is."), "{explained}");

    daily_changes(kubectl, &larger).await;
    server_side(kubectl).await;
}

async fn daily_changes(kubectl: &Kubectl, larger: &str) {
    let wrong = kubectl
        .fails("apply -f -", &larger.replace("size: 4", "sise: 4"))
        .await;
    assert!(wrong.contains("unknown field"), "{wrong}");
    let merge = "patch wd a --type=merge -p {\"spec\":{\"size\":5}}";
    assert_eq!(
        kubectl.ok(merge).await,
        "widget.toy.example.com/a patched\n"
    );
    assert_eq!(
        kubectl.ok("label wd a x=y").await,
        "widget.toy.example.com/a labeled\n"
    );
    // Some versions say "annotate".
    assert!(
        kubectl
            .ok("annotate wd a note=1")
            .await
            .contains("/a annotate")
    );
    let edited = kubectl
        .ok("get wd a -o yaml")
        .await
        .replace("size: 5", "size: 6");
    assert_eq!(
        kubectl.fed("replace -f -", &edited).await,
        "widget.toy.example.com/a replaced\n"
    );
    assert_eq!(
        kubectl.ok("get wd -l app=a -o name").await,
        "widget.toy.example.com/a\n"
    );
}

async fn server_side(kubectl: &Kubectl) {
    let server_side = WIDGET.replace("name: a", "name: s");
    let applied = "widget.toy.example.com/s serverside-applied\n";
    assert_eq!(
        kubectl.fed("apply --server-side -f -", &server_side).await,
        applied
    );
    assert_eq!(
        kubectl.fed("apply --server-side -f -", &server_side).await,
        applied
    );
    let other = server_side.replace("size: 3", "size: 7");
    let conflict = kubectl
        .fails("apply --server-side --field-manager=x -f -", &other)
        .await;
    assert!(conflict.contains("conflict with \"kubectl\""), "{conflict}");
    kubectl
        .fed(
            "apply --server-side --force-conflicts --field-manager=x -f -",
            &other,
        )
        .await;
    let fresh = WIDGET.replace("name: a", "name: d");
    let dry = kubectl.fed("create --dry-run=server -f -", &fresh).await;
    assert!(dry.contains("created (server dry run)"), "{dry}");
    let missing = kubectl.fails("get wd d", "").await;
    assert_eq!(
        missing,
        "Error from server (NotFound): widgets.toy.example.com \"d\" not found\n"
    );
    let pages = kubectl.ok("get wd --chunk-size=1 -o name").await;
    assert_eq!(pages.lines().count(), 2, "{pages}");
}

async fn waiting(kubectl: &Kubectl) {
    let mut watch = kubectl.command("get wd -w --output-watch-events");
    let watch = watch
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("start kubectl");
    tokio::time::sleep(Duration::from_millis(700)).await;
    kubectl
        .ok("patch wd a --type=merge -p {\"spec\":{\"size\":8}}")
        .await;
    let held = "patch wd a --type=merge -p {\"metadata\":{\"finalizers\":[\"toy/x\"]}}";
    kubectl.ok(held).await;
    let deletion = kubectl.ok("delete wd a --timeout=20s");
    let release = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        kubectl
            .ok("patch wd a --type=merge -p {\"metadata\":{\"finalizers\":null}}")
            .await
    };
    let (deleted, _) = tokio::join!(deletion, release);
    assert!(deleted.contains("deleted"), "{deleted}");
    let gone = async {
        tokio::time::sleep(Duration::from_millis(1000)).await;
        kubectl.ok("delete wd s --wait=false").await
    };
    let (waited, _) = tokio::join!(kubectl.ok("wait --for=delete wd/s --timeout=20s"), gone);
    println!("{waited}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let pid = watch.id().expect("it still runs").to_string();
    Command::new("kill").arg(pid).status().await.expect("kill");
    let output = watch.wait_with_output().await.expect("output");
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        seen.contains("MODIFIED") && seen.contains("DELETED"),
        "{seen}"
    );
}

/// What waits for a status, shows differences, or opens an editor.
async fn interactive(kubectl: &Kubectl) {
    kubectl
        .fed("create -f -", &WIDGET.replace("name: a", "name: i"))
        .await;
    let larger = WIDGET
        .replace("name: a", "name: i")
        .replace("size: 3", "size: 4");
    let diff = kubectl.run("diff -f -", &larger).await;
    assert_eq!(
        diff.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&diff.stderr)
    );
    assert!(String::from_utf8_lossy(&diff.stdout).contains("+  size: 4"));
    let mut edit = kubectl.command("edit wd i");
    edit.env("KUBE_EDITOR", "sed -i s/size:.3/size:\\ 9/");
    let edited = edit.output().await.expect("edit");
    assert!(
        edited.status.success(),
        "{}",
        String::from_utf8_lossy(&edited.stderr)
    );
    assert_eq!(kubectl.ok("get wd i -o jsonpath={.spec.size}").await, "9");

    let ready = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let body = "{\"status\":{\"conditions\":[{\"type\":\"Ready\",\"status\":\"True\"}]}}";
        kubectl.status("i", body).await;
    };
    let wait = kubectl.ok("wait --for=condition=Ready wd/i --timeout=20s");
    let (waited, ()) = tokio::join!(wait, ready);
    assert_eq!(waited, "widget.toy.example.com/i condition met\n");
    assert_eq!(
        kubectl
            .ok("wait --for=condition=Ready wd --all --timeout=20s")
            .await,
        waited
    );
    kubectl.fed("replace --force -f -", &larger).await;
    assert!(
        kubectl
            .ok("delete wd --all")
            .await
            .contains("\"i\" deleted")
    );
}

const REVIEW: &str = "apiVersion: authorization.k8s.io/v1\nkind: SelfSubjectAccessReview\n\
    spec: {resourceAttributes: {verb: get, resource: nodes}}\n";

async fn built_in(kubectl: &Kubectl) {
    assert!(kubectl.fed("create -f -", REVIEW).await.contains("created"));
    assert_eq!(
        kubectl.ok("create namespace lab").await,
        "namespace/lab created\n"
    );
    assert_eq!(
        kubectl.ok("create configmap c --from-literal=a=b").await,
        "configmap/c created\n"
    );
    assert_eq!(
        kubectl.ok("get cm c -o jsonpath={.data}").await,
        "{\"a\":\"b\"}"
    );
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {unschedulable: false}\n";
    kubectl.fed("apply -f -", node).await;
    assert_eq!(kubectl.fed("apply -f -", node).await, "node/n1 unchanged\n");
    assert_eq!(kubectl.ok("cordon n1").await, "node/n1 cordoned\n");
    assert_eq!(
        kubectl
            .ok("get node n1 -o jsonpath={.spec.unschedulable}")
            .await,
        "true"
    );
    assert_eq!(kubectl.ok("uncordon n1").await, "node/n1 uncordoned\n");
    assert_eq!(
        kubectl.ok("taint nodes n1 k=v:NoSchedule").await,
        "node/n1 tainted\n"
    );
    assert_eq!(kubectl.ok("auth can-i create widgets").await, "yes\n");
    assert!(kubectl.ok("delete cm c").await.contains("deleted"));
    let condition = "patch node n1 --type=merge -p \
        {\"status\":{\"conditions\":[{\"type\":\"Ready\",\"status\":\"True\"}]}}";
    kubectl.ok(condition).await;
}

struct Kubectl {
    binary: PathBuf,
    server: SocketAddr,
    home: PathBuf,
    router: axum::Router,
}

impl Kubectl {
    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg(format!("--server=http://{}", self.server))
            .arg("--kubeconfig=/dev/null")
            .args(words.split_whitespace())
            .env("HOME", &self.home)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// Writes a status as a controller would.
    async fn status(&self, name: &str, body: &str) {
        let path = format!("{}/{name}/status", support::WIDGETS);
        let patch = "PATCH merge-patch+json";
        let client = support::Client {
            router: self.router.clone(),
            store: MemoryStore::new(),
        };
        let answer = client.call(patch, &path, body.to_owned()).await;
        assert!(answer.code.is_success(), "{}", answer.text);
    }

    async fn run(&self, words: &str, input: &str) -> std::process::Output {
        let mut child = self
            .command(words)
            .kill_on_drop(true)
            .spawn()
            .expect("start kubectl");
        let mut stdin = child.stdin.take().expect("piped");
        stdin
            .write_all(input.as_bytes())
            .await
            .expect("feed kubectl");
        drop(stdin);
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output());
        output
            .await
            .unwrap_or_else(|_| panic!("kubectl {words} hangs"))
            .expect("output")
    }

    async fn fed(&self, words: &str, input: &str) -> String {
        let output = self.run(words, input).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {words}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    async fn ok(&self, words: &str) -> String {
        self.fed(words, "").await
    }

    /// Runs what must fail, and answers what it complains about.
    async fn fails(&self, words: &str, input: &str) -> String {
        let output = self.run(words, input).await;
        assert!(!output.status.success(), "kubectl {words} should fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

async fn listen(router: axum::Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

fn tempdir(binary: &Path) -> PathBuf {
    let name = binary
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let dir = std::env::temp_dir().join(format!("toy-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("make a home");
    dir
}
