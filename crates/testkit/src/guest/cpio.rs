//! Archives in the form that Linux takes as its initial RAM disk: cpio, "newc".

/// Bits of `st_mode` for the kinds of entries.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

const ALIGN: usize = 4;
const TRAILER: &str = "TRAILER!!!";

/// An archive being written.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

/// What an entry is, beside its name.
#[derive(Default)]
struct Entry<'a> {
    mode: u32,
    links: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl Archive {
    /// Adds a directory; its parents must have been added.
    pub(super) fn directory(&mut self, name: &str) {
        self.entry(
            name,
            &Entry {
                mode: DIRECTORY | 0o755,
                links: 2,
                ..Entry::default()
            },
        );
    }

    /// Adds a file.
    pub(super) fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(
            name,
            &Entry {
                mode: REGULAR | mode,
                links: 1,
                content,
                ..Entry::default()
            },
        );
    }

    /// Adds a character device.
    pub(super) fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        let mode = CHARACTER_DEVICE | 0o600;
        self.entry(
            name,
            &Entry {
                mode,
                links: 1,
                device: (major, minor),
                ..Entry::default()
            },
        );
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(
            TRAILER,
            &Entry {
                links: 1,
                ..Entry::default()
            },
        );
        self.bytes
    }

    fn entry(&mut self, name: &str, entry: &Entry<'_>) {
        self.entries += 1;
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let fields = [
            self.entries,
            entry.mode,
            0, // owner
            0, // group
            entry.links,
            0, // time of change: the same input gives the same archive
            length(entry.content.len()),
            0,
            0, // device that holds it
            entry.device.0,
            entry.device.1,
            length(name.len() + 1),
            0, // checksum, unused in this form
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(entry.content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_aligned_and_ends_with_its_trailer() {
        let mut archive = Archive::default();
        archive.directory("dev");
        archive.character_device("dev/console", 5, 1);
        archive.file("init", 0o755, b"#!/bin/sh\n");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % ALIGN, 0);
        assert_eq!(bytes.iter().filter(|byte| **byte == b'#').count(), 1);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 4);
        assert!(text.contains(TRAILER));
    }
}
