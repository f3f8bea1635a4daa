//! What encrypts one copy: a key that both QEMUs share, made anew for each attempt.
//!
//! QEMU's TLS reads it from a file, never from its command line or its monitor. Who may have the
//! key is decided by the agents.

use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::rand::{GetRandomFlags, getrandom};

/// Name by which both ends know the key; TLS shows it to whoever listens.
pub const KEY_NAME: &str = "godwit";

/// Where QEMU looks for keys.
const KEY_FILE: &str = "keys.psk";

/// Where QEMU looks for Diffie-Hellman parameters.
const GROUP_FILE: &str = "dh-params.pem";

/// The group ffdhe2048 of RFC 7919. Without it QEMU makes a group of its own for each listener,
/// which takes up to half a second (measured with 7.2), and which TLS 1.3 doesn't use.
const GROUP: &str = "-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
";

/// Bytes of a key.
const KEY_BYTES: usize = 32;

/// A key for one attempt to copy a machine. Never shown: not by `Debug`, not in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; KEY_BYTES]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// A new key, from the kernel's randomness.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; KEY_BYTES];
        // The kernel gives up to 256 bytes whole or not at all.
        let given = getrandom(&mut bytes, GetRandomFlags::empty())?;
        if given != KEY_BYTES {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self(bytes))
    }

    /// The key of these bytes; `None` when they are no key.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// For the source's agent, over TLS.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Writes the key to a new directory of its own, where QEMU finds it.
    ///
    /// # Errors
    /// When the directory exists already, or the disk refuses.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(directory)?;
        write_private(&directory.join(GROUP_FILE), GROUP)?;
        let mut line = format!("{KEY_NAME}:");
        for byte in self.0 {
            line.push_str(&format!("{byte:02x}"));
        }
        line.push('\n');
        write_private(&directory.join(KEY_FILE), &line)
    }

    /// The key in `directory`; `None` when there is none.
    ///
    /// # Errors
    /// When it can't be read, or makes no sense.
    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read_to_string(directory.join(KEY_FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let hex = text.trim_end().strip_prefix(KEY_NAME);
        let hex = hex.and_then(|rest| rest.strip_prefix(':'));
        let bytes = hex.and_then(parsed);
        match bytes.and_then(|bytes| Self::from_bytes(&bytes)) {
            Some(key) => Ok(Some(key)),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "no key in it")),
        }
    }

    /// Removes what [`Self::write`] wrote. Succeeds when there is nothing.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(directory: &Path) -> io::Result<()> {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

fn parsed(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.is_ascii().then_some(hex.as_bytes())?;
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks(2).map(byte).collect()
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_read_back_by_its_owner_alone_and_gone_when_it_is_removed() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = parent.path().join("key");
        let key = Key::random().expect("randomness");
        assert_ne!(key, Key::random().expect("randomness"));
        key.write(&directory).expect("written");
        assert_eq!(Key::read(&directory).expect("read"), Some(key));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join(KEY_FILE)), 0o600);
        Key::remove(&directory).expect("removed");
        Key::remove(&directory).expect("nothing to remove");
        assert_eq!(Key::read(&directory).expect("read"), None);
    }

    #[test]
    fn a_key_is_never_shown() {
        let key = Key::from_bytes(&[0xab; 32]).expect("32 bytes");
        assert_eq!(format!("{key:?}"), "Key(..)");
        assert!(Key::from_bytes(&[0; 31]).is_none());
    }
}
