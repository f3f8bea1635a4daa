//! Files that take the place of older ones in one step.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use anyhow::Context as _;

/// For whoever made it alone.
const PRIVATE: u32 = 0o600;
/// Certificates are shown to everybody.
const PUBLIC: u32 = 0o644;

/// Writes a file that only its owner may read, unless an older one of that name had another owner or
/// mode, which stay.
///
/// # Errors
/// When it can't be written.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    replace(path, text, PRIVATE)
}

/// Writes a file that everybody may read, with the owner and mode of an older one of that name.
///
/// # Errors
/// When it can't be written.
pub(super) fn write_public(path: &Path, text: &str) -> anyhow::Result<()> {
    replace(path, text, PUBLIC)
}

fn replace(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let name = path.file_name().context("a file needs a name")?;
    let beside = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    let written = write(&beside, path, text, mode).and_then(|()| std::fs::rename(&beside, path));
    written.with_context(|| format!("write {}", path.display()))
}

fn write(beside: &Path, path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    // One that is left over may have any mode.
    match std::fs::remove_file(beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(beside)?;
    match std::fs::metadata(path) {
        Ok(older) => as_before(&file, &older)?,
        // Whatever this process's umask takes away.
        Err(_) => file.set_permissions(Permissions::from_mode(mode))?,
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn as_before(file: &File, older: &std::fs::Metadata) -> std::io::Result<()> {
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (older.uid(), older.gid()) {
        fchown(file, Some(older.uid()), Some(older.gid()))?;
    }
    file.set_permissions(Permissions::from_mode(older.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_mode_and_a_new_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("scheduler.key");
        let mode = || std::fs::metadata(&key).unwrap().mode() & 0o777;
        write_private(&key, "first").unwrap();
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
        write_private(&key, "second").unwrap();
        assert_eq!(mode(), 0o640);
        assert_eq!(std::fs::read_to_string(&key).unwrap(), "second");
        let cert = dir.path().join("scheduler.crt");
        write_public(&cert, "first").unwrap();
        assert_eq!(std::fs::metadata(&cert).unwrap().mode() & 0o777, 0o644);
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 2, "nothing is left over");
    }
}
