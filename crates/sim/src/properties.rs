//! What must hold in every state, and what has to happen in some.

use godwit_model::migration::job::JobState;
use godwit_model::migration::source::SourceState;
use godwit_model::migration::target::TargetState;
use stateright::Property;

use crate::Migration;
use crate::config::Config;
use crate::state::{SourceQemu, State, TargetQemu};

type P = Property<Migration>;

/// All of them.
pub(crate) fn all(config: &Config) -> Vec<P> {
    let mut all = never_two();
    all.extend(never_lost());
    all.extend(orders_and_records());
    all.push(never_again());
    all.extend(happens());
    if config.post_copy {
        all.extend(post_copies_happen());
    }
    if config.takeovers > 0 {
        all.push(P::sometimes(
            "a job is taken over and succeeds",
            |_, state| state.ledger.epoch > 1 && succeeded(state),
        ));
    }
    if config.crashes > 0 {
        all.push(found_complete());
    }
    if config.losses > 0 {
        all.extend(fences_happen());
    }
    all
}

fn never_two() -> Vec<P> {
    vec![
        P::always("never two copies run", |_, state| {
            let copies = [state.source.runs(), state.target.qemu.runs(), state.left];
            copies.into_iter().filter(|runs| *runs).count() < 2
        }),
        P::always(
            "the source never runs again after the target ran",
            |_, state| !(state.ran && state.source.runs()),
        ),
        P::always(
            "the target runs only what its source completed",
            |_, state| !state.wrongs.unproven,
        ),
        P::always(
            "failed: the target never ran, or is fenced, or lost its memory",
            |model, state| {
                let excused = state.ledger.target_fenced || model.memory_is_lost(state);
                state.ledger.state != JobState::Failed || !state.ran || excused
            },
        ),
    ]
}

fn never_lost() -> Vec<P> {
    vec![
        P::always(
            "the source is ended only when the target has the machine, or is fenced",
            |_, state| !state.wrongs.ended_source,
        ),
        P::always("the target is never ended after it ran", |_, state| {
            !state.wrongs.ended_target
        }),
        P::always(
            "a source is never ended while its target needs pages of it",
            |_, state| !state.wrongs.ended_server,
        ),
        P::always(
            "no machine is lost unless something died",
            |model, state| {
                state.died(&model.config)
                    || state.source.qemu != SourceQemu::Gone
                    || state.target.qemu.runs()
            },
        ),
        P::always("succeeded: the target has the machine", |model, state| {
            let succeeded = state.ledger.state == JobState::Succeeded;
            let excused = qemu_died(model, state) || state.target.lost;
            let runs = state.target.qemu == TargetQemu::Running || excused;
            !succeeded || (runs && model.target_is_committed(state))
        }),
        P::always("failed: the machine runs on its source", |model, state| {
            let failed = state.ledger.state == JobState::Failed;
            // An agent that just came back has not looked yet.
            let busy = state
                .source
                .agent
                .as_ref()
                .is_none_or(|agent| agent.adopting);
            let lost = state.source.lost || state.broke || qemu_died(model, state);
            let excused = lost || state.ledger.released;
            !failed || state.left || busy || excused || state.source.runs()
        }),
    ]
}

fn orders_and_records() -> Vec<P> {
    vec![
        P::always("hosts follow no order of a replaced owner", |_, state| {
            !state.wrongs.old_order
        }),
        P::always(
            "the ledger takes no write of a replaced owner",
            |_, state| !state.wrongs.old_write,
        ),
        P::always("every recorded transition is legal", |_, state| {
            !state.wrongs.edge
        }),
        P::always(
            "the machine is handed over only when the target has it",
            |model, state| !state.ledger.handed_over || model.target_is_committed(state),
        ),
    ]
}

fn happens() -> Vec<P> {
    vec![
        P::sometimes("a job succeeds", |_, state| {
            state.ledger.state == JobState::Succeeded
        }),
        P::sometimes("a job fails", |_, state| {
            state.ledger.state == JobState::Failed
        }),
        P::sometimes("a job needs fencing", |_, state| {
            state.ledger.state == JobState::NeedsFencing
        }),
        P::sometimes(
            "a source is reverted after the tombstone",
            |model, state| {
                let reverted = state.source.qemu == SourceQemu::Resumed;
                let tombstone = |half| model.target_word(half) == TargetState::Discarded;
                reverted && state.target.disk.is_some_and(|(half, _)| tombstone(half))
            },
        ),
        P::sometimes("a cancel comes too late", |_, state| {
            state.ledger.cancel && state.ledger.state == JobState::Succeeded
        }),
    ]
}

fn post_copies_happen() -> Vec<P> {
    vec![
        P::sometimes("a job succeeds by post-copy", |model, state| {
            succeeded(state) && model.was_post_copied(state) && !state.broke
        }),
        P::sometimes("a post-copy succeeds whose link broke", |model, state| {
            succeeded(state) && model.was_post_copied(state) && state.broke
        }),
        P::sometimes("a guest runs whose memory is out of reach", |_, state| {
            state.target.qemu == TargetQemu::Fetching && state.source.qemu == SourceQemu::Parted
        }),
        P::sometimes("a job fails whose memory is lost", |model, state| {
            state.ledger.state == JobState::Failed && model.memory_is_lost(state)
        }),
        P::sometimes(
            "a guest waits that was stopped for a post-copy that failed",
            |_, state| state.source.qemu == SourceQemu::Failed && state.source.stopped,
        ),
    ]
}

impl Migration {
    fn was_post_copied(&self, state: &State) -> bool {
        let disk = state.source.disk;
        disk.is_some_and(|(half, _)| self.source_word(half).2)
    }

    fn memory_is_lost(&self, state: &State) -> bool {
        let disk = state.target.disk;
        disk.is_some_and(|(half, _)| self.target_word(half) == TargetState::MemoryLost)
    }
}

fn succeeded(state: &State) -> bool {
    state.ledger.state == JobState::Succeeded
}

fn found_complete() -> P {
    P::sometimes("an agent finds the copy complete", |model, state| {
        let Some((half, _)) = state.source.disk else {
            return false;
        };
        let behind = model.source_word(half).0 == SourceState::Copying;
        behind && state.source.agent.is_none() && state.source.qemu == SourceQemu::Completed
    })
}

fn never_again() -> P {
    P::always(
        "what a fenced target may have run never goes on at its source",
        |model, state| {
            let reverted = state.source.qemu == SourceQemu::Resumed;
            let tombstone = |half| model.target_word(half) == TargetState::Discarded;
            let never_ran = state.target.disk.is_some_and(|(half, _)| tombstone(half));
            !(state.ledger.target_fenced && reverted) || never_ran
        },
    )
}

fn fences_happen() -> Vec<P> {
    vec![
        P::sometimes("a fence ends a job that waited for it", |_, state| {
            state.ledger.has_fence() && state.ledger.state == JobState::Failed
        }),
        P::sometimes("a fenced target may have run the machine", |_, state| {
            state.ledger.released && state.left
        }),
        P::sometimes("a fenced target had run the machine", |_, state| {
            state.ledger.released && state.ran
        }),
        P::sometimes("a job succeeds whose source is fenced", |_, state| {
            state.ledger.source_fenced && state.ledger.state == JobState::Succeeded
        }),
        P::sometimes("a machine of a fenced source starts again", |_, state| {
            state.ledger.source_fenced && !state.ledger.handed_over && state.left
        }),
    ]
}

fn qemu_died(model: &Migration, state: &State) -> bool {
    state.deaths < model.config.deaths
}
