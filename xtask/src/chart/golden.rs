//! What came of each case the last time somebody looked at it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::render::{Manifest, title};
use super::{Made, name_of};
use crate::tools;

/// Compares what came of `values` with the golden file, or writes that.
pub(super) fn check(
    chart: &Path,
    values: &Path,
    manifests: Vec<Manifest>,
    made: Made,
) -> Result<Option<String>> {
    let mut text = String::new();
    for mut manifest in manifests {
        if is_dashboard(&manifest)? {
            continue;
        }
        shorten(&mut manifest)?;
        write!(text, "---\n{}", serde_yaml_ng::to_string(&manifest)?)?;
    }
    let folder = chart.join("ci/golden");
    let file = folder.join(format!("{}.yaml", name_of(values)));
    if made == Made::Written {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(&file, text)?;
        return Ok(None);
    }
    let golden = std::fs::read_to_string(&file).unwrap_or_default();
    if golden == text {
        return Ok(None);
    }
    let differs = golden.lines().zip(text.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or_else(|| golden.lines().count().min(text.lines().count()));
    let at = |text: &str| text.lines().nth(line).unwrap_or("(nothing)").to_owned();
    Ok(Some(format!(
        "{} differs at line {}: {:?} was {:?}; `cargo xtask chart --update` writes it anew",
        file.display(),
        line + 1,
        at(&text),
        at(&golden)
    )))
}

/// Whether this is a dashboard, which then must be the repository's, byte for byte. Dashboards
/// change with what they show, so golden files don't have them.
fn is_dashboard(manifest: &Manifest) -> Result<bool> {
    if manifest["metadata"]["labels"]["app.kubernetes.io/component"] != "dashboards" {
        return Ok(false);
    }
    for (name, shown) in manifest["data"].as_object().into_iter().flatten() {
        let path = tools::root().join("observability/dashboards").join(name);
        let ours = std::fs::read_to_string(&path);
        let ours = ours.with_context(|| format!("read {}", path.display()))?;
        if shown != &ours {
            bail!("{} is not {}", title(manifest), path.display());
        }
    }
    Ok(true)
}

/// Takes out what has a source of its own, and what is made anew each time.
fn shorten(manifest: &mut Manifest) -> Result<()> {
    if manifest["kind"] == "PrometheusRule" {
        let text = std::fs::read_to_string(tools::root().join("observability/alerts.yaml"))?;
        let ours: Value = serde_yaml_ng::from_str(&text)?;
        if manifest["spec"] != ours {
            bail!("{} is not observability/alerts.yaml", title(manifest));
        }
        manifest["spec"] = json!("observability/alerts.yaml");
    }
    if let Some(password) = manifest.pointer_mut("/stringData/password") {
        let random = password.as_str().unwrap_or_default().to_owned();
        *password = json!("RANDOM");
        if let Some(Value::String(url)) = manifest.pointer_mut("/stringData/url") {
            *url = url.replace(&random, "RANDOM");
        }
    }
    Ok(())
}
