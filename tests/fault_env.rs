//! The lab that the fault suite breaks: kills at named places, cut and stalled links, and a
//! supervisor that starts again what died, as an init system does.
//!
//! Only `fault_suite.rs` and its sections start one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use godwit_cli::audit::{Outcome, audit};
use godwit_testkit::api::{Answer, Api, Method, Request, Response};
use godwit_testkit::lab::{Lab, LabOptions, Process, http_get, http_put};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::lab_env::migration;

/// How long anything may take that a busy machine only makes slower.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);
/// Longest wait for one answer of the API.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long what was disturbed may take to come to rest.
const SETTLE_SECONDS: u32 = 20;
/// What the line of a service about a panic has; spans may stand in between.
const PANIC: [&str; 2] = [" godwit_runtime::run: ", "panic location="];
/// Virtual machines.
pub(crate) const MACHINES: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
/// Their instances.
pub(crate) const INSTANCES: &str =
    "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
/// Migrations.
pub(crate) const MIGRATIONS: &str =
    "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";

/// A running lab; ended when dropped.
pub(crate) struct Faults {
    lab: Lab,
    runtime: Runtime,
    api: Api,
    /// Services that nobody starts again for now.
    down: RefCell<BTreeSet<String>>,
    /// Deaths that the supervisor saw, by service.
    deaths: RefCell<BTreeMap<String, usize>>,
    /// How far each service's log was looked at for panics.
    looked_at: RefCell<BTreeMap<String, u64>>,
}

/// A place in a service where a debug build can be made to fail.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) service: String,
    pub(crate) name: String,
}

impl Place {
    pub(crate) fn new(service: &str, name: &str) -> Self {
        Self {
            service: service.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.service, self.name)
    }
}

impl Faults {
    fn options(coordinators: u16, otlp_endpoint: Option<String>) -> LabOptions {
        let program = std::env::current_exe().unwrap();
        let bin_dir = program.ancestors().nth(2).unwrap().to_owned();
        LabOptions {
            prefix: "gwf".to_owned(),
            index: 4,
            workers: 3,
            coordinators,
            dir: PathBuf::from("/var/lib/gw-faults"),
            cache_dir: bin_dir.parent().unwrap().join("lab-cache"),
            bin_dir,
            otlp_endpoint,
        }
    }

    /// Starts the lab, after removing what an ended test may have left.
    pub(crate) fn start(coordinators: u16) -> Result<Self> {
        Self::start_with(Self::options(coordinators, None))
    }

    /// As [`Self::start`], with spans sent to this machine's `port`, from its hosts too.
    pub(crate) fn start_traced(coordinators: u16, port: u16) -> Result<Self> {
        let lab = Lab::new(Self::options(coordinators, None));
        let endpoint = format!("http://{}:{port}", lab.network().management());
        Self::start_with(Self::options(coordinators, Some(endpoint)))
    }

    fn start_with(options: LabOptions) -> Result<Self> {
        let lab = Lab::new(options);
        lab.down()?;
        lab.up(&|_| ())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let api = Api::of(&lab)?;
        Ok(Self {
            lab,
            runtime,
            api,
            down: RefCell::default(),
            deaths: RefCell::default(),
            looked_at: RefCell::default(),
        })
    }

    pub(crate) const fn lab(&self) -> &Lab {
        &self.lab
    }

    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// One request over a connection of its own; an error is that nobody answered.
    pub(crate) fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let call = async {
            let mut connection = self.api.connect().await?;
            connection.call(method, path, body).await
        };
        let answered = async { tokio::time::timeout(ANSWER_MAX, call).await };
        self.runtime.block_on(answered).context("no answer")?
    }

    /// Asks until somebody answers, with the supervisor at work meanwhile.
    pub(crate) fn ask(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        self.until(&format!("an answer to {method} {path}"), || {
            let answer = self.call(method.clone(), path, body);
            Ok(answer.ok().filter(|answer| answer.status != 503))
        })
    }

    /// One request as it is given, over a connection of its own.
    pub(crate) fn exchange(&self, request: Request<String>) -> Result<Response<String>> {
        let call = async { self.api.connect().await?.exchange(request).await };
        let answered = async { tokio::time::timeout(ANSWER_MAX, call).await };
        self.runtime.block_on(answered).context("no answer")?
    }

    /// An object; `None` when there is none.
    pub(crate) fn get(&self, path: &str) -> Result<Option<Value>> {
        let answer = self.ask(&Method::GET, path, None)?;
        if answer.status == 404 {
            return Ok(None);
        }
        answer.object().map(Some)
    }

    /// Creates an object. A request whose answer was lost may have made it: then a second one is
    /// refused, and the object is there.
    pub(crate) fn create(&self, path: &str, object: &Value) -> Result<()> {
        let answer = self.ask(&Method::POST, path, Some(object))?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        if answer.status >= 400 && self.get(&format!("{path}/{name}"))?.is_some() {
            return Ok(());
        }
        answer.object().map(drop)
    }

    pub(crate) fn delete(&self, path: &str) -> Result<()> {
        let answer = self.ask(&Method::DELETE, path, None)?;
        ensure!([200, 202, 404].contains(&answer.status), "{}", answer.body);
        Ok(())
    }

    /// Looks until there is an answer; starts again meanwhile what died.
    pub(crate) fn until<T>(
        &self,
        what: &str,
        look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        self.until_within(what, PATIENCE, look)
    }

    /// As [`Self::until`], for what takes minutes.
    pub(crate) fn until_long<T>(
        &self,
        what: &str,
        look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        self.until_within(what, 5 * PATIENCE, look)
    }

    fn until_within<T>(
        &self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let began = Instant::now();
        loop {
            self.supervise()?;
            if let Some(found) = look()? {
                return Ok(found);
            }
            if began.elapsed() > patience {
                bail!("waited {} s for {what}", patience.as_secs());
            }
            std::thread::sleep(POLL); // poll
        }
    }

    /// Starts every service that died, but those that are to stay down.
    pub(crate) fn supervise(&self) -> Result<()> {
        for service in self.lab.services() {
            if self.down.borrow().contains(&service.name) || service.process().is_some() {
                continue;
            }
            service.start()?;
            *self.deaths.borrow_mut().entry(service.name).or_default() += 1;
        }
        Ok(())
    }

    /// How often a service died so far, as the supervisor saw it.
    pub(crate) fn deaths(&self, service: &str) -> usize {
        self.deaths.borrow().get(service).copied().unwrap_or(0)
    }

    /// Kills a service; the supervisor starts it again.
    pub(crate) fn kill(&self, service: &str) -> Result<()> {
        self.lab.kill(service)
    }

    /// Kills a service for as long as `meanwhile` takes.
    pub(crate) fn without<T>(
        &self,
        service: &str,
        meanwhile: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.down.borrow_mut().insert(service.to_owned());
        let done = self.kill(service).and_then(|()| meanwhile());
        self.down.borrow_mut().remove(service);
        self.supervise()?;
        done
    }

    /// Waits until every service says that it is ready.
    pub(crate) fn ready(&self) -> Result<()> {
        self.until("all services to be ready", || {
            let ready = |admin: &str| {
                http_get(admin, "/readyz").is_ok_and(|said| said.starts_with("HTTP/1.1 200"))
            };
            let all = self.lab.services();
            Ok(all
                .iter()
                .all(|service| ready(&service.admin))
                .then_some(()))
        })
    }

    fn admin(&self, service: &str) -> Result<String> {
        Ok(self.lab.service(service)?.admin)
    }

    /// Arms a place with `kill`, `pause`, `sleep MILLISECONDS` or `off`.
    pub(crate) fn arm(&self, place: &Place, act: &str) -> Result<()> {
        let path = format!("/debug/failpoints/{}", place.name);
        let said = http_put(&self.admin(&place.service)?, &path, act)?;
        ensure!(said.starts_with("HTTP/1.1 200"), "{place}: {said}");
        Ok(())
    }

    /// The places that a service reached since it was started, and how often; whether somebody is
    /// held there.
    pub(crate) fn places(&self, service: &str) -> Result<BTreeMap<String, (u64, bool)>> {
        let said = http_get(&self.admin(service)?, "/debug/failpoints")?;
        let (_, text) = said.split_once("\r\n\r\n").context("no HTTP")?;
        let read = |line: &str| {
            let mut words = line.split(' ');
            let name = words.next()?.to_owned();
            let count = words.next()?.parse().ok()?;
            Some((name, (count, words.next() == Some("held"))))
        };
        Ok(text.lines().filter_map(read).collect())
    }

    /// Whether somebody is held at a place.
    pub(crate) fn held(&self, place: &Place) -> bool {
        let places = self.places(&place.service).unwrap_or_default();
        places.get(&place.name).is_some_and(|(_, held)| *held)
    }

    /// Asks for a move of `vmi` to `node`.
    pub(crate) fn migrate(&self, job: &str, vmi: &str, node: &str) -> Result<()> {
        self.create(MIGRATIONS, &migration(job, vmi, Some(node)))
    }

    /// Asks for a move of `vmi` to any node.
    pub(crate) fn migrate_anywhere(&self, job: &str, vmi: &str) -> Result<()> {
        self.create(MIGRATIONS, &migration(job, vmi, None))
    }

    /// How a migration ended, when it has: its phase and its object.
    pub(crate) fn ended(&self, job: &str) -> Result<Option<(String, Value)>> {
        let found = self.get(&format!("{MIGRATIONS}/{job}"))?;
        let Some(object) = found else {
            return Ok(Some(("Deleted".to_owned(), Value::Null)));
        };
        let phase = object["status"]["phase"].as_str().unwrap_or_default();
        let over = ["Succeeded", "Failed"].contains(&phase);
        Ok(over.then(|| (phase.to_owned(), object.clone())))
    }

    /// Where an instance runs, when it does.
    pub(crate) fn running_on(&self, vmi: &str) -> Result<Option<String>> {
        let found = self.get(&format!("{INSTANCES}/{vmi}"))?;
        let Some(object) = found.filter(|object| object["status"]["phase"] == "Running") else {
            return Ok(None);
        };
        Ok(object["status"]["nodeName"].as_str().map(str::to_owned))
    }

    /// The QEMU processes of a worker.
    pub(crate) fn qemus(&self, worker: &str) -> Vec<Process> {
        let number = worker.trim_start_matches("worker");
        let run = self
            .lab
            .options()
            .dir
            .join("run")
            .join(format!("w{number}/"));
        let mark = run.to_string_lossy().into_owned();
        let ids = fs::read_dir("/proc").into_iter().flatten().flatten();
        ids.filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line);
            let ours = line.starts_with("qemu-system") || line.contains("/qemu-system");
            (ours && line.contains(&mark)).then(|| Process::of_pid(pid))?
        })
        .collect()
    }

    /// Sets the rules of a worker's firewall, in nftables' words: packets it gets, and sends.
    pub(crate) fn firewall(&self, worker: &str, input: &[String], output: &[String]) -> Result<()> {
        let chain = |rules: &[String]| rules.iter().map(|rule| format!("{rule};")).collect();
        let (input, output): (String, String) = (chain(input), chain(output));
        let rules = format!(
            "add table inet faults\nflush table inet faults\ndelete table inet faults\n\
             table inet faults {{\n\
             chain input {{ type filter hook input priority 0; {input} }}\n\
             chain output {{ type filter hook output priority 0; {output} }}\n}}\n"
        );
        let file = self.lab.options().dir.join("firewall.nft");
        fs::write(&file, rules)?;
        let number = worker.trim_start_matches("worker").parse()?;
        let done = Command::new("ip")
            .args([
                "netns",
                "exec",
                &self.lab.network().worker(number),
                "nft",
                "-f",
            ])
            .arg(&file)
            .output()
            .context("run nft")?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "nft: {said}");
        Ok(())
    }

    /// A worker's address on the management network.
    pub(crate) fn address(&self, worker: &str) -> Result<Ipv4Addr> {
        let number = worker.trim_start_matches("worker").parse()?;
        Ok(self.lab.network().worker_address(number))
    }

    /// Sets the cluster's limits of migrations, in KubeVirt's words.
    pub(crate) fn configure(&self, migrations: &Value) -> Result<()> {
        let path = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts";
        let object = json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "KubeVirt",
            "metadata": { "name": "kubevirt", "namespace": "kubevirt" },
            "spec": { "configuration": { "migrations": migrations } },
        });
        self.delete(&format!("{path}/kubevirt"))?;
        self.until("the old limits to be gone", || {
            Ok(self
                .get(&format!("{path}/kubevirt"))?
                .is_none()
                .then_some(()))
        })?;
        self.create(path, &object)
    }

    /// Checks that every invariant holds, and that so many QEMUs run.
    pub(crate) fn audit(&self, machines: usize) -> Result<()> {
        self.until("no QEMU too many or too few", || {
            let workers = ["worker1", "worker2", "worker3"];
            let all: usize = workers.iter().map(|worker| self.qemus(worker).len()).sum();
            Ok((all == machines).then_some(()))
        })?;
        self.ready()?;
        self.nobody_panicked()?;
        let report = self.block_on(audit(&self.lab.audit(SETTLE_SECONDS)?))?;
        ensure!(
            report.outcome() == Outcome::Clean,
            "audit: {}",
            report.text()
        );
        Ok(())
    }

    /// That services died by what was done to them, and by nothing else: the supervisor would start
    /// again one that panicked, too.
    fn nobody_panicked(&self) -> Result<()> {
        for service in self.lab.services() {
            let mut log = fs::File::open(service.log())?;
            let mut looked_at = self.looked_at.borrow_mut();
            let from = looked_at.entry(service.name.clone()).or_default();
            log.seek(SeekFrom::Start(*from))?;
            let mut new = Vec::new();
            *from += log.read_to_end(&mut new)? as u64;
            let new = String::from_utf8_lossy(&new);
            let panic = new
                .lines()
                .find(|line| PANIC.iter().all(|part| line.contains(part)));
            ensure!(
                panic.is_none(),
                "{}: {}",
                service.name,
                panic.unwrap_or_default()
            );
        }
        Ok(())
    }

    /// What a person would look at first when something went wrong.
    pub(crate) fn situation(&self) -> String {
        let mut text = String::new();
        for path in [INSTANCES, MIGRATIONS] {
            let found = self.get(path).ok().flatten().unwrap_or_default();
            for object in found["items"].as_array().into_iter().flatten() {
                let (name, status) = (&object["metadata"]["name"], &object["status"]);
                text.push_str(&format!("{name} {status}\n"));
            }
        }
        for service in self.lab.services() {
            let log = godwit_testkit::lab::tail(&service.log(), 25);
            text.push_str(&format!("==> {} <==\n{log}\n", service.name));
        }
        text
    }

    /// Keeps what services wrote where the lab's end does not remove it; says where.
    pub(crate) fn keep_logs(&self, name: &str) -> Result<PathBuf> {
        let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join("fault-suite")
            .join(name);
        // Sockets can't be copied, and need not be.
        let _ = Command::new("sh")
            .args(["-ec", "rm -rf $0; mkdir -p $0; cp -r logs run state $0"])
            .arg(&kept)
            .current_dir(&self.lab.options().dir)
            .output()?;
        Ok(kept)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        if std::env::var_os("FAULT_KEEP").is_some() {
            return;
        }
        if let Err(error) = self.lab.down() {
            crate::lab_suite::say(&format!("the lab does not end: {error:#}"));
        }
    }
}
