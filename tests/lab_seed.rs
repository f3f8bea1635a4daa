//! A machine that cloud-init is told about by a secret.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use godwit_testkit::kubectl::Release;
use serde_json::json;

use crate::lab_env::{Env, Machine, wait};

const LAST: u8 = 97;
const VM: &str = "seeded";
const USER_DATA: &str = "#cloud-config\npassword: correct-horse\n";

/// The disks that hosts made for cloud-init.
fn seeds(env: &Env) -> Result<Vec<PathBuf>> {
    let mut found = vec![];
    let mut folders = vec![env.lab().options().dir.join("run")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry?.path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.extend(
                    path.extension()
                        .is_some_and(|end| end == "seed")
                        .then_some(path),
                ),
            }
        }
    }
    Ok(found)
}

fn only_seed(env: &Env) -> Result<(PathBuf, Vec<u8>)> {
    wait("one disk for cloud-init", || {
        let found = seeds(env)?;
        let [path] = found.as_slice() else {
            return Ok(None);
        };
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        Ok(Some((path.clone(), bytes)))
    })
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

/// It waits for its secret, runs with what is in it, and takes it along when it moves.
pub(crate) fn by_a_secret(env: &Env) -> Result<()> {
    let mut machine = env.machine(&Machine::small(VM, LAST))?;
    let spec = &mut machine["spec"]["template"]["spec"];
    let disks = spec["domain"]["devices"]["disks"].as_array_mut();
    let disks = disks.context("the example has disks")?;
    disks.push(json!({"name": "seed", "disk": {"bus": "virtio"}}));
    let volumes = spec["volumes"].as_array_mut().context("and volumes")?;
    volumes.push(json!({"name": "seed", "cloudInitNoCloud": {"secretRef": {"name": "seed"}}}));
    env.apply(&[machine])?;
    wait("the machine to say what it misses", || {
        let told = env
            .kubectl(&format!("describe vmi {VM}"))
            .unwrap_or_default();
        Ok(told.contains("secret \"seed\" is not there").then_some(()))
    })?;
    let create =
        format!("kubectl create secret generic seed --from-literal=userdata='{USER_DATA}'");
    env.ok(Release::Newest, &create)?;
    let first = env.ask(LAST)?;
    let (before, bytes) = only_seed(env)?;
    ensure!(
        holds(&bytes, USER_DATA),
        "{} lacks the data",
        before.display()
    );

    env.migrate("seeded", VM, None)?;
    ensure!(env.ask(LAST)?.boot_id == first.boot_id, "it booted again");
    let (after, same) = only_seed(env)?;
    ensure!(host(&before) != host(&after), "{} stayed", before.display());
    ensure!(bytes == same, "the target's disk differs");
    let shown = env.kubectl("get vm,vmi,vmim -o yaml")?;
    ensure!(!shown.contains("correct-horse"), "the secret is shown");
    env.ok(Release::Newest, "kubectl delete secret seed")
        .map(drop)
}

/// The host in whose folder a file is.
fn host(path: &Path) -> Option<&str> {
    let mut parts = path.iter().filter_map(|part| part.to_str());
    parts.find(|part| part.starts_with('w'))
}
