//! A small Linux guest, made of Debian's own kernel, busybox and one program of ours.
//!
//! Nothing is installed: the packages are unpacked into a cache. It boots in about three seconds
//! under TCG and needs 96 MiB. Its kernel arguments are described in `guest/main.rs`; beside
//! those, `godwit.ip=ADDRESS/PREFIX` (or `dhcp`) and `godwit.gw=ADDRESS` set its network.

use super::cpio::Archive;
use super::debian;
use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// File name of the kernel in an image directory.
pub const KERNEL: &str = "vmlinuz";

/// File name of the initial RAM disk in an image directory.
pub const INITRD: &str = "initrd.gz";

/// What the guest prints on its serial port once its program runs.
pub const READY: &str = "GODWIT-GUEST-READY";

/// Kernel arguments that every machine with this guest needs.
pub const ARGUMENTS: &str = "console=ttyS0 quiet panic=-1";

const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const BUSYBOX_PACKAGE: &str = "busybox-static";

/// In the order of loading; what they depend on is loaded before them.
const MODULES: [&str; 6] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "button",
    "evdev",
];

const PROGRAM: &str = include_str!("../../guest/main.rs");
const RECORD: &str = include_str!("record.rs");
const INIT: &str = include_str!("../../guest/init.sh");
const DHCP: &str = include_str!("../../guest/dhcp.sh");

/// Makes the guest's image directory below `cache` unless it is there already, and returns it. It
/// holds [`KERNEL`] and [`INITRD`]. `progress` hears what is being done, when something is.
///
/// The directory's name is a hash of what the guest is made from, so a newer Godwit makes a new
/// one; a newer Debian kernel is taken when the cache is removed.
///
/// # Errors
/// When a package can't be had or the program can't be compiled (`rustc` and a static libc).
pub fn ensure(cache: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    let image = cache.join(format!("guest-{}", key()));
    if image.join(KERNEL).exists() && image.join(INITRD).exists() {
        return Ok(image);
    }
    fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
    let work = Work::new(cache)?;
    let made = build(&work.0, progress)?;
    match fs::rename(&made, &image) {
        Ok(()) => Ok(image),
        // Someone else made the same at the same time.
        Err(_) if image.join(INITRD).exists() => Ok(image),
        Err(error) => Err(error).with_context(|| format!("put the guest at {}", image.display())),
    }
}

fn key() -> String {
    let mut hash = Sha256::new();
    for part in [PROGRAM, RECORD, INIT, DHCP, &MODULES.join(" ")] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A directory for the time of a build.
struct Work(PathBuf);

impl Work {
    fn new(cache: &Path) -> Result<Self> {
        let path = cache.join(format!("building-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What can't be removed is only unused space in a cache.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn build(work: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    progress("downloading Debian's cloud kernel");
    let kernel = debian::unpack(&debian::resolve(KERNEL_PACKAGE)?, work)?;
    let busybox = busybox(work, progress)?;
    progress("compiling the guest's program");
    let program = compile(work)?;
    progress("packing the guest");
    let modules = modules(&kernel, work)?;
    let image = work.join("image");
    fs::create_dir(&image)?;
    let vmlinuz = only_entry(&kernel.join("boot"), "vmlinuz-")?;
    fs::copy(vmlinuz, image.join(KERNEL)).context("copy the kernel")?;
    let mut packed = GzEncoder::new(fs::File::create(image.join(INITRD))?, Compression::new(6));
    packed.write_all(&archive(&fs::read(busybox)?, &fs::read(program)?, &modules))?;
    packed.finish()?.sync_all()?;
    Ok(image)
}

fn busybox(work: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    let installed = Path::new("/bin/busybox");
    if installed.exists() && debian::is_static(installed)? {
        return Ok(installed.to_owned());
    }
    progress("downloading busybox");
    let root = debian::unpack(BUSYBOX_PACKAGE, work)?;
    ["usr/bin/busybox", "bin/busybox"]
        .map(|name| root.join(name))
        .into_iter()
        .find(|path| path.exists())
        .context("the package has no busybox")
}

fn compile(work: &Path) -> Result<PathBuf> {
    // As in the repository, since the program includes the record by a relative path.
    let source = work.join("testkit/guest/main.rs");
    let record = work.join("testkit/src/guest/record.rs");
    for (path, text) in [(&source, PROGRAM), (&record, RECORD)] {
        let parent = path.parent().context("a file has a parent")?;
        fs::create_dir_all(parent)?;
        fs::write(path, text)?;
    }
    let program = work.join("guest");
    let mut rustc = Command::new("rustc");
    rustc
        .args([
            "--edition",
            "2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
        ])
        .args(["-C", "panic=abort", "-C", "strip=symbols", "-o"])
        .arg(&program)
        .arg(&source);
    debian::run(&mut rustc).context("compile the guest's program")?;
    Ok(program)
}

/// A kernel module: its file name and content.
type Module = (String, Vec<u8>);

/// The modules and all that they depend on, in the order of loading.
fn modules(kernel: &Path, work: &Path) -> Result<Vec<Module>> {
    let parent = ["lib/modules", "usr/lib/modules"]
        .map(|name| kernel.join(name))
        .into_iter()
        .find(|path| path.is_dir())
        .context("the package has no modules")?;
    let tree = ModuleTree::read(&only_entry(&parent, "")?, work)?;
    let mut modules = Vec::new();
    let mut done = HashSet::new();
    for name in MODULES {
        tree.load(name, &mut done, &mut modules)?;
    }
    Ok(modules)
}

struct ModuleTree {
    files: Vec<PathBuf>,
    built_in: String,
    work: PathBuf,
}

impl ModuleTree {
    fn read(root: &Path, work: &Path) -> Result<Self> {
        let files = walkdir::WalkDir::new(root)
            .into_iter()
            .filter_map(|entry| Some(entry.ok()?.into_path()))
            .filter(|path| path.is_file())
            .collect();
        let built_in = fs::read_to_string(root.join("modules.builtin")).unwrap_or_default();
        Ok(Self {
            files,
            built_in,
            work: work.to_owned(),
        })
    }

    /// Adds `name` after what it depends on. Modules form no circles.
    fn load(&self, name: &str, done: &mut HashSet<String>, to: &mut Vec<Module>) -> Result<()> {
        if !done.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(file) = self
            .files
            .iter()
            .find(|file| module_name(file).as_deref() == Some(name))
        else {
            let is_built_in = |line: &str| module_name(Path::new(line)).as_deref() == Some(name);
            anyhow::ensure!(
                self.built_in.lines().any(is_built_in),
                "the kernel has no {name}"
            );
            return Ok(());
        };
        let content = self.content(file)?;
        for dependency in dependencies(&content) {
            self.load(&dependency, done, to)?;
        }
        to.push((format!("{name}.ko"), content));
        Ok(())
    }

    fn content(&self, file: &Path) -> Result<Vec<u8>> {
        if file.extension().is_some_and(|extension| extension == "ko") {
            return Ok(fs::read(file)?);
        }
        // Debian 13 packs its modules.
        debian::run(
            Command::new("xz")
                .args(["-dc"])
                .arg(file)
                .current_dir(&self.work),
        )
    }
}

/// `kernel/drivers/net/net-failover.ko.xz` is `net_failover`.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let stem = name
        .strip_suffix(".xz")
        .unwrap_or(name)
        .strip_suffix(".ko")?;
    Some(stem.replace('-', "_"))
}

/// What a module says that it depends on, in its `.modinfo` section.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn only_entry(directory: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(directory)
        .with_context(|| format!("read {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .with_context(|| format!("nothing like {prefix} in {}", directory.display()))
}

fn archive(busybox: &[u8], program: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::default();
    for name in ["bin", "dev", "modules"] {
        archive.directory(name);
    }
    archive.character_device("dev/console", 5, 1);
    archive.file("bin/busybox", 0o755, busybox);
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("dhcp.sh", 0o755, DHCP.as_bytes());
    archive.file("guest", 0o755, program);
    let order: String = modules
        .iter()
        .map(|(name, _)| format!("{name}\n"))
        .collect();
    archive.file("modules/order", 0o644, order.as_bytes());
    for (name, content) in modules {
        archive.file(&format!("modules/{name}"), 0o644, content);
    }
    archive.finish()
}
