use std::process::{Child, Command};

use godwit_model::machine::PageSize;
use godwit_model::{Bytes, MachineId};

use super::*;

/// The hierarchy of this machine, where a test can make groups.
fn hierarchy() -> Option<PathBuf> {
    let mounts = fs::read_to_string(MOUNTS).unwrap();
    let mount = mounted(&mounts)?.to_owned();
    let probe = mount.join(format!("godwit-test-probe-{}", std::process::id()));
    fs::create_dir(&probe).ok()?;
    fs::remove_dir(&probe).unwrap();
    Some(mount)
}

/// The limit of [`spec`]: its memory, a 256th of that for tables, 64 MiB and a 512th of it, and
/// 512 MiB.
const MEMORY: u64 = (1024 + 4 + 64 + 2 + 512) << 20;

fn spec() -> MachineSpec {
    MachineSpec {
        id: MachineId::parse("11111111-94b4-4cda-9a69-cca8d4b4c587".to_owned()).unwrap(),
        namespace: "default".into(),
        name: "held".into(),
        cpus: 2,
        memory: Bytes::gib(1),
        machine_type: "pc-q35-7.2".into(),
        cpu_model: "qemu64".into(),
        disks: vec![],
        nics: vec![],
        kernel: None,
        hugepages: None,
    }
}

fn groups(parent: Parent, wish: Wish) -> Groups {
    Groups {
        wish,
        accelerator: Accelerator::Kvm,
        parent: Some(parent),
    }
}

fn sleeper() -> Child {
    Command::new("sleep").arg("60").spawn().unwrap()
}

#[test]
fn limits_leave_room_for_all_that_a_qemu_needs() {
    let of = |limit: Limit| limit.of(&spec(), Accelerator::Kvm);
    assert_eq!(of(Limit::Memory), MEMORY);
    let of_huge = |memory, hugepages| {
        let spec = MachineSpec {
            memory,
            hugepages,
            ..spec()
        };
        Limit::Memory.of(&spec, Accelerator::Kvm)
    };
    // Tables for its memory twice, and QEMU's own 300 MiB.
    let (huge, tebibyte) = (Bytes::gib(1024), 1 << 40);
    assert!(of_huge(huge, None) > tebibyte + 2 * tebibyte / 512 + (300 << 20));
    // Its memory is of the huge pages, which nobody is charged for.
    let pages = Some(PageSize::Gi1);
    assert!(of_huge(huge, pages) < 4 << 30);
    let translated = Limit::Memory.of(&spec(), Accelerator::Tcg);
    assert_eq!(translated, of(Limit::Memory) + (1 << 30));
    assert_eq!(of(Limit::Pids), 1026);
    assert_eq!(of(Limit::Cpu), 200);
    let many = MachineSpec {
        cpus: 255,
        ..spec()
    };
    assert_eq!(Limit::Cpu.of(&many, Accelerator::Kvm), 10_000);
}

#[test]
fn each_limit_that_the_host_has_is_written_before_the_process_enters() {
    // A plain folder stands for the kernel's: what is written where.
    let dir = tempfile::tempdir().unwrap();
    let parent = Parent {
        path: dir.path().to_owned(),
        limits: Limit::ALL.to_vec(),
    };
    let groups = groups(parent, Wish::Require);
    assert_eq!(groups.label(), "cpu.memory.pids");
    let group = dir.path().join("0123456789abcdef.scope");
    fs::create_dir(&group).unwrap();
    for file in [
        "memory.max",
        "memory.swap.max",
        "pids.max",
        "cpu.weight",
        "cgroup.procs",
    ] {
        fs::write(group.join(file), "").unwrap();
    }
    groups
        .enter(Path::new("/run/godwit/0123456789abcdef"), &spec(), 77)
        .unwrap();
    let read = |file: &str| fs::read_to_string(group.join(file)).unwrap();
    assert_eq!(read("memory.max"), MEMORY.to_string());
    assert_eq!(read("memory.swap.max"), MEMORY.to_string());
    assert_eq!(read("pids.max"), "1026");
    assert_eq!(read("cpu.weight"), "200");
    assert_eq!(read("cgroup.procs"), "77");
}

#[test]
fn a_folder_that_is_no_control_group_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let refused = Parent::make(&dir.path().join("worker1")).unwrap_err();
    assert!(refused.to_string().contains("no cgroup2"), "{refused}");
}

#[test]
fn without_groups_nothing_fails_unless_they_are_required() {
    let nowhere = || Parent {
        path: "/proc/no/such/place".into(),
        limits: vec![Limit::Memory],
    };
    let own = Path::new("/run/godwit/0123456789abcdef");
    assert!(groups(nowhere(), Wish::Auto).enter(own, &spec(), 1).is_ok());
    assert!(
        groups(nowhere(), Wish::Require)
            .enter(own, &spec(), 1)
            .is_err()
    );
    let none = Groups {
        parent: None,
        ..groups(nowhere(), Wish::Auto)
    };
    assert!(none.enter(own, &spec(), 1).is_ok());
    assert_eq!(none.label(), "none");
}

#[test]
fn the_hierarchy_is_found_among_all_mounts() {
    let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                  cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
                  cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
    assert_eq!(mounted(hybrid), Some(Path::new("/sys/fs/cgroup/unified")));
    assert_eq!(
        mounted("cgroup /sys/fs/cgroup/memory cgroup rw 0 0\n"),
        None
    );
}

#[tokio::test]
async fn the_kernel_takes_a_process_in_and_gives_the_group_back_after_its_end() {
    let Some(mount) = hierarchy() else {
        godwit_testkit::untried("no cgroup2 can be written on this machine");
        return;
    };
    let root = mount.join(format!("godwit-test-{}", std::process::id()));
    let parent = Parent::make(&root.join("worker1")).unwrap();
    let limits = parent.limits.clone();
    let groups = groups(parent, Wish::Auto);
    let own = Path::new("/run/godwit/0123456789abcdef");
    let mut child = sleeper();
    groups.enter(own, &spec(), child.id()).unwrap();
    let group = root.join("worker1/0123456789abcdef.scope");
    let found = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    let path = group.strip_prefix(&mount).unwrap().display().to_string();
    assert!(found.contains(&format!("0::/{path}\n")), "{found}");
    for limit in limits {
        let value = fs::read_to_string(group.join(limit.file())).unwrap();
        let wanted = limit.of(&spec(), Accelerator::Kvm);
        // The kernel rounds memory down to whole pages.
        assert_eq!(value.trim().parse::<u64>().unwrap() >> 12, wanted >> 12);
    }
    // Another agent sweeps, and leaves what has a process.
    Parent::make(&root.join("worker1")).unwrap().sweep();
    assert!(group.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    groups.remove(own).await;
    assert!(!group.exists());
    fs::create_dir(&group).unwrap();
    Parent::make(&root.join("worker1")).unwrap().sweep();
    assert!(!group.exists(), "an empty one is swept");
    fs::remove_dir(root.join("worker1")).unwrap();
    fs::remove_dir(root).unwrap();
}
