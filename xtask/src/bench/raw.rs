//! Arm B: the same move as the shortest script over QMP does it, with no rule of safety.
//!
//! It begins with the spawn of the target's QEMU; its tap and the key of the copy are there by then. It
//! trusts that the source's `completed` means that the target may run, and asks nobody.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use godwit_ledger::Ledger;
use godwit_model::machine::MachineSpec;
use godwit_model::{MachineId, NodeName};
use godwit_qemu::qmp::{
    Endpoint, MigrationInfo, MigrationParameters, MigrationStatus, SocketAddress, TlsKey,
};
use godwit_qemu::secret::{KEY_NAME, Key};
use godwit_qemu::{
    Accelerator, CommandLine, Event, Events, HostLayout, NicBackend, Process, Qmp, Role, image,
};
use godwit_testkit::guest::linux;
use godwit_testkit::lab::{BRIDGE, Lab};
use nix::sched::{CloneFlags, setns};

use super::heartbeat::{Clock, Ear};
use super::machines::Guest;
use super::report::{RawMove, Step, millis};
use super::{Bench, RAW_LAST};

/// The machine's own address on its wire: locally administered.
const MAC: &str = "02:67:77:62:00:3f";
/// Its identity.
const ID: &str = "b0000000-0000-4000-8000-000000000001";
/// QEMU's name for the object that holds the key of its copies.
const KEY_OBJECT: &str = "raw-key";
/// Longest wait for a QEMU.
const LIMIT: Duration = Duration::from_secs(20);
/// Longest wait for the event of something that was answered.
const EVENT_MAX: Duration = Duration::from_millis(500);

/// A machine that no service knows.
pub(crate) struct Raw {
    lab: Lab,
    binary: PathBuf,
    image: PathBuf,
    accelerator: Accelerator,
    spec: MachineSpec,
    /// Where the key is that all its copies are encrypted with, as the product's are.
    key: PathBuf,
    /// Whether the source waits in pre-switchover, as the product's does.
    pause: bool,
    downtime: Duration,
    copy: Copy,
}

/// One QEMU of it.
struct Copy {
    worker: usize,
    directory: PathBuf,
    tap: String,
    process: Process,
    qmp: Qmp,
    events: Events,
}

/// What a move measured by itself.
struct Moved {
    begin: Instant,
    end: Instant,
    running: Instant,
    stopped_at: Option<SystemTime>,
    copy_ms: u64,
    steps: Vec<Step>,
}

impl Raw {
    /// Starts a machine like the instance `like`, on the first host.
    pub(crate) async fn start(bench: &Bench, ledger: &Ledger, like: &MachineId) -> Result<Self> {
        let row = ledger.instance(like).await?.context("no such instance")?;
        let mut spec = row.machine.context("the instance was never placed")?;
        let lab = bench.lab.clone();
        spec.id = MachineId::parse(ID)?;
        "raw".clone_into(&mut spec.name);
        for nic in &mut spec.nics {
            MAC.clone_into(&mut nic.mac);
        }
        for disk in &mut spec.disks {
            disk.path = lab.disks().join("raw.img").display().to_string();
            image::ensure(disk)?;
        }
        let guest = Guest {
            tick: bench.arguments.tick,
            heartbeat: Some(bench.raw_ear.address),
        };
        let kernel = spec.kernel.as_mut().context("no kernel")?;
        kernel.arguments = guest.arguments(&lab, RAW_LAST);
        let node = row.node.context("the instance is nowhere")?;
        let accelerator = accelerator(ledger, &node).await?;
        let place = Place {
            lab: &lab,
            binary: Path::new("/usr/bin/qemu-system-x86_64"),
            image: &bench.image,
            accelerator,
            spec: &spec,
        };
        let copy = place.spawn(1, Role::Start).await?;
        let key = lab.options().dir.join("raw-key");
        Key::random()?.write(&key)?;
        copy.qmp.cont().await?;
        Ok(Self {
            binary: place.binary.to_owned(),
            image: bench.image.clone(),
            accelerator,
            spec,
            key,
            pause: !bench.arguments.straight,
            downtime: bench.downtime,
            lab,
            copy,
        })
    }

    /// QEMU's version.
    pub(crate) fn version(&self) -> String {
        let version = self.copy.qmp.version();
        format!("{}.{}.{}", version.major, version.minor, version.micro)
    }

    /// QEMU's way to run CPUs.
    pub(crate) const fn accelerator(&self) -> &'static str {
        self.accelerator.as_str()
    }

    /// Moves it to the other host; `settle` is how long its heartbeat is heard afterwards.
    pub(crate) async fn migrate(&mut self, ear: &Ear, settle: Duration) -> Result<RawMove> {
        let worker = 3 - self.copy.worker;
        let began = Instant::now();
        let tap = tap_add(&self.lab, worker)?;
        let tap_ms = millis(began.elapsed());
        let clock = Clock::now();
        let (mut target, moved) = self.move_to(worker, tap).await?;
        let resumed_at = time_of(&mut target.events, &Event::Resume).await;
        let source = std::mem::replace(&mut self.copy, target);
        tap_remove(&self.lab, &source)?;
        std::fs::remove_dir_all(&source.directory)?;
        tokio::time::sleep(settle).await;
        let switch = moved.stopped_at.zip(resumed_at);
        let moments = switch.map(|(stop, run)| (clock.moment(stop), clock.moment(run)));
        let silence = ear.judge((moved.begin, moved.end + settle / 2), moments)?;
        Ok(RawMove {
            total_ms: millis(moved.end - moved.begin),
            copy_ms: Some(moved.copy_ms),
            running_ms: millis(moved.running - moved.begin),
            tap_ms,
            blackout_ms: silence.blackout.map(millis),
            longest_gap_ms: millis(silence.longest),
            repeats: silence.repeats,
            qemu_blackout_ms: moments.map(|(stop, run)| millis(run - stop)),
            steps: moved.steps,
        })
    }

    async fn move_to(&mut self, worker: usize, tap: String) -> Result<(Copy, Moved)> {
        let mut laps = Laps::begin();
        let place = Place {
            lab: &self.lab,
            binary: &self.binary,
            image: &self.image,
            accelerator: self.accelerator,
            spec: &self.spec,
        };
        let target = place.spawn_with(worker, tap, Role::Incoming).await?;
        laps.lap("spawn to QMP");
        let uri = self.listen(&target.qmp, worker).await?;
        laps.lap("incoming");
        let mut events = self.copy.qmp.events();
        self.begin(&uri).await?;
        laps.lap("migrate");
        let stopped_at = self.follow(&mut events, &mut laps).await?;
        let (ran, copied) = tokio::join!(run(&target.qmp), self.copy.qmp.query_migrate());
        ran?;
        laps.lap("cont");
        let running = Instant::now();
        let (announced, quit) = tokio::join!(target.qmp.announce_self(), self.copy.qmp.quit());
        announced?;
        // QEMU may be gone before its answer is.
        drop(quit);
        tokio::time::timeout(LIMIT, self.copy.process.exited())
            .await
            .context("the source does not end")?;
        laps.lap("source quits");
        let moved = Moved {
            begin: laps.begin,
            end: laps.last,
            running,
            stopped_at,
            copy_ms: copied?.progress().elapsed_ms,
            steps: laps.steps,
        };
        Ok((target, moved))
    }

    fn key(&self, endpoint: Endpoint) -> TlsKey<'_> {
        TlsKey {
            directory: self.key.as_path(),
            name: KEY_NAME,
            endpoint,
        }
    }

    /// Makes the target listen; answers where.
    async fn listen(&self, qmp: &Qmp, worker: usize) -> Result<String> {
        let capabilities = [
            ("events", true),
            ("return-path", true),
            ("late-block-activate", true),
            ("validate-uuid", true),
        ];
        qmp.add_tls_key(KEY_OBJECT, self.key(Endpoint::Server))
            .await?;
        let parameters = MigrationParameters {
            announce_rounds: Some(1),
            tls_creds: Some(KEY_OBJECT),
            ..Default::default()
        };
        let (capabilities, parameters) = tokio::join!(
            qmp.migrate_set_capabilities(&capabilities),
            qmp.migrate_set_parameters(parameters),
        );
        capabilities.and(parameters)?;
        let host = self.lab.network().worker_address(worker);
        qmp.migrate_incoming(&format!("tcp:{host}:0")).await?;
        let listening = qmp.query_migrate().await?;
        let port = port(&listening).context("the target has no port")?;
        Ok(format!("tcp:{host}:{port}"))
    }

    async fn begin(&self, uri: &str) -> Result<()> {
        let qmp = &self.copy.qmp;
        let capabilities = [
            ("events", true),
            ("return-path", true),
            ("pause-before-switchover", self.pause),
            ("validate-uuid", true),
        ];
        // The one with which it listened, if it came here.
        drop(qmp.remove_object(KEY_OBJECT).await);
        qmp.add_tls_key(KEY_OBJECT, self.key(Endpoint::Client))
            .await?;
        let parameters = MigrationParameters {
            max_bandwidth: Some(0),
            tls_creds: Some(KEY_OBJECT),
            tls_hostname: Some(KEY_NAME),
            downtime_limit: Some(u64::try_from(self.downtime.as_millis())?),
            ..Default::default()
        };
        let (capabilities, parameters) = tokio::join!(
            qmp.migrate_set_capabilities(&capabilities),
            qmp.migrate_set_parameters(parameters),
        );
        capabilities.and(parameters)?;
        Ok(qmp.migrate(uri).await?)
    }

    /// Follows the source until it has completed; answers when its guest stopped.
    async fn follow(&self, events: &mut Events, laps: &mut Laps) -> Result<Option<SystemTime>> {
        let mut stopped_at = None;
        loop {
            let next = tokio::time::timeout(LIMIT, events.next()).await;
            let stamped = next.context("the copy does not end")?;
            let stamped = stamped.context("the source's QEMU ended")?;
            match stamped.event {
                Event::Stop => {
                    stopped_at = stamped.at;
                    laps.lap("copy until stop");
                }
                Event::Migration(MigrationStatus::PreSwitchover) => {
                    self.copy.qmp.migrate_continue().await?;
                }
                Event::Migration(MigrationStatus::Completed) => {
                    laps.lap("stop to completed");
                    return Ok(stopped_at);
                }
                Event::Migration(MigrationStatus::Failed | MigrationStatus::Cancelled) => {
                    bail!("the raw copy failed");
                }
                _ => {}
            }
        }
    }
}

/// Where and how a QEMU is started.
struct Place<'a> {
    lab: &'a Lab,
    binary: &'a Path,
    image: &'a Path,
    accelerator: Accelerator,
    spec: &'a MachineSpec,
}

impl Place<'_> {
    async fn spawn(&self, worker: usize, role: Role) -> Result<Copy> {
        let tap = tap_add(self.lab, worker)?;
        self.spawn_with(worker, tap, role).await
    }

    async fn spawn_with(&self, worker: usize, tap: String, role: Role) -> Result<Copy> {
        let directory = self.lab.options().dir.join(format!("raw{worker}"));
        std::fs::create_dir_all(&directory)?;
        let mut layout = HostLayout::in_directory(&directory, self.accelerator, self.spec);
        layout.kernel = Some(self.image.join(linux::KERNEL));
        layout.initrd = Some(self.image.join(linux::INITRD));
        layout.nics = vec![NicBackend::Tap(tap.clone())];
        let line = CommandLine::render(self.spec, &layout, role)?;
        let namespace = self.lab.network().worker(worker);
        let log = directory.join("qemu.log");
        let process = spawn_in(&namespace, (self.binary, &line.arguments), &log)?;
        let connected = Qmp::connect(&layout.qmp_socket, LIMIT).await;
        let (qmp, events) = connected.with_context(|| godwit_qemu::process::log_tail(&log))?;
        Ok(Copy {
            worker,
            directory,
            tap,
            process,
            qmp,
            events,
        })
    }
}

/// Starts a program in a network namespace, at no more cost than in one's own: the thread that
/// forks has gone there first.
fn spawn_in(
    namespace: &str,
    (binary, arguments): (&Path, &[String]),
    log: &Path,
) -> Result<Process> {
    let file = File::open(Path::new("/run/netns").join(namespace))?;
    let runtime = tokio::runtime::Handle::current();
    let spawned = std::thread::scope(|scope| {
        let forks = scope.spawn(|| -> Result<Process> {
            setns(&file, CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
            let _entered = runtime.enter();
            Ok(Process::spawn(binary, arguments, log, None)?)
        });
        forks.join()
    });
    spawned.map_err(|_| anyhow!("the thread that forks panicked"))?
}

fn port(info: &MigrationInfo) -> Option<&str> {
    info.socket_address
        .iter()
        .find_map(|address| match address {
            SocketAddress::Inet { port, .. } => Some(port.as_str()),
            SocketAddress::Unix { .. } | SocketAddress::Other => None,
        })
}

/// Lets the target run. The source says `completed` when the target has everything; the target
/// may need a moment more until it knows that itself.
async fn run(qmp: &Qmp) -> Result<()> {
    let began = Instant::now();
    loop {
        match qmp.cont().await {
            Ok(()) => return Ok(()),
            Err(error) => ensure!(began.elapsed() < LIMIT, "the target does not run: {error}"),
        }
    }
}

async fn time_of(events: &mut Events, wanted: &Event) -> Option<SystemTime> {
    let find = async {
        loop {
            let stamped = events.next().await?;
            if stamped.event == *wanted {
                return stamped.at;
            }
        }
    };
    tokio::time::timeout(EVENT_MAX, find).await.ok().flatten()
}

async fn accelerator(ledger: &Ledger, node: &NodeName) -> Result<Accelerator> {
    let nodes = ledger.nodes().await?;
    let row = nodes.iter().find(|row| row.name == *node);
    let row = row.with_context(|| format!("no node {node}"))?;
    Ok(serde_json::from_value(row.facts["accelerator"].clone())?)
}

/// A tap on a worker's bridge, made as the agents make theirs.
fn tap_add(lab: &Lab, worker: usize) -> Result<String> {
    let device = format!("gwraw{worker}");
    ip(
        lab,
        worker,
        &format!(
            "tuntap add dev {device} mode tap\nlink set dev {device} addrgenmode none\n\
             link set dev {device} master {BRIDGE}\nlink set dev {device} up\n"
        ),
    )?;
    Ok(device)
}

fn tap_remove(lab: &Lab, copy: &Copy) -> Result<()> {
    ip(lab, copy.worker, &format!("link delete dev {}\n", copy.tap))
}

fn ip(lab: &Lab, worker: usize, batch: &str) -> Result<()> {
    let mut child = std::process::Command::new("ip")
        .args(["-netns", &lab.network().worker(worker), "-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip: {}", said.trim());
    Ok(())
}

/// Times between one thing and the next.
struct Laps {
    begin: Instant,
    last: Instant,
    steps: Vec<Step>,
}

impl Laps {
    fn begin() -> Self {
        let now = Instant::now();
        Self {
            begin: now,
            last: now,
            steps: vec![],
        }
    }

    fn lap(&mut self, name: &str) {
        let now = Instant::now();
        self.steps.push(Step {
            name: name.to_owned(),
            ms: millis(now - self.last),
        });
        self.last = now;
    }
}
