//! The services themselves.

use super::{Row, panel};
use crate::dashboards::Kind::{Lines, Stacked, Traced};

pub(super) const API: Row = (
    "API",
    &[
        panel(
            "Availability",
            "Requests that did not fail with 5xx. The objective is 99.9 %.",
            (Lines, "percentunit"),
            &[("godwit:api_availability:ratio5m", "5 minutes")],
        ),
        panel(
            "Requests",
            "A second, by the answer's code.",
            (Stacked, "reqps"),
            &[(
                "sum by (code) (rate(apiserver_request_total{job=\"api-gateway\"}[$__rate_interval]))",
                "{{code}}",
            )],
        ),
        panel(
            "Latency",
            "Until an answer begins; watches are left out. A point is one request.",
            (Traced, "s"),
            &[(
                "histogram_quantile(0.99, sum by (le, verb) (rate(apiserver_request_duration_seconds_bucket{job=\"api-gateway\"}[$__rate_interval])))",
                "{{verb}} 99 %",
            )],
        ),
        panel(
            "Running requests",
            "Watches count as one each, for as long as they are open.",
            (Lines, "none"),
            &[(
                "sum by (instance) (apiserver_current_inflight_requests{job=\"api-gateway\"})",
                "{{instance}}",
            )],
        ),
        panel(
            "Refused for a limit",
            "By each user's and the whole API's limits.",
            (Lines, "reqps"),
            &[(
                "sum by (reason) (rate(apiserver_flowcontrol_rejected_requests_total{job=\"api-gateway\"}[$__rate_interval])) or vector(0)",
                "{{reason}}",
            )],
        ),
        panel(
            "Audit",
            "Records by where they are kept and what became of them; none should be lost.",
            (Lines, "cps"),
            &[(
                "sum by (sink, outcome) (rate(godwit_audit_events_total[$__rate_interval]))",
                "{{sink}} {{outcome}}",
            )],
        ),
    ],
);

pub(super) const CALLS: Row = (
    "Calls between services",
    &[
        panel(
            "Calls",
            "Answered calls a second.",
            (Lines, "reqps"),
            &[(
                "sum by (job, method) (rate(godwit_rpc_seconds_count{job=~\"$job\"}[$__rate_interval]))",
                "{{method}}",
            )],
        ),
        panel(
            "Calls that did not succeed",
            "By method and code. Refusals by the protocol are among them: Aborted is an owner that was replaced.",
            (Lines, "reqps"),
            &[(
                "sum by (method, code) (rate(godwit_rpc_seconds_count{job=~\"$job\", code!=\"Ok\"}[$__rate_interval])) or vector(0)",
                "{{method}} {{code}}",
            )],
        ),
        panel(
            "Time of calls",
            "Until an answer begins. A point is one call.",
            (Traced, "s"),
            &[(
                "histogram_quantile(0.95, sum by (le, method) (rate(godwit_rpc_seconds_bucket{job=~\"$job\"}[$__rate_interval])))",
                "{{method}} 95 %",
            )],
        ),
    ],
);

pub(super) const LEDGER: Row = (
    "Ledger",
    &[
        panel(
            "Wait for the lock",
            "All writers pass one lock: how long until a transaction has it.",
            (Lines, "s"),
            &[(
                "histogram_quantile(0.95, sum by (le, job) (rate(godwit_ledger_wait_seconds_bucket[$__rate_interval])))",
                "{{job}} 95 %",
            )],
        ),
        panel(
            "Lock held",
            "From the lock to the answer of the commit.",
            (Lines, "s"),
            &[(
                "histogram_quantile(0.95, sum by (le, job) (rate(godwit_ledger_transaction_seconds_bucket[$__rate_interval])))",
                "{{job}} 95 %",
            )],
        ),
        panel(
            "Transactions",
            "A second. What is unknown was asked for again.",
            (Lines, "cps"),
            &[(
                "sum by (job, outcome) (rate(godwit_ledger_transactions_total[$__rate_interval]))",
                "{{job}} {{outcome}}",
            )],
        ),
        panel(
            "Connections",
            "Of each service's pool.",
            (Stacked, "none"),
            &[(
                "sum by (job, state) (godwit_ledger_connections)",
                "{{job}} {{state}}",
            )],
        ),
        panel(
            "Size",
            "Tables with their indexes; the ten largest.",
            (Stacked, "bytes"),
            &[(
                "topk(10, max by (table) (godwit_ledger_table_bytes))",
                "{{table}}",
            )],
        ),
        panel(
            "Rows",
            "By the database's estimate; the ten longest tables.",
            (Lines, "none"),
            &[(
                "topk(10, max by (table) (godwit_ledger_table_rows))",
                "{{table}}",
            )],
        ),
        panel(
            "Jobs owned",
            "By each copy of the coordinator.",
            (Stacked, "none"),
            &[("sum by (instance) (godwit_leases_held)", "{{instance}}")],
        ),
        panel(
            "Jobs that changed hands",
            "Taken over from an owner that died or was slow, and lost to another one, a minute.",
            (Lines, "none"),
            &[
                (
                    "60 * sum(rate(godwit_lease_takeovers_total[$__rate_interval]))",
                    "taken over",
                ),
                (
                    "60 * sum(rate(godwit_leases_lost_total[$__rate_interval]))",
                    "lost",
                ),
            ],
        ),
        panel(
            "Journals of the hosts",
            "Until a line of a job's log is on the agent's disk.",
            (Lines, "s"),
            &[(
                "histogram_quantile(0.99, sum by (le, instance) (rate(godwit_agent_log_sync_seconds_bucket[$__rate_interval])))",
                "{{instance}} 99 %",
            )],
        ),
    ],
);

pub(super) const PROCESSES: Row = (
    "Processes",
    &[
        panel(
            "Up",
            "1 while a process answers its scrape.",
            (Lines, "none"),
            &[(
                "up{job=~\"$job\", job=~\"api-gateway|scheduler|migration-coordinator|maintenance-service|node-agent\"}",
                "{{job}} {{instance}}",
            )],
        ),
        panel(
            "Memory",
            "Resident.",
            (Lines, "bytes"),
            &[(
                "process_resident_memory_bytes{job=~\"$job\", job=~\"api-gateway|scheduler|migration-coordinator|maintenance-service|node-agent\"}",
                "{{job}} {{instance}}",
            )],
        ),
        panel(
            "CPU",
            "1 is one core.",
            (Lines, "none"),
            &[(
                "rate(process_cpu_seconds_total{job=~\"$job\", job=~\"api-gateway|scheduler|migration-coordinator|maintenance-service|node-agent\"}[$__rate_interval])",
                "{{job}} {{instance}}",
            )],
        ),
    ],
);
