//! The real halves of both hosts, numbered, so that a state of the whole system is small.
//!
//! Two halves that differ in words for people alone have one number. What a half makes of an event
//! is asked of the real code once, and remembered.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use godwit_model::migration::decide::Command;
use godwit_model::migration::fact::TargetAddress;
use godwit_model::migration::grant::{ProcessIdentity, Proof};
use godwit_model::migration::source::{CopyStatus, Source, SourceEffect, SourceEvent};
use godwit_model::migration::target::{LoadStatus, Target, TargetEffect, TargetEvent};
use godwit_model::{Epoch, JobId, MachineId, NodeName};
use serde_json::Value;

/// When everything happens: no decision may rest on time, so it stands still.
const NOW: Duration = Duration::from_secs(1_000);
/// Past every deadline.
const LATE: Duration = Duration::from_secs(1_000_000);

/// What a source's QEMU says of its copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outgoing {
    /// Nothing was begun, or what was is over and was reverted.
    None,
    /// Memory travels, the guest runs.
    Active,
    /// The guest is stopped and QEMU waits.
    PreSwitchover,
    /// The last pages travel.
    Device,
    /// The guest went over, and its pages are served.
    Serving,
    /// Over, the guest is stopped.
    Completed,
    /// Over, the guest runs.
    Failed,
    /// Over, the guest runs.
    Cancelled,
}

/// An event of a source half, without words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SourceInput {
    /// An order.
    Start(u8),
    /// An order.
    Allow(u8),
    /// The copy is to end by post-copy.
    Postcopy(u8),
    /// An order.
    Cancel(u8),
    /// An order.
    Revert(u8),
    /// An order.
    Retire(u8),
    /// QEMU says.
    Copy(Outgoing),
    /// QEMU says, to an agent that started again.
    Adopted(Outgoing),
    /// QEMU ended.
    Gone,
    /// The target has the proof.
    ProofTaken,
    /// A deadline has passed.
    Tick,
}

/// What a target's QEMU says of its copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Incoming {
    /// Waiting for data, or loading.
    Active,
    /// Loaded but for memory that follows, the guest is paused.
    Postcopy,
    /// Loaded, the guest is paused.
    Completed,
    /// The guest runs, and memory follows.
    Fetching,
    /// The guest runs.
    Running,
}

/// An event of a target half, without words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum TargetInput {
    /// An order.
    Prepare(u8),
    /// An order.
    Discard(u8),
    /// An order.
    Abandon(u8),
    /// QEMU listens.
    Listening,
    /// QEMU could not be brought up.
    PrepareFailed,
    /// QEMU says.
    Load(Incoming),
    /// QEMU says, to an agent that started again.
    Adopted(Incoming),
    /// The source's host proves.
    Proof,
    /// The guest was continued.
    Continued,
    /// QEMU ended.
    Gone,
    /// A deadline has passed.
    Tick,
}

/// What an order is to the source's half; `None` for an order to the target.
pub(crate) const fn source_input(command: Command, by: u8) -> Option<SourceInput> {
    Some(match command {
        Command::StartCopy => SourceInput::Start(by),
        Command::AllowSwitchover => SourceInput::Allow(by),
        Command::CancelCopy => SourceInput::Cancel(by),
        Command::RevertSource => SourceInput::Revert(by),
        Command::RetireSource => SourceInput::Retire(by),
        Command::PrepareTarget | Command::DiscardTarget | Command::AbandonTarget => return None,
    })
}

/// What an order is to the target's half; `None` for an order to the source.
pub(crate) const fn target_input(command: Command, by: u8) -> Option<TargetInput> {
    Some(match command {
        Command::PrepareTarget => TargetInput::Prepare(by),
        Command::DiscardTarget => TargetInput::Discard(by),
        Command::AbandonTarget => TargetInput::Abandon(by),
        Command::StartCopy
        | Command::AllowSwitchover
        | Command::CancelCopy
        | Command::RevertSource
        | Command::RetireSource => return None,
    })
}

/// A half of a host: the real one.
pub(crate) trait Half: Clone + Default {
    type Input: Copy + Eq + Hash + Debug;
    type Effect: Copy;

    /// The effects of an input; `None` when the half refuses it.
    fn take(&mut self, input: Self::Input) -> Option<Vec<Self::Effect>>;
    /// As it is on disk.
    fn written(&self) -> Value;
    /// As it is read from the disk.
    fn read(value: Value) -> Self;
    /// When it wants a tick.
    fn deadline(&self) -> Option<Duration>;
    /// Highest epoch that commanded it.
    fn fence(&self) -> Epoch;
    /// Of an order, under which epoch it was given; `None` for what is no order.
    fn epoch_of(input: Self::Input) -> Option<Epoch>;
}

impl Half for Source {
    type Input = SourceInput;
    type Effect = SourceEffect;

    fn take(&mut self, input: SourceInput) -> Option<Vec<SourceEffect>> {
        let now = if input == SourceInput::Tick {
            LATE
        } else {
            NOW
        };
        self.handle(source_event(input), now).ok()
    }

    fn written(&self) -> Value {
        serde_json::to_value(self).expect("a half has a JSON form")
    }

    fn read(value: Value) -> Self {
        serde_json::from_value(value).expect("what was written can be read")
    }

    fn deadline(&self) -> Option<Duration> {
        self.next_deadline()
    }

    fn fence(&self) -> Epoch {
        self.epoch()
    }

    fn epoch_of(input: SourceInput) -> Option<Epoch> {
        match input {
            SourceInput::Start(by)
            | SourceInput::Allow(by)
            | SourceInput::Cancel(by)
            | SourceInput::Revert(by)
            | SourceInput::Retire(by) => Some(Epoch(by.into())),
            // The agent's own, under the epoch that it has.
            SourceInput::Postcopy(_)
            | SourceInput::Copy(_)
            | SourceInput::Adopted(_)
            | SourceInput::Gone
            | SourceInput::ProofTaken
            | SourceInput::Tick => None,
        }
    }
}

impl Half for Target {
    type Input = TargetInput;
    type Effect = TargetEffect;

    fn take(&mut self, input: TargetInput) -> Option<Vec<TargetEffect>> {
        let now = if input == TargetInput::Tick {
            LATE
        } else {
            NOW
        };
        self.handle(target_event(input), now).ok()
    }

    fn written(&self) -> Value {
        serde_json::to_value(self).expect("a half has a JSON form")
    }

    fn read(value: Value) -> Self {
        serde_json::from_value(value).expect("what was written can be read")
    }

    fn deadline(&self) -> Option<Duration> {
        self.next_deadline()
    }

    fn fence(&self) -> Epoch {
        self.epoch()
    }

    fn epoch_of(input: TargetInput) -> Option<Epoch> {
        match input {
            TargetInput::Prepare(by) | TargetInput::Discard(by) | TargetInput::Abandon(by) => {
                Some(Epoch(by.into()))
            }
            TargetInput::Listening
            | TargetInput::PrepareFailed
            | TargetInput::Load(_)
            | TargetInput::Adopted(_)
            | TargetInput::Proof
            | TargetInput::Continued
            | TargetInput::Gone
            | TargetInput::Tick => None,
        }
    }
}

/// The number of a half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HalfId(u16);

impl HalfId {
    /// A half that heard of nothing: the first that is numbered.
    pub(crate) const FRESH: Self = Self(0);
}

/// What a half makes of an input; `None` when it refuses it.
type Taken<E> = Option<(HalfId, Arc<[E]>)>;

struct Known<H: Half> {
    all: Vec<H>,
    numbers: HashMap<(String, Option<Duration>), HalfId>,
    taken: HashMap<(HalfId, H::Input), Taken<H::Effect>>,
    restored: HashMap<HalfId, HalfId>,
    dead: HashMap<(HalfId, H::Input), bool>,
}

/// All halves of one kind that were met.
pub(crate) struct Halves<H: Half>(Mutex<Known<H>>);

impl<H: Half> Default for Halves<H> {
    fn default() -> Self {
        let mut known = Known {
            all: vec![],
            numbers: HashMap::new(),
            taken: HashMap::new(),
            restored: HashMap::new(),
            dead: HashMap::new(),
        };
        known.number(H::default());
        Self(Mutex::new(known))
    }
}

impl<H: Half> Halves<H> {
    /// Whether this order can't change this half nor any that follows from it: it is an old
    /// owner's, or was followed already. A test goes through all halves and all that follow.
    pub(crate) fn is_dead(&self, id: HalfId, order: H::Input) -> bool {
        if let Some(dead) = self.known().dead.get(&(id, order)) {
            return *dead;
        }
        let dead = match self.take(id, order) {
            Some((after, effects)) => after == id && effects.is_empty(),
            None => self.ask(id, |half| {
                H::epoch_of(order).is_some_and(|by| by < half.fence())
            }),
        };
        self.known().dead.insert((id, order), dead);
        dead
    }

    /// What the half becomes and what its host has to do.
    pub(crate) fn take(&self, id: HalfId, input: H::Input) -> Taken<H::Effect> {
        let mut known = self.known();
        if let Some(taken) = known.taken.get(&(id, input)) {
            return taken.clone();
        }
        let mut half = known.all[usize::from(id.0)].clone();
        let effects = half.take(input);
        let taken = effects.map(|effects| (known.number(half), effects.into()));
        known.taken.insert((id, input), taken.clone());
        taken
    }

    /// The half as a restarted agent reads it.
    pub(crate) fn restored(&self, id: HalfId) -> HalfId {
        let mut known = self.known();
        if let Some(restored) = known.restored.get(&id) {
            return *restored;
        }
        let written = known.all[usize::from(id.0)].written();
        let restored = known.number(H::read(written));
        known.restored.insert(id, restored);
        restored
    }

    /// Asks the half something.
    pub(crate) fn ask<T>(&self, id: HalfId, question: impl FnOnce(&H) -> T) -> T {
        question(&self.known().all[usize::from(id.0)])
    }

    fn known(&self) -> MutexGuard<'_, Known<H>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<H: Half> Known<H> {
    fn number(&mut self, half: H) -> HalfId {
        let mut written = half.written();
        for words in ["reason", "address"] {
            written[words] = Value::Null;
        }
        let key = (written.to_string(), half.deadline());
        if let Some(id) = self.numbers.get(&key) {
            return *id;
        }
        let number = u16::try_from(self.all.len()).expect("halves are few");
        self.all.push(half);
        self.numbers.insert(key, HalfId(number));
        HalfId(number)
    }
}

fn source_event(input: SourceInput) -> SourceEvent {
    let epoch = |number: u8| Epoch(number.into());
    match input {
        SourceInput::Start(by) => SourceEvent::Start { epoch: epoch(by) },
        SourceInput::Allow(by) => SourceEvent::Allow { epoch: epoch(by) },
        SourceInput::Postcopy(by) => SourceEvent::Postcopy { epoch: epoch(by) },
        SourceInput::Cancel(by) => SourceEvent::Cancel { epoch: epoch(by) },
        SourceInput::Revert(by) => SourceEvent::Revert { epoch: epoch(by) },
        SourceInput::Retire(by) => SourceEvent::Retire { epoch: epoch(by) },
        SourceInput::Copy(copy) => SourceEvent::Copy(copy_status(copy)),
        SourceInput::Adopted(copy) => SourceEvent::Adopted(copy_status(copy)),
        SourceInput::Gone => SourceEvent::Gone,
        SourceInput::ProofTaken => SourceEvent::ProofTaken,
        SourceInput::Tick => SourceEvent::Tick,
    }
}

pub(crate) fn copy_status(copy: Outgoing) -> CopyStatus {
    match copy {
        Outgoing::None => CopyStatus::None,
        Outgoing::Active => CopyStatus::Active,
        Outgoing::PreSwitchover => CopyStatus::PreSwitchover,
        Outgoing::Device => CopyStatus::Device,
        Outgoing::Serving => CopyStatus::Serving,
        Outgoing::Completed => CopyStatus::Completed,
        Outgoing::Failed => CopyStatus::Failed(String::new()),
        Outgoing::Cancelled => CopyStatus::Cancelled,
    }
}

fn target_event(input: TargetInput) -> TargetEvent {
    let epoch = |number: u8| Epoch(number.into());
    match input {
        TargetInput::Prepare(by) => TargetEvent::Prepare { epoch: epoch(by) },
        TargetInput::Discard(by) => TargetEvent::Discard { epoch: epoch(by) },
        TargetInput::Abandon(by) => TargetEvent::Abandon { epoch: epoch(by) },
        TargetInput::Listening => TargetEvent::Listening(TargetAddress {
            uri: String::new(),
            address: String::new(),
            ports: vec![],
        }),
        TargetInput::PrepareFailed => TargetEvent::PrepareFailed(String::new()),
        TargetInput::Load(load) => TargetEvent::Load(load_status(load)),
        TargetInput::Adopted(load) => TargetEvent::Adopted(load_status(load)),
        TargetInput::Proof => TargetEvent::Proof(proof()),
        TargetInput::Continued => TargetEvent::Continued,
        TargetInput::Gone => TargetEvent::Gone,
        TargetInput::Tick => TargetEvent::Tick,
    }
}

const fn load_status(load: Incoming) -> LoadStatus {
    match load {
        Incoming::Active => LoadStatus::Active,
        Incoming::Postcopy => LoadStatus::Postcopy,
        Incoming::Completed => LoadStatus::Completed,
        Incoming::Fetching => LoadStatus::Fetching,
        Incoming::Running => LoadStatus::Running,
    }
}

/// There is one machine, one job and one source process, so there is one proof.
fn proof() -> Proof {
    Proof {
        machine: MachineId::parse("11111111-94b4-4cda-9a69-cca8d4b4c587").expect("a uuid"),
        job: JobId::parse("22222222-94b4-4cda-9a69-cca8d4b4c587").expect("a uuid"),
        source: NodeName::parse("worker1").expect("a name"),
        process: ProcessIdentity {
            pid: 7,
            start_ticks: 9,
            boot_id: String::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows every half to all that come of it, under two owners, and looks that an order which
    /// changes nothing never changes anything later. The checker forgets such orders.
    fn dead_orders_stay_dead<H: Half>(inputs: &[H::Input]) -> usize {
        let halves = Halves::<H>::default();
        let orders: Vec<_> = inputs
            .iter()
            .copied()
            .filter(|input| H::epoch_of(*input).is_some())
            .collect();
        let mut met = vec![HalfId::FRESH];
        let mut at = 0;
        while let Some(half) = met.get(at).copied() {
            at += 1;
            let taken = inputs.iter().filter_map(|input| halves.take(half, *input));
            let mut nexts: Vec<_> = taken.map(|(next, _)| next).collect();
            nexts.push(halves.restored(half));
            for next in nexts {
                for order in &orders {
                    let dead = halves.is_dead(half, *order);
                    let [from, to] =
                        [half, next].map(|id| halves.ask(id, |half| half.written().to_string()));
                    assert!(
                        !dead || halves.is_dead(next, *order),
                        "{order:?}: {from} {to}"
                    );
                }
                if !met.contains(&next) {
                    met.push(next);
                }
            }
        }
        met.len()
    }

    #[test]
    fn an_order_that_changes_nothing_never_changes_anything_later() {
        let mut inputs = vec![
            SourceInput::Gone,
            SourceInput::ProofTaken,
            SourceInput::Tick,
        ];
        for by in [1, 2] {
            inputs.extend([
                SourceInput::Start(by),
                SourceInput::Allow(by),
                SourceInput::Postcopy(by),
                SourceInput::Cancel(by),
                SourceInput::Revert(by),
                SourceInput::Retire(by),
            ]);
        }
        for copy in [
            Outgoing::None,
            Outgoing::Active,
            Outgoing::PreSwitchover,
            Outgoing::Device,
            Outgoing::Serving,
            Outgoing::Completed,
            Outgoing::Failed,
            Outgoing::Cancelled,
        ] {
            inputs.extend([SourceInput::Copy(copy), SourceInput::Adopted(copy)]);
        }
        assert!(dead_orders_stay_dead::<Source>(&inputs) > 20);
        let mut inputs = vec![
            TargetInput::Listening,
            TargetInput::PrepareFailed,
            TargetInput::Proof,
            TargetInput::Continued,
            TargetInput::Gone,
            TargetInput::Tick,
        ];
        for by in [1, 2] {
            inputs.extend([
                TargetInput::Prepare(by),
                TargetInput::Discard(by),
                TargetInput::Abandon(by),
            ]);
        }
        for load in [
            Incoming::Active,
            Incoming::Postcopy,
            Incoming::Completed,
            Incoming::Fetching,
            Incoming::Running,
        ] {
            inputs.extend([TargetInput::Load(load), TargetInput::Adopted(load)]);
        }
        assert!(dead_orders_stay_dead::<Target>(&inputs) > 10);
    }
}
