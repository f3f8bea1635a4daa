//! The Linux guest on two QEMUs of this machine, with its disk and its network.

use crate::machine::{LIMIT, Machine, hand_over, spec};
use godwit_model::Bytes;
use godwit_model::machine::{Kernel, MachineSpec, Nic};
use godwit_qemu::qmp::RunState;
use godwit_qemu::{Event, HostLayout, NicBackend, Role};
use godwit_testkit::guest::heartbeat::{Listener, Report};
use godwit_testkit::guest::{linux, record};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The guest's image, made once for all test runs of this checkout.
pub(crate) fn image() -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
    linux::ensure(&cache, &|_| {}).unwrap()
}

/// A Linux machine on QEMU's user network, where 10.0.2.2 is this host.
fn linux_spec(disk: &Path, port: u16) -> MachineSpec {
    let mut spec = spec(disk, Bytes::mib(160));
    spec.disks[0].boot = false;
    spec.nics = vec![Nic {
        name: "default".to_owned(),
        mac: "52:54:00:12:34:56".to_owned(),
        network: "default".to_owned(),
    }];
    spec.kernel = Some(Kernel {
        image: "guest".to_owned(),
        kernel_path: linux::KERNEL.to_owned(),
        initrd_path: linux::INITRD.to_owned(),
        arguments: format!(
            "{} godwit.ip=10.0.2.15/24 godwit.gw=10.0.2.2 godwit.heartbeat=10.0.2.2:{port} \
             godwit.dirty=4194304 godwit.dirtyset=8388608",
            linux::ARGUMENTS
        ),
    });
    spec
}

fn layout(image: &Path) -> impl Fn(&mut HostLayout) {
    let image = image.to_owned();
    move |layout: &mut HostLayout| {
        layout.nics = vec![NicBackend::User {
            forwards: Vec::new(),
        }];
        layout.kernel = Some(image.join(linux::KERNEL));
        layout.initrd = Some(image.join(linux::INITRD));
    }
}

async fn heard(listener: &Listener, enough: impl Fn(&Report) -> bool) -> Report {
    let deadline = Instant::now() + LIMIT;
    loop {
        let report = listener.report();
        if enough(&report) {
            return report;
        }
        let last = report.last();
        assert!(
            Instant::now() < deadline,
            "{} heartbeats, last {last:?}",
            report.heard.len()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linux_guest_moves_with_its_clock_its_disk_and_its_network_and_powers_off() {
    let image = image();
    let layout = layout(&image);
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.raw");
    std::fs::File::create(&disk)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let spec = linux_spec(&disk, socket.local_addr().unwrap().port());
    let listener = Listener::start(socket).unwrap();
    let source = Machine::start_with(&spec, Role::Start, &layout).await;
    source.qmp.cont().await.unwrap();
    source
        .serial_until(|serial| serial.contains(linux::READY))
        .await;
    heard(&listener, |report| report.heard.len() > 100).await;
    let mut target = Machine::start_with(&spec, Role::Incoming, &layout).await;

    hand_over(&source, &target).await;
    source.qmp.quit().await.unwrap();

    let moved = listener.report().heard.len();
    let report = heard(&listener, |report| report.heard.len() > moved + 200).await;
    let repeats = report.repeats();
    let first = repeats.first().map(|repeat| repeat.sequence);
    let around = report
        .heard
        .iter()
        .filter(|heard| first.is_some_and(|first| heard.record.sequence.abs_diff(first) < 8));
    assert!(repeats.is_empty(), "{:#?}", around.collect::<Vec<_>>());
    let (gap, _) = report.longest_gap().unwrap();
    assert!(gap < Duration::from_secs(5), "silent for {gap:?}");
    power_off(&mut target).await;
    let boots = record::verify(&std::fs::read(&disk).unwrap()).unwrap();
    assert_eq!(boots.len(), 1);
    assert!(boots[0].last.sequence > 10, "{boots:?}");
}

/// Presses the button and waits until the guest has powered off by itself.
async fn power_off(machine: &mut Machine) {
    machine.qmp.system_powerdown().await.unwrap();
    let shutdown = async {
        while let Some(stamped) = machine.events.next().await {
            if let Event::Shutdown { guest, .. } = stamped.event {
                return guest;
            }
        }
        false
    };
    let by_guest = tokio::time::timeout(LIMIT, shutdown)
        .await
        .expect("the guest ignored the button");
    assert!(by_guest, "qemu ended: {}", machine.log());
    assert_eq!(machine.run_state().await, RunState::Shutdown);
    assert!(machine.process.is_alive());
}
