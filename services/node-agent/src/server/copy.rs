//! A copy as the coordinator orders it.

use std::net::SocketAddr;
use std::time::Duration;

use godwit_model::NodeName;
use godwit_rpc::Status;
use godwit_rpc::agent::v1 as wire;
use godwit_runtime::telemetry::trace_context;

use super::missing;
use crate::source::CopyOrder;

pub(super) fn copy_order(request: wire::StartCopyRequest) -> Result<CopyOrder, Status> {
    let node = NodeName::parse(request.target_node);
    let node = node.map_err(|e| Status::invalid_argument(format!("target_node: {e}")))?;
    if request.target_agent.is_empty() {
        return Err(missing("target_agent"));
    }
    // QEMU would take a command or a file there, too.
    let target = request.target_uri.strip_prefix("tcp:");
    let target = target.and_then(|target| target.parse::<SocketAddr>().ok());
    if target.is_none() {
        return Err(Status::invalid_argument(
            "target_uri must be tcp:ADDRESS:PORT",
        ));
    }
    let limits = request.limits.unwrap_or_default();
    Ok(CopyOrder {
        node,
        uri: request.target_uri,
        agent: request.target_agent,
        bandwidth: limits.bandwidth,
        downtime: match limits.downtime_limit_ms {
            // QEMU's own default.
            0 => Duration::from_millis(300),
            given => Duration::from_millis(given.into()),
        },
        auto_converge: limits.auto_converge,
        at_once: false,
        post_copy: limits.post_copy,
        post_copy_at_once: limits.post_copy && limits.post_copy_at_once,
        trace: trace_context(),
    })
}
