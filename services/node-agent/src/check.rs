//! Everything that can be known before a copy of a machine is started here.

use std::path::Path;
use std::time::Duration;

use godwit_model::Bytes;
use godwit_model::machine::{Disk, MachineSpec, PageSize};
use tokio::time::{Instant, sleep};

use crate::half::HalfError;
use crate::host::Host;
use crate::hugepages;
use crate::machines::MachineState;
use crate::network;
use crate::text::chain;
use crate::vm;

/// How long what is left of a machine that has left may be here, and how often that is looked at.
const LEAVES_MAX: Duration = Duration::from_secs(2);
const LEAVES_LOOK: Duration = Duration::from_millis(5);

/// Checks that an incoming copy of `spec` can be loaded and run on this host.
///
/// # Errors
/// `NotNow` with what is in the way, `NoRoom` when only memory is missing.
pub(crate) async fn incoming(host: &Host, spec: &MachineSpec) -> Result<(), HalfError> {
    not_here(host, spec).await?;
    hardware(host, spec)?;
    for disk in &spec.disks {
        shared(host, disk)?;
    }
    if let Some(kernel) = &spec.kernel {
        let files = vm::kernel_files(host, kernel).map_err(|error| not_now(chain(&error)))?;
        for file in [files.0, files.1].into_iter().flatten() {
            readable(&file)?;
        }
    }
    let ports = vm::ports(host, spec).map_err(|error| not_now(chain(&error)))?;
    for port in ports {
        network::check_bridge(&port.bridge)
            .await
            .map_err(|error| not_now(chain(&error)))?;
    }
    match spec.hugepages {
        Some(size) => pages(size, spec.memory),
        None => room(host, spec.memory),
    }
}

/// Pages that nobody has count: the kernel can't make any of other memory.
fn pages(size: PageSize, needed: Bytes) -> Result<(), HalfError> {
    let free = hugepages::free(size);
    if free < needed {
        return Err(HalfError::NoRoom(format!(
            "{free} in pages of {size} are free, {needed} are needed"
        )));
    }
    Ok(())
}

async fn not_here(host: &Host, spec: &MachineSpec) -> Result<(), HalfError> {
    let end = Instant::now() + LEAVES_MAX;
    while let Some(machine) = host.machine(&spec.id) {
        match machine.view().state {
            MachineState::Stopped | MachineState::Crashed => return Ok(()),
            // It comes back as soon as it has left, and its devices are just being taken away.
            MachineState::Migrated if Instant::now() < end => sleep(LEAVES_LOOK).await, // poll
            MachineState::Starting
            | MachineState::Running
            | MachineState::Paused
            | MachineState::Stopping
            | MachineState::Migrated => return Err(not_now("the machine is on this host already")),
        }
    }
    Ok(())
}

fn hardware(host: &Host, spec: &MachineSpec) -> Result<(), HalfError> {
    let facts = &host.facts;
    if !facts.machine_types.contains(&spec.machine_type) {
        let (wanted, version) = (&spec.machine_type, &facts.version);
        return Err(not_now(format!(
            "machine type {wanted} is not known to QEMU {version} here"
        )));
    }
    if !facts.cpu_models.contains(&spec.cpu_model) {
        let (wanted, accelerator) = (&spec.cpu_model, facts.accelerator.as_str());
        return Err(not_now(format!(
            "CPU model {wanted} does not run on this host ({accelerator})"
        )));
    }
    Ok(())
}

fn shared(host: &Host, disk: &Disk) -> Result<(), HalfError> {
    if disk.seed.is_some() {
        return Ok(()); // made here
    }
    let path = Path::new(&disk.path);
    if !disk.shared && !disk.read_only {
        return Err(not_now(format!("disk {} is local to its host", disk.name)));
    }
    let pool = host
        .config
        .pools
        .values()
        .find(|pool| path.starts_with(&pool.path));
    if disk.shared && pool.is_some_and(|pool| !pool.shared) {
        return Err(not_now(format!(
            "disk {} is in a pool that is not shared here",
            disk.name
        )));
    }
    readable(path)
}

fn readable(path: &Path) -> Result<(), HalfError> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(not_now(format!("open {}: {error}", path.display()))),
    }
}

/// What the kernel says is available counts, less what is kept for the host.
fn room(host: &Host, needed: Bytes) -> Result<(), HalfError> {
    let available = available().unwrap_or_default();
    let free = Bytes(available.0.saturating_sub(host.config.memory_reserved.0));
    if free < needed {
        return Err(HalfError::NoRoom(format!(
            "{free} of memory are free, {needed} are needed"
        )));
    }
    Ok(())
}

/// Memory that can be used without swapping; `None` when `/proc` doesn't tell.
fn available() -> Option<Bytes> {
    from_meminfo(
        &std::fs::read_to_string("/proc/meminfo").ok()?,
        "MemAvailable:",
    )
}

/// One value of `/proc/meminfo`; `None` when there is no such line.
pub(crate) fn from_meminfo(text: &str, key: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(Bytes(kib * 1024))
}

fn not_now(why: impl Into<String>) -> HalfError {
    HalfError::NotNow(why.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_meminfo_is_in_kib() {
        let text = "MemTotal:       24689248 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(
            from_meminfo(text, "MemTotal:"),
            Some(Bytes(24_689_248 << 10))
        );
        assert_eq!(from_meminfo(text, "SwapTotal:"), None);
    }
}
