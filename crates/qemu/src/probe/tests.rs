use super::*;

fn machine(name: &str) -> MachineInfo {
    MachineInfo {
        name: name.to_owned(),
        ..MachineInfo::default()
    }
}

#[test]
fn machine_types_are_versioned_and_newest_first() {
    let machines = [
        "pc-q35-2.10",
        "pc-q35-7.2",
        "microvm",
        "q35",
        "pc-i440fx-10.0",
        "none",
        "xenpv",
        "pc-q35-10.0",
    ];
    let names = machine_types(&machines.map(machine));
    assert_eq!(
        names,
        ["pc-i440fx-10.0", "pc-q35-10.0", "pc-q35-7.2", "pc-q35-2.10"]
    );
}

#[test]
fn a_cpu_model_counts_only_when_it_runs_here_and_means_the_same_elsewhere() {
    let cpu = |name: &str, safe, missing: Option<&[&str]>| CpuDefinition {
        name: name.to_owned(),
        migration_safe: Some(safe),
        unavailable_features: missing
            .map(|list| list.iter().map(|word| (*word).to_owned()).collect()),
        deprecated: false,
    };
    let cpus = [
        cpu("qemu64", true, Some(&[])),
        cpu("max", false, Some(&[])),
        cpu("Haswell", true, Some(&["pcid"])),
        cpu("EPYC", true, None),
        cpu("base", true, Some(&[])),
    ];
    assert_eq!(cpu_models(&cpus), ["qemu64"]);
}

#[test]
fn a_binary_that_is_not_there_is_named() {
    let error = find_binary(Some(Path::new("/nowhere/qemu"))).unwrap_err();
    assert_eq!(error.to_string(), r#"no qemu at "/nowhere/qemu""#);
    assert!(find_binary(Some(Path::new("no-such-qemu"))).is_err());
}
