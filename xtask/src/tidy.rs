//! `cargo xtask tidy`: the rules of the house that no compiler knows. Also run as a test.
//!
//! Who may import what, how long a function or a file may be, and that the repository speaks of
//! the product alone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand};
use syn::spanned::Spanned;
use syn::visit::Visit;

use crate::tools;

/// Most lines of a function.
const FUNCTION_MAX: usize = 70;
/// Most lines of a file without its tests.
const FILE_MAX: usize = 500;
/// Most lines of a file with its tests.
const FILE_WITH_TESTS_MAX: usize = 800;

/// What each package may import of ours, and of the libraries that mark a boundary.
///
/// ARCHITECTURE.md says why; a new arrow changes both.
const MAY_IMPORT: [(&str, &[&str]); 11] = [
    ("godwit-model", &[]),
    ("godwit-ledger", &["godwit-model", "sqlx", "tokio"]),
    (
        "godwit-rpc",
        &["godwit-model", "godwit-runtime", "tonic", "tokio"],
    ),
    ("godwit-apimachinery", &["axum", "tokio"]),
    ("godwit-qemu", &["godwit-model", "tokio"]),
    ("godwit-runtime", &["axum", "tonic", "tokio"]),
    (
        "godwit-api-gateway",
        &[
            "godwit-apimachinery",
            "godwit-ledger",
            "godwit-model",
            "godwit-rpc",
            "godwit-runtime",
            "axum",
            "tokio",
        ],
    ),
    ("godwit-scheduler", SERVICE),
    ("godwit-migration-coordinator", SERVICE),
    ("godwit-maintenance-service", SERVICE),
    (
        "godwit-node-agent",
        &[
            "godwit-model",
            "godwit-qemu",
            "godwit-rpc",
            "godwit-runtime",
            "tokio",
        ],
    ),
];

/// What a service over the ledger may import.
const SERVICE: &[&str] = &[
    "godwit-ledger",
    "godwit-model",
    "godwit-rpc",
    "godwit-runtime",
    "tokio",
];

/// The only libraries of the domain.
const MODEL_LIBRARIES: [&str; 2] = ["serde", "thiserror"];

/// Libraries that mark a boundary: only those listed may import them.
const BOUNDARIES: [&str; 4] = ["sqlx", "tonic", "axum", "tokio"];

/// Words that tell of how the repository was made, or of one machine, instead of the product.
const FOREIGN: [&str; 6] = [
    "/work/",
    "claude",
    "anthropic",
    "chatgpt",
    "crates.io",
    "pypi.org",
];

/// Checks every rule; the error lists all that are broken.
///
/// # Errors
/// Broken rules, one a line.
pub(crate) fn run() -> Result<()> {
    let mut broken = imports()?;
    for file in tracked()? {
        let path = tools::root().join(&file);
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        broken.extend(words(&file, &text));
        if file.extension().is_some_and(|extension| extension == "rs") {
            broken.extend(sizes(&file, &text)?);
        }
    }
    ensure!(
        broken.is_empty(),
        "{} rules are broken:\n{}",
        broken.len(),
        broken.join("\n")
    );
    println!("tidy: imports, sizes and words are in order");
    Ok(())
}

fn imports() -> Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .manifest_path(tools::root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("read the workspace")?;
    let mut broken = vec![];
    for package in &metadata.packages {
        let name = package.name.as_str();
        let imported = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind == DependencyKind::Normal)
            .map(|dependency| dependency.name.as_str());
        let imported: BTreeSet<&str> = imported.collect();
        broken.extend(forbidden(name, &imported));
    }
    Ok(broken)
}

/// The imports of `package` that its row doesn't allow; tools and tests may import anything.
fn forbidden(package: &str, imported: &BTreeSet<&str>) -> Vec<String> {
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == package) else {
        return vec![];
    };
    let ruled = |name: &str| name.starts_with("godwit-") || BOUNDARIES.contains(&name);
    let pure = |name: &str| package == "godwit-model" && !MODEL_LIBRARIES.contains(&name);
    imported
        .iter()
        .filter(|name| (ruled(name) && !allowed.contains(name)) || pure(name))
        .map(|name| format!("{package} imports {name}, which its row in xtask/src/tidy.rs forbids"))
        .collect()
}

fn tracked() -> Result<Vec<PathBuf>> {
    let output = std::process::Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(tools::root())
        .output()
        .context("run git")?;
    ensure!(output.status.success(), "git ls-files failed");
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .collect())
}

fn words(file: &Path, text: &str) -> Vec<String> {
    let lock = file.file_name().is_some_and(|name| name == "Cargo.lock");
    if lock || file == Path::new("xtask/src/tidy.rs") {
        return vec![];
    }
    let lower = text.to_lowercase();
    let found = FOREIGN.iter().filter(|word| lower.contains(**word));
    found
        .map(|word| format!("{}: says {word:?}", file.display()))
        .collect()
}

fn sizes(file: &Path, text: &str) -> Result<Vec<String>> {
    let parsed = syn::parse_file(text).with_context(|| format!("parse {}", file.display()))?;
    let total = text.lines().count();
    let own = text
        .lines()
        .position(|line| line == "#[cfg(test)]")
        .unwrap_or(total);
    let mut broken = vec![];
    let is_test = file.components().any(|part| part.as_os_str() == "tests")
        || file.file_stem().is_some_and(|stem| stem == "tests");
    if (own > FILE_MAX && !is_test) || total > FILE_WITH_TESTS_MAX {
        broken.push(format!(
            "{}: {own} lines, {total} with tests",
            file.display()
        ));
    }
    let mut functions = Functions { file, broken };
    functions.visit_file(&parsed);
    Ok(functions.broken)
}

struct Functions<'a> {
    file: &'a Path,
    broken: Vec<String>,
}

impl Functions<'_> {
    fn check(&mut self, name: &syn::Ident, span: proc_macro2::Span) {
        let lines = span.end().line - span.start().line + 1;
        if lines > FUNCTION_MAX {
            let file = self.file.display();
            self.broken
                .push(format!("{file}: fn {name} has {lines} lines"));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.check(&function.sig.ident, function.block.span());
        syn::visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.check(&function.sig.ident, function.block.span());
        syn::visit::visit_impl_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        run().expect("every rule holds");
    }

    #[test]
    fn an_import_that_no_row_allows_is_found() {
        let imported = BTreeSet::from(["godwit-ledger", "godwit-model", "anyhow"]);
        assert_eq!(forbidden("godwit-node-agent", &imported).len(), 1);
        assert_eq!(
            forbidden("godwit-model", &BTreeSet::from(["rand"])).len(),
            1
        );
        assert!(forbidden("godwit-scheduler", &imported).is_empty());
    }

    #[test]
    fn a_long_function_is_found() {
        let body = "    let _ = 1;\n".repeat(FUNCTION_MAX);
        let text = format!("fn long() {{\n{body}}}\n");
        let broken = sizes(Path::new("src/a.rs"), &text).expect("it parses");
        assert_eq!(broken, ["src/a.rs: fn long has 72 lines"]);
    }
}
