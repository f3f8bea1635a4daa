//! Room on nodes: never more than there is, whoever writes and however many at once.

use crate::ledger_setup::{Setup, machine_id, node, reservation};
use godwit_ledger::{LedgerError, Reserved};
use godwit_model::machine::PageSize;
use godwit_model::placement::{Hugepages, Room};
use godwit_model::{Bytes, MachineId, NodeName};
use sqlx::{Connection, PgConnection};

/// A machine on no node, with an instance.
async fn homeless(setup: &Setup, name: &str, parking: &NodeName) -> MachineId {
    let machine = setup.machine(name, parking).await;
    setup
        .change(async |tx| tx.reservation_release(&machine, parking).await)
        .await;
    machine
}

#[tokio::test]
async fn a_full_node_says_what_is_free_and_a_second_place_is_a_duplicate() {
    let setup = Setup::new().await;
    let [worker1, worker2, worker3] = [
        setup.node("worker1", 1).await,
        setup.node("worker2", 1).await,
        setup.node("worker3", 1).await,
    ];
    let vm1 = setup.machine("vm1", &worker1).await;
    let vm2 = setup.machine("vm2", &worker2).await;

    let mut tx = setup.ledger.begin().await.unwrap();
    let reserved = tx.reserve(reservation(&vm2, &worker1)).await.unwrap();
    let full = Reserved::NoRoom {
        free: Room::default(),
    };
    assert_eq!(reserved, full);
    let again = tx.reserve(reservation(&vm1, &worker1)).await.unwrap();
    assert_eq!(again, Reserved::Duplicate);
    let target = tx.reserve(reservation(&vm1, &worker3)).await.unwrap();
    assert_eq!(target, Reserved::Held);
    let unknown = NodeName::parse("worker9").unwrap();
    let nowhere = tx.reserve(reservation(&vm1, &unknown)).await;
    assert!(matches!(nowhere, Err(LedgerError::NotFound)), "{nowhere:?}");
    tx.node_put(node("worker2", 2)).await.unwrap();
    let third = tx.reserve(reservation(&vm1, &worker2)).await.unwrap();
    assert_eq!(third, Reserved::Duplicate);
    tx.commit().await.unwrap();
    assert_eq!(setup.ledger.reservations().await.unwrap().len(), 3);

    assert!(
        setup
            .change(async |tx| tx.instance_remove(&vm1).await)
            .await
    );
    assert_eq!(setup.ledger.reservations().await.unwrap().len(), 1);
    let mut tx = setup.ledger.begin().await.unwrap();
    let refused = tx.reserve(reservation(&machine_id(), &worker1)).await;
    assert!(
        matches!(&refused, Err(LedgerError::Refused(name)) if name == "reservation_machine_known"),
        "{refused:?}"
    );
    let mut tx = setup.ledger.begin().await.unwrap();
    let refused = tx.node_remove(&worker2).await;
    assert!(
        matches!(refused, Err(LedgerError::Refused(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn concurrent_reservations_never_exceed_the_capacity() {
    const ROOM: usize = 3;
    const ASKING: usize = 10;
    let setup = Setup::new().await;
    let parking = setup.node("parking", ASKING as u64).await;
    let target = setup.node("target", ROOM as u64).await;
    let mut asking = vec![];
    for turn in 0..ASKING {
        let machine = homeless(&setup, &format!("vm{turn}"), &parking).await;
        let (ledger, target) = (setup.ledger.clone(), target.clone());
        asking.push(tokio::spawn(async move {
            let mut tx = ledger.begin().await.unwrap();
            let reserved = tx.reserve(reservation(&machine, &target)).await.unwrap();
            tx.commit().await.unwrap();
            reserved
        }));
    }
    let mut held = 0;
    for reserved in asking {
        held += usize::from(reserved.await.unwrap() == Reserved::Held);
    }
    assert_eq!(held, ROOM);
}

#[tokio::test]
async fn huge_pages_are_booked_apart_and_never_twice() {
    const ROOM: u64 = 3;
    const ASKING: usize = 8;
    let setup = Setup::new().await;
    let parking = setup.node("parking", ASKING as u64).await;
    let mut row = node("target", ASKING as u64);
    row.capacity.hugepages = pages(ROOM);
    let target = row.name.clone();
    let with_pages = row.clone();
    setup.change(async |tx| tx.node_put(with_pages).await).await;
    let mut asking = vec![];
    for turn in 0..ASKING {
        let machine = homeless(&setup, &format!("vm{turn}"), &parking).await;
        let (ledger, target) = (setup.ledger.clone(), target.clone());
        asking.push(tokio::spawn(async move {
            let mut new = reservation(&machine, &target);
            new.room.hugepages = pages(1);
            let mut tx = ledger.begin().await.unwrap();
            let reserved = tx.reserve(new).await.unwrap();
            tx.commit().await.unwrap();
            reserved
        }));
    }
    let mut held = 0;
    for reserved in asking {
        match reserved.await.unwrap() {
            Reserved::Held => held += 1,
            Reserved::NoRoom { free } => assert_eq!(free.hugepages, pages(0)),
            Reserved::Duplicate => panic!("each asks once"),
        }
    }
    assert_eq!(held, ROOM);
    let rows = setup.ledger.reservations().await.unwrap();
    let booked = rows.iter().filter(|row| row.room.hugepages == pages(1));
    assert_eq!(booked.count() as u64, ROOM);

    // The host gave its pages back: that is no reason to refuse who needs none.
    row.capacity.hugepages = pages(0);
    setup.change(async |tx| tx.node_put(row).await).await;
    let plain = homeless(&setup, "plain", &parking).await;
    let new = reservation(&plain, &target);
    let reserved = setup.change(async |tx| tx.reserve(new).await).await;
    assert_eq!(reserved, Reserved::Held);
    let mut sql = PgConnection::connect(&setup.url).await.unwrap();
    let more = homeless(&setup, "more", &parking).await;
    let refused = sqlx::query(
        "INSERT INTO reservation (machine, node, memory_bytes, cpu_milli, hugepages_2mi_bytes) \
         VALUES ($1::uuid, 'target', 0, 0, 2 << 20)",
    )
    .bind(more.as_str().to_owned())
    .execute(&mut sql)
    .await
    .unwrap_err();
    assert_eq!(
        refused.as_database_error().unwrap().constraint(),
        Some("reservation_within_capacity")
    );
}

fn pages(count: u64) -> Hugepages {
    let size = PageSize::Mi2;
    Hugepages::of(size, Bytes(count * size.bytes().0))
}

#[tokio::test]
async fn the_constraint_holds_against_writers_that_take_no_lock() {
    const ROOM: u64 = 3;
    const ASKING: u64 = 8;
    let setup = Setup::new().await;
    let parking = setup.node("parking", ASKING).await;
    setup.node("target", ROOM).await;
    let mut asking = vec![];
    for turn in 0..ASKING {
        let machine = homeless(&setup, &format!("vm{turn}"), &parking).await;
        let url = setup.url.clone();
        asking.push(tokio::spawn(async move {
            let mut sql = PgConnection::connect(&url).await.unwrap();
            sqlx::query(
                "INSERT INTO reservation (machine, node, memory_bytes, cpu_milli) \
                 VALUES ($1::uuid, 'target', 512 << 20, 1000)",
            )
            .bind(machine.as_str().to_owned())
            .execute(&mut sql)
            .await
        }));
    }
    let mut held = 0;
    for inserted in asking {
        match inserted.await.unwrap() {
            Ok(_) => held += 1,
            Err(error) => assert_eq!(
                error.as_database_error().unwrap().constraint(),
                Some("reservation_within_capacity")
            ),
        }
    }
    assert_eq!(held, ROOM);
}
