//! Nodes: under maintenance, and all of them.

use super::{Row, panel};
use crate::dashboards::Kind::{Lines, Stacked, Stat};

pub(super) const DRAINS: Row = (
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
                "sum by (node) (max by (node, namespace, name) (kubevirt_vmi_non_evictable{job=\"scheduler\"}))",
                "{{node}}",
            )],
        ),
    ],
);

pub(super) const ROLLINGS: Row = (
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

pub(super) const FLEET_NOW: Row = (
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
            "Of nodes that are ready. Below nothing, the fleet could not take in what runs on its largest node.",
            (Stat, "bytes"),
            &[("godwit:room_without_largest_node:bytes", "")],
        ),
        panel(
            "Versions",
            "Versions that run at the same time; two for long is an update that stuck.",
            (Stat, "none"),
            &[("count(count by (version, commit) (godwit_build_info))", "")],
        ),
    ],
);

pub(super) const FLEET_TIME: Row = (
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
                "count by (phase) (max by (namespace, name, phase) (kubevirt_vmi_info{job=\"scheduler\"}))",
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
                "histogram_quantile(0.95, sum by (le) (increase(kubevirt_vmi_phase_transition_time_from_creation_seconds_bucket{job=\"scheduler\", phase=\"Running\"}[$__range])))",
                "95 %",
            )],
        ),
    ],
);
