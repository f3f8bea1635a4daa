//! What this machine can run.

use godwit_qemu::Accelerator;
use godwit_qemu::probe::{Request, TestKernel, Wish, probe};
use godwit_testkit::guest::linux;
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
            marker: linux::READY.to_owned(),
        }),
        directory: folder.path().to_owned(),
    };

    let first = probe(&request).await.unwrap();
    let started = Instant::now();
    let second = probe(&request).await.unwrap();

    assert_eq!(first, second);
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "the verdict was not kept"
    );
    assert!(!first.reason.is_empty());
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
