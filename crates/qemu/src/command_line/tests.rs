use super::*;
use godwit_model::machine::Kernel;
use godwit_model::{Bytes, MachineId};

/// Rewrites the golden file with what is rendered.
const REWRITE: &str = "GODWIT_REWRITE_GOLDEN";

fn spec() -> MachineSpec {
    let disk = |name: &str, boot| Disk {
        name: name.to_owned(),
        path: format!("/var/lib/disks/{name},1.raw"),
        format: if boot {
            ImageFormat::Qcow2
        } else {
            ImageFormat::Raw
        },
        shared: true,
        read_only: !boot,
        create: None,
        boot,
        seed: None,
    };
    let nic = |name: &str, mac: &str| Nic {
        name: name.to_owned(),
        mac: mac.to_owned(),
        network: "lan".to_owned(),
    };
    MachineSpec {
        id: MachineId::parse("43f5b34d-94b4-4cda-9a69-cca8d4b4c587").unwrap(),
        namespace: "default".to_owned(),
        name: "fc31-nfs".to_owned(),
        cpus: 2,
        memory: Bytes(1_000_000_000),
        machine_type: "pc-q35-7.2".to_owned(),
        cpu_model: "Haswell-v4".to_owned(),
        disks: vec![disk("rootdisk", true), disk("0data", false)],
        nics: vec![
            nic("default", "52:54:00:00:00:01"),
            nic("lan", "52:54:00:00:00:02"),
        ],
        hugepages: None,
        kernel: Some(Kernel {
            image: "guest".to_owned(),
            kernel_path: "vmlinuz".to_owned(),
            initrd_path: "initrd.gz".to_owned(),
            arguments: "console=ttyS0 quiet".to_owned(),
        }),
    }
}

fn host(name: &str) -> HostLayout {
    let directory = PathBuf::from(format!("/run/{name}"));
    let mut layout = HostLayout::in_directory(&directory, Accelerator::Tcg, &spec());
    layout.nics = vec![
        NicBackend::Tap(format!("{name}-0")),
        NicBackend::User {
            forwards: vec![(2222, 22)],
        },
    ];
    layout.direct_io = vec![true, false];
    layout.kernel = Some(PathBuf::from(format!("/srv/{name}/vmlinuz")));
    layout.initrd = Some(PathBuf::from(format!("/srv/{name}/initrd.gz")));
    layout
}

fn render(host: &HostLayout, role: Role) -> Vec<String> {
    CommandLine::render(&spec(), host, role).unwrap().arguments
}

#[test]
fn a_machine_is_rendered_as_in_the_golden_file() {
    // One option with its value a line.
    let mut text = String::new();
    for argument in render(&host("a"), Role::Start) {
        let is_option = argument.starts_with('-');
        text.push_str(if text.is_empty() {
            ""
        } else if is_option {
            "\n"
        } else {
            " "
        });
        text.push_str(&argument);
    }
    text.push('\n');
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/command_line/golden.txt");
    if std::env::var_os(REWRITE).is_some() {
        std::fs::write(file, &text).unwrap();
    }
    assert_eq!(
        text,
        std::fs::read_to_string(file).unwrap(),
        "set {REWRITE} to accept"
    );
}

#[test]
fn memory_in_huge_pages_comes_from_the_hosts_directory_and_has_the_same_id() {
    let spec = MachineSpec {
        memory: Bytes::mib(64),
        hugepages: Some(PageSize::Mi2),
        ..spec()
    };
    let mut layout = host("a");
    let error = CommandLine::render(&spec, &layout, Role::Start).unwrap_err();
    assert!(matches!(error, LineError::Layout { .. }), "{error}");
    layout.hugepages = Some(PathBuf::from("/dev/huge,pages/x"));
    let backend = |layout: &HostLayout| {
        let line = CommandLine::render(&spec, layout, Role::Start).unwrap();
        let mut all = line.arguments.into_iter();
        all.find(|argument| argument.starts_with("memory-backend"))
            .unwrap()
    };
    // Under TCG not a multiple of 256 KiB, and not a page more.
    assert_eq!(
        backend(&layout),
        "memory-backend-file,id=ram0,size=65528K,share=off,mem-path=/dev/huge,,pages/x"
    );
    layout.accelerator = Accelerator::Kvm;
    assert!(backend(&layout).contains("size=65536K"));
    let odd = MachineSpec {
        memory: Bytes::mib(63),
        ..spec
    };
    let error = CommandLine::render(&odd, &layout, Role::Start).unwrap_err();
    assert_eq!(
        error.to_string(),
        "memory of 63 MiB is no multiple of pages of 2Mi"
    );
}

#[test]
fn source_and_target_differ_in_nothing_that_the_guest_sees() {
    let source = render(&host("a"), Role::Start);
    let target = render(&host("b"), Role::Incoming);

    let host_local = |argument: &String| {
        argument.contains("/run/") || argument.contains("/srv/") || argument.contains("ifname=")
    };
    let (position, incoming) = (
        target
            .iter()
            .position(|argument| argument == "-incoming")
            .unwrap(),
        ["-incoming".to_owned(), "defer".to_owned()],
    );
    assert_eq!(target[position..position + 2], incoming);
    let mut rest = target.clone();
    rest.drain(position..position + 2);
    assert_eq!(source.len(), rest.len());
    for (ours, theirs) in source.iter().zip(&rest) {
        if ours != theirs {
            assert!(
                host_local(ours) && host_local(theirs),
                "{ours} is not {theirs}"
            );
            assert_eq!(ours.replace("/a/", "/b/").replace("a-0", "b-0"), *theirs);
        }
    }
}

#[test]
fn nothing_ever_runs_by_itself() {
    for role in [Role::Start, Role::Incoming] {
        assert!(
            render(&host("a"), role)
                .iter()
                .any(|argument| argument == "-S")
        );
    }
}

#[test]
fn another_disk_does_not_move_the_interfaces() {
    let place = |arguments: &[String], id: &str| {
        let device = arguments
            .iter()
            .find(|argument| argument.contains(id))
            .unwrap();
        device
            .split(',')
            .find(|part| part.starts_with("addr="))
            .unwrap()
            .to_owned()
    };
    let before = render(&host("a"), Role::Start);
    let (mut more, mut layout) = (spec(), host("a"));
    more.disks.push(Disk {
        name: "third".to_owned(),
        ..more.disks[1].clone()
    });
    layout.direct_io.push(true);
    let after = CommandLine::render(&more, &layout, Role::Start)
        .unwrap()
        .arguments;
    assert_eq!(place(&before, "id=nic-lan"), place(&after, "id=nic-lan"));
    assert_eq!(
        place(&before, "id=disk-0data"),
        place(&after, "id=disk-0data")
    );
}

#[test]
fn words_that_would_become_options_are_refused() {
    let refused = |change: &dyn Fn(&mut MachineSpec)| {
        let mut spec = spec();
        change(&mut spec);
        CommandLine::render(&spec, &host("a"), Role::Start).unwrap_err()
    };
    let words = [
        refused(&|spec| spec.cpu_model = "qemu64,+svm".to_owned()),
        refused(&|spec| spec.machine_type = "q35,accel=kvm".to_owned()),
        refused(&|spec| spec.nics[0].mac = "52:54:00:00:00:01,romfile=/etc/passwd".to_owned()),
        refused(&|spec| spec.name = String::new()),
        refused(&|spec| spec.disks[0].name = "a=b".to_owned()),
    ];
    assert!(
        words
            .iter()
            .all(|error| matches!(error, LineError::Word { .. })),
        "{words:?}"
    );
}

#[test]
fn a_layout_of_another_machine_is_refused() {
    let mut layout = host("a");
    layout.nics.pop();
    let error = CommandLine::render(&spec(), &layout, Role::Start).unwrap_err();
    assert_eq!(
        error,
        LineError::Layout {
            what: "interfaces",
            found: 1,
            needed: 2
        }
    );
}

#[test]
fn a_socket_path_that_the_kernel_would_cut_off_is_refused() {
    let mut layout = host("a");
    layout.qmp_socket = PathBuf::from(format!("/run/{}", "x".repeat(103)));
    let error = CommandLine::render(&spec(), &layout, Role::Start).unwrap_err();
    assert!(matches!(error, LineError::SocketPath(_)));
}
