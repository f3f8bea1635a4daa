//! What an operator would do: fills the fleet, and empties every node of it once, wave by wave.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use godwit_ledger::{Floor, NewObject, Object, ObjectKey};
use godwit_model::NodeName;
use godwit_model::plan::{Rules, waves};
use serde_json::json;

use super::{Fleet, Limits, Plane};
use crate::lab::tail;

const INSTANCES: &str = "virtualmachineinstances.kubevirt.io";
const MAINTENANCES: &str = "nodemaintenances";
const NAMESPACE: &str = "default";
/// Objects written in one transaction: longer ones would hold the services up.
const BATCH: usize = 100;
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(100);

/// How large the fleet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Nodes.
    pub nodes: usize,
    /// Machines.
    pub machines: usize,
}

/// How the filling went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Filled {
    /// From the first instance's creation until all ran.
    pub took: Duration,
}

/// How the emptying went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emptied {
    /// Nodes of each wave, and how long it took.
    pub waves: Vec<(usize, Duration)>,
}

/// Does it.
#[derive(Debug)]
pub struct Driver<'a> {
    /// The control plane.
    pub plane: &'a Plane,
    /// Its hosts.
    pub fleet: &'a Fleet,
    /// Nodes that are emptied at once, at most; 0 is no limit.
    pub at_once: usize,
    /// Longest wait for one thing.
    pub patience: Duration,
}

impl Driver<'_> {
    /// Sets the limits of migrations. Those of a copy's time are off: the hosts' time runs so fast
    /// that a moment of the services' is minutes of it.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn set_limits(&self, limits: Limits) -> Result<()> {
        let migrations = format!(
            "parallelMigrationsPerCluster: {}\nparallelOutboundMigrationsPerNode: {}\n\
             parallelInboundMigrationsPerNode: {}\ncompletionTimeoutPerGiB: 0\nprogressTimeout: 0\n",
            limits.cluster, limits.outbound, limits.inbound
        );
        let config = NewObject {
            key: ObjectKey::new("configmaps", "kubevirt", "kubevirt-config"),
            uid: None,
            metadata: json!({}),
            body: json!({"data": {"migrations": migrations}}),
            status: None,
        };
        self.create(vec![config]).await
    }

    /// Makes all machines, and waits until the services have found a place for each and started it.
    ///
    /// # Errors
    /// The ledger's, or when that does not happen in time.
    pub async fn fill(&self, size: Size) -> Result<Filled> {
        let ready = "SELECT count(*) FROM node WHERE ready";
        self.until_counted(ready, size.nodes).await?;
        let began = Instant::now();
        let machines = (1..=size.machines).map(instance);
        self.create(machines.collect()).await?;
        let running = "SELECT count(*) FROM instance WHERE state = 'Running'";
        self.until_counted(running, size.machines).await?;
        ensure!(
            self.fleet.running() == size.machines,
            "the hosts run others"
        );
        Ok(Filled {
            took: began.elapsed(),
        })
    }

    /// Empties each node once: as many at a time as is safe, until all were.
    ///
    /// # Errors
    /// When a node can't be emptied, or not in time.
    pub async fn empty_all(&self, say: &dyn Fn(&str)) -> Result<Emptied> {
        let nodes = self.plane.ledger.nodes().await?;
        let mut rest: Vec<NodeName> = nodes.into_iter().map(|node| node.name).collect();
        let mut done = Emptied { waves: vec![] };
        while !rest.is_empty() {
            let wave = self.next_wave(&rest).await?;
            let began = Instant::now();
            self.empty(&wave, done.waves.len()).await?;
            rest.retain(|node| !wave.contains(node));
            done.waves.push((wave.len(), began.elapsed()));
            say(&format!(
                "wave {}: {} nodes in {:.1} s, {} are left",
                done.waves.len(),
                wave.len(),
                began.elapsed().as_secs_f64(),
                rest.len()
            ));
        }
        Ok(done)
    }

    /// Planned anew before each wave, since the services choose targets for themselves.
    async fn next_wave(&self, rest: &[NodeName]) -> Result<BTreeSet<NodeName>> {
        let floor = Floor::glance(&self.plane.ledger).await?;
        let rules = Rules {
            nodes_max: self.at_once,
            spare_node: true,
            ..Rules::default()
        };
        let planned = waves(&mut floor.fleet(), rest, &|_| true, &rules);
        let first = planned.waves.into_iter().next();
        let first = first.with_context(|| format!("no node can be emptied: {:?}", planned.left));
        Ok(first?.nodes.into_iter().collect())
    }

    async fn empty(&self, wave: &BTreeSet<NodeName>, number: usize) -> Result<()> {
        let maintenances = wave.iter().map(|node| maintenance(node, number));
        self.create(maintenances.collect()).await?;
        self.until(|all| {
            let succeeded = |object: &&Object| {
                let status = object.status.as_ref();
                status.is_some_and(|status| status["phase"] == "Succeeded")
            };
            all.iter().filter(succeeded).count() == wave.len()
        })
        .await
        .with_context(|| format!("wave {} of {} nodes", number + 1, wave.len()))?;
        for batch in self.maintenances().await?.chunks(BATCH) {
            let mut tx = self.plane.ledger.begin().await?;
            for object in batch {
                let Some(mut object) = tx.get(&object.key).await? else {
                    continue;
                };
                object.metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                tx.put(&object).await?;
            }
            tx.commit().await?;
        }
        self.until(<[Object]>::is_empty).await
    }

    async fn create(&self, objects: Vec<NewObject>) -> Result<()> {
        for batch in objects.chunks(BATCH) {
            let mut tx = self.plane.ledger.begin().await?;
            for object in batch {
                tx.create(object.clone()).await?;
            }
            tx.commit().await?;
        }
        Ok(())
    }

    async fn maintenances(&self) -> Result<Vec<Object>> {
        Ok(self.plane.ledger.list(MAINTENANCES).await?)
    }

    /// Waits until the maintenances are as wanted.
    async fn until(&self, done: impl Fn(&[Object]) -> bool) -> Result<()> {
        let began = Instant::now();
        loop {
            let all = self.maintenances().await?;
            if done(&all) {
                return Ok(());
            }
            if began.elapsed() > self.patience {
                let last = all.iter().find_map(|object| object.status.as_ref());
                bail!("not in time; one is {last:?}{}", self.last_words());
            }
            tokio::time::sleep(POLL).await; // poll
        }
    }

    async fn until_counted(&self, statement: &'static str, wanted: usize) -> Result<()> {
        let began = Instant::now();
        loop {
            let count = self
                .plane
                .postgres()
                .psql(self.plane.database(), statement)?;
            if count == wanted.to_string() {
                return Ok(());
            }
            if began.elapsed() > self.patience {
                bail!(
                    "{count} of {wanted} in time: {statement}{}",
                    self.last_words()
                );
            }
            tokio::time::sleep(POLL).await; // poll
        }
    }

    /// How the services' logs end, and what is said of one of the machines that don't run.
    fn last_words(&self) -> String {
        let statement = "SELECT status FROM object \
            WHERE resource = 'virtualmachineinstances.kubevirt.io' \
            AND (status IS NULL OR status ->> 'phase' <> 'Running') LIMIT 1";
        let one = self.plane.postgres().psql(self.plane.database(), statement);
        let one = one.unwrap_or_default();
        let files = std::fs::read_dir(self.plane.logs()).into_iter().flatten();
        let ends = files.flatten().map(|file| {
            let name = file.file_name();
            format!("\n{}:\n{}", name.display(), tail(&file.path(), 5))
        });
        ends.fold(format!("\n{one}"), |all, end| all + &end)
    }
}

fn instance(number: usize) -> NewObject {
    NewObject {
        key: ObjectKey::new(INSTANCES, NAMESPACE, format!("vm{number:06}")),
        uid: None,
        metadata: json!({"labels": {"app": format!("app{}", number % 500)}}),
        body: json!({"spec": {
            "evictionStrategy": "LiveMigrate",
            "terminationGracePeriodSeconds": 0,
            "domain": {
                "cpu": {"cores": 2},
                "memory": {"guest": format!("{}Gi", 4 + number % 9)},
                "devices": {
                    "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                    "interfaces": [{"name": "lan", "bridge": {}}],
                },
            },
            "networks": [{"name": "lan", "multus": {"networkName": "lan"}}],
            "volumes": [{
                "name": "root",
                "hostDisk": {"path": "/srv/root.img", "type": "Disk", "shared": true},
            }],
        }}),
        status: None,
    }
}

fn maintenance(node: &NodeName, wave: usize) -> NewObject {
    NewObject {
        key: ObjectKey::new(MAINTENANCES, "", format!("{node}-{wave}")),
        uid: None,
        metadata: json!({}),
        body: json!({"spec": {"nodeName": node, "reason": "the bench's turn"}}),
        status: None,
    }
}
