//! Writes one transition of a job and all that follows from it, in one transaction.
//!
//! The row and its history, what users see of the migration and of the instance, the events, and
//! at the hand-over the ownership of the machine: all of it or nothing. Called by `step.rs`.

use godwit_ledger::{
    EventKind, EventRecord, JobRow, JobStep, Lease, LedgerError, Object, ObjectRef, Recorded, Tx,
};
use godwit_model::NodeName;
use godwit_model::migration::decide::TARGET_MAY_HAVE_RUN;
use godwit_model::migration::fact::Progress;
use godwit_model::migration::job::JobState;
use godwit_model::migration::view::{self, Announcement, MigrationState, Regarding};
use serde_json::{Map, Value, json};

use crate::chapter::Chapter;

/// Finalizer that keeps a migration until it is over.
const FINALIZER: &str = "kubevirt.io/migrationJobFinalize";
/// Label of the instance that names its node.
const NODE_LABEL: &str = "kubevirt.io/nodeName";
/// Label of the instance that names where it is going.
const TARGET_LABEL: &str = "kubevirt.io/migrationTargetNodeName";
/// Condition of a migration that waits, with what for.
pub(crate) const WAITING: &str = "migrationWaiting";

/// What users see of a job, as this transaction has it.
pub(crate) struct Views {
    /// `None` when the migration is gone.
    migration: Option<Object>,
    /// `None` when the instance is gone, or another one has its name.
    instance: Option<Object>,
}

impl Views {
    /// Reads both.
    ///
    /// # Errors
    /// The ledger's.
    pub(crate) async fn read(tx: &mut Tx, job: &JobRow) -> Result<Self, LedgerError> {
        let [migration, instance] = tx.get_two([&job.key, &job.vmi]).await?;
        Ok(Self {
            migration,
            instance: instance.filter(|object| object.uid == job.machine.as_str()),
        })
    }
}

/// Records `chapter` of the leased job at `now` (RFC 3339).
///
/// # Errors
/// The ledger's; nothing is written then.
pub(crate) async fn write(
    tx: &mut Tx,
    lease: &Lease,
    chapter: &Chapter,
    (views, now): (&mut Views, &str),
) -> Result<Recorded, LedgerError> {
    let job = &lease.job;
    let step = JobStep {
        from: job.state,
        to: chapter.to,
        reason: chapter.reason.clone(),
        set: chapter.set.clone(),
    };
    let recorded = tx.job_record(lease, step).await?;
    if matches!(recorded, Recorded::Stale { .. }) {
        return Ok(recorded);
    }
    if chapter.to == JobState::HandedOver
        && let (Some(source), Some(target)) = (&job.source, &job.target)
    {
        tx.hand_over(lease, &job.machine, source, target).await?;
    }
    // After the hand-over the room on the target is the machine's own.
    if chapter.to == JobState::Failed
        && job.state != JobState::HandedOver
        && let Some(target) = &job.target
    {
        tx.reservation_release(&job.machine, target).await?;
    }
    if chapter.to == JobState::Failed && chapter.reason == TARGET_MAY_HAVE_RUN {
        // Its source retired it, or lost its QEMU: nothing there goes on with it.
        match tx.instance_release(&job.machine).await {
            Ok(_) | Err(LedgerError::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    if let Some(instance) = &mut views.instance {
        change(tx, instance, |instance| {
            show_instance(instance, job, chapter)
        })
        .await?;
    }
    let moved = views.instance.as_ref();
    if let Some(migration) = &mut views.migration {
        let show = |migration: &mut Object| show_migration(migration, job, chapter, (moved, now));
        change(tx, migration, show).await?;
    }
    announce(tx, job, chapter, views).await?;
    Ok(recorded)
}

/// Changes an object, and writes it if that made a difference.
async fn change(
    tx: &mut Tx,
    object: &mut Object,
    change: impl FnOnce(&mut Object),
) -> Result<(), LedgerError> {
    let before = object.clone();
    change(object);
    if *object != before {
        *object = tx.put(object).await?;
    }
    Ok(())
}

/// What a migration waits for.
pub(crate) struct Waiting<'a> {
    /// In one word.
    pub(crate) reason: &'a str,
    /// For people.
    pub(crate) message: &'a str,
    /// The numbers of its copy; `None` leaves the ones that were told last.
    pub(crate) progress: Option<&'a Progress>,
}

/// Says on the migration what it waits for.
///
/// # Errors
/// The ledger's.
pub(crate) async fn write_waiting(
    tx: &mut Tx,
    job: &JobRow,
    waiting: Waiting<'_>,
    now: &str,
) -> Result<(), LedgerError> {
    let Some(mut object) = tx.get(&job.key).await? else {
        return Ok(());
    };
    let mut status = take_map(object.status.take());
    let condition = ("True", waiting.reason, waiting.message);
    set_condition(&mut status, WAITING, condition, now);
    if let Some(progress) = waiting.progress {
        status.insert("progress".to_owned(), shown(progress));
    }
    object.status = Some(Value::Object(status));
    tx.put(&object).await?;
    Ok(())
}

/// Records an event about the migration itself.
///
/// # Errors
/// The ledger's.
pub(crate) async fn warn(
    tx: &mut Tx,
    job: &JobRow,
    reason: &str,
    note: &str,
) -> Result<(), LedgerError> {
    let Some(object) = tx.get(&job.key).await? else {
        return Ok(());
    };
    tx.event(EventRecord {
        regarding: reference(&object, "VirtualMachineInstanceMigration"),
        reason: reason.to_owned(),
        note: note.to_owned(),
        kind: EventKind::Warning,
        component: "virtualmachine-controller".to_owned(),
        host: String::new(),
    })
    .await
}

/// Brings the migration's status in line with `chapter`.
fn show_migration(
    object: &mut Object,
    job: &JobRow,
    chapter: &Chapter,
    (instance, now): (Option<&Object>, &str),
) {
    let mut status = take_map(object.status.take());
    if let Some(phase) = view::phase(chapter.to) {
        set_phase(&mut status, phase, now);
    }
    remove_waiting(&mut status);
    if !matches!(chapter.to, JobState::Copying | JobState::SwitchAllowed) {
        status.remove("progress");
    }
    if chapter.to.is_final() {
        if let Some(state) = instance.and_then(|instance| migration_state(instance, job)) {
            status.insert("migrationState".to_owned(), state.clone());
        }
        if let Some(failure) = failure_of(job, chapter) {
            let condition = ("True", "Failed", failure.as_str());
            set_condition(&mut status, "migrationFailed", condition, now);
        }
        remove_finalizer(&mut object.metadata);
    }
    object.status = Some(Value::Object(status));
}

/// What the instance shows of this job; `None` when it shows nothing, or another job.
fn migration_state<'a>(instance: &'a Object, job: &JobRow) -> Option<&'a Value> {
    let state = instance.status.as_ref()?.get("migrationState")?;
    is_about(state, job).then_some(state)
}

/// Brings the instance's status and labels in line with `chapter`.
fn show_instance(object: &mut Object, job: &JobRow, chapter: &Chapter) {
    let mut status = take_map(object.status.take());
    let shown = status.get("migrationState");
    let mine = shown.filter(|state| is_about(state, job)).cloned();
    if chapter.to == JobState::Preparing || mine.is_some() {
        let mut state = take_map(mine);
        merge(&mut state, &chapter.migration_state);
        if chapter.to == JobState::Preparing {
            let pods = status.get("activePods").unwrap_or(&Value::Null);
            name_source(&mut state, pods, &job.vmi.name);
        }
        status.insert("migrationState".to_owned(), Value::Object(state));
    }
    match chapter.to {
        JobState::Preparing => set_label(object, TARGET_LABEL, job.target.as_ref()),
        JobState::HandedOver => arrive(object, &mut status, job),
        JobState::Succeeded | JobState::Failed => set_label(object, TARGET_LABEL, None),
        JobState::Pending
        | JobState::Placing
        | JobState::Reserved
        | JobState::Prepared
        | JobState::Copying
        | JobState::SwitchAllowed
        | JobState::Aborting
        | JobState::NeedsFencing => {}
    }
    object.status = Some(Value::Object(status));
}

/// Names the launcher that the machine leaves: the one that its active pod stands for.
fn name_source(state: &mut Map<String, Value>, active_pods: &Value, instance: &str) {
    let Some(seed) = active_pods.as_object().and_then(|pods| pods.keys().next()) else {
        return;
    };
    let pod = json!(view::launcher_name(instance, seed));
    if let Some(Value::Object(side)) = state.get_mut("sourceState") {
        side.insert("pod".to_owned(), pod.clone());
    }
    state.insert("sourcePod".to_owned(), pod);
}

/// The instance is on its target: what names a node names that one.
fn arrive(object: &mut Object, status: &mut Map<String, Value>, job: &JobRow) {
    let Some(target) = &job.target else { return };
    set_label(object, NODE_LABEL, Some(target));
    status.insert("nodeName".to_owned(), json!(target));
    status.insert("migrationTransport".to_owned(), json!("Unix"));
    status.remove("evacuationNodeName");
    let mut pods = Map::new();
    pods.insert(job.id.as_str().to_owned(), json!(target));
    status.insert("activePods".to_owned(), Value::Object(pods));
}

async fn announce(
    tx: &mut Tx,
    job: &JobRow,
    chapter: &Chapter,
    Views {
        migration,
        instance,
    }: &Views,
) -> Result<(), LedgerError> {
    let (migration, instance) = (migration.as_ref(), instance.as_ref());
    let failure = failure_of(job, chapter).unwrap_or_default();
    let copied = matches!(job.state, JobState::Copying | JobState::SwitchAllowed)
        || instance.and_then(started).is_some();
    let context = view::Context {
        job: &job.id,
        instance: &job.vmi.name,
        source: job.source.as_ref(),
        target: chapter.set.target.as_ref().or(job.target.as_ref()),
        address: chapter.address.as_ref(),
        failure: &failure,
        copied,
    };
    for announcement in view::announcements(chapter.to, context) {
        let regarding = match announcement.regarding {
            Regarding::Instance => instance.map(|o| reference(o, "VirtualMachineInstance")),
            Regarding::Migration => {
                migration.map(|o| reference(o, "VirtualMachineInstanceMigration"))
            }
        };
        if let Some(regarding) = regarding {
            tx.event(record_of(announcement, regarding)).await?;
        }
    }
    Ok(())
}

fn record_of(announcement: Announcement, regarding: ObjectRef) -> EventRecord {
    EventRecord {
        regarding,
        reason: announcement.reason.to_owned(),
        note: announcement.note,
        kind: if announcement.warning {
            EventKind::Warning
        } else {
            EventKind::Normal
        },
        component: announcement.component.to_owned(),
        host: announcement.host.map(String::from).unwrap_or_default(),
    }
}

fn reference(object: &Object, kind: &str) -> ObjectRef {
    ObjectRef {
        api_version: "kubevirt.io/v1".to_owned(),
        kind: kind.to_owned(),
        resource: object.key.resource.clone(),
        namespace: object.key.namespace.clone(),
        name: object.key.name.clone(),
        uid: object.uid.clone(),
    }
}

/// The failure to show: what the row keeps, or what this transition brings.
fn failure_of(job: &JobRow, chapter: &Chapter) -> Option<String> {
    match chapter.to {
        JobState::Failed | JobState::Aborting | JobState::NeedsFencing => {
            job.failure.clone().or_else(|| Some(chapter.reason.clone()))
        }
        JobState::Pending
        | JobState::Placing
        | JobState::Reserved
        | JobState::Preparing
        | JobState::Prepared
        | JobState::Copying
        | JobState::SwitchAllowed
        | JobState::HandedOver
        | JobState::Succeeded => None,
    }
}

fn started(instance: &Object) -> Option<&str> {
    instance
        .status
        .as_ref()?
        .get("migrationState")?
        .get("startTimestamp")?
        .as_str()
}

fn is_about(state: &Value, job: &JobRow) -> bool {
    state.get("migrationUid").and_then(Value::as_str) == Some(job.id.as_str())
}

/// Adds the parts that `part` has to `state`; what it lacks stays.
fn merge(state: &mut Map<String, Value>, part: &MigrationState) {
    if let Ok(Value::Object(fields)) = serde_json::to_value(part) {
        state.extend(fields);
    }
}

fn set_phase(status: &mut Map<String, Value>, phase: &str, now: &str) {
    if status.get("phase").and_then(Value::as_str) == Some(phase) {
        return;
    }
    status.insert("phase".to_owned(), json!(phase));
    let times = status
        .entry("phaseTransitionTimestamps")
        .or_insert_with(|| json!([]));
    if let Value::Array(times) = times {
        times.push(json!({ "phase": phase, "phaseTransitionTimestamp": now }));
    }
}

fn remove_waiting(status: &mut Map<String, Value>) {
    if let Some(Value::Array(conditions)) = status.get_mut("conditions") {
        conditions.retain(|condition| condition["type"] != WAITING);
        if conditions.is_empty() {
            status.remove("conditions");
        }
    }
}

/// The numbers of a copy under way, for programs.
fn shown(progress: &Progress) -> Value {
    json!({
        "pass": progress.passes,
        "totalBytes": progress.total,
        "remainingBytes": progress.remaining,
        "transferredBytes": progress.transferred,
        "bytesPerSecond": progress.throughput,
        "dirtyBytesPerSecond": progress.dirty_rate,
    })
}

fn set_condition(
    status: &mut Map<String, Value>,
    kind: &str,
    (value, reason, message): (&str, &str, &str),
    now: &str,
) {
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Value::Array(conditions) = conditions else {
        return;
    };
    let found = conditions
        .iter_mut()
        .find(|condition| condition["type"] == kind);
    let since = match &found {
        Some(old) if old["status"] == value => old["lastTransitionTime"].clone(),
        Some(_) | None => json!(now),
    };
    let condition = json!({
        "type": kind,
        "status": value,
        "reason": reason,
        "message": message,
        "lastProbeTime": null,
        "lastTransitionTime": since,
    });
    match found {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}

fn set_label(object: &mut Object, label: &str, node: Option<&NodeName>) {
    let Value::Object(metadata) = &mut object.metadata else {
        return;
    };
    let labels = metadata.entry("labels").or_insert_with(|| json!({}));
    let Value::Object(labels) = labels else {
        return;
    };
    match node {
        Some(node) => {
            labels.insert(label.to_owned(), json!(node));
        }
        None => {
            labels.remove(label);
        }
    }
}

fn remove_finalizer(metadata: &mut Value) {
    if let Some(Value::Array(finalizers)) = metadata.get_mut("finalizers") {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
}

fn take_map(value: Option<Value>) -> Map<String, Value> {
    match value {
        Some(Value::Object(map)) => map,
        Some(_) | None => Map::new(),
    }
}
