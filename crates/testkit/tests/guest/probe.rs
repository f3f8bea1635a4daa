//! What this machine can run.

use godwit_qemu::Accelerator;
use godwit_qemu::probe::{Request, TestKernel, Wish, probe};
use godwit_testkit::guest::linux;
use std::process::Command;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn a_host_has_versioned_machine_types_and_cpu_models_that_run() {
    let folder = tempfile::tempdir().unwrap();
    let request = Request {
        binary: None,
        wish: Wish::Tcg,
        kernel: None,
        directory: folder.path().to_owned(),
    };

    let host = probe(&request).await.unwrap();

    assert!(host.version.major >= 7, "{:?}", host.version);
    assert_eq!(host.accelerator, Accelerator::Tcg);
    assert!(
        host.machine_types[0].starts_with("pc-"),
        "{:?}",
        host.machine_types
    );
    assert!(
        !host
            .machine_types
            .iter()
            .any(|name| name == "q35" || name == "pc")
    );
    assert!(host.cpu_models.iter().any(|name| name == "qemu64"));
    assert!(
        !host
            .cpu_models
            .iter()
            .any(|name| name == "max" || name == "host")
    );
    let left = std::fs::read_dir(folder.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["probe.json"], "the probe left files");
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_is_believed_only_when_a_kernel_boots_on_it_and_the_verdict_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let image = crate::linux::image();
    let request = Request {
        binary: None,
        wish: Wish::Auto,
        kernel: Some(TestKernel {
            kernel: image.join(linux::KERNEL),
            initrd: Some(image.join(linux::INITRD)),
            arguments: linux::ARGUMENTS.to_owned(),
            marker: "no guest says this".to_owned(),
        }),
        directory: folder.path().to_owned(),
    };
    let answer = folder.path().join("probe.json");
    let written = || std::fs::metadata(&answer).unwrap().modified().unwrap();

    let first = probe(&request).await.unwrap();
    let then = written();
    let second = probe(&request).await.unwrap();

    assert_eq!(first.accelerator, Accelerator::Tcg);
    let why = first.reason.to_lowercase();
    assert!(why.contains("kvm"), "{why}");
    assert_eq!((first, written()), (second, then), "looked at twice");
}

#[test]
fn a_kernel_alone_says_when_it_has_booted() {
    let folder = tempfile::tempdir().unwrap();
    let serial = folder.path().join("serial");
    let kernel = TestKernel::alone(crate::linux::image().join(linux::KERNEL));
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-m", "256M", "-display", "none", "-kernel"])
        .arg(&kernel.kernel)
        .args(["-append", &kernel.arguments, "-serial"])
        .arg(format!("file:{}", serial.display()))
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let said = || std::fs::read_to_string(&serial).unwrap_or_default();
    while !said().contains(&kernel.marker) && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50)); // poll
    }
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    assert!(said().contains(&kernel.marker), "{}", said());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_test_kernel_the_translator_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let request = Request {
        binary: None,
        wish: Wish::Auto,
        kernel: None,
        directory: folder.path().to_owned(),
    };
    assert_eq!(probe(&request).await.unwrap().accelerator, Accelerator::Tcg);
}
