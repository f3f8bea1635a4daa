//! Huge pages of this host: how many there are, and where a QEMU gets its own from.
//!
//! The host's administrator makes them, and mounts a hugetlbfs for each size that machines may use;
//! nothing here does either. Asked by the reports, by the checks before a copy, and by a launch.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use godwit_model::Bytes;
use godwit_model::machine::PageSize;
use godwit_qemu::command_line::takes_hugepages;
use godwit_qemu::process::User;
use tracing::warn;

use crate::confine::{self, ConfineError};
use crate::host::Host;

/// Where the kernel tells of each size, in a directory of its own.
const SIZES: &str = "/sys/kernel/mm/hugepages";
/// What is mounted where.
const MOUNTS: &str = "/proc/self/mounts";

/// Why no QEMU gets huge pages.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PagesError {
    /// Nobody mounted them.
    #[error("no hugetlbfs with pages of {0} is mounted on this host")]
    NotMounted(PageSize),
    /// A directory of its own can't be made.
    #[error("make a directory on a hugetlbfs")]
    Directory(#[source] io::Error),
    /// It can't be given to QEMU's user.
    #[error(transparent)]
    Confine(#[from] ConfineError),
}

/// Memory in all huge pages of each size that guests here can be made of.
pub(crate) fn usable(host: &Host) -> Vec<(PageSize, Bytes)> {
    let facts = &host.facts;
    if !takes_hugepages(facts.accelerator, &facts.version) {
        return vec![];
    }
    let mounted = PageSize::ALL
        .into_iter()
        .filter(|size| mount(*size).is_some());
    mounted
        .map(|size| (size, Bytes(count(size, "nr_hugepages") * size.bytes().0)))
        .collect()
}

/// Memory in huge pages of any size: it is of no use for anything else.
pub(crate) fn set_apart() -> Bytes {
    let directories = std::fs::read_dir(SIZES).into_iter().flatten().flatten();
    let taken = directories.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        Some(read(&entry.path().join("nr_hugepages")) * (kib << 10))
    });
    Bytes(taken.sum())
}

/// Memory in pages of that size that nobody has, or was promised.
pub(crate) fn free(size: PageSize) -> Bytes {
    let promised = count(size, "resv_hugepages");
    let pages = count(size, "free_hugepages").saturating_sub(promised);
    Bytes(pages * size.bytes().0)
}

fn count(size: PageSize, what: &str) -> u64 {
    let kib = size.bytes().0 >> 10;
    read(&Path::new(SIZES).join(format!("hugepages-{kib}kB/{what}")))
}

/// 0 where there is no such file: the kernel has no pages of that size.
fn read(file: &Path) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Where pages of that size are mounted; `None` when they are nowhere.
fn mount(size: PageSize) -> Option<PathBuf> {
    let mounts = std::fs::read_to_string(MOUNTS).ok()?;
    mounted(&mounts)
        .find(|path| {
            let found = rustix::fs::statfs(*path);
            found.is_ok_and(|found| u64::try_from(found.f_bsize) == Ok(size.bytes().0))
        })
        .map(PathBuf::from)
}

/// Mount points of hugetlbfs. One that the kernel writes with escapes is left out.
fn mounted(mounts: &str) -> impl Iterator<Item = &str> {
    mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        (kind == "hugetlbfs" && !path.contains('\\')).then_some(path)
    })
}

/// A directory where one QEMU makes its file, which it unlinks at once. Dropping it removes the
/// directory; what QEMU has stays QEMU's.
#[derive(Debug)]
pub(crate) struct Lent(pub(crate) PathBuf);

impl Lent {
    /// `own` is the QEMU's own directory; this one has its name, so what an agent left that died here
    /// is found again, and removed.
    ///
    /// # Errors
    /// See [`PagesError`].
    pub(crate) fn new(size: PageSize, own: &Path, user: Option<&User>) -> Result<Self, PagesError> {
        let mount = mount(size).ok_or(PagesError::NotMounted(size))?;
        let name = own.file_name().unwrap_or_default().to_string_lossy();
        let directory = mount.join(format!("godwit-{name}"));
        match std::fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(PagesError::Directory(error));
            }
            _ => {}
        }
        let lent = Self(directory);
        // Whoever is not QEMU has no business there.
        std::fs::set_permissions(&lent.0, Permissions::from_mode(0o700))
            .map_err(PagesError::Directory)?;
        confine::hand_over(&lent.0, user)?;
        Ok(lent)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            warn!(directory = %self.0.display(), %error, "directory on a hugetlbfs left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_huge_pages_are_found_among_all() {
        let text = "proc /proc proc rw,nosuid 0 0\n\
                    hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n\
                    none /mnt/with\\040blank hugetlbfs rw,pagesize=1024M 0 0\n\
                    none /mnt/huge1g hugetlbfs rw,pagesize=1024M 0 0\n";
        let found: Vec<&str> = mounted(text).collect();
        assert_eq!(found, ["/dev/hugepages", "/mnt/huge1g"]);
    }
}
