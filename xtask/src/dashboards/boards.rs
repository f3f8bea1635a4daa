//! What the dashboards show. Replicas that count the same thing are joined by `max`.

use super::Kind::{Lines, Stacked, Stat, Traced, Traces};
use super::{Board, Panel};

type Row = (&'static str, &'static [Panel]);

const fn panel(
    title: &'static str,
    description: &'static str,
    (kind, unit): (super::Kind, &'static str),
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel {
        title,
        description,
        kind,
        unit,
        queries,
    }
}

/// Every dashboard.
pub(super) const BOARDS: [Board; 5] = [
    Board {
        name: "migrations",
        title: "migrations",
        description: "All migrations: what is under way, and how those went that are over.",
        variables: &[],
        rows: &[MIGRATIONS_NOW, MIGRATIONS_COPIES, MIGRATIONS_PAST],
    },
    Board {
        name: "migration",
        title: "one migration",
        description: "The copy of one machine, pass by pass, and its traces.",
        variables: &[
            ("namespace", "Namespace", "kubevirt_vmi_info"),
            ("name", "Instance", "kubevirt_vmi_info"),
        ],
        rows: &[ONE_COPY, ONE_TRACES],
    },
    Board {
        name: "maintenance",
        title: "maintenance",
        description: "Nodes that are being emptied, and what keeps them from being empty.",
        variables: &[],
        rows: &[DRAINS, ROLLINGS],
    },
    Board {
        name: "fleet",
        title: "fleet",
        description: "Nodes, their room, their machines and their versions.",
        variables: &[],
        rows: &[FLEET_NOW, FLEET_TIME],
    },
    Board {
        name: "control-plane",
        title: "control plane",
        description: "The services themselves: the API, their calls, the ledger, the processes.",
        variables: &[("job", "Service", "process_start_time_seconds")],
        rows: &[API, CALLS, LEDGER, PROCESSES],
    },
];

const MIGRATIONS_NOW: Row = (
    "Now",
    &[
        panel(
            "Under way",
            "Migrations that have had their turn and are not over.",
            (Stat, "none"),
            &[(
                "sum(max by (state) (godwit_migrations_open{state!=\"Pending\"}))",
                "",
            )],
        ),
        panel(
            "Waiting",
            "Migrations that wait for their turn.",
            (Stat, "none"),
            &[("max(kubevirt_vmi_migrations_in_pending_phase)", "")],
        ),
        panel(
            "Waits longest",
            "How long the migration waits that waits longest for its turn.",
            (Stat, "s"),
            &[("max(godwit_migration_queue_oldest_seconds)", "")],
        ),
        panel(
            "Succeeded",
            "In the time shown.",
            (Stat, "none"),
            &[(
                "sum(increase(godwit_migrations_ended_total{result=\"Succeeded\"}[$__range]))",
                "",
            )],
        ),
        panel(
            "Failed",
            "In the time shown.",
            (Stat, "none"),
            &[(
                "sum(increase(godwit_migrations_ended_total{result=\"Failed\"}[$__range]))",
                "",
            )],
        ),
        panel(
            "Blackout, 95 %",
            "Nineteen of twenty guests stood still for no longer, in the time shown.",
            (Stat, "s"),
            &[(
                "histogram_quantile(0.95, sum by (le) (increase(godwit_migration_blackout_seconds_bucket[$__range])))",
                "",
            )],
        ),
        panel(
            "By state",
            "Migrations that are not over.",
            (Stacked, "none"),
            &[("max by (state) (godwit_migrations_open)", "{{state}}")],
        ),
        panel(
            "From and to each node",
            "Migrations under way; the limits are set in the KubeVirt object.",
            (Lines, "none"),
            &[(
                "max by (node, direction) (godwit_node_migrations)",
                "{{node}} {{direction}}",
            )],
        ),
        panel(
            "Time in each state",
            "Where migrations spend their time: the mean of those that left the state.",
            (Lines, "s"),
            &[(
                "sum by (state) (rate(godwit_migration_state_seconds_sum[$__rate_interval])) / sum by (state) (rate(godwit_migration_state_seconds_count[$__rate_interval]))",
                "{{state}}",
            )],
        ),
    ],
);

const MIGRATIONS_COPIES: Row = (
    "Copies under way",
    &[
        panel(
            "Still to copy",
            "Memory that still differs. A line that does not fall is a copy that does not converge.",
            (Lines, "bytes"),
            &[(
                "kubevirt_vmi_migration_data_remaining_bytes",
                "{{namespace}}/{{name}}",
            )],
        ),
        panel(
            "Copied against dirtied",
            "A copy converges while more is copied than the guest dirties.",
            (Lines, "Bps"),
            &[
                (
                    "kubevirt_vmi_migration_memory_transfer_rate_bytes",
                    "{{name}} copied",
                ),
                (
                    "kubevirt_vmi_migration_dirty_memory_rate_bytes",
                    "{{name}} dirtied",
                ),
            ],
        ),
        panel(
            "Sent in all",
            "What all copies send at the moment.",
            (Lines, "Bps"),
            &[(
                "sum by (node) (kubevirt_vmi_migration_memory_transfer_rate_bytes)",
                "from {{node}}",
            )],
        ),
    ],
);

const MIGRATIONS_PAST: Row = (
    "How they went",
    &[
        panel(
            "Ended",
            "Migrations that came to their end, a minute.",
            (Lines, "none"),
            &[(
                "60 * sum by (result) (rate(godwit_migrations_ended_total[$__rate_interval]))",
                "{{result}}",
            )],
        ),
        panel(
            "Blackout",
            "How long guests stood still. A point is one migration: follow it to its trace.",
            (Traced, "s"),
            &[
                (
                    "histogram_quantile(0.5, sum by (le) (rate(godwit_migration_blackout_seconds_bucket[$__rate_interval])))",
                    "50 %",
                ),
                (
                    "histogram_quantile(0.95, sum by (le) (rate(godwit_migration_blackout_seconds_bucket[$__rate_interval])))",
                    "95 %",
                ),
            ],
        ),
        panel(
            "Parts of the blackout",
            "What the agents add to QEMU's own: the way of the proof, the journal, the continuing.",
            (Lines, "s"),
            &[(
                "histogram_quantile(0.95, sum by (le, piece) (rate(godwit_agent_blackout_seconds_bucket[$__rate_interval])))",
                "{{piece}}",
            )],
        ),
        panel(
            "Brownout",
            "How long guests were copied while they ran.",
            (Lines, "s"),
            &[(
                "histogram_quantile(0.95, sum by (le) (rate(godwit_migration_brownout_seconds_bucket[$__rate_interval])))",
                "95 %",
            )],
        ),
        panel(
            "Passes and bytes",
            "Passes over the memory, and bytes sent, of a migration on average.",
            (Lines, "short"),
            &[
                (
                    "sum(rate(godwit_migration_passes_sum[$__rate_interval])) / sum(rate(godwit_migration_passes_count[$__rate_interval]))",
                    "passes",
                ),
                (
                    "sum(rate(godwit_migration_sent_bytes_sum[$__rate_interval])) / sum(rate(godwit_migration_sent_bytes_count[$__rate_interval]))",
                    "bytes",
                ),
            ],
        ),
        panel(
            "What was, by what was forecast",
            "1 is right; 2 is twice as long as forecast when the target was known.",
            (Lines, "none"),
            &[
                (
                    "histogram_quantile(0.5, sum by (le) (rate(godwit_forecast_duration_ratio_bucket[$__rate_interval])))",
                    "duration",
                ),
                (
                    "histogram_quantile(0.5, sum by (le) (rate(godwit_forecast_blackout_ratio_bucket[$__rate_interval])))",
                    "blackout",
                ),
            ],
        ),
    ],
);

const ONE_COPY: Row = (
    "Copy",
    &[
        panel(
            "Still to copy",
            "Memory that still differs, of all that has to be copied.",
            (Lines, "bytes"),
            &[
                (
                    "kubevirt_vmi_migration_data_remaining_bytes{namespace=~\"$namespace\", name=~\"$name\"}",
                    "{{name}} left",
                ),
                (
                    "kubevirt_vmi_migration_data_bytes_total{namespace=~\"$namespace\", name=~\"$name\"}",
                    "{{name}} in all",
                ),
            ],
        ),
        panel(
            "Copied against dirtied",
            "A copy converges while more is copied than the guest dirties.",
            (Lines, "Bps"),
            &[
                (
                    "kubevirt_vmi_migration_memory_transfer_rate_bytes{namespace=~\"$namespace\", name=~\"$name\"}",
                    "{{name}} copied",
                ),
                (
                    "kubevirt_vmi_migration_dirty_memory_rate_bytes{namespace=~\"$namespace\", name=~\"$name\"}",
                    "{{name}} dirtied",
                ),
            ],
        ),
        panel(
            "Sent",
            "Bytes sent so far; more than the memory, when pages were sent again.",
            (Lines, "bytes"),
            &[(
                "kubevirt_vmi_migration_data_processed_bytes{namespace=~\"$namespace\", name=~\"$name\"}",
                "{{name}}",
            )],
        ),
        panel(
            "Passes",
            "Passes over the dirty memory so far.",
            (Lines, "none"),
            &[(
                "godwit_vmi_migration_passes{namespace=~\"$namespace\", name=~\"$name\"}",
                "{{name}}",
            )],
        ),
        panel(
            "Expected blackout",
            "How long the guest would stand still, by QEMU's estimate, if it were stopped now.",
            (Lines, "s"),
            &[(
                "godwit_vmi_migration_expected_blackout_seconds{namespace=~\"$namespace\", name=~\"$name\"}",
                "{{name}}",
            )],
        ),
        panel(
            "Throttle",
            "How much QEMU slows the guest down so that the copy converges; 0 where it may not.",
            (Lines, "percent"),
            &[(
                "godwit_vmi_migration_throttle_percent{namespace=~\"$namespace\", name=~\"$name\"}",
                "{{name}}",
            )],
        ),
    ],
);

const ONE_TRACES: Row = (
    "Traces",
    &[panel(
        "Migrations of this instance",
        "Each trace has a span for each step and each pass, and the blackout as one of its own.",
        (Traces, "none"),
        &[(
            "{ name = \"Pending\" && span.godwit.vmi =~ \"$namespace/$name\" }",
            "",
        )],
    )],
);

const DRAINS: Row = (
    "Nodes under maintenance",
    &[
        panel(
            "Progress",
            "Machines that left, of those that were there.",
            (Lines, "percent"),
            &[("max by (node) (godwit_drain_progress)", "{{node}}")],
        ),
        panel(
            "Still there",
            "Machines that have to leave.",
            (Lines, "none"),
            &[("max by (node) (godwit_drain_pending_machines)", "{{node}}")],
        ),
        panel(
            "Blocked",
            "Machines that can't leave until a person acts; the maintenance's status names them.",
            (Lines, "none"),
            &[("max by (node) (godwit_drain_blocked_machines)", "{{node}}")],
        ),
        panel(
            "Time left",
            "By how many migrations succeeded in the last minutes; no end while none does.",
            (Lines, "s"),
            &[(
                "max by (node) (godwit_drain_pending_machines) / on () group_left () sum(rate(godwit_migrations_ended_total{result=\"Succeeded\"}[5m]))",
                "{{node}}",
            )],
        ),
        panel(
            "Evacuations",
            "Migrations that drains and evictions asked for, a minute.",
            (Lines, "none"),
            &[(
                "60 * sum(rate(godwit_evacuations_requested_total[$__rate_interval]))",
                "asked for",
            )],
        ),
        panel(
            "Machines that can't leave",
            "Machines that should leave a node in a drain and can't, wherever they are.",
            (Lines, "none"),
            &[(
                "sum by (node) (max by (node, namespace, name) (kubevirt_vmi_non_evictable))",
                "{{node}}",
            )],
        ),
    ],
);

const ROLLINGS: Row = (
    "Rolling maintenances",
    &[
        panel(
            "Nodes done with",
            "Nodes that were visited, left out or failed, of all that are chosen.",
            (Lines, "percent"),
            &[("max by (name) (godwit_rolling_progress)", "{{name}}")],
        ),
        panel(
            "Nodes by how far they are",
            "From waiting over drained to done.",
            (Stacked, "none"),
            &[(
                "max by (name, state) (godwit_rolling_nodes)",
                "{{name}} {{state}}",
            )],
        ),
        panel(
            "Phase",
            "Whether it runs, waits, is paused, or is over.",
            (Lines, "none"),
            &[(
                "max by (name, phase) (godwit_rolling_phase)",
                "{{name}} {{phase}}",
            )],
        ),
    ],
);

const FLEET_NOW: Row = (
    "Now",
    &[
        panel(
            "Nodes",
            "Nodes that are known.",
            (Stat, "none"),
            &[("count(max by (node) (godwit_node_ready))", "")],
        ),
        panel(
            "Ready",
            "Nodes that were heard lately.",
            (Stat, "none"),
            &[("sum(max by (node) (godwit_node_ready))", "")],
        ),
        panel(
            "Machines",
            "Machines with a QEMU.",
            (Stat, "none"),
            &[("sum(godwit_agent_machines)", "")],
        ),
        panel(
            "Room",
            "Memory that nobody holds.",
            (Stat, "bytes"),
            &[(
                "sum(max by (node) (godwit_node_memory_bytes)) - sum(max by (node) (godwit_node_memory_reserved_bytes))",
                "",
            )],
        ),
        panel(
            "Room without the largest node",
            "Below nothing, the fleet could not take in what runs on its largest node.",
            (Stat, "bytes"),
            &[(
                "sum(max by (node) (godwit_node_memory_bytes)) - max(godwit_node_memory_bytes) - sum(max by (node) (godwit_node_memory_reserved_bytes))",
                "",
            )],
        ),
        panel(
            "Versions",
            "Versions that run at the same time; two for long is an update that stuck.",
            (Stat, "none"),
            &[("count(count by (version, commit) (godwit_build_info))", "")],
        ),
    ],
);

const FLEET_TIME: Row = (
    "Over time",
    &[
        panel(
            "Memory held",
            "By machines and reservations, of what the node has.",
            (Lines, "percentunit"),
            &[(
                "max by (node) (godwit_node_memory_reserved_bytes) / max by (node) (godwit_node_memory_bytes)",
                "{{node}}",
            )],
        ),
        panel(
            "Machines on each node",
            "Machines with a QEMU.",
            (Stacked, "none"),
            &[("sum by (instance) (godwit_agent_machines)", "{{instance}}")],
        ),
        panel(
            "Nodes ready",
            "1 while a node's agent is heard.",
            (Lines, "none"),
            &[("max by (node) (godwit_node_ready)", "{{node}}")],
        ),
        panel(
            "Instances by phase",
            "As users see them.",
            (Stacked, "none"),
            &[(
                "count by (phase) (max by (namespace, name, phase) (kubevirt_vmi_info))",
                "{{phase}}",
            )],
        ),
        panel(
            "Placements",
            "Looks for a node, a minute.",
            (Lines, "none"),
            &[(
                "60 * sum by (result) (rate(godwit_placements_total[$__rate_interval]))",
                "{{result}}",
            )],
        ),
        panel(
            "Until an instance runs",
            "From its creation, in the time shown.",
            (Lines, "s"),
            &[(
                "histogram_quantile(0.95, sum by (le) (increase(kubevirt_vmi_phase_transition_time_from_creation_seconds_bucket{phase=\"Running\"}[$__range])))",
                "95 %",
            )],
        ),
    ],
);

const API: Row = (
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
                "sum by (code) (rate(apiserver_request_total[$__rate_interval]))",
                "{{code}}",
            )],
        ),
        panel(
            "Latency",
            "Until an answer begins; watches are left out. A point is one request.",
            (Traced, "s"),
            &[(
                "histogram_quantile(0.99, sum by (le, verb) (rate(apiserver_request_duration_seconds_bucket[$__rate_interval])))",
                "{{verb}} 99 %",
            )],
        ),
        panel(
            "Running requests",
            "Watches count as one each, for as long as they are open.",
            (Lines, "none"),
            &[(
                "sum by (instance) (apiserver_current_inflight_requests)",
                "{{instance}}",
            )],
        ),
        panel(
            "Refused for a limit",
            "By each user's and the whole API's limits.",
            (Lines, "reqps"),
            &[(
                "sum by (reason) (rate(apiserver_flowcontrol_rejected_requests_total[$__rate_interval])) or vector(0)",
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

const CALLS: Row = (
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

const LEDGER: Row = (
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

const PROCESSES: Row = (
    "Processes",
    &[
        panel(
            "Up",
            "1 while a process answers its scrape.",
            (Lines, "none"),
            &[("up{job=~\"$job\"}", "{{job}} {{instance}}")],
        ),
        panel(
            "Memory",
            "Resident.",
            (Lines, "bytes"),
            &[(
                "process_resident_memory_bytes{job=~\"$job\"}",
                "{{job}} {{instance}}",
            )],
        ),
        panel(
            "CPU",
            "1 is one core.",
            (Lines, "none"),
            &[(
                "rate(process_cpu_seconds_total{job=~\"$job\"}[$__rate_interval])",
                "{{job}} {{instance}}",
            )],
        ),
    ],
);
