//! The life of a real process: start, probes, signals, faults, traces.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tonic::{Request, Response, Status};

/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a service says whose spans nobody takes.
const TAKES_NONE: &str = "collector takes no traces";

struct Service {
    process: Child,
    log: BufReader<ChildStderr>,
    admin: SocketAddr,
}

impl Service {
    fn start(set: &[&str]) -> Self {
        let admin = free_address();
        let mut command = Command::new(program());
        command.args(["--set", &format!("common.admin_bind={admin}")]);
        command.args(["--set", "common.insecure=true", "--set", "common.log=json"]);
        for flag in set {
            command.args(["--set", flag]);
        }
        let mut process = command
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        Self {
            process,
            log,
            admin,
        }
    }

    fn started(set: &[&str]) -> Self {
        let service = Self::start(set);
        until("ready", || {
            service
                .get("/readyz")
                .is_some_and(|answer| answer.contains(" 200 "))
        });
        service
    }

    /// The whole answer; `None` while nobody listens.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn terminate(&self) {
        let pid = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// What it logs until a line that has `text`.
    fn log_until(&mut self, text: &str) -> Vec<String> {
        let mut lines = vec![];
        while !lines
            .last()
            .is_some_and(|line: &String| line.contains(text))
        {
            let mut line = String::new();
            assert!(self.log.read_line(&mut line).unwrap() > 0, "{lines:?}");
            lines.push(line);
        }
        lines
    }

    /// How it ended and what it logged since.
    fn ended(mut self) -> (ExitStatus, Vec<String>) {
        let mut status = None;
        until("ended", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        let log = self.log.by_ref().lines().map(Result::unwrap);
        (status.unwrap(), log.collect())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Cargo builds the examples of a crate before it runs the crate's tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/tiny_service")
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not {what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_service_is_probed_scraped_and_ends_when_asked_to() {
    let service = Service::started(&[]);
    assert!(service.get("/livez").unwrap().contains(" 200 "));
    let metrics = service.get("/metrics").unwrap();
    assert!(metrics.contains("content-type: application/openmetrics-text; version=1.0.0"));
    assert!(metrics.contains("godwit_build_info{service=\"tiny-service\""));
    service.terminate();
    let (status, log) = service.ended();
    assert!(status.success(), "{log:?}");
    let levels = log
        .iter()
        .filter(|line| !line.contains("\"level\":\"INFO\""))
        .count();
    assert_eq!(levels, 0, "{log:?}");
}

#[test]
fn a_configuration_that_makes_no_sense_is_64_before_anything_starts() {
    for (flag, named) in [
        ("falt=error", "falt"),
        ("fault=flood", "flood"),
        ("common.insecure=false", "common.identity"),
        ("common.log_filter==,=", "common.log_filter"),
    ] {
        let mut service = Service::start(&[flag]);
        let mut text = String::new();
        service.log.read_to_string(&mut text).unwrap();
        let status = service.process.wait().unwrap();
        assert_eq!(status.code(), Some(64), "{flag}: {text}");
        assert!(text.contains(named), "{flag}: {text}");
    }
}

#[test]
fn a_task_that_panics_ends_the_process_and_says_where() {
    let (status, log) = Service::start(&["fault=panic"]).ended();
    assert_eq!(status.code(), Some(1), "{log:?}");
    let log = log.join("\n");
    assert!(
        log.contains("on purpose") && log.contains("tiny_service.rs"),
        "{log}"
    );
    assert!(log.contains("task fragile panicked"), "{log}");
}

#[test]
fn a_service_that_fails_says_why_as_a_log_line() {
    let (status, log) = Service::start(&["fault=error"]).ended();
    assert_eq!(status.code(), Some(1));
    let failed = log
        .iter()
        .find(|line| line.contains("nothing works"))
        .unwrap();
    assert!(
        failed.starts_with('{') && failed.contains("\"level\":\"ERROR\""),
        "{failed}"
    );
}

#[test]
fn a_service_that_ignores_its_end_is_cut_off() {
    let service = Service::started(&["fault=stuck"]);
    service.terminate();
    let (status, log) = service.ended();
    assert_eq!(status.code(), Some(1));
    assert!(log.join("\n").contains("did not end within 5 s"), "{log:?}");
}

#[test]
fn a_dead_collector_is_told_of_once_and_holds_nothing_up() {
    let endpoint = format!("common.otlp_endpoint=http://{}", free_address());
    let mut service = Service::started(&[&endpoint]);
    let mut log = service.log_until(TAKES_NONE);
    service.terminate();
    let (status, rest) = service.ended();
    log.extend(rest);
    assert!(status.success(), "{log:?}");
    let warnings = log.iter().filter(|line| line.contains(TAKES_NONE)).count();
    assert_eq!(warnings, 1, "{log:?}");
}

/// Whoever connects to `listener` first.
fn caller(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let mut found = None;
    until("connected to", || {
        found = listener.accept().ok();
        found.is_some()
    });
    let (stream, _) = found.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn a_collector_that_never_answers_holds_nothing_up() {
    for protocol in ["grpc", "http/protobuf"] {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!(
            "common.otlp_endpoint=http://{}",
            silent.local_addr().unwrap()
        );
        let service = Service::started(&[&endpoint, &format!("common.otlp_protocol={protocol}")]);
        let connection = caller(&silent);
        service.terminate();
        let (status, log) = service.ended();
        assert!(status.success(), "{protocol}: {log:?}");
        drop(connection);
    }
}

#[test]
fn a_batch_goes_by_http_to_the_path_of_traces() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let service = Service::started(&[
        &format!("common.otlp_endpoint=http://{address}/otlp/"),
        "common.otlp_protocol=http/protobuf",
    ]);
    let mut request = BufReader::new(caller(&listener));
    let head: Vec<String> = (&mut request)
        .lines()
        .map(Result::unwrap)
        .take_while(|line| !line.is_empty())
        .collect();
    assert_eq!(head[0], "POST /otlp/v1/traces HTTP/1.1");
    let told = |name: &str| {
        let line = head.iter().find_map(|line| line.strip_prefix(name));
        line.unwrap().to_owned()
    };
    assert_eq!(told("content-type: "), "application/x-protobuf");
    let mut body = vec![0; told("content-length: ").parse().unwrap()];
    request.read_exact(&mut body).unwrap();
    let text = String::from_utf8_lossy(&body);
    assert!(text.contains("godwit-tiny-service") && text.contains("Copying"));
    let answer =
        "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
    request.get_mut().write_all(answer.as_bytes()).unwrap();
    service.terminate();
    let (status, log) = service.ended();
    assert!(status.success(), "{log:?}");
    assert!(
        log.iter().all(|line| line.contains("\"level\":\"INFO\"")),
        "{log:?}"
    );
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[test]
fn a_collector_gets_the_request_and_the_step_below_it() {
    let (address, collector) = (free_address(), Collector::default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(collector.clone()))
        .serve(address);
    runtime.spawn(server);
    until("listening", || TcpStream::connect(address).is_ok());
    let service = Service::started(&[&format!("common.otlp_endpoint=http://{address}")]);
    service.terminate();
    let (status, log) = service.ended();
    assert!(status.success(), "{log:?}");

    let exported = collector.0.lock().unwrap().clone();
    let resources = exported.iter().flat_map(|request| &request.resource_spans);
    for resource in resources.clone() {
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        let name = attributes
            .iter()
            .find(|attribute| attribute.key == "service.name")
            .unwrap();
        assert!(
            format!("{name:?}").contains("godwit-tiny-service"),
            "{name:?}"
        );
    }
    let spans: Vec<_> = resources
        .flat_map(|r| &r.scope_spans)
        .flat_map(|scope| &scope.spans)
        .collect();
    let named = |name| *spans.iter().find(|span| span.name == name).unwrap();
    let (request, step) = (named("request"), named("Copying"));
    assert_eq!(step.trace_id, request.trace_id);
    assert_eq!(step.parent_span_id, request.span_id);
    runtime.shutdown_background();
}
