//! What the tests of the ledger begin with: a database of their own, and things to put in it.

use godwit_ledger::{
    Capacity, InstanceRow, InstanceState, JobChange, JobStep, Lease, Ledger, LedgerConfig,
    LedgerError, MigrationRequest, NewObject, NewReservation, NodeRow, Object, ObjectKey, Recorded,
    Reserved, TraceContext, Tx,
};
use godwit_model::migration::job::JobState;
use godwit_model::placement::{Hugepages, Room};
use godwit_model::{Bytes, Epoch, JobId, MachineId, NodeName};
use godwit_testkit::postgres::Postgres;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

pub(crate) const VMI: &str = "virtualmachineinstances.kubevirt.io";
pub(crate) const VMIM: &str = "virtualmachineinstancemigrations.kubevirt.io";
/// Lease of jobs whose expiry isn't the point.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A private Postgres with an empty ledger.
pub(crate) struct Setup {
    pub(crate) postgres: Arc<Postgres>,
    pub(crate) url: String,
    pub(crate) ledger: Ledger,
}

impl Setup {
    pub(crate) async fn new() -> Self {
        let postgres = Arc::new(Postgres::ephemeral().unwrap());
        let url = postgres.create_database().unwrap();
        let ledger = connect(&url).await;
        Self {
            postgres,
            url,
            ledger,
        }
    }

    /// The same database under another URL.
    pub(crate) async fn under(&self, url: &str) -> Self {
        Self {
            postgres: Arc::clone(&self.postgres),
            url: url.to_owned(),
            ledger: connect(url).await,
        }
    }

    /// A connection beside the ledger, as somebody with psql would have.
    pub(crate) async fn sql(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    /// A node with room for `machines` machines of [`reservation`].
    pub(crate) async fn node(&self, name: &str, machines: u64) -> NodeName {
        let node = node(name, machines);
        let name = node.name.clone();
        self.change(async |tx| tx.node_put(node).await).await;
        name
    }

    /// A machine that runs on `node`, which holds room for it.
    pub(crate) async fn machine(&self, name: &str, node: &NodeName) -> MachineId {
        let uid = machine_id();
        let row = InstanceRow {
            uid: uid.clone(),
            key: ObjectKey::new(VMI, "default", name),
            node: Some(node.clone()),
            epoch: Epoch(1),
            state: InstanceState::Running,
            machine: None,
        };
        let room = reservation(&uid, node);
        self.change(async |tx| {
            tx.instance_create(row).await?;
            assert_eq!(tx.reserve(room).await?, Reserved::Held);
            Ok(())
        })
        .await;
        uid
    }

    pub(crate) async fn request(&self, name: &str, machine: &MachineId) -> JobId {
        let request = request(name, machine);
        let object = self.change(async |tx| tx.migration_request(request).await);
        JobId::parse(object.await.uid).unwrap()
    }

    /// Claims the only claimable job.
    pub(crate) async fn claim(&self, owner: &str) -> Lease {
        let lease = self.ledger.job_claim(owner, LONG).await.unwrap();
        lease.expect("a job to claim")
    }

    /// Extends a lease; answers whether it was not lost.
    pub(crate) async fn renew(&self, lease: &Lease, ttl: Duration) -> bool {
        let leases = [(lease.job.id.clone(), lease.epoch)];
        let lost = self.ledger.jobs_renew(&lease.owner, &leases, ttl).await;
        lost.unwrap().is_empty()
    }

    pub(crate) async fn record(&self, lease: &Lease, from: JobState, to: JobState) -> Recorded {
        self.change(async |tx| tx.job_record(lease, step(from, to)).await)
            .await
    }

    /// Records a step that nobody else stands against.
    pub(crate) async fn advance(&self, lease: &Lease, from: JobState, to: JobState) {
        assert!(self.record(lease, from, to).await.is_now());
    }

    /// Begins, does `work`, commits.
    pub(crate) async fn change<T>(
        &self,
        work: impl AsyncFnOnce(&mut Tx) -> Result<T, LedgerError>,
    ) -> T {
        let mut tx = self.ledger.begin().await.unwrap();
        let done = work(&mut tx).await.unwrap();
        tx.commit().await.unwrap();
        done
    }

    pub(crate) async fn create(&self, name: &str) -> Object {
        let new = config_map(name);
        self.change(async |tx| tx.create(new).await).await
    }
}

pub(crate) async fn connect(url: &str) -> Ledger {
    let config = LedgerConfig {
        url: url.to_owned(),
        connections_max: 8,
    };
    Ledger::connect(config).await.unwrap()
}

pub(crate) fn machine_id() -> MachineId {
    MachineId::parse(Uuid::new_v4().to_string()).unwrap()
}

pub(crate) fn node(name: &str, machines: u64) -> NodeRow {
    NodeRow {
        name: NodeName::parse(name).unwrap(),
        agent_address: "https://10.77.0.11:7110".into(),
        boot_id: Uuid::new_v4().to_string(),
        ready: true,
        capacity: Capacity {
            memory: Bytes::mib(512 * machines),
            cpu_milli: 1000 * machines,
            hugepages: Hugepages::default(),
        },
        facts: json!({"accelerator": "kvm"}),
        heartbeat_at: "2026-01-31T12:00:00.123456Z".parse().unwrap(),
    }
}

pub(crate) fn reservation(machine: &MachineId, node: &NodeName) -> NewReservation {
    NewReservation {
        machine: machine.clone(),
        node: node.clone(),
        job: None,
        room: Room {
            memory: Bytes::mib(512),
            cpu_milli: 1000,
            ..Room::default()
        },
    }
}

pub(crate) fn request(name: &str, machine: &MachineId) -> MigrationRequest {
    MigrationRequest {
        object: NewObject {
            key: ObjectKey::new(VMIM, "default", name),
            ..object(json!({"spec": {"vmiName": "vm1"}}))
        },
        machine: machine.clone(),
        vmi: ObjectKey::new(VMI, "default", "vm1"),
        priority: 0,
        trace: TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
    }
}

pub(crate) fn step(from: JobState, to: JobState) -> JobStep {
    JobStep {
        from,
        to,
        reason: format!("{from} is done"),
        set: JobChange::default(),
    }
}

pub(crate) fn config_map(name: &str) -> NewObject {
    NewObject {
        key: ObjectKey::new("configmaps", "default", name),
        ..object(json!({"data": {"colour": "green"}}))
    }
}

fn object(body: Value) -> NewObject {
    NewObject {
        key: ObjectKey::new("configmaps", "default", "unnamed"),
        uid: None,
        metadata: json!({}),
        body,
        status: None,
    }
}
