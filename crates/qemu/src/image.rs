//! Disk images as files of this host.

use godwit_model::machine::{Disk, ImageFormat};
use rustix::fs::{CWD, Mode, OFlags};
use std::fs::OpenOptions;
use std::io;
use std::path::Path;

/// Why an image can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It isn't there, and the machine doesn't say how large to make it.
    #[error("image {0} does not exist")]
    Missing(String),
    /// Only raw images are made here.
    #[error("image {0} does not exist and only raw images are created")]
    Format(String),
    /// The file system said no.
    #[error("create image {path}")]
    Create {
        /// The image.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes the image of `disk` when it is missing: sparse, of the size given. Never touches one that
/// exists. Returns whether it was made.
///
/// # Errors
/// See [`ImageError`].
pub fn ensure(disk: &Disk) -> Result<bool, ImageError> {
    let path = Path::new(&disk.path);
    if path.exists() {
        return Ok(false);
    }
    let Some(size) = disk.create else {
        return Err(ImageError::Missing(disk.path.clone()));
    };
    if disk.format != ImageFormat::Raw {
        return Err(ImageError::Format(disk.path.clone()));
    }
    match create_sparse(path, size.0) {
        Ok(()) => Ok(true),
        // Another host made the shared image first.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(ImageError::Create {
            path: disk.path.clone(),
            source,
        }),
    }
}

fn create_sparse(path: &Path, bytes: u64) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.set_len(bytes)?;
    file.sync_all()
}

/// Whether the file system takes direct I/O for this image. Some, like tmpfs, may not.
pub fn direct_io(path: &Path) -> bool {
    rustix::fs::openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_model::Bytes;

    fn disk(path: &Path, create: Option<Bytes>) -> Disk {
        Disk {
            name: "root".to_owned(),
            path: path.to_string_lossy().into_owned(),
            format: ImageFormat::Raw,
            shared: true,
            read_only: false,
            create,
            boot: true,
            seed: None,
        }
    }

    #[test]
    fn a_missing_image_is_made_once_and_never_truncated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.raw");
        let wanted = disk(&path, Some(Bytes::mib(1)));
        assert!(ensure(&wanted).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
        std::fs::write(&path, b"data").unwrap();
        assert!(!ensure(&wanted).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_missing_image_without_a_size_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = ensure(&disk(&folder.path().join("none.raw"), None)).unwrap_err();
        assert!(matches!(error, ImageError::Missing(_)));
    }
}
