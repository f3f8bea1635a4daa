//! `cargo xtask lab`: from a fresh Debian machine to a first machine that runs, in one command.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use godwit_testkit::kubectl;
use godwit_testkit::lab::{Lab, LabOptions, tail};
use indicatif::ProgressBar;

use crate::tools::{self, say};

/// The machine that the lab's document speaks of.
const MACHINE: &str = "rhel8-server-nfs";
/// How long the first machine may take to run.
const RUNNING_MAX: Duration = Duration::from_secs(60);

/// `cargo xtask lab`
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<What>,
    /// Hosts.
    #[arg(long, default_value_t = 3, global = true)]
    workers: usize,
    /// Build profile of the services: `dev` or `release`.
    #[arg(long, default_value = "dev", global = true)]
    profile: String,
    /// Start no machine.
    #[arg(long)]
    no_vm: bool,
    /// Where traces go, for example `http://127.0.0.1:4317`.
    #[arg(long)]
    otlp_endpoint: Option<String>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Shows what runs.
    Status,
    /// Ends and removes everything.
    Down,
    /// Shows a service's log.
    Logs {
        /// For example `scheduler` or `worker1`; all when absent.
        service: Option<String>,
        /// Goes on as lines come.
        #[arg(short, long)]
        follow: bool,
    },
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let options = LabOptions::standard(tools::bin_dir(&arguments.profile), tools::cache_dir());
    let lab = Lab::new(LabOptions {
        workers: arguments.workers,
        otlp_endpoint: arguments.otlp_endpoint.clone(),
        ..options
    });
    match &arguments.command {
        None => up(&lab, arguments),
        Some(What::Status) => status(&lab),
        Some(What::Down) => down(&lab),
        Some(What::Logs { service, follow }) => logs(&lab, service.as_deref(), *follow),
    }
}

fn up(lab: &Lab, arguments: &Arguments) -> Result<()> {
    ensure!(
        nix::unistd::Uid::effective().is_root(),
        "the lab makes hosts out of network namespaces, which takes root: run it with sudo"
    );
    let bar = tools::spinner();
    tools::ensure_packages(&bar)?;
    say(&bar, "building the services");
    bar.suspend(|| tools::build_programs(&arguments.profile))?;
    let kubectl = kubectl::on_path_or_fetch(&tools::cache_dir(), &|text| say(&bar, text))?;
    let began = Instant::now();
    lab.up(&|text| say(&bar, text))?;
    link_programs(lab, &kubectl)?;
    if !arguments.no_vm {
        say(&bar, "starting the first machine");
        first_machine(lab, &kubectl)?;
    }
    bar.finish_and_clear();
    println!(
        "Godwit runs: {} hosts, ready in {:.1} s.",
        arguments.workers,
        began.elapsed().as_secs_f64()
    );
    next_steps(lab);
    Ok(())
}

/// Where the lab's programs are, by the names that its document uses.
fn programs(lab: &Lab) -> PathBuf {
    lab.options().dir.join("bin")
}

/// Links kubectl, an `oc` that is kubectl, and godwit with its names as a plugin of kubectl.
fn link_programs(lab: &Lab, kubectl: &Path) -> Result<()> {
    let folder = programs(lab);
    std::fs::create_dir_all(&folder)?;
    let godwit = lab.options().bin_dir.join("godwit");
    let links = [
        ("kubectl", kubectl),
        ("oc", kubectl),
        ("godwit", &godwit),
        ("kubectl-godwit", &godwit),
        ("kubectl-project", &godwit),
    ];
    for (name, program) in links {
        let link = folder.join(name);
        if link.symlink_metadata().is_err() {
            std::os::unix::fs::symlink(program, &link)
                .with_context(|| format!("link {}", link.display()))?;
        }
    }
    Ok(())
}

/// Applies the lab's manifest, and waits until the machine runs.
fn first_machine(lab: &Lab, kubectl: &Path) -> Result<()> {
    let manifest = manifest(lab)?;
    let path = lab.options().dir.join("machine.yaml");
    std::fs::write(&path, manifest)?;
    let path = path.display().to_string();
    let applied = lab.kubectl(kubectl, &["apply", "-f", &path])?;
    ensure!(
        applied.status.success(),
        "{}",
        String::from_utf8_lossy(&applied.stderr)
    );
    let began = Instant::now();
    loop {
        let phase = ["get", "vmi", MACHINE, "-o", "jsonpath={.status.phase}"];
        let output = lab.kubectl(kubectl, &phase)?;
        if output.stdout == b"Running" {
            return Ok(());
        }
        if began.elapsed() > RUNNING_MAX {
            let described = lab.kubectl(kubectl, &["describe", "vmi", MACHINE])?;
            bail!(
                "{MACHINE} does not run:\n{}",
                String::from_utf8_lossy(&described.stdout)
            );
        }
        std::thread::sleep(Duration::from_millis(50)); // poll
    }
}

/// The lab's manifest, with the shared folder of this lab.
fn manifest(lab: &Lab) -> Result<String> {
    let path = tools::root().join("examples/vm-rhel8-server-nfs.yaml");
    let text = std::fs::read_to_string(&path).context("read the lab's manifest")?;
    Ok(text.replace("/var/lib/godwit/shared", &lab.disks().display().to_string()))
}

fn next_steps(lab: &Lab) {
    println!("\nNext:");
    println!("  export KUBECONFIG={}", lab.kubeconfig().display());
    println!("  export PATH={}:$PATH", programs(lab).display());
    println!("  oc get nodes");
    println!("  oc get vmi");
    println!("  oc apply -f examples/migration-job.yaml");
    println!("  oc get vmim -w");
    println!("  ping {}", lab.network().guest(62));
    println!("  cargo xtask lab status | logs | down");
}

fn status(lab: &Lab) -> Result<()> {
    for service in lab.services() {
        match service.process() {
            Some(process) => println!("{:24} running, pid {}", service.name, process.pid),
            None => println!("{:24} not running", service.name),
        }
    }
    if lab.is_up() {
        let kubectl = kubectl::on_path_or_fetch(&tools::cache_dir(), &|_| ())?;
        for what in ["nodes", "vmi", "vmim"] {
            let output = lab.kubectl(&kubectl, &["get", what, "-A"])?;
            print!("\n{}", String::from_utf8_lossy(&output.stdout));
        }
    }
    Ok(())
}

fn down(lab: &Lab) -> Result<()> {
    let bar: ProgressBar = tools::spinner();
    say(&bar, "ending the lab");
    lab.down()?;
    bar.finish_and_clear();
    println!("The lab is gone.");
    Ok(())
}

fn logs(lab: &Lab, service: Option<&str>, follow: bool) -> Result<()> {
    let logs: Vec<PathBuf> = match service {
        Some(name) => vec![lab.service(name)?.log()],
        None => lab
            .services()
            .iter()
            .map(godwit_testkit::lab::Service::log)
            .collect(),
    };
    if follow {
        let status = Command::new("tail")
            .args(["-n", "20", "-F"])
            .args(&logs)
            .status()?;
        ensure!(status.success(), "tail failed");
        return Ok(());
    }
    for log in logs {
        println!("==> {} <==\n{}\n", log.display(), tail(&log, 40));
    }
    Ok(())
}
