//! Disk images as files of this host.

use godwit_model::machine::{Disk, ImageFormat};
use rustix::fs::{CWD, Mode, OFlags};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

/// As much of a qcow2 as says where its data is: the whole header of version 2, and the features of
/// version 3 that a reader has to know.
const QCOW2_HEADER: usize = 80;

/// Why an image can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It isn't there, and the machine doesn't say how large to make it.
    #[error("image {0} does not exist")]
    Missing(String),
    /// Only raw images are made here.
    #[error("image {0} does not exist and only raw images are created")]
    Format(String),
    /// Its header names other files of this host, and whoever filled it may have chosen them.
    #[error("image {0} refers to other files")]
    Refers(String),
    /// It can't be read, or isn't what it is said to be.
    #[error("read image {path}")]
    Read {
        /// The image.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
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

/// Checks that QEMU opens no file but the image itself: a qcow2 can name a file that it is based on,
/// or that its data is in, and a guest may have written its disk's first bytes itself.
///
/// # Errors
/// See [`ImageError`].
pub fn check(disk: &Disk) -> Result<(), ImageError> {
    match disk.format {
        // The format is always given to QEMU, so that the contents of a raw image mean nothing.
        ImageFormat::Raw => return Ok(()),
        ImageFormat::Qcow2 => {}
    }
    let mut header = [0; QCOW2_HEADER];
    let read = File::open(&disk.path).and_then(|mut file| file.read_exact(&mut header));
    read.map_err(|source| ImageError::Read {
        path: disk.path.clone(),
        source,
    })?;
    let based = header[8..16] != [0; 8];
    // Version 2 has no features; bit 2 of the last byte says that the data is elsewhere.
    let elsewhere = header[4..8] != [0, 0, 0, 2] && header[79] & 0b100 != 0;
    if based || elsewhere {
        return Err(ImageError::Refers(disk.path.clone()));
    }
    Ok(())
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
    fn a_qcow2_that_refers_to_other_files_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.qcow2");
        let wanted = Disk {
            format: ImageFormat::Qcow2,
            ..disk(&path, None)
        };
        let mut header = [0_u8; QCOW2_HEADER];
        header[..8].copy_from_slice(b"QFI\xfb\x00\x00\x00\x03");
        std::fs::write(&path, header).unwrap();
        check(&wanted).unwrap();
        let with = |at: usize, byte: u8| {
            let mut header = header;
            header[at] = byte;
            std::fs::write(&path, header).unwrap();
            check(&wanted)
        };
        let backing = with(15, 0x70).unwrap_err();
        assert!(matches!(backing, ImageError::Refers(_)), "{backing}");
        let data = with(79, 0b100).unwrap_err();
        assert!(matches!(data, ImageError::Refers(_)), "{data}");
        std::fs::write(&path, b"short").unwrap();
        assert!(check(&wanted).is_err());
    }

    #[test]
    fn a_missing_image_without_a_size_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = ensure(&disk(&folder.path().join("none.raw"), None)).unwrap_err();
        assert!(matches!(error, ImageError::Missing(_)));
    }
}
