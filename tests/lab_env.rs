//! The lab that the suite's sections share, and what they do with it: type commands as a person
//! does, read objects, start machines, move them, ask guests, and wait.
//!
//! Only `lab_suite.rs` starts and ends it.

use std::cell::Cell;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use godwit_testkit::guest::record::{HEARTBEAT_BYTES, QUERY_PORT, Record};
use godwit_testkit::kubectl::{self, Release};
use godwit_testkit::lab::{Lab, LabOptions, http_get};
use serde_json::{Value, json};

/// How long anything may take that a busy machine only makes slower.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// Longest run of one command, in seconds.
const COMMAND_MAX: &str = "100";
/// Longest run of a command beside the test, in seconds.
const ASIDE_MAX: &str = "900";
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How long a guest may take to answer one question.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// A running lab; ended when dropped.
pub(crate) struct Env {
    lab: Lab,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Env {
    /// The lab's options: nothing is shared with a lab that a person has on this machine.
    pub(crate) fn options() -> LabOptions {
        let program = std::env::current_exe().unwrap();
        let bin_dir = program.ancestors().nth(2).unwrap().to_owned();
        LabOptions {
            prefix: "gwt".to_owned(),
            index: 1,
            workers: 3,
            coordinators: 1,
            dir: PathBuf::from("/var/lib/gw-suite"),
            cache_dir: bin_dir.parent().unwrap().join("lab-cache"),
            bin_dir,
            otlp_endpoint: None,
        }
    }

    /// Starts the lab, after removing what an ended test may have left.
    pub(crate) fn start(progress: &dyn Fn(&str)) -> Result<Self> {
        let env = Self {
            lab: Lab::new(Self::options()),
        };
        env.lab.down()?;
        let cache = &env.lab.options().cache_dir;
        fs::create_dir_all(cache)?;
        let programs = Release::ENDS.map(|release| kubectl::program(cache, release, progress));
        env.lab.up(progress)?;
        for (release, program) in Release::ENDS.into_iter().zip(programs) {
            env.link(release, &program?)?;
        }
        Ok(env)
    }

    /// A folder with `oc` and `kubectl`, both `release`, and the plugins that the lab has.
    fn link(&self, release: Release, program: &Path) -> Result<()> {
        let folder = self.programs(release);
        fs::create_dir_all(&folder)?;
        let godwit = self.lab.options().bin_dir.join("godwit");
        for (name, to) in [
            ("oc", program),
            ("kubectl", program),
            ("kubectl-project", &godwit),
        ] {
            std::os::unix::fs::symlink(fs::canonicalize(to)?, folder.join(name))?;
        }
        Ok(())
    }

    fn programs(&self, release: Release) -> PathBuf {
        self.lab.options().dir.join(format!("bin-{release:?}"))
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// `limit` in seconds.
    fn command(&self, release: Release, script: &str, limit: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=1", limit, "bash", "-c", script])
            .env(
                "PATH",
                format!("{}:{path}", self.programs(release).display()),
            )
            .env("KUBECONFIG", self.lab.kubeconfig())
            .env("HOME", self.programs(release))
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .stdin(Stdio::null());
        command
    }

    /// Types `script` into a shell that finds `release` as `oc` and as `kubectl`.
    pub(crate) fn shell(&self, release: Release, script: &str) -> Result<Said> {
        let output = self.command(release, script, COMMAND_MAX).output()?;
        Ok(Said {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// What `script` prints; it must succeed.
    pub(crate) fn ok(&self, release: Release, script: &str) -> Result<String> {
        let said = self.shell(release, script)?;
        ensure!(
            said.ok,
            "{release:?}: {script}:\n{}{}",
            said.stdout,
            said.stderr
        );
        Ok(said.stdout)
    }

    /// What the newest kubectl prints; it must succeed.
    pub(crate) fn kubectl(&self, arguments: &str) -> Result<String> {
        self.ok(Release::Newest, &format!("kubectl {arguments}"))
    }

    /// An object, or a list.
    pub(crate) fn json(&self, what: &str) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.kubectl(&format!("get {what} -o json"))?,
        )?)
    }

    /// A file of the lab's folder.
    pub(crate) fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.lab.options().dir.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Applies objects in one request to kubectl.
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<String> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        let file = self.file("apply.json", &list.to_string())?;
        self.kubectl(&format!("apply -f {}", file.display()))
    }

    /// Watches: each line that `kubectl` prints as it comes.
    pub(crate) fn watch(&self, release: Release, arguments: &str) -> Result<Watch> {
        // One that has just been ended may still be counted.
        let others = Cell::new(self.watches()?);
        let watch = self.run_aside(release, &format!("exec kubectl {arguments}"))?;
        // Only what happens after it began is seen.
        wait("the watch to begin", || {
            let now = self.watches()?;
            let begun = now > others.get();
            others.set(others.get().min(now));
            Ok(begun.then_some(()))
        })?;
        Ok(watch)
    }

    /// How many watches the gateway has.
    fn watches(&self) -> Result<u64> {
        let said = http_get(&self.lab.service("api-gateway")?.admin, "/metrics")?;
        let mut counts = said
            .lines()
            .filter_map(|line| line.strip_prefix("apiserver_longrunning_requests "));
        Ok(counts.next().context("no count of watches")?.parse()?)
    }

    /// Runs a script beside the test, until what is returned is dropped.
    pub(crate) fn run_aside(&self, release: Release, script: &str) -> Result<Watch> {
        let out = tempfile::NamedTempFile::new_in(&self.lab.options().dir)?;
        let child = self
            .command(release, script, ASIDE_MAX)
            .stdout(out.reopen()?)
            .stderr(out.reopen()?)
            .spawn()?;
        Ok(Watch { child, out })
    }

    /// A machine of the repository's example, with this lab's addresses and folder.
    pub(crate) fn machine(&self, machine: &Machine) -> Result<Value> {
        let text = fs::read_to_string(example(machine.example))?;
        let mut object: Value = serde_yaml_ng::from_str(&text)?;
        let example = object["metadata"]["name"].as_str().unwrap_or_default();
        let text = serde_json::to_string(&object)?
            .replace(example, &machine.name)
            .replace(
                "/var/lib/godwit/shared",
                &self.lab.disks().to_string_lossy(),
            )
            .replace("/var/lib/godwit/local", &self.local().to_string_lossy());
        object = serde_json::from_str(&text)?;
        let domain = &mut object["spec"]["template"]["spec"]["domain"];
        domain["memory"]["guest"] = json!(machine.memory);
        domain["firmware"]["kernelBoot"]["kernelArgs"] = json!(format!(
            "console=ttyS0 quiet panic=-1 godwit.ip={}/24 {}",
            self.lab.network().guest(machine.last),
            machine.arguments
        ));
        Ok(object)
    }

    /// A folder for disks that only one host has.
    fn local(&self) -> PathBuf {
        self.lab.options().dir.join("local")
    }

    /// Starts machines, and waits until their guests answer.
    pub(crate) fn run(&self, machines: &[Machine]) -> Result<()> {
        let objects: Result<Vec<Value>> = machines.iter().map(|m| self.machine(m)).collect();
        self.apply(&objects?)?;
        for machine in machines {
            let what = format!("vmi/{} -o yaml", machine.name);
            self.ask(machine.last)
                .with_context(|| self.kubectl(&format!("get {what}")).unwrap_or(what))?;
        }
        Ok(())
    }

    /// Asks a guest what it is and how far, until it answers.
    pub(crate) fn ask(&self, last: u8) -> Result<Record> {
        wait("the guest's answer", || Ok(self.ask_once(last).ok()))
    }

    /// One question: it or its answer may get lost.
    fn ask_once(&self, last: u8) -> Result<Record> {
        let socket = UdpSocket::bind((self.lab.network().guest_gateway(), 0))?;
        socket.set_read_timeout(Some(ANSWER_MAX))?;
        socket.send_to(b"?", (self.lab.network().guest(last), QUERY_PORT))?;
        let mut answer = [0; HEARTBEAT_BYTES + 1];
        let (length, _) = socket.recv_from(&mut answer)?;
        Record::from_datagram(&answer[..length]).context("the answer is no record")
    }

    /// Moves a machine, to `node` if there is one, and says what `migrationState` became.
    pub(crate) fn migrate(&self, job: &str, vmi: &str, node: Option<&str>) -> Result<Value> {
        self.apply(&[migration(job, vmi, node)])?;
        self.succeeded(job)
    }

    /// Waits until a migration has succeeded, and says what its `migrationState` became.
    pub(crate) fn succeeded(&self, job: &str) -> Result<Value> {
        let ended = wait("the end of a migration", || {
            let object = self.json(&format!("vmim/{job}"))?;
            let phase = object["status"]["phase"].as_str().unwrap_or_default();
            Ok(["Succeeded", "Failed"].contains(&phase).then_some(object))
        });
        let ended = ended.with_context(|| job.to_owned())?;
        ensure!(
            ended["status"]["phase"] == "Succeeded",
            "{job}: {:#}",
            ended["status"]
        );
        Ok(ended["status"]["migrationState"].clone())
    }

    /// The node that an instance is on.
    pub(crate) fn node_of(&self, vmi: &str) -> Result<String> {
        let instance = self.json(&format!("vmi/{vmi}"))?;
        let node = instance["status"]["nodeName"].as_str();
        node.map(str::to_owned).context("the instance has no node")
    }

    /// An instance's UID.
    pub(crate) fn uid_of(&self, vmi: &str) -> Result<String> {
        self.kubectl(&format!("get vmi/{vmi} -o jsonpath={{.metadata.uid}}"))
    }

    /// Lets machines start on one node alone, or on all.
    pub(crate) fn only(&self, node: Option<&str>) -> Result<()> {
        for worker in ["worker1", "worker2", "worker3"] {
            let closed = node.is_some_and(|node| node != worker);
            let verb = if closed { "cordon" } else { "uncordon" };
            self.kubectl(&format!("{verb} {worker}"))?;
        }
        Ok(())
    }

    /// Takes everything away that a section may have made, and opens all nodes.
    pub(crate) fn clear(&self) -> Result<()> {
        for kind in [
            "rollingmaintenances",
            "nodemaintenances.kubevirt.io",
            "vmim",
            "vm",
            "vmi",
            "kubevirt",
        ] {
            self.kubectl(&format!("delete {kind} --all -A --timeout=60s"))
                .or_else(|error| {
                    // Cluster-wide kinds know no `-A` in some releases.
                    let plain = format!("delete {kind} --all --timeout=60s");
                    self.kubectl(&plain).with_context(|| error.to_string())
                })?;
        }
        self.only(None)?;
        wait("an empty cluster", || {
            let left = self.kubectl("get vm,vmi,vmim -A -o name")?;
            Ok(left.trim().is_empty().then_some(()))
        })
    }

    /// What a person would look at first when something went wrong.
    pub(crate) fn situation(&self) -> String {
        let shown = self.shell(
            Release::Newest,
            "kubectl get nodes,vm,vmi,vmim,nodemaintenances,rollingmaintenances -A -o wide
             kubectl get events --sort-by=.lastTimestamp | tail -40",
        );
        let mut text = shown.map_or_else(|error| error.to_string(), |said| said.stdout);
        for service in self.lab.services() {
            let log = fs::read_to_string(service.log()).unwrap_or_default();
            let bad = log.lines().filter(|line| {
                [" WARN", " ERROR", "\"WARN\"", "\"ERROR\""]
                    .iter()
                    .any(|w| line.contains(w))
            });
            let bad: Vec<&str> = bad.collect();
            let from = bad.len().saturating_sub(10);
            text.push_str(&format!(
                "\n==> {} <==\n{}\n",
                service.name,
                bad[from..].join("\n")
            ));
        }
        text
    }

    /// Keeps what services and guests wrote where the lab's end does not remove it; says where.
    pub(crate) fn keep_logs(&self) -> Result<PathBuf> {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lab-suite-logs");
        let dir = &self.lab.options().dir;
        let copied = Command::new("sh")
            .args(["-ec", "rm -rf $0; mkdir -p $0; cp -r logs run state $0"])
            .arg(&kept)
            .current_dir(dir)
            .output()?;
        // Sockets can't be copied, and need not be.
        ensure!(kept.exists(), "{copied:?}");
        Ok(kept)
    }

    /// Ends the lab.
    pub(crate) fn end(&self) -> Result<()> {
        self.lab.down()
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        if let Err(error) = self.lab.down() {
            crate::lab_suite::say(&format!("the lab does not end: {error:#}"));
        }
    }
}

/// A command that prints until it is dropped.
pub(crate) struct Watch {
    child: Child,
    out: tempfile::NamedTempFile,
}

impl Watch {
    /// What it printed so far.
    pub(crate) fn lines(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.out.path())?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // `timeout` passes the signal on; SIGKILL could not be passed on.
        let pid = i32::try_from(self.child.id()).unwrap();
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = self.child.wait();
    }
}

/// A machine like one of the examples.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) example: &'static str,
    pub(crate) name: String,
    /// Last byte of its address.
    pub(crate) last: u8,
    pub(crate) memory: &'static str,
    /// More kernel arguments.
    pub(crate) arguments: String,
}

impl Machine {
    /// A small machine that can move.
    pub(crate) fn small(name: &str, last: u8) -> Self {
        Self {
            example: "vm-rhel8-server-nfs.yaml",
            name: name.to_owned(),
            last,
            memory: "96Mi",
            arguments: "godwit.tick=50".to_owned(),
        }
    }
}

/// An example of the repository.
pub(crate) fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name)
}

/// The order to move `vmi`, to `node` if there is one.
pub(crate) fn migration(job: &str, vmi: &str, node: Option<&str>) -> Value {
    let mut object = json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstanceMigration",
        "metadata": { "name": job, "namespace": "default" },
        "spec": { "vmiName": vmi },
    });
    if let Some(node) = node {
        object["spec"]["addedNodeSelector"] = json!({ "kubernetes.io/hostname": node });
    }
    object
}

/// The order to empty `node`.
pub(crate) fn maintenance(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1alpha1",
        "kind": "NodeMaintenance",
        "metadata": { "name": name },
        "spec": { "nodeName": node, "reason": "the suite" },
    })
}

/// Asks until there is an answer.
pub(crate) fn wait<T>(what: &str, ask: impl Fn() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if began.elapsed() > PATIENCE {
            bail!("waited {} s for {what}", PATIENCE.as_secs());
        }
        std::thread::sleep(POLL); // poll
    }
}

/// The columns of a table, blanks as one.
pub(crate) fn cells(table: &str) -> Vec<Vec<String>> {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    table.lines().map(words).collect()
}
