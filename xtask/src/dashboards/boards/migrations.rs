//! All migrations, and one.

use super::{Row, panel};
use crate::dashboards::Kind::{Lines, Stacked, Stat, Traced, Traces};

pub(super) const MIGRATIONS_NOW: Row = (
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
            &[(
                "max(kubevirt_vmi_migrations_in_pending_phase{job=\"migration-coordinator\"})",
                "",
            )],
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

pub(super) const MIGRATIONS_COPIES: Row = (
    "Copies under way",
    &[
        panel(
            "Still to copy",
            "Memory that still differs. A line that does not fall is a copy that does not converge.",
            (Lines, "bytes"),
            &[(
                "kubevirt_vmi_migration_data_remaining_bytes{job=\"node-agent\"}",
                "{{namespace}}/{{name}}",
            )],
        ),
        panel(
            "Copied against dirtied",
            "A copy converges while more is copied than the guest dirties.",
            (Lines, "Bps"),
            &[
                (
                    "kubevirt_vmi_migration_memory_transfer_rate_bytes{job=\"node-agent\"}",
                    "{{name}} copied",
                ),
                (
                    "kubevirt_vmi_migration_dirty_memory_rate_bytes{job=\"node-agent\"}",
                    "{{name}} dirtied",
                ),
            ],
        ),
        panel(
            "Sent in all",
            "What all copies send at the moment.",
            (Lines, "Bps"),
            &[(
                "sum by (node) (kubevirt_vmi_migration_memory_transfer_rate_bytes{job=\"node-agent\"})",
                "from {{node}}",
            )],
        ),
    ],
);

pub(super) const MIGRATIONS_PAST: Row = (
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

pub(super) const ONE_COPY: Row = (
    "Copy",
    &[
        panel(
            "Still to copy",
            "Memory that still differs, of all that has to be copied.",
            (Lines, "bytes"),
            &[
                (
                    "kubevirt_vmi_migration_data_remaining_bytes{job=\"node-agent\", namespace=~\"$namespace\", name=~\"$name\"}",
                    "{{name}} left",
                ),
                (
                    "kubevirt_vmi_migration_data_bytes_total{job=\"node-agent\", namespace=~\"$namespace\", name=~\"$name\"}",
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
                    "kubevirt_vmi_migration_memory_transfer_rate_bytes{job=\"node-agent\", namespace=~\"$namespace\", name=~\"$name\"}",
                    "{{name}} copied",
                ),
                (
                    "kubevirt_vmi_migration_dirty_memory_rate_bytes{job=\"node-agent\", namespace=~\"$namespace\", name=~\"$name\"}",
                    "{{name}} dirtied",
                ),
            ],
        ),
        panel(
            "Sent",
            "Bytes sent so far; more than the memory, when pages were sent again.",
            (Lines, "bytes"),
            &[(
                "kubevirt_vmi_migration_data_processed_bytes{job=\"node-agent\", namespace=~\"$namespace\", name=~\"$name\"}",
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

pub(super) const ONE_TRACES: Row = (
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
