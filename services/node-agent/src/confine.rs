//! What a QEMU may touch: a user of its own, its directory, and disks inside of the pools.

use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::Context as _;
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use walkdir::WalkDir;

use godwit_model::machine::Disk;
use godwit_qemu::process::User;

use crate::config::Settings;

/// Its group may use the kernel's virtual machines.
const KVM_DEVICE: &str = "/dev/kvm";

/// Why a QEMU may not have what its machine names.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    /// It is not where disks of this host are.
    #[error("disk {0} is in no pool of this host")]
    NoPool(String),
    /// A link, a device, or a file with a second name: somebody wants another file opened.
    #[error("disk {0} is no plain file with one name")]
    NotPlain(String),
    /// It can't be opened without following a link, or not be handed over.
    #[error("open {path} inside of its pool")]
    Open {
        /// The disk.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The directory could not be handed over.
    #[error("hand the run directory over to qemu's user")]
    Directory(#[source] io::Error),
}

/// The user `name` with the groups that QEMU needs; `None` for an empty name.
///
/// # Errors
/// When there is no such user, it is root, or this process can't become it.
pub(crate) fn user(name: &str) -> anyhow::Result<Option<User>> {
    if name.is_empty() {
        return Ok(None);
    }
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "qemu_user needs an agent that is root, to become {name}"
    );
    let found = nix::unistd::User::from_name(name).context("qemu_user: look it up")?;
    let found = found.with_context(|| format!("qemu_user: this host has no user {name}"))?;
    anyhow::ensure!(!found.uid.is_root(), "qemu_user: {name} is root");
    let kvm = std::fs::metadata(KVM_DEVICE).map(|device| device.gid());
    Ok(Some(User {
        uid: found.uid.as_raw(),
        gid: found.gid.as_raw(),
        // A group of root's would give more than the device.
        groups: kvm.into_iter().filter(|group| *group != 0).collect(),
    }))
}

/// Makes the directory of all QEMUs: nobody looks in, and QEMU's user passes through.
///
/// # Errors
/// When it can't be made.
pub(crate) fn run_dir(settings: &Settings) -> io::Result<()> {
    std::fs::create_dir_all(&settings.run_dir)?;
    let mode = match settings.qemu_user {
        Some(_) => 0o711,
        None => 0o700,
    };
    std::fs::set_permissions(&settings.run_dir, Permissions::from_mode(mode))
}

/// Checks that the image of `disk`, which may have to be made, is or will be inside of a pool, where
/// this host has pools. Without pools any place will do.
///
/// # Errors
/// See [`ConfineError`].
pub(crate) fn place(settings: &Settings, disk: &Disk) -> Result<(), ConfineError> {
    let Some((pool, rest)) = pool_of(settings, disk)? else {
        return Ok(());
    };
    // The deepest that is there already, be it a link: what is missing below it is made.
    let there = rest
        .ancestors()
        .find(|part| std::fs::symlink_metadata(pool.join(part)).is_ok());
    let part = there.filter(|part| !part.as_os_str().is_empty());
    let opened = beneath(pool, part.unwrap_or_else(|| Path::new(".")));
    opened.map(drop).map_err(|error| failed(disk, error))
}

/// Checks that `disk` is a plain file inside of a pool, where this host has pools, and gives it to
/// QEMU's user. Without pools, any file is taken, and none is given away.
///
/// # Errors
/// See [`ConfineError`].
pub(crate) fn disk(settings: &Settings, disk: &Disk) -> Result<(), ConfineError> {
    let Some((pool, rest)) = pool_of(settings, disk)? else {
        return Ok(());
    };
    let file = beneath(pool, rest).map_err(|error| failed(disk, error))?;
    let found = rustix::fs::fstat(&file).map_err(|error| failed(disk, error.into()))?;
    let plain = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
    if !plain || found.st_nlink != 1 {
        return Err(ConfineError::NotPlain(disk.path.clone()));
    }
    let Some(user) = &settings.qemu_user else {
        return Ok(());
    };
    if found.st_uid == user.uid {
        return Ok(());
    }
    // Through the descriptor, so that it is the file that was looked at.
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let given = rustix::fs::fchown(&file, Some(uid), Some(gid));
    given.map_err(|error| failed(disk, error.into()))
}

/// The pool that `disk` is in and its path there; `None` where this host has no pools.
fn pool_of<'a>(
    settings: &'a Settings,
    disk: &'a Disk,
) -> Result<Option<(&'a Path, &'a Path)>, ConfineError> {
    if settings.pools.is_empty() {
        return Ok(None);
    }
    let path = Path::new(&disk.path);
    let pools = settings.pools.values().map(|pool| pool.path.as_path());
    let inside = pools.filter_map(|pool| Some((pool, path.strip_prefix(pool).ok()?)));
    // The innermost, should one be inside of another.
    let inside = inside.min_by_key(|(_, rest)| rest.components().count());
    match inside {
        Some(found) => Ok(Some(found)),
        None => Err(ConfineError::NoPool(disk.path.clone())),
    }
}

fn failed(disk: &Disk, source: io::Error) -> ConfineError {
    ConfineError::Open {
        path: disk.path.clone(),
        source,
    }
}

/// Opens a file of `pool` without following any link below it.
fn beneath(pool: &Path, rest: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let pool = rustix::fs::openat(CWD, pool, flags, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(
        pool,
        rest,
        flags,
        Mode::empty(),
        resolve,
    )?)
}

/// Makes what is in a QEMU's own directory its user's: what the agent has put there, no link
/// followed.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn hand_over(directory: &Path, user: Option<&User>) -> Result<(), ConfineError> {
    let Some(user) = user else {
        return Ok(());
    };
    for entry in WalkDir::new(directory).follow_links(false) {
        let entry = entry.map_err(|error| ConfineError::Directory(error.into()))?;
        std::os::unix::fs::lchown(entry.path(), Some(user.uid), Some(user.gid))
            .map_err(ConfineError::Directory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use godwit_model::machine::ImageFormat;
    use godwit_runtime::config::Common;

    use super::*;
    use crate::config::{Config, Pool};

    /// How often each answer has to be seen, and how long that may take.
    const SEEN: usize = 100;
    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn a_disk_that_is_swapped_for_a_link_hands_over_nothing_else() {
        if !rustix::process::geteuid().is_root() {
            godwit_testkit::untried("only root can hand over");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (pool, secret) = (dir.path().join("pool"), dir.path().join("secret"));
        std::fs::create_dir(&pool).unwrap();
        std::fs::write(&secret, "root's alone").unwrap();
        let shared = Pool {
            path: pool.clone(),
            shared: true,
        };
        let config = Config {
            node: "worker1".into(),
            qemu_user: "nobody".into(),
            pools: BTreeMap::from([("disks".to_owned(), shared)]),
            common: Common {
                insecure: true,
                ..Common::at(0)
            },
            ..Config::default()
        };
        let settings = config.settings().unwrap();
        let found = pool.join("disk.raw");
        let wanted = Disk {
            name: "root".into(),
            path: found.display().to_string(),
            format: ImageFormat::Raw,
            shared: true,
            read_only: false,
            create: None,
            boot: true,
            seed: None,
        };
        let (plain, link) = (pool.join("plain"), pool.join("link"));
        let over = AtomicBool::new(false);
        let (mut taken, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::fs::write(&plain, "a disk").unwrap();
                    std::fs::rename(&plain, &found).unwrap();
                    symlink(&secret, &link).unwrap();
                    std::fs::rename(&link, &found).unwrap();
                }
            });
            let began = Instant::now();
            while (taken < SEEN || refused < SEEN) && began.elapsed() < LIMIT {
                match disk(&settings, &wanted) {
                    Ok(()) => taken += 1,
                    Err(_) => refused += 1,
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        let both = taken >= SEEN && refused >= SEEN;
        assert!(both, "{taken} taken, {refused} refused");
        assert_eq!(std::fs::metadata(&secret).unwrap().uid(), 0);
    }
}
