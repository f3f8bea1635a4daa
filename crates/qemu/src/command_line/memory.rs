//! Guest memory: how much of it, and what it is made of.

use godwit_model::machine::MachineSpec;

use super::{Accelerator, HostLayout, LineError, escaped};
use crate::qmp::Version;

/// Memory of a machine in KiB: odd under TCG, so that none of its writes is lost in a copy.
///
/// QEMU before 9.0 forgets under TCG that pages which it has just marked as sent may be written
/// again without its notice: the target then runs with stale memory (found with 7.2.22; fixed in
/// 9.0 by "physmem: Fix migration dirty bitmap coherency with TCG memory access"). It forgets this
/// only where it looks at 64 pages at once, which it does for memory in multiples of 256 KiB. The
/// same for every QEMU, since a machine may move between versions, but never between accelerators.
///
/// In huge pages it is a little less rather than more: one more would take a whole page. QEMU rounds
/// the file up to whole pages, until 9.0, which refuses what isn't a multiple: see [`takes_hugepages`].
pub(super) const fn kib(spec: &MachineSpec, accelerator: Accelerator) -> u64 {
    // Whole MiB, rounded up: machine types differ in what finer sizes they accept.
    let whole = spec.memory.0.div_ceil(1 << 20) << 10;
    match (accelerator, spec.hugepages) {
        (Accelerator::Tcg, None) => whole + ODD_KIB,
        (Accelerator::Tcg, Some(_)) => whole - ODD_KIB,
        (Accelerator::Kvm, _) => whole,
    }
}

/// By so much memory is no multiple of 256 KiB under TCG.
const ODD_KIB: u64 = 8;

/// Whether a QEMU of that version can make guest memory of huge pages.
pub fn takes_hugepages(accelerator: Accelerator, version: &Version) -> bool {
    match accelerator {
        Accelerator::Kvm => true,
        Accelerator::Tcg => version.major < 9,
    }
}

/// The object that is the guest's memory: the same id whatever it is made of.
///
/// The kernel sets huge pages apart when the file is mapped, so a QEMU that came up has all of them,
/// and need not touch each at its start.
pub(super) fn backend(kib: u64, host: &HostLayout) -> Result<String, LineError> {
    Ok(match &host.hugepages {
        None => format!("memory-backend-ram,id=ram0,size={kib}K"),
        Some(directory) => format!(
            "memory-backend-file,id=ram0,size={kib}K,share=off,mem-path={}",
            escaped(directory)?
        ),
    })
}
