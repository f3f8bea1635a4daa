//! The lab's document, command by command as it is written, but for hosts and files.
//!
//! Once with Debian's kubectl and once with the newest, each as `oc`.

use anyhow::{Context, Result, ensure};
use godwit_testkit::kubectl::Release;

use crate::lab_env::{Env, cells, example, migration, wait};

const VM: &str = "rhel8-server-nfs";
/// Last byte of the machine's address in the document.
const LAST: u8 = 62;
/// Long enough for any service to have the idea of moving a machine back.
const NO_FAIL_BACK: std::time::Duration = std::time::Duration::from_secs(3);

/// Every phase of a migration that ends well.
const PHASES: [&str; 7] = [
    "Pending",
    "Scheduling",
    "Scheduled",
    "PreparingTarget",
    "TargetReady",
    "Running",
    "Succeeded",
];

/// The document with Debian's kubectl.
pub(crate) fn debian(env: &Env) -> Result<()> {
    Reader::new(env, Release::Debian).read()
}

/// The document with the newest kubectl.
pub(crate) fn newest(env: &Env) -> Result<()> {
    Reader::new(env, Release::Newest).read()
}

/// Somebody who reads the document and types what it says.
struct Reader<'a> {
    env: &'a Env,
    release: Release,
}

impl<'a> Reader<'a> {
    fn new(env: &'a Env, release: Release) -> Self {
        Self { env, release }
    }

    fn types(&self, script: &str) -> Result<String> {
        self.env.ok(self.release, script)
    }

    fn read(&self) -> Result<()> {
        self.has_one_machine()?;
        let uid = self.env.uid_of(VM)?;
        let boot = self.env.ask(LAST)?;
        self.migrates()?;
        self.applies_again()?;
        self.migrates_more()?;
        self.describes()?;
        self.empties_worker2()?;
        self.opens_worker2()?;
        ensure!(self.env.uid_of(VM)? == uid, "the instance is another");
        let now = self.env.ask(LAST)?;
        ensure!(now.boot_id == boot.boot_id, "the guest booted again");
        ensure!(now.counter > boot.counter, "{boot:?} became {now:?}");
        ensure!(now.uptime_ns > boot.uptime_ns, "{boot:?} became {now:?}");
        Ok(())
    }

    /// The machine of the examples, as `cargo xtask lab` starts it.
    fn has_one_machine(&self) -> Result<()> {
        let disks = self.env.lab().disks().display().to_string();
        let address = self.env.lab().network().guest(LAST).to_string();
        let text = std::fs::read_to_string(example("vm-rhel8-server-nfs.yaml"))?
            .replace("/var/lib/godwit/shared", &disks)
            .replace("192.168.123.62", &address);
        let file = self.env.file("machine.yaml", &text)?;
        let said = self.types(&format!("oc apply -f {}", file.display()))?;
        ensure!(
            said == format!("virtualmachine.kubevirt.io/{VM} created\n"),
            "{said}"
        );
        self.env.ask(LAST)?;
        let row = wait("the machine's address", || {
            let row = self.machine()?;
            Ok(row[3].starts_with(&address).then_some(row))
        })?;
        ensure!(row[2] == "Running", "{row:?}");
        ensure!(row[4].starts_with("worker"), "{row:?}");
        let grep = format!("oc describe vmi {VM} | egrep -i '(eviction|migration)'");
        let described = cells(&self.types(&grep)?);
        for line in [
            ["Eviction", "Strategy:", "LiveMigrate"],
            ["Migration", "Method:", "LiveMigration"],
        ] {
            let has = described.iter().any(|words| words[..] == line);
            ensure!(has, "{described:?}");
        }
        Ok(())
    }

    /// The machine's row of `oc get vmi`, once the table is as the document shows it.
    fn machine(&self) -> Result<Vec<String>> {
        let table = cells(&self.types("oc get vmi")?);
        let shown = ["NAME", "AGE", "PHASE", "IP", "NODENAME"];
        ensure!(table.len() == 2, "{table:?}");
        ensure!(table[0][..5] == shown, "{table:?}");
        ensure!(table[1][0] == VM, "{table:?}");
        // A column without a value would shift the others.
        if table[1].len() == table[0].len() {
            Ok(table[1].clone())
        } else {
            Ok(vec![String::new(); 5])
        }
    }

    /// Types the document's order for `job`.
    fn orders(&self, job: &str) -> Result<String> {
        self.types(&format!(
            "cat << EOF | oc apply -f -
apiVersion: kubevirt.io/v1alpha3
kind: VirtualMachineInstanceMigration
metadata:
  name: {job}
spec:
  vmiName: {VM}
EOF
"
        ))
    }

    fn migrates(&self) -> Result<()> {
        let look = "oc get virtualmachineinstancemigration/migration-job -o yaml";
        let early = self.env.shell(self.release, look)?;
        ensure!(!early.ok && early.stderr.contains("Error"), "{early:?}");
        let before = self.env.node_of(VM)?;
        let watch = self.env.watch(self.release, "get vmim -w")?;
        let said = self.orders("migration-job")?;
        ensure!(
            said == "virtualmachineinstancemigration.kubevirt.io/migration-job created\n",
            "{said}"
        );
        // What `watch -n1` would show.
        wait("phase: Succeeded", || {
            let shown = self.types(look)?;
            let spec = "\nspec:\n  vmiName: rhel8-server-nfs\n";
            ensure!(shown.contains(spec), "{shown}");
            Ok(shown.contains("\n  phase: Succeeded\n").then_some(()))
        })?;
        if self.release == Release::Newest {
            let script = "oc wait --for=jsonpath='{.status.phase}'=Succeeded vmim/migration-job";
            let said = self.types(script)?;
            ensure!(said.ends_with("/migration-job condition met\n"), "{said}");
        }
        let seen = wait("the watch to see the end", || {
            let seen = phases(&watch.lines()?, "migration-job");
            let ended = seen.iter().any(|phase| phase == "Succeeded");
            Ok(ended.then_some(seen))
        })?;
        ensure!(seen == PHASES, "{seen:?}");
        let row = self.machine()?;
        ensure!(row[2] == "Running", "{row:?}");
        ensure!(row[4] != before, "{row:?}, was on {before}");
        Ok(())
    }

    /// The same job reports `unchanged` and moves nothing.
    fn applies_again(&self) -> Result<()> {
        let before = self.env.node_of(VM)?;
        let said = self.orders("migration-job")?;
        ensure!(
            said == "virtualmachineinstancemigration.kubevirt.io/migration-job unchanged\n",
            "{said}"
        );
        let after = self.env.node_of(VM)?;
        ensure!(after == before, "an ended job moved the machine");
        Ok(())
    }

    /// Another name is another job; the last one takes the machine to worker2.
    fn migrates_more(&self) -> Result<()> {
        for number in 2..=4 {
            let before = self.env.node_of(VM)?;
            let job = format!("migration-job{number}");
            let said = self.orders(&job)?;
            ensure!(said.ends_with(&format!("/{job} created\n")), "{said}");
            let state = self.env.succeeded(&job)?;
            let after = self.env.node_of(VM)?;
            ensure!(state["sourceNode"] == before.as_str(), "{state:#}");
            ensure!(state["targetNode"] == after.as_str(), "{state:#}");
            ensure!(after != before, "{state:#}");
        }
        if self.env.node_of(VM)? != "worker2" {
            let to_worker2 = migration("to-worker2", VM, Some("worker2"));
            self.env.apply(&[to_worker2])?;
            self.env.succeeded("to-worker2")?;
        }
        Ok(())
    }

    /// `describe` has all that the document shows of a machine that moved a few times.
    fn describes(&self) -> Result<()> {
        let text = self.types(&format!("oc describe vmi {VM}"))?;
        let (object, events) = text.split_once("\nEvents:\n").context("no events")?;
        let state = object.split_once("Migration State:").context("no state")?.1;
        let state: Vec<String> = cells(state).iter().map(|words| words.join(" ")).collect();
        for field in [
            "Completed: true",
            "End Timestamp: 20",
            "Migration UID: ",
            "Source Node: worker",
            "Start Timestamp: 20",
            "Target Direct Migration Node Ports:",
            "Target Node: worker2",
            "Target Node Address: 10.",
            "Target Node Domain Detected: true",
            "Target Pod: virt-launcher-rhel8-server-nfs-",
            "Node Name: worker2",
            "Phase: Running",
            "Qos Class: Burstable",
        ] {
            let has = state.iter().any(|line| line.starts_with(field));
            ensure!(has, "{field} not in\n{text}");
        }
        let ports = state.iter().any(|line| line.ends_with(": 49152"));
        ensure!(ports, "no port in\n{text}");
        for (reason, message) in [
            ("PreparingTarget", "Migration Target is listening at 10."),
            (
                "PreparingTarget",
                "VirtualMachineInstance Migration Target Prepared.",
            ),
            ("Migrating", "VirtualMachineInstance is migrating."),
            (
                "Migrated",
                "The VirtualMachineInstance migrated to node worker2.",
            ),
            ("Created", "VirtualMachineInstance defined."),
            ("Deleted", "Signaled Deletion"),
        ] {
            let has = |line: &&str| line.contains(reason) && line.contains(message);
            let line = events.lines().find(has);
            let line = line.with_context(|| format!("{reason}: {message} not in\n{events}"))?;
            ensure!(line.contains("virt-handler"), "{line}");
        }
        let counted = events
            .lines()
            .any(|line| line.contains("(x") && line.contains(" over "));
        ensure!(counted, "nothing was counted:\n{events}");
        Ok(())
    }

    /// `STATUS` of each node.
    fn nodes(&self) -> Result<Vec<String>> {
        let table = cells(&self.types("oc get nodes")?);
        let shown = ["NAME", "STATUS", "ROLES", "AGE", "VERSION"];
        ensure!(table[0] == shown, "{table:?}");
        let names: Vec<&str> = table[1..].iter().map(|row| row[0].as_str()).collect();
        ensure!(names == ["worker1", "worker2", "worker3"], "{table:?}");
        ensure!(table[1..].iter().all(|row| row[2] == "worker"), "{table:?}");
        Ok(table[1..].iter().map(|row| row[1].clone()).collect())
    }

    fn empties_worker2(&self) -> Result<()> {
        let nodes = self.nodes()?;
        ensure!(nodes == ["Ready"; 3], "{nodes:?}");
        let row = self.machine()?;
        ensure!(row[4] == "worker2", "{row:?}");
        let said = self.types(
            "cat << EOF | oc apply -f -
apiVersion: kubevirt.io/v1alpha1
kind: NodeMaintenance
metadata:
  name: worker2-maintenance
spec:
  nodeName: worker2
  reason: \"Worker2 Maintenance\"
EOF
",
        )?;
        ensure!(
            said == "nodemaintenance.kubevirt.io/worker2-maintenance created\n",
            "{said}"
        );
        self.chooses_a_project()?;
        let closed = ["Ready", "Ready,SchedulingDisabled", "Ready"];
        wait("worker2 to close", || {
            Ok((self.nodes()? == closed).then_some(()))
        })?;
        let row = wait("the machine to leave", || {
            let row = self.machine()?;
            Ok((row[4] != "worker2" && !row[4].is_empty()).then_some(row))
        })?;
        ensure!(row[2] == "Running", "{row:?}");
        Ok(())
    }

    /// With the lab's plugin, and what a real `oc` would ask for.
    fn chooses_a_project(&self) -> Result<()> {
        let server = self.env.lab().server();
        let said = self.types("oc project default")?;
        let wanted = format!("Now using project \"default\" on server \"{server}\".\n");
        ensure!(said == wanted, "{said}");
        let raw = self.types("oc get --raw /apis/project.openshift.io/v1/projects/default")?;
        let project: serde_json::Value = serde_json::from_str(&raw)?;
        ensure!(project["kind"] == "Project", "{raw}");
        ensure!(project["metadata"]["name"] == "default", "{raw}");
        Ok(())
    }

    fn opens_worker2(&self) -> Result<()> {
        wait("the evacuation's end", || {
            let jobs = cells(&self.types("oc get vmim --no-headers")?);
            let ended = jobs.iter().all(|row| row[1] == "Succeeded");
            Ok(ended.then_some(()))
        })?;
        let place = self.env.node_of(VM)?;
        let jobs = self.types("oc get vmim -o name")?;
        let table = cells(&self.types("oc get nodemaintenance")?);
        ensure!(table[0] == ["NAME", "AGE"], "{table:?}");
        ensure!(table[1][0] == "worker2-maintenance", "{table:?}");
        let said = self.types("oc delete nodemaintenance/worker2-maintenance")?;
        ensure!(
            said == "nodemaintenance.kubevirt.io \"worker2-maintenance\" deleted\n",
            "{said}"
        );
        let table = cells(&self.types("oc get nodes/worker2")?);
        ensure!(table[1][..2] == ["worker2", "Ready"], "{table:?}");
        std::thread::sleep(NO_FAIL_BACK);
        ensure!(self.env.node_of(VM)? == place, "the machine went back");
        let now = self.types("oc get vmim -o name")?;
        // The oldest may be tidied away meanwhile, but none may be new.
        let new = now.lines().find(|job| !jobs.lines().any(|old| old == *job));
        ensure!(new.is_none(), "there were\n{jobs}now\n{now}");
        Ok(())
    }
}

/// The phases of `job` in the order in which a watch printed them, each once.
fn phases(lines: &[String], job: &str) -> Vec<String> {
    let rows = lines.iter().flat_map(|line| cells(line));
    let mut phases: Vec<String> = rows
        // A row without a phase yet has a column less.
        .filter(|row| row.len() > 2 && row[0] == job)
        .map(|row| row[1].clone())
        .collect();
    phases.dedup();
    phases
}
