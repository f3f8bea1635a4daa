//! The file of records: a line each, with older files beside it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::config::AuditConfig;

/// An open file that is put aside when it is full.
pub(super) struct RotatedFile {
    path: PathBuf,
    bytes_max: u64,
    kept: u32,
    /// `None` when it must be opened first, after something failed.
    open: Option<(File, u64)>,
}

impl RotatedFile {
    /// Opens the file of `config`, which goes on where it ended.
    ///
    /// # Errors
    /// When it can't be opened.
    pub(super) fn open(path: &Path, config: &AuditConfig) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            bytes_max: config.file_bytes_max,
            kept: config.files_kept,
            open: Some(append(path)?),
        })
    }

    /// Appends whole lines.
    ///
    /// # Errors
    /// When they are not all written; some may be. The next call opens the file again.
    pub(super) fn write(&mut self, lines: &str) -> io::Result<()> {
        let (file, size) = match self.open.take() {
            Some((_, size)) if size > 0 && size + lines.len() as u64 > self.bytes_max => {
                self.rotate()?;
                append(&self.path)?
            }
            Some(open) => open,
            None => append(&self.path)?,
        };
        (&file).write_all(lines.as_bytes())?;
        self.open = Some((file, size + lines.len() as u64));
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        if self.kept == 0 {
            return std::fs::remove_file(&self.path);
        }
        for number in (1..self.kept).rev() {
            let older = self.numbered(number);
            if older.exists() {
                std::fs::rename(older, self.numbered(number + 1))?;
            }
        }
        std::fs::rename(&self.path, self.numbered(1))
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

/// Opens a file to append to; only its owner may read it. Answers its size too.
fn append(path: &Path) -> io::Result<(File, u64)> {
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let config = AuditConfig {
            file_bytes_max: 10,
            files_kept: 2,
            ..AuditConfig::default()
        };
        let mut file = RotatedFile::open(&path, &config).unwrap();
        for line in ["one....\n", "two....\n", "three..\n"] {
            file.write(line).unwrap();
        }
        // After a restart it goes on.
        let mut file = RotatedFile::open(&path, &config).unwrap();
        file.write("four...\n").unwrap();
        let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(text("audit.log"), "four...\n");
        assert_eq!(text("audit.log.1"), "three..\n");
        assert_eq!(text("audit.log.2"), "two....\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_failed_write_is_tried_again_at_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("logs");
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("audit.log");
        let config = AuditConfig {
            file_bytes_max: 1,
            ..AuditConfig::default()
        };
        let mut file = RotatedFile::open(&path, &config).unwrap();
        file.write("one\n").unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(file.write("two\n").is_err());
        std::fs::create_dir(&folder).unwrap();
        file.write("three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }
}
