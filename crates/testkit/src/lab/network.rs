//! Hosts out of network namespaces: one for each worker, one for the switch that joins them.
//!
//! The root namespace is joined by two veths, so that services and users reach the workers and
//! their guests. Everything carries the lab's prefix, so that it can be found and removed.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Name of the guests' bridge on each worker.
pub const BRIDGE: &str = "br0";

/// Names and addresses of one lab.
#[derive(Debug, Clone)]
pub struct Network {
    prefix: String,
    index: u8,
    workers: usize,
}

impl Network {
    /// The network of lab number `index` on this machine, with all names behind `prefix`.
    pub fn new(prefix: &str, index: u8, workers: usize) -> Self {
        Self {
            prefix: prefix.to_owned(),
            index,
            workers,
        }
    }

    /// Namespace of a worker, counted from 1.
    pub fn worker(&self, number: usize) -> String {
        format!("{}-w{number}", self.prefix)
    }

    /// This machine's address on the management network.
    pub fn management(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77 + self.index, 0, 1)
    }

    /// A worker's address on the management network.
    pub fn worker_address(&self, number: usize) -> Ipv4Addr {
        let last = u8::try_from(10 + number).unwrap_or(u8::MAX);
        Ipv4Addr::new(10, 77 + self.index, 0, last)
    }

    /// This machine's address on the guests' network.
    pub fn guest_gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 123 + self.index, 1)
    }

    /// An address for a guest.
    pub fn guest(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 123 + self.index, last)
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.prefix)
    }

    fn uplink(&self, network: &str) -> String {
        format!("{}-{network}", self.prefix)
    }

    /// Makes everything that isn't there yet.
    ///
    /// # Errors
    /// When the machine doesn't allow it (it takes root), with what `ip` said.
    pub fn up(&self) -> Result<()> {
        if self.is_up()? {
            return Ok(());
        }
        self.down()?;
        let switch = self.switch();
        ip(&["netns", "add", &switch])?;
        batch(Some(&switch), &["link set lo up".to_owned()])?;
        let bridges = ["mgmt", "guests"].map(|name| {
            format!("link add {name} type bridge forward_delay 0 stp_state 0\nlink set {name} up")
        });
        batch(Some(&switch), &bridges)?;
        self.join_root("mgmt", self.management())?;
        self.join_root("guests", self.guest_gateway())?;
        (1..=self.workers).try_for_each(|number| self.add_worker(number))
    }

    /// Removes everything that carries the prefix. What isn't there is fine.
    ///
    /// # Errors
    /// When something can't be removed.
    pub fn down(&self) -> Result<()> {
        for namespace in namespaces(&self.prefix)? {
            ip(&["netns", "delete", &namespace])?;
        }
        // The other end goes with its namespace; what is left had none.
        for network in ["mgmt", "guests"] {
            let device = self.uplink(network);
            if device_exists(&device) {
                ip(&["link", "delete", &device])?;
            }
        }
        Ok(())
    }

    fn is_up(&self) -> Result<bool> {
        let found = namespaces(&self.prefix)?;
        let complete = (1..=self.workers).all(|number| found.contains(&self.worker(number)));
        Ok(complete && found.len() == self.workers + 1 && device_exists(&self.uplink("mgmt")))
    }

    fn join_root(&self, network: &str, address: Ipv4Addr) -> Result<()> {
        let (device, switch) = (self.uplink(network), self.switch());
        batch(
            None,
            &[
                format!("link add {device} type veth peer name root-{network} netns {switch}"),
                format!("address add {address}/24 dev {device}"),
                format!("link set {device} up"),
            ],
        )?;
        batch(
            Some(&switch),
            &[
                format!("link set root-{network} master {network}"),
                format!("link set root-{network} up"),
            ],
        )
    }

    fn add_worker(&self, number: usize) -> Result<()> {
        let (worker, switch) = (self.worker(number), self.switch());
        ip(&["netns", "add", &worker])?;
        batch(
            Some(&switch),
            &[
                format!("link add m{number} type veth peer name mgmt0 netns {worker}"),
                format!("link set m{number} master mgmt"),
                format!("link set m{number} up"),
                format!("link add g{number} type veth peer name guest0 netns {worker}"),
                format!("link set g{number} master guests"),
                format!("link set g{number} up"),
            ],
        )?;
        batch(
            Some(&worker),
            &[
                "link set lo up".to_owned(),
                format!("address add {}/24 dev mgmt0", self.worker_address(number)),
                "link set mgmt0 up".to_owned(),
                format!("link add {BRIDGE} type bridge forward_delay 0 stp_state 0"),
                format!("link set {BRIDGE} up"),
                format!("link set guest0 master {BRIDGE}"),
                "link set guest0 up".to_owned(),
            ],
        )
    }
}

fn namespaces(prefix: &str) -> Result<Vec<String>> {
    let output = Command::new("ip")
        .args(["netns", "list"])
        .output()
        .context("run ip")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let start = format!("{prefix}-");
    let names = text
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    Ok(names
        .filter(|name| name.starts_with(&start))
        .map(str::to_owned)
        .collect())
}

fn device_exists(name: &str) -> bool {
    std::path::Path::new("/sys/class/net").join(name).exists()
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("run ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        said.trim()
    );
    Ok(())
}

/// Runs many commands in one `ip`, in `namespace` or this one.
fn batch(namespace: Option<&str>, commands: &[String]) -> Result<()> {
    let mut ip = Command::new("ip");
    if let Some(namespace) = namespace {
        ip.args(["-netns", namespace]);
    }
    let mut child = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run ip")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(commands.join("\n").as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip -batch: {}", said.trim());
    Ok(())
}
