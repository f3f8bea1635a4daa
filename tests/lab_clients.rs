//! Client libraries as their makers publish them, against real machines. What they check stands in
//! `tests/clients`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::lab_env::{Env, Machine};
use crate::lab_suite::say;

/// The lab's own machine, which all clients move.
const VM: &str = "rhel8-server-nfs";
const LAST: u8 = 62;
/// Last byte of the address of a machine that a client makes.
const MADE_LAST: u8 = 98;

/// Python's and JavaScript's clients of Kubernetes, OpenShift Virtualization's own, and kube-rs.
pub(crate) fn as_published(env: &Env) -> Result<()> {
    let clients = Clients::install(&env.lab().options().cache_dir)?;
    env.run(&[Machine::small(VM, LAST)])?;
    let made = env.lab().options().dir.join("made-by-a-client.json");
    let machine = env.machine(&Machine::small("wrapped", MADE_LAST))?;
    fs::write(&made, machine.to_string())?;
    let run = |mut command: Command| {
        let said = command
            .env("KUBECONFIG", env.lab().kubeconfig())
            .env("MACHINE", &made)
            .env("TMPDIR", &env.lab().options().dir)
            .output()?;
        let text = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.success(), "{command:?}:\n{text}");
        Ok(())
    };
    for script in ["python_kubernetes.py", "openshift_wrapper.py"] {
        say(&format!("   {script}"));
        let mut command = Command::new(clients.python.join("bin/python"));
        command.arg(folder().join(script));
        run(command)?;
    }
    say("   javascript.mjs");
    let mut command = Command::new("node");
    command
        .args(["--test", "javascript.mjs"])
        .current_dir(&clients.javascript);
    run(command)?;
    say("   kube-rs");
    run(Command::new(clients.rust))
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// Where the clients are installed.
struct Clients {
    python: PathBuf,
    javascript: PathBuf,
    rust: PathBuf,
}

impl Clients {
    /// Installs what isn't there yet, in the versions that `tests/clients` names.
    fn install(cache: &Path) -> Result<Self> {
        ensure_package("python3-venv", &["python3", "-c", "import ensurepip"])?;
        ensure_package("nodejs", &["node", "--version"])?;
        ensure_package("npm", &["npm", "--version"])?;
        Ok(Self {
            python: python(cache)?,
            javascript: javascript(cache)?,
            rust: rust(cache)?,
        })
    }
}

fn python(cache: &Path) -> Result<PathBuf> {
    let wanted = folder().join("requirements.txt");
    installed(cache, ("clients-python", &wanted), |place| {
        say("   installing the clients of Python");
        must(Command::new("python3").args(["-m", "venv"]).arg(place))?;
        let pip = ["-m", "pip", "install", "-q", "-r"];
        let mut command = Command::new(place.join("bin/python"));
        must(command.args(pip).arg(&wanted))
    })
}

fn javascript(cache: &Path) -> Result<PathBuf> {
    let wanted = folder().join("package-lock.json");
    let place = installed(cache, ("clients-javascript", &wanted), |place| {
        say("   installing the client of JavaScript");
        fs::create_dir_all(place)?;
        for file in ["package.json", "package-lock.json"] {
            fs::copy(folder().join(file), place.join(file))?;
        }
        let mut command = Command::new("npm");
        must(
            command
                .args(["ci", "--no-audit", "--no-fund"])
                .current_dir(place),
        )
    })?;
    // The module is looked for beside the script.
    fs::copy(
        folder().join("javascript.mjs"),
        place.join("javascript.mjs"),
    )?;
    Ok(place)
}

/// kube-rs is built apart: nothing else of the workspace needs it.
fn rust(cache: &Path) -> Result<PathBuf> {
    let target = cache.join("clients-rust");
    let manifest = folder().join("rust/Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "-q", "--locked", "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target);
    must(&mut command)?;
    Ok(target.join("debug/godwit-client-check"))
}

/// A folder of the cache that `install` fills, again when the file `wanted` has changed.
fn installed(
    cache: &Path,
    (name, wanted): (&str, &Path),
    install: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let place = cache.join(name);
    let mark = place.join("installed");
    let wanted = fs::read(wanted).with_context(|| wanted.display().to_string())?;
    if fs::read(&mark).is_ok_and(|known| known == wanted) {
        return Ok(place);
    }
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    install(&place)?;
    fs::write(mark, wanted)?;
    Ok(place)
}

/// Installs a Debian package unless `shows` succeeds.
fn ensure_package(package: &str, shows: &[&str]) -> Result<()> {
    let there = Command::new(shows[0]).args(&shows[1..]).output();
    if there.is_ok_and(|there| there.status.success()) {
        return Ok(());
    }
    say(&format!("   installing {package}"));
    let install = ["install", "-y", "-q", "--no-install-recommends", package];
    must(Command::new("apt-get").args(install))
}

fn must(command: &mut Command) -> Result<()> {
    let said = command.output().with_context(|| format!("{command:?}"))?;
    let text = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "{command:?}: {text}");
    Ok(())
}
