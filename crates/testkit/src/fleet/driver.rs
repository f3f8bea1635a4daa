//! What an operator would do: fills the fleet, and has every node of it emptied once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use godwit_ledger::{LedgerError, NewObject, ObjectKey, retry};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Fleet, Limits, Plane};
use crate::lab::tail;

const INSTANCES: &str = "virtualmachineinstances.kubevirt.io";
const ROLLINGS: &str = "rollingmaintenances.godwit.io";
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

/// How the rolling maintenance went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rolled {
    /// Nodes of each wave, and the time from its first one's beginning to its last one's end.
    pub waves: Vec<(usize, Duration)>,
}

impl Rolled {
    fn read(nodes: &[Value]) -> Result<Self> {
        let mut waves: BTreeMap<&str, (usize, Timestamp, Timestamp)> = BTreeMap::new();
        for node in nodes {
            let time = |field: &str| -> Result<Timestamp> {
                let text = node[field].as_str();
                Ok(text
                    .with_context(|| format!("no {field}: {node}"))?
                    .parse()?)
            };
            let (began, ended) = (time("startedAt")?, time("endedAt")?);
            let name = node["wave"].as_str().context("a wave")?;
            let wave = waves.entry(name).or_insert((0, began, ended));
            *wave = (wave.0 + 1, wave.1.min(began), wave.2.max(ended));
        }
        let waves = waves.into_values();
        Ok(Self {
            waves: waves
                .map(|(nodes, began, ended)| Ok((nodes, ended.duration_since(began).try_into()?)))
                .collect::<Result<_>>()?,
        })
    }
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
    /// Longest wait for one thing: the filling, or the next node's end.
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

    /// Has each node emptied once by a RollingMaintenance over all of them, as many at a time as is
    /// safe, until it is over. Tells how far it is.
    ///
    /// # Errors
    /// When it ends otherwise than well, or nothing moves for too long.
    pub async fn roll(&self, say: &dyn Fn(&str)) -> Result<Rolled> {
        self.create(vec![rolling(self.at_once)]).await?;
        let (mut done, mut since) = (0, Instant::now());
        loop {
            tokio::time::sleep(POLL).await; // poll
            // A busy machine may leave a reader without a connection.
            let status = retry(|| self.rolling()).await?;
            let nodes = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
            let over = nodes.iter().filter(|node| node["state"] == "Done").count();
            if over > done {
                (done, since) = (over, Instant::now());
                say(&format!("{done} of {} nodes are done", nodes.len()));
            }
            match status["phase"].as_str() {
                Some("Succeeded") => return Rolled::read(nodes),
                Some("Failed" | "Aborted") => bail!("it ended badly: {}", status["message"]),
                _ if since.elapsed() > self.patience => bail!(
                    "nothing moves; {}: {}{}",
                    status["phase"],
                    status["message"],
                    self.last_words()
                ),
                _ => {}
            }
        }
    }

    async fn rolling(&self) -> Result<Value, LedgerError> {
        let all = self.plane.ledger.list(ROLLINGS).await?;
        let one = all.into_iter().next().ok_or(LedgerError::NotFound)?;
        Ok(one.status.unwrap_or_default())
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

/// Without a limit for 0 nodes.
fn rolling(at_once: usize) -> NewObject {
    let max = match at_once {
        0 => json!("Safe"),
        nodes => json!(nodes),
    };
    NewObject {
        key: ObjectKey::new(ROLLINGS, "", "the-benchs-turn"),
        uid: None,
        metadata: json!({}),
        body: json!({"spec": {"nodeSelector": {}, "maxUnavailable": max, "spareNode": true}}),
        status: None,
    }
}
