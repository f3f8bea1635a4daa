//! Whether KVM runs guests here: by booting two.

use super::{Accelerator, ProbeError, Request, Scratch, TestKernel, bare, end};
use crate::process::{self, Launch};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The device without which there is nothing to try.
pub(super) const KVM_DEVICE: &str = "/dev/kvm";

/// Longest time to the first serial output of a boot sector. Firmware under a slow nested KVM was
/// measured at 2.2 s on an idle host.
const SECTOR_LIMIT: Duration = Duration::from_secs(8);

/// Longest time to the test kernel's marker. TCG itself takes 3 s.
const KERNEL_LIMIT: Duration = Duration::from_secs(12);

/// How often the serial output is read.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the test sector writes.
const SECTOR_MARKER: &str = "G";

/// Size of the test sector's disk: firmware boots no smaller one from virtio.
const SECTOR_DISK_BYTES: usize = 1 << 20;

/// Which accelerator, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) accelerator: Accelerator,
    pub(super) reason: String,
}

impl Verdict {
    pub(super) fn wished(accelerator: Accelerator) -> Self {
        Self {
            accelerator,
            reason: "chosen by the configuration".to_owned(),
        }
    }

    fn tcg(reason: impl Into<String>) -> Self {
        Self {
            accelerator: Accelerator::Tcg,
            reason: reason.into(),
        }
    }
}

pub(super) async fn judge(binary: &Path, request: &Request) -> Result<Verdict, ProbeError> {
    if !Path::new(KVM_DEVICE).exists() {
        return Ok(Verdict::tcg("this host has no /dev/kvm"));
    }
    let Some(kernel) = request.kernel.clone().or_else(TestKernel::of_host) else {
        return Ok(Verdict::tcg("no kernel is there to prove that KVM works"));
    };
    let verdict = try_kvm(binary, &kernel, &request.directory).await?;
    tracing::info!(
        accelerator = verdict.accelerator.as_str(),
        reason = verdict.reason,
        "probed"
    );
    Ok(verdict)
}

async fn try_kvm(
    binary: &Path,
    kernel: &TestKernel,
    directory: &Path,
) -> Result<Verdict, ProbeError> {
    let sector = Guest::Sector;
    if let Err(why) = boots(binary, &sector, directory).await? {
        return Ok(Verdict::tcg(format!(
            "a boot sector does not run under KVM: {why}"
        )));
    }
    if let Err(why) = boots(binary, &Guest::Kernel(kernel), directory).await? {
        return Ok(Verdict::tcg(format!(
            "a kernel does not boot under KVM: {why}"
        )));
    }
    let reason = "a kernel booted under KVM".to_owned();
    Ok(Verdict {
        accelerator: Accelerator::Kvm,
        reason,
    })
}

enum Guest<'a> {
    Sector,
    Kernel(&'a TestKernel),
}

impl Guest<'_> {
    fn limit(&self) -> Duration {
        match self {
            Self::Sector => SECTOR_LIMIT,
            Self::Kernel(_) => KERNEL_LIMIT,
        }
    }

    fn marker(&self) -> &str {
        match self {
            Self::Sector => SECTOR_MARKER,
            Self::Kernel(kernel) => &kernel.marker,
        }
    }

    fn arguments(&self, scratch: &Scratch) -> io::Result<Vec<String>> {
        let serial = format!("file:{}", scratch.path("serial").display());
        let mut arguments: Vec<String> = [
            "-machine", "q35", "-cpu", "qemu64", "-m", "256M", "-serial", &serial,
        ]
        .map(str::to_owned)
        .to_vec();
        match self {
            Self::Sector => {
                let disk = scratch.path("disk");
                std::fs::write(&disk, sector_disk())?;
                let drive = format!("file={},if=virtio,format=raw", disk.display());
                arguments.extend(["-drive".to_owned(), drive]);
            }
            Self::Kernel(kernel) => {
                let path = kernel.kernel.to_string_lossy().into_owned();
                arguments.extend(["-kernel".to_owned(), path]);
                arguments.extend(["-append".to_owned(), kernel.arguments.clone()]);
                if let Some(initrd) = &kernel.initrd {
                    let path = initrd.to_string_lossy().into_owned();
                    arguments.extend(["-initrd".to_owned(), path]);
                }
            }
        }
        Ok(arguments)
    }
}

/// Whether the guest's marker appears in time; the inner error says what did instead.
async fn boots(
    binary: &Path,
    guest: &Guest<'_>,
    directory: &Path,
) -> Result<Result<(), String>, ProbeError> {
    let scratch = Scratch::new(directory).map_err(ProbeError::Directory)?;
    let mut arguments = bare(Accelerator::Kvm, &scratch);
    arguments.extend(guest.arguments(&scratch).map_err(ProbeError::Directory)?);
    let launch = Launch {
        binary,
        arguments: &arguments,
        log: &scratch.path("log"),
        qmp_socket: &scratch.path("qmp"),
        limit: guest.limit(),
        user: None,
    };
    let (process, qmp, _events) = match process::launch(launch).await {
        Ok(started) => started,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let deadline = Instant::now() + guest.limit();
    let mut seen = false;
    while !seen && process.is_alive() && Instant::now() < deadline {
        sleep(LOOK_EVERY).await;
        let output = std::fs::read(scratch.path("serial")).unwrap_or_default();
        seen = String::from_utf8_lossy(&output).contains(guest.marker());
    }
    let ended = !process.is_alive();
    end(&process, &qmp).await;
    if seen {
        return Ok(Ok(()));
    }
    if ended {
        return Ok(Err(format!(
            "qemu ended: {}",
            process::log_tail(&scratch.path("log"))
        )));
    }
    let (marker, limit) = (guest.marker(), guest.limit());
    Ok(Err(format!(
        "nothing on its serial port said {marker:?} in {limit:?}"
    )))
}

/// A disk whose boot sector writes one letter to the first serial port and stops.
fn sector_disk() -> Vec<u8> {
    const CODE: [u8; 9] = [
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, b'G', // mov al, 'G'
        0xee, // out dx, al
        0xf4, // hlt
        0xeb, 0xfd, // jmp to hlt
    ];
    let mut disk = vec![0; SECTOR_DISK_BYTES];
    disk[..CODE.len()].copy_from_slice(&CODE);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}
