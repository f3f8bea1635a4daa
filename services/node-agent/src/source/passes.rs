//! The passes of a copy as spans, each with its numbers.
//!
//! A pass ends when QEMU tells of the next one, or that the copy is over; its numbers come with the
//! first answer after that. A pass under way while the agent was down is not told.

use std::time::SystemTime;

use godwit_model::migration::fact::Progress;
use godwit_runtime::telemetry::{Attribute, SpanKey, StepSpan};

use super::Owner;

/// Passes of which nothing was told yet.
#[derive(Debug, Default)]
pub(super) struct Passes {
    /// The pass under way.
    open: Option<Pass>,
    /// The one that ended, and when; its numbers are not known yet.
    ended: Option<(Pass, SystemTime)>,
    /// Bytes that the passes before have sent.
    sent: u64,
}

#[derive(Debug, Clone, Copy)]
struct Pass {
    number: u32,
    began: SystemTime,
}

impl Owner {
    /// Another pass begins, and the one before ends.
    pub(super) fn begin_pass(&mut self, at: SystemTime) {
        self.end_pass(at);
        self.passes.open = Some(Pass {
            number: self.line.progress.passes,
            began: at,
        });
    }

    /// The pass under way ends.
    pub(super) fn end_pass(&mut self, at: SystemTime) {
        if self.passes.open.is_some() {
            // Its numbers never came: the ones that are known have to do.
            self.tell_passes();
        }
        self.passes.ended = self.passes.open.take().map(|pass| (pass, at));
    }

    /// Tells of the pass that ended, if one did, with the copy's numbers as they are.
    pub(super) fn tell_passes(&mut self) {
        let Some((pass, ended)) = self.passes.ended.take() else {
            return;
        };
        let Progress {
            transferred,
            remaining,
            throughput,
            dirty_rate,
            throttle_percent,
            ..
        } = self.line.progress;
        let sent = transferred.0.saturating_sub(self.passes.sent);
        self.passes.sent = transferred.0;
        let Some(copy) = &self.line.copy else { return };
        let attributes = [
            ("godwit.pass", number(pass.number.into())),
            ("godwit.node", self.host.config.node.to_string().into()),
            ("godwit.bytes", number(sent)),
            ("godwit.remaining_bytes", number(remaining.0)),
            ("godwit.bytes_per_second", number(throughput)),
            ("godwit.dirty_bytes_per_second", number(dirty_rate)),
            ("godwit.throttle_percent", number(throttle_percent.into())),
        ];
        let key = SpanKey {
            job: self.job.as_str(),
            step: "pass",
            nth: pass.number.into(),
        };
        self.host.steps.record(StepSpan {
            attributes: &attributes,
            ..StepSpan::new(&copy.trace, key, (pass.began, ended))
        });
    }
}

fn number(number: u64) -> Attribute {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}
