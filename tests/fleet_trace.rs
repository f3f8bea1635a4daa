//! What the real services tell a collector of maintenances and migrations, over hosts that pretend; and
//! that they don't mind a collector that hangs or is not there.

use std::collections::BTreeSet;
use std::time::Duration;

use godwit_testkit::collector::{self, Collector, Protocol, Seen};
use godwit_testkit::fleet::{Driver, Fleet, FleetOptions, Limits, Plane, Size, Telling};

use crate::trace_checks::{leads_to_migrations, orphans, part, statements};

/// How long anything may take that a busy machine only makes slower.
const PATIENCE: Duration = Duration::from_secs(60);
const SIZE: Size = Size {
    nodes: 6,
    machines: 12,
};
const LIMITS: Limits = Limits {
    cluster: 12,
    outbound: 4,
    inbound: 4,
};
/// The states of a migration that succeeds and lasts.
const STEPS: [&str; 4] = ["Pending", "Placing", "Copying", "HandedOver"];

/// Has each node of a fleet emptied once, and ends the services as an init system does.
async fn empty_each_node(collector: (u16, Protocol)) {
    let program = std::env::current_exe().unwrap();
    let bin_dir = program.ancestors().nth(2).unwrap();
    let telling = Telling::to(Some(collector));
    let plane = Plane::start_telling(bin_dir, telling).await.unwrap();
    let options = FleetOptions::standard(SIZE.nodes, plane.scheduler().to_owned());
    let fleet = Fleet::start(options).await.unwrap();
    let driver = Driver {
        plane: &plane,
        fleet: &fleet,
        at_once: 2,
        patience: PATIENCE,
    };
    driver.set_limits(LIMITS).await.unwrap();
    driver.fill(SIZE).await.unwrap();
    driver.roll(&|_| ()).await.unwrap();
    assert_eq!(fleet.running(), SIZE.machines);
    assert_eq!(fleet.violations(), [""; 0]);
    tokio::task::block_in_place(|| plane.terminate()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn fleet_traces_lead_from_each_maintenance_to_its_migrations_and_their_statements() {
    let (collector, port) = Collector::start().unwrap();
    empty_each_node((port, Protocol::Http)).await;
    let all = collector.all();
    let wholes: Vec<&Seen> = all
        .iter()
        .filter(|span| span.name == "maintenance")
        .collect();
    let nodes: BTreeSet<&str> = wholes.iter().map(|span| span.text("godwit.node")).collect();
    assert_eq!((wholes.len(), nodes.len()), (SIZE.nodes, SIZE.nodes));
    let traces: BTreeSet<&str> = wholes.iter().map(|span| span.trace.as_str()).collect();
    assert_eq!(traces.len(), SIZE.nodes);
    let mut evacuations = vec![];
    for whole in wholes {
        assert!(!whole.failed, "{whole:#?}");
        let spans = collector.trace(&whole.trace);
        assert!(orphans(&spans).is_empty(), "{spans:#?}");
        part(&spans, "reopen", whole).unwrap();
        let moved = leads_to_migrations(whole, &collector).unwrap();
        if !moved.is_empty() {
            part(&spans, "leave", whole).unwrap();
        }
        evacuations.extend(moved);
    }
    let asked = all.iter().filter(|span| span.name == "evacuation");
    assert_eq!(asked.count(), evacuations.len());
    assert!(evacuations.len() >= SIZE.machines, "{evacuations:#?}");
    for first in evacuations {
        let spans = collector.trace(&first.trace);
        assert!(orphans(&spans).is_empty(), "{spans:#?}");
        for name in STEPS {
            let step = part(&spans, name, &first).unwrap();
            assert!(step.began <= step.ended);
        }
        let copying = part(&spans, "Copying", &first).unwrap();
        let record = part(&spans, "record", copying).unwrap();
        let values = [copying.text("godwit.job"), copying.text("godwit.migration")];
        let told = statements(&spans, &values).unwrap();
        for name in ["SELECT revision_lock", "COMMIT"] {
            part(&spans, name, record).unwrap();
        }
        let written = told.iter().filter(|one| one.parent == record.id);
        let written = written.filter(|one| one.name.contains("INSERT migration_transition"));
        assert!(written.count() > 0, "{spans:#?}");
        let lock = part(&spans, "SELECT revision_lock", record).unwrap();
        assert_eq!(lock.text("db.response.returned_rows"), "1");
        let place = part(&spans, "Placing", &first).unwrap();
        let reserve = "godwit.placement.v1.Placement/Reserve";
        let reserve = spans
            .iter()
            .find(|one| one.parent == place.id && one.name == reserve);
        let reserve = reserve.expect("the scheduler's part");
        assert!(
            told.iter().any(|one| one.parent == reserve.id),
            "{spans:#?}"
        );
    }
    // What loops ask by themselves is told nobody.
    let alone = all
        .iter()
        .filter(|span| !span.text("db.query.text").is_empty());
    assert_eq!(alone.filter(|span| span.parent.is_empty()).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn fleet_moves_on_and_ends_in_time_beside_collectors_that_hang_or_are_not_there() {
    for (port, protocol) in [
        (collector::silent(), Protocol::Http),
        (collector::silent(), Protocol::Grpc),
        (collector::dead(), Protocol::Http),
    ] {
        empty_each_node((port.unwrap(), protocol)).await;
    }
}
