//! The smallest guest: a boot sector that writes a counter to each page of a range, for ever.
//!
//! Its dirty rate and working set are exact, its output is the counter in hexadecimal, a line each
//! time the print mask says so, and its memory can be checked page by page. The source is
//! `boot_sector.s`; the bytes are here so that no assembler is needed.

use std::io;
use std::path::Path;

/// Smallest disk that firmware boots from virtio.
const DISK_BYTES: usize = 1 << 20;

const PAGE_BYTES: usize = 4096;

/// Where the parameters are in the sector.
const PARAMETERS_AT: usize = 4;

/// What the boot sector does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootSector {
    /// First page that is written, by number; 256 is the first mebibyte. Below are firmware and
    /// the sector itself.
    pub first_page: u32,
    /// Number of pages written in each pass: the working set.
    pub page_count: u32,
    /// Empty loops after each page: the higher, the lower the dirty rate.
    pub spin: u32,
    /// The counter is printed after a pass when it has no bit in common with this.
    pub print_mask: u32,
}

impl Default for BootSector {
    /// 16 MiB from the first mebibyte on, as fast as it can, a line each 64 passes.
    fn default() -> Self {
        Self {
            first_page: 256,
            page_count: 4096,
            spin: 0,
            print_mask: 0x3f,
        }
    }
}

impl BootSector {
    /// The sector with its parameters in place.
    pub fn sector(&self) -> [u8; 512] {
        let mut sector = [0; 512];
        sector[..CODE.len()].copy_from_slice(&CODE);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        let parameters = [self.first_page, self.page_count, self.spin, self.print_mask];
        for (index, value) in parameters.iter().enumerate() {
            let at = PARAMETERS_AT + 4 * index;
            sector[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        sector
    }

    /// Writes a disk image of 1 MiB that boots it.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_disk(&self, path: &Path) -> io::Result<()> {
        let mut disk = vec![0; DISK_BYTES];
        disk[..512].copy_from_slice(&self.sector());
        std::fs::write(path, disk)
    }

    /// Checks a copy of the guest's memory, taken from its first written page on while it is
    /// stopped: each page holds the counter, and behind the place where the pass was interrupted,
    /// one less. Returns the counter; `None` when a page lost or repeats a write.
    pub fn check_memory(&self, memory: &[u8]) -> Option<u32> {
        let mut pages = memory
            .chunks_exact(PAGE_BYTES)
            .map(word)
            .take(self.page_count as usize);
        let counter = pages.next()?;
        let mut expected = counter;
        for page in pages {
            if page != expected && (expected != counter || page != counter.wrapping_sub(1)) {
                return None;
            }
            expected = page;
        }
        Some(counter)
    }
}

fn word(page: &[u8]) -> u32 {
    u32::from_le_bytes([page[0], page[1], page[2], page[3]])
}

/// The counters in serial output: whole lines of eight hexadecimal digits, whatever firmware wrote
/// before.
pub fn counters(serial: &str) -> Vec<u32> {
    let whole = serial.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| &line[line.len().saturating_sub(8)..])
        .filter(|line| line.len() == 8)
        .filter_map(|line| u32::from_str_radix(line, 16).ok())
        .collect()
}

#[rustfmt::skip]
const CODE: [u8; 204] = [
    0xeb, 0x12, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xfa, 0x31, 0xc0, 0x8e,
    0xd8, 0xe4, 0x92, 0x0c, 0x02, 0xe6, 0x92, 0x66, 0x0f, 0x01, 0x16, 0xc8,
    0x7c, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0x66, 0xea, 0x35,
    0x7c, 0x00, 0x00, 0x08, 0x00, 0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0x8e,
    0xd0, 0xbc, 0x00, 0x7c, 0x00, 0x00, 0x31, 0xed, 0x45, 0x8b, 0x3d, 0x04,
    0x7c, 0x00, 0x00, 0xc1, 0xe7, 0x0c, 0x8b, 0x0d, 0x08, 0x7c, 0x00, 0x00,
    0x89, 0x2f, 0xa1, 0x0c, 0x7c, 0x00, 0x00, 0x85, 0xc0, 0x74, 0x03, 0x48,
    0xeb, 0xf9, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0x49, 0x75, 0xe9, 0x85,
    0x2d, 0x10, 0x7c, 0x00, 0x00, 0x75, 0xd1, 0x89, 0xeb, 0xb9, 0x08, 0x00,
    0x00, 0x00, 0xc1, 0xc3, 0x04, 0x89, 0xd8, 0x24, 0x0f, 0x04, 0x30, 0x3c,
    0x39, 0x76, 0x02, 0x04, 0x27, 0xe8, 0x0c, 0x00, 0x00, 0x00, 0x49, 0x75,
    0xe9, 0xb0, 0x0a, 0xe8, 0x02, 0x00, 0x00, 0x00, 0xeb, 0xaa, 0x88, 0xc4,
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, 0x88, 0xe0, 0x66,
    0xba, 0xf8, 0x03, 0xee, 0xc3, 0x8d, 0x76, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xcf, 0x00,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00, 0x17, 0x00, 0xb0, 0x7c,
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_bytes_are_what_the_source_assembles_to() {
        let folder = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/guest/boot_sector.s");
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            let status = command
                .args(arguments)
                .current_dir(folder.path())
                .status()
                .unwrap();
            assert!(status.success());
        };
        run("as", &["--32", source, "-o", "x.o"]);
        let link = [
            "-m",
            "elf_i386",
            "-Ttext",
            "0x7c00",
            "--oformat",
            "binary",
            "x.o",
            "-o",
            "x.bin",
        ];
        run("ld", &link);
        let assembled = std::fs::read(folder.path().join("x.bin")).unwrap();
        let ours = BootSector {
            first_page: 0,
            page_count: 0,
            spin: 0,
            print_mask: 0,
        }
        .sector();
        assert_eq!(assembled, ours);
    }

    #[test]
    fn counters_are_read_from_whole_lines() {
        let serial = "SeaBIOS\r\n00000040\n00000080\n000000";
        assert_eq!(counters(serial), [0x40, 0x80]);
    }

    #[test]
    fn memory_steps_down_by_one_only_once() {
        let guest = BootSector {
            page_count: 4,
            ..BootSector::default()
        };
        let memory = |words: [u32; 4]| {
            let mut bytes = vec![0; 4 * PAGE_BYTES];
            for (page, word) in words.iter().enumerate() {
                bytes[page * PAGE_BYTES..][..4].copy_from_slice(&word.to_le_bytes());
            }
            bytes
        };
        assert_eq!(guest.check_memory(&memory([7, 7, 6, 6])), Some(7));
        assert_eq!(guest.check_memory(&memory([7, 7, 7, 7])), Some(7));
        assert_eq!(guest.check_memory(&memory([7, 6, 7, 6])), None);
        assert_eq!(guest.check_memory(&memory([7, 7, 5, 5])), None);
        assert_eq!(guest.check_memory(&memory([7, 6, 5, 5])), None);
    }
}
