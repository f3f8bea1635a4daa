//! One QEMU of a test, killed with it, and the whole of a migration.

use godwit_model::machine::{Disk, ImageFormat, MachineSpec};
use godwit_model::migration::source::CopyStatus;
use godwit_model::{Bytes, BytesPerSecond, MachineId};
use godwit_qemu::qmp::RunState;
use godwit_qemu::{
    Accelerator, CommandLine, Continued, Events, HostLayout, Launch, Limits, Process, Qmp, Role,
    migrate, process,
};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for anything; a loaded test machine is slow.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) const UNLIMITED: Limits = Limits {
    bandwidth: BytesPerSecond(0),
    downtime: Duration::from_millis(300),
    auto_converge: false,
};

pub(crate) struct Machine {
    pub(crate) directory: TempDir,
    pub(crate) process: Process,
    pub(crate) qmp: Qmp,
    pub(crate) events: Events,
}

impl Machine {
    pub(crate) async fn start(spec: &MachineSpec, role: Role) -> Self {
        Self::start_with(spec, role, |_| {}).await
    }

    pub(crate) async fn start_with(
        spec: &MachineSpec,
        role: Role,
        adapt: impl FnOnce(&mut HostLayout),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut layout = HostLayout::in_directory(directory.path(), Accelerator::Tcg, spec);
        adapt(&mut layout);
        let line = CommandLine::render(spec, &layout, role).unwrap();
        let (process, qmp, events) = process::launch(Launch {
            binary: Path::new("qemu-system-x86_64"),
            arguments: &line.arguments,
            log: &directory.path().join("qemu.log"),
            qmp_socket: &layout.qmp_socket,
            limit: LIMIT,
            user: None,
        })
        .await
        .unwrap();
        Self {
            directory,
            process,
            qmp,
            events,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn serial(&self) -> String {
        let bytes = std::fs::read(self.path("serial.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the serial output satisfies `enough`, and returns it.
    pub(crate) async fn serial_until(&self, enough: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let serial = self.serial();
            if enough(&serial) {
                return serial;
            }
            assert!(
                Instant::now() < deadline,
                "serial output stays at {serial:?}"
            );
            assert!(self.process.is_alive(), "qemu ended: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn run_state(&self) -> RunState {
        self.qmp.query_status().await.unwrap().status
    }

    pub(crate) fn log(&self) -> String {
        process::log_tail(&self.path("qemu.log"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // By descriptor, so only ever this process; it may have ended already.
        let _ = self.process.kill();
    }
}

/// A machine with one disk and nothing else.
pub(crate) fn spec(disk: &Path, memory: Bytes) -> MachineSpec {
    MachineSpec {
        id: MachineId::parse("6fd2c8e4-0b4b-4a0c-9a1e-1d1f7a0c5b11").unwrap(),
        namespace: "default".to_owned(),
        name: "guest".to_owned(),
        cpus: 1,
        memory,
        machine_type: "pc-q35-7.2".to_owned(),
        cpu_model: "qemu64".to_owned(),
        disks: vec![Disk {
            name: "root".to_owned(),
            path: disk.to_string_lossy().into_owned(),
            format: ImageFormat::Raw,
            shared: true,
            read_only: false,
            create: None,
            boot: true,
            seed: None,
        }],
        nics: Vec::new(),
        kernel: None,
        hugepages: None,
    }
}

/// Moves the running guest of `source` to `target`, as the two hosts would: the target continues
/// only once the source is known to have completed.
pub(crate) async fn hand_over(source: &Machine, target: &Machine) {
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let incoming = migrate::prepare_incoming(&target.qmp, localhost, None)
        .await
        .unwrap();
    migrate::begin(&source.qmp, &incoming.uri, UNLIMITED, None)
        .await
        .unwrap();
    let paused = migrate::settle(&source.qmp, LIMIT).await.unwrap();
    assert_eq!(paused.copy_status(), CopyStatus::PreSwitchover);
    migrate::continue_switchover(&source.qmp).await.unwrap();
    until_completed(source).await;
    assert_eq!(source.run_state().await, RunState::PostMigrate);
    until_completed(target).await;
    assert_eq!(target.run_state().await, RunState::Paused);
    assert_eq!(
        migrate::continue_guest(&target.qmp).await.unwrap(),
        Continued::Now
    );
    migrate::announce(&target.qmp).await.unwrap();
}

pub(crate) async fn until_completed(machine: &Machine) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let info = migrate::status(&machine.qmp).await.unwrap();
        match info.copy_status() {
            CopyStatus::Completed => return,
            CopyStatus::Failed(why) => panic!("migration failed: {why}"),
            CopyStatus::Cancelled => panic!("migration was cancelled"),
            CopyStatus::None
            | CopyStatus::Active
            | CopyStatus::PreSwitchover
            | CopyStatus::Device => {}
        }
        assert!(
            Instant::now() < deadline,
            "migration stays at {:?}",
            info.status
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
