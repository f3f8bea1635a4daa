//! Makes the lab's guest in the directory given: `vmlinuz` and `initrd.gz`.

use std::path::Path;

use anyhow::Context;
use godwit_testkit::guest::linux::{INITRD, KERNEL, ensure};

#[expect(clippy::print_stderr, reason = "for whoever waits at the shell")]
fn main() -> anyhow::Result<()> {
    let dir = std::env::args().nth(1).context("usage: lab_guest DIR")?;
    let dir = Path::new(&dir);
    std::fs::create_dir_all(dir)?;
    let image = ensure(&dir.join("cache"), &|step| eprintln!("{step}"))?;
    for file in [KERNEL, INITRD] {
        std::fs::copy(image.join(file), dir.join(file))?;
    }
    std::fs::remove_dir_all(dir.join("cache"))?;
    Ok(())
}
