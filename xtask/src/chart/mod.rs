//! `cargo xtask chart`: everything about the Helm chart that can be checked without a cluster.
//!
//! Run by `cargo xtask test` as well. The files in the chart's folder `ci` are the cases: `*.yaml`
//! must render, `refused/*.yaml` must not, `golden` has what came of the first ones, and `crds` the
//! schemas of kinds that Kubernetes itself doesn't have.

mod configuration;
mod golden;
mod programs;
mod readme;
mod render;
mod schema;
mod security;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::tools;
use programs::{NEWEST, OLDEST};
use render::Helm;
use schema::Schemas;

/// What to do with the chart.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Write the golden files and the table in README.md anew instead of comparing them.
    #[arg(long)]
    update: bool,
}

/// Whether files that are made are written or compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Written,
    Compared,
}

/// Builds what is needed, and checks the chart.
///
/// # Errors
/// With all that is wrong.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    tools::build_programs("dev")?;
    all(if arguments.update {
        Made::Written
    } else {
        Made::Compared
    })
}

/// Checks the chart; the services must be built.
///
/// # Errors
/// With all that is wrong.
pub(crate) fn check() -> Result<()> {
    all(Made::Compared)
}

fn all(made: Made) -> Result<()> {
    let chart = tools::root().join("charts/godwit");
    let helm = Helm::new(&programs::helm()?, &chart);
    helm.lint()?;
    let mut wrong = readme::check(&chart, made)?;
    let (schemas, crds) = (programs::schemas()?, chart.join("ci/crds"));
    let oldest = Schemas::load(&schemas, OLDEST, &crds)?;
    let newest = Schemas::load(&schemas, NEWEST, &crds)?;
    wrong.extend(configuration::packaged()?);
    let cases = values_in(&chart.join("ci"))?;
    for values in &cases {
        helm.lint_with(values)?;
        let mut found = oldest.violations(&helm.render(values, OLDEST)?)?;
        let manifests = helm.render(values, NEWEST)?;
        found.extend(newest.violations(&manifests)?);
        found.extend(security::violations(&manifests));
        found.extend(configuration::violations(&manifests)?);
        let name = name_of(values);
        wrong.extend(found.into_iter().map(|what| format!("{name}: {what}")));
        wrong.extend(golden::check(&chart, values, manifests, made)?);
    }
    let refused = values_in(&chart.join("ci/refused"))?;
    for values in &refused {
        wrong.extend(helm.refuses(values)?);
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!(
        "chart: {} cases rendered, {} refused, all as they should be",
        cases.len(),
        refused.len()
    );
    Ok(())
}

fn values_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let mut files = vec![];
    for entry in entries {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn name_of(path: &Path) -> String {
    let name = path.file_stem().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
