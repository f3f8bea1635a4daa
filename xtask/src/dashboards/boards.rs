//! What the dashboards show. Replicas that count the same thing are joined by `max`.
//!
//! A metric whose name is not ours alone is selected by its job: the same Prometheus may watch a
//! cluster's own kube-apiserver and KubeVirt.

mod control_plane;
mod fleet;
mod migrations;

use super::{Board, Panel};
use control_plane::{API, CALLS, LEDGER, PROCESSES};
use fleet::{DRAINS, FLEET_NOW, FLEET_TIME, ROLLINGS};
use migrations::{MIGRATIONS_COPIES, MIGRATIONS_NOW, MIGRATIONS_PAST, ONE_COPY, ONE_TRACES};

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
            (
                "namespace",
                "Namespace",
                "kubevirt_vmi_info{job=\"scheduler\"}",
            ),
            ("name", "Instance", "kubevirt_vmi_info{job=\"scheduler\"}"),
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
        variables: &[("job", "Service", "godwit_build_info")],
        rows: &[API, CALLS, LEDGER, PROCESSES],
    },
];
