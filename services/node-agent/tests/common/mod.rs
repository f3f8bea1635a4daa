//! Agents as real processes, with real QEMUs, on loopback; mostly without certificates.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use godwit_rpc::Channel;
use godwit_rpc::agent::v1::agent_client::AgentClient;
use godwit_rpc::agent::v1::*;
use godwit_runtime::Identity;
use godwit_testkit::guest::boot_sector::{BootSector, counters};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(30);

/// One agent and what it has on disk. Dropping it ends the agent and all its QEMUs.
pub struct Agent {
    pub node: &'static str,
    pub address: String,
    dir: PathBuf,
    admin: u16,
    keys: Vec<String>,
    caller: Option<Identity>,
    child: Child,
}

impl Agent {
    pub async fn start(node: &'static str, dir: &Path) -> Self {
        Self::start_with(node, dir, Vec::new()).await
    }

    /// With keys of the configuration beside the usual ones.
    pub async fn start_with(node: &'static str, dir: &Path, mut keys: Vec<String>) -> Self {
        keys.push("common.insecure=true".to_owned());
        Self::start_known(node, dir, keys, None).await
    }

    /// With TLS: `own` is its certificate, and `caller` the one that these tests come with.
    pub async fn start_as(
        node: &'static str,
        dir: &Path,
        own: &Identity,
        caller: &Identity,
    ) -> Self {
        let Identity { cert, key, ca } = own;
        let keys = [("cert", cert), ("key", key), ("ca", ca)]
            .map(|(name, path)| format!("common.identity.{name}={}", path.display()));
        Self::start_known(node, dir, keys.to_vec(), Some(caller.clone())).await
    }

    async fn start_known(
        node: &'static str,
        dir: &Path,
        mut keys: Vec<String>,
        caller: Option<Identity>,
    ) -> Self {
        let dir = dir.join(node);
        std::fs::create_dir_all(&dir).expect("a directory");
        let (port, admin) = (free_port(), free_port());
        keys.extend([
            format!("node={node}"),
            format!("state_dir={}", dir.join("state").display()),
            format!("run_dir={}", dir.join("run").display()),
            format!("bind=127.0.0.1:{port}"),
            "accel=tcg".to_owned(),
            format!("common.admin_bind=127.0.0.1:{admin}"),
        ]);
        let child = spawn(&dir, &keys);
        let scheme = if caller.is_some() { "https" } else { "http" };
        let address = format!("{scheme}://127.0.0.1:{port}");
        let agent = Self {
            node,
            address,
            dir,
            admin,
            keys,
            caller,
            child,
        };
        agent.answering().await;
        agent
    }

    /// Kills the agent and starts another on the same state.
    pub async fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.dir, &self.keys);
        self.answering().await;
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }

    pub fn client(&self) -> AgentClient<Channel> {
        let channel = godwit_rpc::client::connect(&self.address, self.caller.as_ref());
        let channel = channel.expect("an address");
        AgentClient::new(channel)
    }

    async fn answering(&self) {
        eventually("the agent to answer", async || {
            self.client()
                .list_machines(ListMachinesRequest {})
                .await
                .is_ok()
                .then_some(())
        })
        .await;
    }

    /// What this host says of the machine; `None` when it doesn't have it.
    pub async fn report(&self, machine: &str) -> Option<MachineReport> {
        let all = self
            .client()
            .list_machines(ListMachinesRequest {})
            .await
            .expect("listed");
        all.into_inner()
            .machines
            .into_iter()
            .find(|report| report.machine == machine)
    }

    /// What is really on this host.
    pub async fn inspect(&self) -> HostInspection {
        let asked = self.client().inspect_host(InspectHostRequest {}).await;
        asked.expect("inspected").into_inner()
    }

    /// The guests' counters, of all QEMUs that have a directory here.
    pub fn counters(&self) -> Vec<u32> {
        let directories = std::fs::read_dir(self.dir.join("run")).expect("a run directory");
        directories
            .filter_map(|entry| std::fs::read(entry.ok()?.path().join("serial.log")).ok())
            .flat_map(|bytes| counters(&String::from_utf8_lossy(&bytes)))
            .collect()
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    pub fn metrics(&self) -> String {
        use std::io::{Read, Write};
        let mut stream =
            std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.admin)).expect("connects");
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").expect("asked");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answered");
        text
    }

    /// Resident memory of the agent, bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.expect("VmRSS").trim().trim_end_matches("kB").trim();
        kib.parse::<u64>().expect("a number") * 1024
    }

    /// Whether a QEMU of this agent is left.
    pub fn qemus(&self) -> Vec<u32> {
        let run = self.dir.join("run");
        let wanted = run.to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&arguments);
            if line.contains("qemu-system") && line.contains(&wanted) {
                found.push(pid);
            }
        }
        found
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in self.qemus() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.node, self.log());
        }
    }
}

fn spawn(dir: &Path, keys: &[String]) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("agent.log"))
        .expect("a log");
    Command::new(env!("CARGO_BIN_EXE_godwit-node-agent"))
        .args(keys.iter().flat_map(|key| ["--set", key]))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("the agent starts")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Waits until `ask` has an answer.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A machine whose guest counts, with a disk in `dir` that all agents see.
pub fn counting(dir: &Path, id: &str) -> MachineSpec {
    let path = dir.join(format!("{id}.raw"));
    BootSector::default().write_disk(&path).expect("a disk");
    MachineSpec {
        id: id.to_owned(),
        namespace: "default".to_owned(),
        name: "counter".to_owned(),
        cpus: 1,
        memory_bytes: 128 << 20,
        machine_type: "pc-q35-7.2".to_owned(),
        cpu_model: "qemu64".to_owned(),
        disks: vec![Disk {
            name: "root".to_owned(),
            path: path.to_string_lossy().into_owned(),
            format: "raw".to_owned(),
            shared: true,
            read_only: false,
            create_bytes: 0,
            boot: true,
            seed: None,
        }],
        nics: Vec::new(),
        kernel: None,
        hugepage_bytes: 0,
    }
}
