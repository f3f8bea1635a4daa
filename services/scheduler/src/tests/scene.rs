//! A scheduler, a private Postgres, and hosts that only pretend.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use godwit_ledger::{
    InstanceRow, JobChange, JobStep, Lease, Ledger, LedgerConfig, LedgerError, MigrationRequest,
    NewObject, Object, ObjectKey, ReservationRow, TraceContext, Tx,
};
use godwit_model::migration::job::JobState;
use godwit_model::{JobId, MachineId, NodeName};
use godwit_rpc::agent::v1::agent_server::{Agent, AgentServer};
use godwit_rpc::agent::v1::{self as wire, MachineReport, MachineState};
use godwit_rpc::inventory::v1::{HostInventory, HostReport, Hugepages};
use godwit_rpc::server::{self, ServerParts};
use godwit_rpc::{Request, Response, Routes, Status};
use godwit_runtime::metrics::Metrics;
use godwit_testkit::postgres::Postgres;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::inventory::Inventory;
use crate::launch::Agents;
use crate::machines::Machines;
use crate::observe::Seen;
use crate::orders::Orders;
use crate::telemetry::Telemetry;
use crate::world::{INSTANCES, MACHINES, World};

/// Rounds after which things that still move will never rest.
const ROUNDS_MAX: usize = 60;
const MIGRATIONS: &str = "virtualmachineinstancemigrations.kubevirt.io";

/// Machines of a host that only pretends.
#[derive(Debug, Default)]
pub(super) struct Pretence {
    pub(super) machines: Mutex<HashMap<String, MachineReport>>,
    /// Orders, in their order.
    pub(super) orders: Mutex<Vec<&'static str>>,
    /// Why no machine can be started.
    pub(super) refusal: Mutex<Option<&'static str>>,
    /// Guests ignore the power button.
    pub(super) stubborn: Mutex<bool>,
}

impl Pretence {
    /// All machines are in `state` from now on.
    pub(super) fn become_all(&self, state: MachineState) {
        for report in self.machines.lock().unwrap().values_mut() {
            report.state = state.into();
        }
    }

    pub(super) fn count(&self, order: &str) -> usize {
        let orders = self.orders.lock().unwrap();
        orders.iter().filter(|given| **given == order).count()
    }

    fn ordered(&self, order: &'static str) {
        self.orders.lock().unwrap().push(order);
    }
}

#[derive(Debug)]
struct Door(Arc<Pretence>);

fn never<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not a scheduler's order"))
}

#[godwit_rpc::async_trait]
impl Agent for Door {
    async fn start_machine(
        &self,
        request: Request<wire::StartMachineRequest>,
    ) -> Result<Response<MachineReport>, Status> {
        self.0.ordered("start");
        if let Some(why) = *self.0.refusal.lock().unwrap() {
            return Err(Status::failed_precondition(why));
        }
        let request = request.into_inner();
        let spec = request.spec.unwrap();
        let interfaces = spec.nics.iter().map(|nic| wire::InterfaceReport {
            name: nic.name.clone(),
            mac: nic.mac.clone(),
            addresses: vec!["192.168.123.62".into()],
            device: "gw0".into(),
        });
        let report = MachineReport {
            machine: spec.id.clone(),
            state: MachineState::Running.into(),
            interfaces: interfaces.collect(),
            pid: 1,
            epoch: request.epoch,
            ..MachineReport::default()
        };
        let mut machines = self.0.machines.lock().unwrap();
        Ok(Response::new(
            machines.entry(spec.id).or_insert(report).clone(),
        ))
    }

    async fn stop_machine(
        &self,
        request: Request<wire::StopMachineRequest>,
    ) -> Result<Response<MachineReport>, Status> {
        self.0.ordered("stop");
        let stubborn = *self.0.stubborn.lock().unwrap();
        let mut machines = self.0.machines.lock().unwrap();
        let Some(report) = machines.get_mut(&request.into_inner().machine) else {
            return Err(Status::not_found("no such machine"));
        };
        let state = if stubborn {
            MachineState::Stopping
        } else {
            MachineState::Stopped
        };
        report.state = state.into();
        Ok(Response::new(report.clone()))
    }

    async fn forget_machine(
        &self,
        request: Request<wire::MachineRef>,
    ) -> Result<Response<wire::ForgetMachineResponse>, Status> {
        self.0.ordered("forget");
        let machine = request.into_inner().machine;
        self.0.machines.lock().unwrap().remove(&machine);
        Ok(Response::new(wire::ForgetMachineResponse {}))
    }

    async fn inspect_host(
        &self,
        _: Request<wire::InspectHostRequest>,
    ) -> Result<Response<wire::HostInspection>, Status> {
        never()
    }

    async fn pause_machine(
        &self,
        _: Request<wire::MachineRef>,
    ) -> Result<Response<MachineReport>, Status> {
        never()
    }

    async fn unpause_machine(
        &self,
        _: Request<wire::MachineRef>,
    ) -> Result<Response<MachineReport>, Status> {
        never()
    }

    async fn list_machines(
        &self,
        _: Request<wire::ListMachinesRequest>,
    ) -> Result<Response<wire::ListMachinesResponse>, Status> {
        never()
    }

    async fn prepare_target(
        &self,
        _: Request<wire::PrepareTargetRequest>,
    ) -> Result<Response<wire::TargetFact>, Status> {
        never()
    }

    async fn discard_target(
        &self,
        _: Request<wire::JobRef>,
    ) -> Result<Response<wire::TargetFact>, Status> {
        never()
    }

    async fn give_copy_key(
        &self,
        _: Request<wire::CopyKeyRequest>,
    ) -> Result<Response<wire::CopyKey>, Status> {
        never()
    }

    async fn deliver_proof(
        &self,
        _: Request<wire::Proof>,
    ) -> Result<Response<wire::TargetFact>, Status> {
        never()
    }

    async fn start_copy(
        &self,
        _: Request<wire::StartCopyRequest>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        never()
    }

    async fn allow_switchover(
        &self,
        _: Request<wire::JobRef>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        never()
    }

    async fn raise_downtime_limit(
        &self,
        _: Request<wire::RaiseDowntimeLimitRequest>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        never()
    }

    async fn cancel_copy(
        &self,
        _: Request<wire::JobRef>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        never()
    }

    async fn revert_source(
        &self,
        _: Request<wire::JobRef>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        never()
    }

    async fn retire_source(
        &self,
        _: Request<wire::JobRef>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        never()
    }

    type WatchJobStream = tokio_stream::Empty<Result<wire::JobFacts, Status>>;

    async fn watch_job(
        &self,
        _: Request<wire::JobRef>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        never()
    }
}

/// A host that only pretends.
pub(super) struct Host {
    pub(super) name: NodeName,
    pub(super) pretence: Arc<Pretence>,
    address: String,
    memory: u64,
    /// Memory in huge pages of 2 MiB.
    pub(super) hugepages: AtomicU64,
}

impl Host {
    async fn new(name: &str, memory_mib: u64, shutdown: CancellationToken) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bind = listener.local_addr().unwrap();
        let pretence = Arc::new(Pretence::default());
        let parts = ServerParts {
            metrics: Metrics::default(),
            bind,
            identity: None,
            routes: Routes::new(AgentServer::new(Door(Arc::clone(&pretence)))),
            shutdown,
        };
        tokio::spawn(server::serve_on(listener, parts));
        Self {
            name: worker(name),
            pretence,
            address: format!("http://{bind}"),
            memory: memory_mib << 20,
            hugepages: AtomicU64::default(),
        }
    }

    pub(super) fn report(&self) -> HostReport {
        HostReport {
            node: self.name.to_string(),
            agent_address: self.address.clone(),
            boot_id: "boot".into(),
            agent_started_at: "2026-01-01T00:00:00Z".into(),
            inventory: Some(HostInventory {
                memory_bytes: self.memory,
                cpu_milli: 4000,
                accelerator: "tcg".into(),
                qemu_version: "7.2.22".into(),
                machine_types: vec!["pc-q35-7.2".into()],
                cpu_models: vec!["qemu64".into()],
                networks: vec!["lab-net".into()],
                images: vec!["lab-guest".into()],
                labels: HashMap::from([("rack".into(), "a".into())]),
                internal_ip: "10.77.0.11".into(),
                agent_version: "0.1.0".into(),
                hugepages: vec![Hugepages {
                    page_bytes: 2 << 20,
                    total_bytes: self.hugepages.load(Ordering::Relaxed),
                }],
                ..HostInventory::default()
            }),
            machines: self
                .pretence
                .machines
                .lock()
                .unwrap()
                .values()
                .cloned()
                .collect(),
        }
    }
}

pub(super) struct Scene {
    /// Everybody else.
    pub(super) others: Ledger,
    /// The service itself.
    pub(super) machines: Arc<Machines>,
    pub(super) hosts: Vec<Host>,
    url: String,
    shutdown: CancellationToken,
    _postgres: Postgres,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Scene {
    /// Two nodes with room for so much memory.
    pub(super) async fn new(memory_mib: u64) -> Self {
        Self::with(&["worker1", "worker2"], memory_mib).await
    }

    /// These nodes, each with room for so much memory.
    pub(super) async fn with(nodes: &[&str], memory_mib: u64) -> Self {
        let postgres = Postgres::ephemeral().unwrap();
        let admin = postgres.create_database().unwrap();
        postgres.open_service_logins().unwrap();
        let database = admin.split(['/', '?']).nth(3).unwrap();
        let url = postgres.url_as(database, "godwit_scheduler");
        let shutdown = CancellationToken::new();
        let mut hosts = vec![];
        for name in nodes {
            hosts.push(Host::new(name, memory_mib, shutdown.clone()).await);
        }
        let scene = Self {
            others: connect(&admin).await,
            machines: copy(&url, Config::default(), shutdown.clone()).await,
            hosts,
            url,
            shutdown,
            _postgres: postgres,
        };
        scene.hear(&scene.machines).await;
        scene
    }

    /// Another copy of the service, which has heard the hosts.
    pub(super) async fn another(&self) -> Arc<Machines> {
        let machines = copy(&self.url, Config::default(), self.shutdown.clone()).await;
        self.hear(&machines).await;
        machines
    }

    /// Another copy of the service, which has heard nobody.
    pub(super) async fn deaf(&self) -> Arc<Machines> {
        self.deaf_with(Config::default()).await
    }

    /// One of other ways.
    pub(super) async fn deaf_with(&self, config: Config) -> Arc<Machines> {
        copy(&self.url, config, self.shutdown.clone()).await
    }

    /// All hosts report.
    pub(super) async fn hear(&self, machines: &Machines) {
        for host in &self.hosts {
            self.hear_one(machines, host).await;
        }
    }

    pub(super) async fn hear_one(&self, machines: &Machines, host: &Host) {
        let said = machines
            .inventory
            .report(&machines.ledger, host.name.clone(), host.report());
        said.await.unwrap();
    }

    pub(super) async fn write<T>(
        &self,
        work: impl AsyncFnOnce(&mut Tx) -> Result<T, LedgerError>,
    ) -> T {
        let mut tx = self.others.begin().await.unwrap();
        let done = work(&mut tx).await.unwrap();
        tx.commit().await.unwrap();
        done
    }

    /// A virtual machine that shall run all the time.
    pub(super) async fn wish(&self, name: &str) {
        self.wish_for(name, spec()).await;
    }

    pub(super) async fn wish_for(&self, name: &str, spec: Value) {
        let template = json!({ "metadata": { "labels": { "app": "lab" } }, "spec": spec });
        let body = json!({ "spec": { "runStrategy": "Always", "template": template } });
        let new = NewObject {
            key: vm(name),
            uid: None,
            metadata: json!({}),
            body,
            status: None,
        };
        self.write(async |tx| tx.create(new).await).await;
    }

    pub(super) async fn edit(&self, key: &ObjectKey, change: impl FnOnce(&mut Object)) {
        self.write(async |tx| {
            let mut object = tx.get(key).await?.unwrap();
            change(&mut object);
            tx.put(&object).await
        })
        .await;
    }

    /// Rounds, orders and reports until nothing is written any more.
    pub(super) async fn settle(&self) {
        let mut quiet = 0;
        for _ in 0..ROUNDS_MAX {
            let before = self.others.revision().await.unwrap();
            self.machines.round().await.unwrap();
            while self.machines.orders.are_busy() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            self.hear(&self.machines).await;
            let after = self.others.revision().await.unwrap();
            quiet = if before == after { quiet + 1 } else { 0 };
            if quiet == 2 {
                return;
            }
        }
        panic!("it never rests");
    }

    pub(super) async fn get(&self, key: &ObjectKey) -> Object {
        self.others.get(key).await.unwrap().expect("an object")
    }

    pub(super) async fn instance(&self, name: &str) -> Object {
        self.get(&vmi(name)).await
    }

    pub(super) async fn row(&self, name: &str) -> InstanceRow {
        let id = MachineId::parse(self.instance(name).await.uid).unwrap();
        self.others.instance(&id).await.unwrap().expect("a row")
    }

    pub(super) async fn vm_status(&self, name: &str) -> Value {
        self.get(&vm(name)).await.status.unwrap_or_default()
    }

    /// The host that the machine is on.
    pub(super) async fn host_of(&self, name: &str) -> &Host {
        let node = self.row(name).await.node.unwrap();
        self.hosts.iter().find(|host| host.name == node).unwrap()
    }

    pub(super) async fn reservations(&self) -> Vec<ReservationRow> {
        self.others.reservations().await.unwrap()
    }

    /// The events about objects of that kind: reasons and texts.
    pub(super) async fn events(&self, kind: &str) -> Vec<(String, String)> {
        let events = self.others.list("events").await.unwrap();
        let about = |event: &&Object| event.body["involvedObject"]["kind"] == kind;
        let mut events: Vec<_> = events
            .iter()
            .filter(about)
            .map(|event| {
                let text = |field: &str| event.body[field].as_str().unwrap().to_owned();
                (text("reason"), text("message"))
            })
            .collect();
        events.sort();
        events
    }

    /// Asks for a migration of the machine and claims it.
    pub(super) async fn migrate(&self, name: &str, migration: &str) -> Lease {
        let request = MigrationRequest {
            object: NewObject {
                key: ObjectKey::new(MIGRATIONS, "default", migration),
                uid: None,
                metadata: json!({}),
                body: json!({ "spec": { "vmiName": name } }),
                status: None,
            },
            machine: self.row(name).await.uid,
            vmi: vmi(name),
            priority: 0,
            trace: TraceContext::default(),
        };
        self.write(async |tx| tx.migration_request(request).await)
            .await;
        let ttl = Duration::from_secs(60);
        let claimed = self.others.job_claim("me", ttl).await.unwrap();
        claimed.expect("an open job")
    }

    /// Ends a migration that has got nowhere.
    pub(super) async fn fail(&self, lease: &Lease) {
        self.fail_with(lease, JobChange::default()).await;
    }

    /// Ends a migration of which so much is known.
    pub(super) async fn fail_with(&self, lease: &Lease, set: JobChange) {
        let step = JobStep {
            from: JobState::Pending,
            to: JobState::Failed,
            reason: "no".into(),
            set,
        };
        self.write(async |tx| {
            assert!(tx.job_record(lease, step).await?.is_now());
            Ok(())
        })
        .await;
    }
}

pub(super) async fn reserve(
    machines: &Machines,
    (machine, job): (&MachineId, &JobId),
    epoch: u64,
) -> Result<String, Status> {
    let request = godwit_rpc::placement::v1::ReserveRequest {
        machine: machine.to_string(),
        job: job.to_string(),
        epoch,
        inbound_max: 2,
        ..Default::default()
    };
    crate::place::reserve((&machines.ledger, &machines.floor), (machine, job), request)
        .await
        .map(|answer| answer.node)
}

async fn connect(url: &str) -> Ledger {
    let config = LedgerConfig {
        url: url.to_owned(),
        connections_max: 6,
    };
    Ledger::connect(config).await.unwrap()
}

async fn copy(url: &str, config: Config, shutdown: CancellationToken) -> Arc<Machines> {
    Arc::new(Machines {
        inventory: Arc::new(Inventory::new(config.node_silence())),
        config,
        floor: Arc::default(),
        ledger: connect(url).await,
        agents: Arc::new(Agents::new(None)),
        telemetry: Telemetry::default(),
        shutdown,
        orders: Orders::default(),
        keeper: World::keeper().into(),
        seen: Seen::default(),
        epochs: Arc::default(),
    })
}

pub(super) fn worker(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

pub(super) fn vm(name: &str) -> ObjectKey {
    ObjectKey::new(MACHINES, "default", name)
}

pub(super) fn vmi(name: &str) -> ObjectKey {
    ObjectKey::new(INSTANCES, "default", name)
}

pub(super) fn node(name: &str) -> ObjectKey {
    ObjectKey::new("nodes", "", name)
}

/// A machine of 256 MiB with a disk that all hosts share.
pub(super) fn spec() -> Value {
    json!({
        "evictionStrategy": "LiveMigrate",
        "domain": {
            "memory": { "guest": "256Mi" },
            "devices": {
                "disks": [{ "name": "root", "disk": { "bus": "virtio" } }],
                "interfaces": [{ "name": "lab", "bridge": {} }],
            },
        },
        "networks": [{ "name": "lab", "multus": { "networkName": "lab-net" } }],
        "volumes": [{
            "name": "root",
            "hostDisk": { "path": "/srv/root.img", "type": "Disk", "shared": true },
        }],
    })
}
