//! Looks at everything: first the hosts, then the ledger at one moment.
//!
//! In this order, so that whatever a host was told the ledger knows when it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use futures::future::join_all;
use godwit_ledger::{Audit, Ledger, LedgerError, NodeRow, Object, SettingsFound};
use godwit_model::limits::MigrationLimits;
use godwit_model::migration::queue::QueueLimits;
use godwit_model::{JobId, NodeName};
use godwit_rpc::agent::v1::agent_client::AgentClient;
use godwit_rpc::agent::v1::{HostInspection, InspectHostRequest};
use godwit_rpc::{Credentials, client};

use super::finding::Finding;
use super::judge::{judge, judge_history};
use super::world::World;

/// Longest wait for a host: its agent waits for the monitors of its QEMUs in turn.
const HOST_LIMIT: Duration = Duration::from_secs(5);
/// Largest answer of a host: thousands of machines and of halves.
const ANSWER_MAX: usize = 64 << 20;

const INSTANCES: &str = "virtualmachineinstances.kubevirt.io";
const MIGRATIONS: &str = "virtualmachineinstancemigrations.kubevirt.io";
const KUBEVIRTS: &str = "kubevirts.kubevirt.io";
const CONFIG_MAPS: &str = "configmaps";

/// What one look found, and how much it looked at.
#[derive(Debug)]
pub(crate) struct Look {
    /// All that is broken or could not be asked.
    pub(crate) findings: BTreeSet<Finding>,
    /// Hosts.
    pub(crate) hosts: usize,
    /// Machines.
    pub(crate) machines: usize,
    /// Migrations, the final ones included.
    pub(crate) migrations: usize,
    /// QEMU processes.
    pub(crate) qemus: usize,
}

/// Looks once.
///
/// # Errors
/// When the ledger can't be read. A host that can't be asked is a finding.
pub(crate) async fn look(
    ledger: &Ledger,
    credentials: Option<&Credentials>,
) -> anyhow::Result<Look> {
    let nodes = ledger.nodes().await.context("read the nodes")?;
    let hosts = join_all(nodes.iter().map(|node| inspect(node, credentials))).await;
    let mut audit = ledger.audit().await.context("read the ledger")?;
    let world = world(&mut audit, hosts.into_iter().collect()).await;
    let world = world.context("read the ledger")?;
    let mut findings: BTreeSet<Finding> = judge(&world).into_iter().collect();
    let mut migrations = 0;
    let mut last = None;
    loop {
        let page = audit.histories(last.as_ref()).await;
        let page = page.context("read the histories")?;
        let Some(newest) = page.last() else { break };
        last = Some(newest.job.id.clone());
        migrations += page.len();
        let found = page.iter().map(|one| judge_history(one, &world.cordons));
        findings.extend(found.flatten());
    }
    Ok(Look {
        findings,
        hosts: world.hosts.len(),
        machines: world.instances.len(),
        migrations,
        qemus: world.answers().map(|(_, host)| host.qemus.len()).sum(),
    })
}

async fn inspect(
    node: &NodeRow,
    credentials: Option<&Credentials>,
) -> (NodeName, Result<HostInspection, String>) {
    let answer = async {
        let channel = client::connect(&node.agent_address, credentials)?;
        let mut agent = AgentClient::new(channel).max_decoding_message_size(ANSWER_MAX);
        let request = client::within(HOST_LIMIT, InspectHostRequest {});
        let answer = tokio::time::timeout(HOST_LIMIT, agent.inspect_host(request)).await;
        let answer = answer.context("no answer within 5 s")?;
        let answer = answer.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
        anyhow::Ok(answer.into_inner())
    };
    let answer = answer.await.map_err(|error| format!("{error:#}"));
    (node.name.clone(), answer)
}

async fn world(
    audit: &mut Audit,
    hosts: BTreeMap<NodeName, Result<HostInspection, String>>,
) -> Result<World, LedgerError> {
    let instances = audit.instances().await?;
    let reservations = audit.reservations().await?;
    let mut jobs = audit.jobs_open().await?;
    let instance_objects = by_uid(audit.objects(INSTANCES).await?);
    let migration_objects = by_uid(audit.objects(MIGRATIONS).await?);
    let answered = hosts.values().filter_map(|host| host.as_ref().ok());
    let halves = answered.flat_map(|host| host.halves.iter());
    let named = halves.map(|half| half.job.clone());
    let named = named.chain(migration_objects.keys().cloned());
    let mut named: BTreeSet<JobId> = named.filter_map(|id| JobId::parse(id).ok()).collect();
    named.extend(reservations.iter().filter_map(|row| row.job.clone()));
    let named: Vec<JobId> = named.into_iter().collect();
    jobs.extend(audit.jobs(&named).await?);
    Ok(World {
        nodes: audit.nodes().await?,
        instances: instances
            .into_iter()
            .map(|row| (row.uid.clone(), row))
            .collect(),
        reservations,
        jobs: jobs.into_iter().map(|job| (job.id.clone(), job)).collect(),
        limits: limits(
            &audit.objects(KUBEVIRTS).await?,
            &audit.objects(CONFIG_MAPS).await?,
        ),
        instance_objects,
        migration_objects,
        cordons: audit.cordons().await?,
        hosts,
    })
}

fn by_uid(objects: Vec<Object>) -> BTreeMap<String, Object> {
    let objects = objects.into_iter();
    objects.map(|object| (object.uid.clone(), object)).collect()
}

/// The limits that both places ask for. Where one makes no sense, the coordinator keeps to the last
/// good ones, which only it knows.
fn limits(kubevirts: &[Object], config_maps: &[Object]) -> Result<QueueLimits, String> {
    let found = SettingsFound::new(kubevirts, config_maps);
    let (resource, config) = (found.kubevirt?, found.config_map?);
    let last = MigrationLimits::default();
    let (limits, problems) = MigrationLimits::resolve(&last, &resource, &config);
    if let Some(problem) = problems.first() {
        return Err(problem.to_string());
    }
    Ok(limits.queue())
}
