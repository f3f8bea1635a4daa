//! What is not done, as a status.

use godwit_rpc::{Status, convert};

use crate::half::HalfError;
use crate::machines::MachineError;
use crate::text::chain;
use crate::vm::LaunchError;

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
pub(crate) fn refused_half(error: HalfError) -> Status {
    match &error {
        HalfError::Refused(refusal) => convert::refused(refusal),
        HalfError::NotNow(why) => Status::failed_precondition(why.clone()),
        HalfError::Denied(why) => Status::permission_denied(why.clone()),
        HalfError::NoRoom(why) => Status::resource_exhausted(why.clone()),
        HalfError::Log(_) | HalfError::Closed => Status::unavailable(chain(&error)),
    }
}

pub(super) fn refused_machine(error: MachineError) -> Status {
    let text = chain(&error);
    match error {
        MachineError::Absent(_) => Status::not_found(text),
        MachineError::Fenced { .. } => Status::aborted(text),
        MachineError::NotNow(_) => Status::failed_precondition(text),
        MachineError::Launch(launch) => match launch {
            LaunchError::Network(_)
            | LaunchError::Image(_)
            | LaunchError::Path(_)
            | LaunchError::Disk(_)
            | LaunchError::Confine(_)
            | LaunchError::Pages(_)
            | LaunchError::Seed(_)
            | LaunchError::Line(_)
            | LaunchError::Occupied(_) => Status::failed_precondition(text),
            LaunchError::Tap(_)
            | LaunchError::Directory(_)
            | LaunchError::Group(_)
            | LaunchError::Process(_)
            | LaunchError::Start(_) => Status::internal(text),
        },
        MachineError::Qemu(_) | MachineError::Process(_) | MachineError::Record(_) => {
            Status::internal(text)
        }
    }
}
