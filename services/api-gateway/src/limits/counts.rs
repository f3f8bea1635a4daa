//! What was refused or cut off, by limit.

use godwit_runtime::metrics::Metrics;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::pool::Class;

/// Why something was refused or cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "labels read as they are written here")]
pub(crate) enum Limit {
    header_bytes,
    headers,
    url_bytes,
    body_bytes,
    bodies_bytes,
    body_ms,
    body_stall_ms,
    answers_bytes,
    answer_ms,
    answer_stall_ms,
    requests,
    requests_per_user,
    user_rate,
    watches,
    watches_per_user,
    connections,
    handshake_ms,
    /// Whatever else is too large: objects, patches.
    too_large,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLimit {
    limit: Limit,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejected {
    priority_level: &'static str,
    flow_schema: &'static str,
    reason: &'static str,
}

/// The metrics of the limits.
#[derive(Clone, Default)]
pub(crate) struct Counts {
    refused: Family<ByLimit, Counter>,
    rejected: Family<Rejected, Counter>,
    handshake_errors: Counter,
    pub(crate) watches: Gauge,
    pub(crate) connections: Gauge,
    pub(crate) body_bytes: Gauge,
    pub(crate) answer_bytes: Gauge,
}

impl Counts {
    /// Registers them; where Kubernetes has a name, under that.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let counts = Self::default();
        metrics.registry(|registry| {
            registry.register(
                "godwit_api_limit_refusals",
                "Requests refused and clients cut off, by the limit they met",
                counts.refused.clone(),
            );
            registry.register(
                "apiserver_flowcontrol_rejected_requests",
                "Requests answered 429",
                counts.rejected.clone(),
            );
            registry.register(
                "apiserver_tls_handshake_errors",
                "TLS handshakes that failed or took too long",
                counts.handshake_errors.clone(),
            );
            let gauges = [
                ("apiserver_longrunning_requests", "Watches", &counts.watches),
                (
                    "godwit_api_connections",
                    "Open connections",
                    &counts.connections,
                ),
                (
                    "godwit_api_body_bytes",
                    "Bytes of request bodies held",
                    &counts.body_bytes,
                ),
                (
                    "godwit_api_answer_bytes",
                    "Bytes of answers held",
                    &counts.answer_bytes,
                ),
            ];
            for (name, help, gauge) in gauges {
                registry.register(name, help, gauge.clone());
            }
        });
        counts
    }

    /// One more was refused or cut off.
    pub(crate) fn refused(&self, limit: Limit) {
        self.refused.get_or_create(&ByLimit { limit }).inc();
    }

    /// One more was answered 429.
    pub(crate) fn rejected(&self, class: Class, limit: Limit) {
        self.refused(limit);
        let level = match class {
            Class::Operator => "operators",
            Class::Tenant => "tenants",
        };
        let reason = match limit == Limit::user_rate {
            true => "rate",
            false => "concurrency-limit",
        };
        let labels = Rejected {
            priority_level: level,
            flow_schema: level,
            reason,
        };
        self.rejected.get_or_create(&labels).inc();
    }

    /// One more handshake came to nothing.
    pub(crate) fn handshake_failed(&self) {
        self.handshake_errors.inc();
    }
}

/// Counts in a gauge as long as it lives.
pub(crate) struct Counted {
    gauge: Gauge,
    by: i64,
}

impl Counted {
    pub(crate) fn new(gauge: &Gauge, by: usize) -> Self {
        let by = i64::try_from(by).unwrap_or(i64::MAX);
        gauge.inc_by(by);
        Self {
            gauge: gauge.clone(),
            by,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge.dec_by(self.by);
    }
}
