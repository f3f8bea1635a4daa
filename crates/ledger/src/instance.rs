//! Instances: which machine is on which node, and under which ownership epoch.

use crate::convert::{self, bigint, job_uuid, machine_uuid};
use crate::tx::Statement;
use crate::{Lease, Ledger, LedgerError, ObjectKey, Tx};
use godwit_model::machine::MachineSpec;
use godwit_model::{Epoch, MachineId, NodeName};
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;

/// How far the life of a machine is, as the scheduler sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    /// No node was found yet.
    Unplaced,
    /// Its node was told to start it.
    Starting,
    /// It runs.
    Running,
    /// Its node was told to stop it.
    Stopping,
    /// It ended as wished.
    Stopped,
    /// It ended otherwise.
    Failed,
}

/// One machine.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceRow {
    /// UID of the VirtualMachineInstance.
    pub uid: MachineId,
    /// Key of the VirtualMachineInstance.
    pub key: ObjectKey,
    /// Where it is; `None` before it was placed.
    pub node: Option<NodeName>,
    /// Ownership epoch: grows with every start and every hand-over, from 1.
    pub epoch: Epoch,
    /// How far it is.
    pub state: InstanceState,
    /// What hosts build; `None` before it was placed.
    pub machine: Option<MachineSpec>,
}

/// Resource key of the objects that instances stand for.
const RESOURCE: &str = "virtualmachineinstances.kubevirt.io";

pub(crate) const LIST: &str = "SELECT uid, namespace, name, node, epoch, state, machine FROM instance \
    ORDER BY uid";
const GET: &str = "SELECT uid, namespace, name, node, epoch, state, machine FROM instance \
    WHERE uid = $1";

impl InstanceState {
    /// Name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unplaced => "Unplaced",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Stopping => "Stopping",
            Self::Stopped => "Stopped",
            Self::Failed => "Failed",
        }
    }

    /// Whether the machine is on a node, or on its way there.
    pub const fn is_alive(self) -> bool {
        match self {
            Self::Starting | Self::Running | Self::Stopping => true,
            Self::Unplaced | Self::Stopped | Self::Failed => false,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [
            Self::Unplaced,
            Self::Starting,
            Self::Running,
            Self::Stopping,
            Self::Stopped,
            Self::Failed,
        ]
        .into_iter()
        .find(|state| state.as_str() == name)
    }
}

impl Ledger {
    /// All instances, by UID.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn instances(&self) -> Result<Vec<InstanceRow>, LedgerError> {
        let rows = self.fetch_all(sqlx::query(LIST)).await?;
        rows.iter().map(read).collect()
    }

    /// One instance.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn instance(&self, uid: &MachineId) -> Result<Option<InstanceRow>, LedgerError> {
        let statement = sqlx::query(GET).bind(machine_uuid(uid));
        let row = self.fetch_optional(statement).await?;
        row.as_ref().map(read).transpose()
    }
}

impl Tx {
    /// All instances, by UID.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn instances(&mut self) -> Result<Vec<InstanceRow>, LedgerError> {
        let rows = self.fetch_all(sqlx::query(LIST)).await?;
        rows.iter().map(read).collect()
    }

    /// One instance.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn instance(&mut self, uid: &MachineId) -> Result<Option<InstanceRow>, LedgerError> {
        let statement = sqlx::query(GET).bind(machine_uuid(uid));
        let row = self.fetch_optional(statement).await?;
        row.as_ref().map(read).transpose()
    }

    /// Writes a new instance.
    ///
    /// # Errors
    /// `AlreadyExists`; the transaction goes on. `Refused` when its node isn't known.
    pub async fn instance_create(&mut self, row: InstanceRow) -> Result<(), LedgerError> {
        let statement = sqlx::query(
            "INSERT INTO instance (uid, node, epoch, state, machine, namespace, name) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
        );
        let statement = bind(statement, &row)?
            .bind(&row.key.namespace)
            .bind(&row.key.name);
        if self.execute(statement).await? == 0 {
            return Err(LedgerError::AlreadyExists);
        }
        self.wrote(None);
        Ok(())
    }

    /// Writes node, epoch, state and machine of an instance.
    ///
    /// # Errors
    /// `NotFound`, or `Conflict` when the stored epoch is newer; the transaction goes on.
    /// `Refused` when its node isn't known.
    pub async fn instance_put(&mut self, row: &InstanceRow) -> Result<(), LedgerError> {
        let statement = sqlx::query(
            "UPDATE instance SET node = $2, epoch = $3, state = $4, machine = $5 \
             WHERE uid = $1 AND epoch <= $3",
        );
        if self.execute(bind(statement, row)?).await? == 0 {
            return match self.instance(&row.uid).await? {
                Some(_) => Err(LedgerError::Conflict),
                None => Err(LedgerError::NotFound),
            };
        }
        self.wrote(None);
        Ok(())
    }

    /// Removes an instance and gives back all room it holds. Answers whether there was one.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn instance_remove(&mut self, uid: &MachineId) -> Result<bool, LedgerError> {
        let statement = sqlx::query("DELETE FROM instance WHERE uid = $1").bind(machine_uuid(uid));
        let removed = self.execute(statement).await?;
        self.wrote(None);
        Ok(removed > 0)
    }

    /// Makes `to` the owner of a machine under the next epoch: the room on `from` is given
    /// back, and the room on `to` is bound when the job is over. Answers the new epoch.
    ///
    /// # Errors
    /// `Conflict` when the lease is lost or the machine isn't on `from`; nothing is written then
    /// and the transaction goes on.
    pub async fn hand_over(
        &mut self,
        lease: &Lease,
        uid: &MachineId,
        from: &NodeName,
        to: &NodeName,
    ) -> Result<Epoch, LedgerError> {
        let statement = sqlx::query(include_str!("../queries/instance_hand_over.sql"))
            .bind(machine_uuid(uid))
            .bind(from.as_str())
            .bind(to.as_str())
            .bind(job_uuid(&lease.job.id))
            .bind(bigint(lease.epoch.0));
        let row = self.fetch_optional(statement).await?;
        let row = row.ok_or(LedgerError::Conflict)?;
        self.wrote(None);
        Ok(Epoch(convert::count(&row, "epoch")?))
    }
}

/// Binds five arguments: uid, node, epoch, state, machine.
fn bind<'q>(statement: Statement<'q>, row: &'q InstanceRow) -> Result<Statement<'q>, LedgerError> {
    let machine = row.machine.as_ref().map(serde_json::to_value).transpose();
    Ok(statement
        .bind(machine_uuid(&row.uid))
        .bind(row.node.as_ref().map(NodeName::as_str))
        .bind(bigint(row.epoch.0))
        .bind(row.state.as_str())
        .bind(machine.map_err(|error| LedgerError::Database(sqlx::Error::Encode(error.into())))?))
}

pub(crate) fn read(row: &PgRow) -> Result<InstanceRow, LedgerError> {
    let machine: Option<Json<MachineSpec>> = row.try_get("machine")?;
    let namespace: String = row.try_get("namespace")?;
    let name: String = row.try_get("name")?;
    Ok(InstanceRow {
        uid: convert::id(row, "uid")?,
        key: ObjectKey::new(RESOURCE, namespace, name),
        node: convert::name_maybe(row, "node")?,
        epoch: Epoch(convert::count(row, "epoch")?),
        state: convert::word(row, "state", InstanceState::from_name)?,
        machine: machine.map(|machine| machine.0),
    })
}
