//! One migration, one trace: from the request to the end, in a collector that really listens.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use godwit_testkit::kubectl::{self, Release};
use godwit_testkit::lab::{Lab, LabOptions};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tonic::{Request, Response, Status};

/// How long spans may take to arrive: exporters send in batches.
const EXPORT_MAX: Duration = Duration::from_secs(20);

/// How long the machine may take to run.
const RUNNING_MAX: Duration = Duration::from_secs(60);

/// A span as it arrived.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
}

#[derive(Debug, Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Seen>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans;
        let scopes = resources
            .into_iter()
            .flat_map(|resource| resource.scope_spans);
        let spans = scopes.flat_map(|scope| scope.spans).map(|span| Seen {
            trace: span.trace_id,
            id: span.span_id,
            parent: span.parent_span_id,
            name: span.name,
        });
        self.spans.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse {
            partial_success: None,
        }))
    }
}

impl Collector {
    /// Listens on a port of its own.
    fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                let server = tonic::transport::Server::builder().add_service(service);
                server.serve_with_incoming(incoming).await
            })
        });
        (collector, address)
    }

    /// The spans of the trace that has a span called `name`, once `enough` says so.
    fn trace_with(&self, name: &str, enough: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
        let began = Instant::now();
        loop {
            let spans = self.spans.lock().unwrap().clone();
            let trace = spans
                .iter()
                .find(|span| span.name == name)
                .map(|span| span.trace.clone());
            let of_trace: Vec<Seen> = spans
                .into_iter()
                .filter(|span| Some(&span.trace) == trace.as_ref())
                .collect();
            if enough(&of_trace) || began.elapsed() > EXPORT_MAX {
                return of_trace;
            }
            std::thread::sleep(Duration::from_millis(50)); // poll
        }
    }
}

/// Ends the lab whatever becomes of the test.
struct Ended(Lab);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.down().expect("the lab ends");
    }
}

fn target_dir() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.ancestors().nth(2).unwrap().to_owned()
}

fn run(lab: &Lab, kubectl: &Path, arguments: &[&str]) -> String {
    let output = lab.kubectl(kubectl, arguments).unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// `kubectl wait` knows no instance that isn't made yet.
fn wait_running(lab: &Lab, kubectl: &Path) {
    let phase = [
        "get",
        "vmi",
        "rhel8-server-nfs",
        "-o",
        "jsonpath={.status.phase}",
    ];
    let began = Instant::now();
    while lab.kubectl(kubectl, &phase).unwrap().stdout != b"Running" {
        assert!(began.elapsed() < RUNNING_MAX, "the machine does not run");
        std::thread::sleep(Duration::from_millis(50)); // poll
    }
}

#[test]
fn lab_trace_joins_every_step_of_a_migration() {
    let (collector, address) = Collector::start();
    let bin_dir = target_dir();
    let cache_dir = bin_dir.join("../lab-cache");
    let kubectl = kubectl::program(&cache_dir, Release::Newest, &|_| ()).unwrap();
    let lab = Ended(Lab::new(LabOptions {
        prefix: "gwtr".to_owned(),
        index: 3,
        workers: 2,
        coordinators: 1,
        dir: PathBuf::from("/var/lib/gw-trace"),
        bin_dir,
        cache_dir,
        otlp_endpoint: Some(format!("http://{address}")),
    }));
    let lab = &lab.0;
    lab.up(&|_| ()).unwrap();
    let manifest = std::fs::read_to_string("../examples/vm-rhel8-server-nfs.yaml").unwrap();
    let manifest = manifest.replace("/var/lib/godwit/shared", &lab.disks().display().to_string());
    let file = lab.options().dir.join("machine.yaml").display().to_string();
    std::fs::write(&file, manifest).unwrap();
    run(lab, &kubectl, &["apply", "-f", &file]);
    wait_running(lab, &kubectl);
    run(
        lab,
        &kubectl,
        &["apply", "-f", "../examples/migration-job.yaml"],
    );
    let done = [
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "vmim/migration-job",
    ];
    run(lab, &kubectl, &done);

    let steps = [
        "Pending",
        "Placing",
        "Reserved",
        "Preparing",
        "Prepared",
        "Copying",
    ];
    let steps = [&steps[..], &["SwitchAllowed", "HandedOver"]].concat();
    let has = |spans: &[Seen], name: &str| spans.iter().any(|span| span.name == name);
    let trace = collector.trace_with("HandedOver", |spans| {
        steps.iter().all(|step| has(spans, step))
            && spans.iter().any(|span| !steps.contains(&&*span.name))
    });
    for step in &steps {
        assert!(has(&trace, step), "no span {step} in {trace:#?}");
    }
    let ids: BTreeSet<&Vec<u8>> = trace.iter().map(|span| &span.id).collect();
    assert_eq!(ids.len(), trace.len(), "a step is there twice: {trace:#?}");
    for span in trace.iter().filter(|span| steps.contains(&&*span.name)) {
        assert!(
            ids.contains(&span.parent),
            "the request's span is missing: {trace:#?}"
        );
    }
}
