//! The terms of one copy: what its migration was asked for, and what it may take of links and guest.
//!
//! They are settled when the target is known, and kept in the job's history, so that every owner of
//! the job goes by the same ones.

use std::collections::HashMap;
use std::time::Duration;

use godwit_ledger::{JobRow, LedgerError, Object, ObjectKey};
use godwit_model::forecast::{Forecast, Voyage};
use godwit_model::limits::{self, DOWNTIME_MAX_MS, LINK_BUDGET, Link, MigrationLimits};
use godwit_model::migration::wish::{METHOD, Method, TARGET_NODE};
use godwit_model::{Bytes, BytesPerSecond, NodeName, quantity};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::drive::Drive;
use crate::shared::Shared;

/// What a migration asks for beside its machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    /// Labels that the target must have, too.
    pub(crate) selector: HashMap<String, String>,
    /// The planned target; empty for none.
    pub(crate) target: String,
    pub(crate) method: Method,
}

impl Wishes {
    /// Reads them; a migration that was deleted has none.
    ///
    /// # Errors
    /// The ledger's: a target chosen without the wishes could be one that they exclude.
    pub(crate) async fn read(shared: &Shared, job: &JobRow) -> Result<Self, LedgerError> {
        let object = shared.ledger.get(&job.key).await?;
        Ok(object.as_ref().map(Self::of).unwrap_or_default())
    }

    fn of(object: &Object) -> Self {
        let selector = object.spec().get("addedNodeSelector");
        let selector = selector.and_then(|labels| HashMap::deserialize(labels).ok());
        let method = object.annotation(METHOD).and_then(Method::from_name);
        Self {
            selector: selector.unwrap_or_default(),
            target: object.annotation(TARGET_NODE).unwrap_or_default().into(),
            // The API refuses other names, and what is no method of ours must not stop a guest.
            method: method.unwrap_or_default(),
        }
    }
}

/// The terms, as the history keeps them; a job without a target has none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Terms {
    /// Bytes a second; 0 is no limit.
    bandwidth: Option<u64>,
    downtime_limit_ms: Option<u32>,
    method: Option<String>,
    /// Whether the copy may end by post-copy.
    post_copy: Option<bool>,
    /// Whether it did.
    post_copied: Option<bool>,
    forecast_ms: Option<u64>,
    forecast_blackout_us: Option<u64>,
}

impl Terms {
    /// Those of a job.
    pub(crate) fn of(job: &JobRow) -> Self {
        Self::deserialize(&job.history).unwrap_or_default()
    }

    /// Whether the guest may stand still as long as it takes.
    pub(crate) fn pauses(&self) -> bool {
        let method = self.method.as_deref().and_then(Method::from_name);
        method == Some(Method::Pause)
    }

    /// Whether the copy ends by post-copy after its first pass.
    pub(crate) fn post_copies(&self) -> bool {
        let method = self.method.as_deref().and_then(Method::from_name);
        method == Some(Method::PostCopy)
    }

    /// Whether the guest went over by post-copy.
    pub(crate) fn post_copied(&self) -> bool {
        self.post_copied == Some(true)
    }

    /// What was forecast from the choice of the target to the end; `None` when nothing was.
    pub(crate) fn forecast(&self) -> Option<Duration> {
        self.forecast_ms.map(Duration::from_millis)
    }

    /// What was forecast of the blackout; `None` when nothing was.
    pub(crate) fn forecast_blackout(&self) -> Option<Duration> {
        self.forecast_blackout_us.map(Duration::from_micros)
    }

    /// The limits under these terms.
    pub(crate) fn apply(&self, limits: &mut MigrationLimits) {
        if let Some(bandwidth) = self.bandwidth {
            limits.bandwidth = BytesPerSecond(bandwidth);
        }
        if let Some(downtime) = self.downtime_limit_ms {
            limits.max_downtime_ms = downtime;
        }
        // Not by what was set since: the target was prepared by what was set then.
        if let Some(post_copy) = self.post_copy {
            limits.allow_post_copy = post_copy;
        }
        limits.allow_workload_disruption |= self.pauses();
    }
}

/// Settles the terms of a job that goes to `target`, for the history.
///
/// # Errors
/// The ledger's, when the nodes' budgets can't be read.
pub(crate) async fn settle(
    drive: &Drive,
    method: Method,
    (target, memory): (&NodeName, Bytes),
) -> Result<Value, LedgerError> {
    let job = &drive.lease.job;
    let Some(source) = &job.source else {
        return Ok(json!({}));
    };
    let mut limits = drive.set_limits();
    if method == Method::Pause {
        limits.max_downtime_ms = DOWNTIME_MAX_MS;
    }
    let [leaves, arrives] = budgets(&drive.shared, [source, target]).await?;
    let links = [
        Link {
            budget: leaves,
            parallel: limits.parallel_outbound_per_node,
        },
        Link {
            budget: arrives,
            parallel: limits.parallel_inbound_per_node,
        },
    ];
    let bandwidth = limits::bandwidth(limits.bandwidth, links).0;
    let Forecast {
        takes, blackout, ..
    } = drive.shared.experience.forecaster().forecast(Voyage {
        machine: &job.machine,
        memory,
        source,
        target,
        bandwidth,
        downtime: Duration::from_millis(limits.max_downtime_ms.into()),
    });
    Ok(json!(Terms {
        bandwidth: Some(bandwidth),
        downtime_limit_ms: Some(limits.max_downtime_ms),
        method: Some(method.as_str().to_owned()),
        post_copy: Some(limits.allow_post_copy || method == Method::PostCopy),
        post_copied: None,
        forecast_ms: u64::try_from(takes.as_millis()).ok(),
        forecast_blackout_us: u64::try_from(blackout.as_micros()).ok(),
    }))
}

/// What the links of two nodes may carry for migrations; 0 for those without a limit.
async fn budgets(
    shared: &Shared,
    nodes: [&NodeName; 2],
) -> Result<[BytesPerSecond; 2], LedgerError> {
    let keys = nodes.map(|node| ObjectKey::new("nodes", "", node.as_str()));
    let objects = shared.ledger.get_two([&keys[0], &keys[1]]).await?;
    Ok(objects.map(|object| {
        let budget = object
            .as_ref()
            .and_then(|node| node.annotation(LINK_BUDGET));
        // The API refuses what is no quantity.
        BytesPerSecond(
            budget
                .and_then(|text| quantity::parse(text).ok())
                .unwrap_or(0),
        )
    }))
}
