//! The real services over hosts that pretend: a rolling maintenance empties every node once.

use std::time::Duration;

use godwit_testkit::fleet::{Driver, Fleet, FleetOptions, Limits, Plane, Size, read_history};

/// How long anything may take that a busy machine only makes slower.
const PATIENCE: Duration = Duration::from_secs(60);
const SIZE: Size = Size {
    nodes: 12,
    machines: 60,
};
const LIMITS: Limits = Limits {
    cluster: 12,
    outbound: 4,
    inbound: 4,
};

#[tokio::test(flavor = "multi_thread")]
async fn each_node_of_a_fleet_is_emptied_once_and_every_machine_runs() {
    let program = std::env::current_exe().unwrap();
    let bin_dir = program.ancestors().nth(2).unwrap();
    let plane = Plane::start(bin_dir).await.unwrap();
    let options = FleetOptions::standard(SIZE.nodes, plane.scheduler().to_owned());
    let fleet = Fleet::start(options).await.unwrap();
    let driver = Driver {
        plane: &plane,
        fleet: &fleet,
        at_once: 3,
        patience: PATIENCE,
    };
    driver.set_limits(LIMITS).await.unwrap();
    driver.fill(SIZE).await.unwrap();
    driver.roll(&|_| ()).await.unwrap();

    assert_eq!(fleet.violations(), [""; 0]);
    assert_eq!(fleet.running(), SIZE.machines);
    let steps = read_history(&plane.ledger, LIMITS).await.unwrap();
    assert!(
        steps.succeeded >= SIZE.machines,
        "{} moves",
        steps.succeeded
    );
    assert_eq!(steps.failed, 0);
    plane.audit().await.unwrap();
}
