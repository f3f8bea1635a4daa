//! Whether every state still has a way to an end, once faults stop.
//!
//! All reachable states are numbered with the steps between them; then the ends are followed
//! backwards over the steps that are no faults. A state that this doesn't meet is stuck.

use std::collections::VecDeque;
use std::collections::hash_map::{DefaultHasher, Entry, HashMap};
use std::hash::{Hash, Hasher};

use godwit_model::migration::job::JobState;
use stateright::Model;

use crate::Migration;
use crate::state::{SourceQemu, State, TargetQemu};
use crate::step::Step;

/// What a search for stuck states found.
#[derive(Debug)]
pub struct Ends {
    /// States that were reached.
    pub states: usize,
    /// States from which the job can't come to an end without another fault.
    pub stuck: usize,
    /// The shortest way to one of them; empty when there is none.
    pub way: Vec<Step>,
    /// That state.
    pub example: Option<State>,
    /// States from which the hosts can't become clean without another fault.
    pub unclean: usize,
    /// The shortest way to one of them; empty when there is none.
    pub unclean_way: Vec<Step>,
    /// That state.
    pub unclean_example: Option<State>,
}

/// How a state was met first.
type Parent = Option<(u32, Step)>;

#[derive(Default)]
struct Graph {
    numbers: HashMap<u64, u32>,
    parents: Vec<Parent>,
    /// Steps that are no faults, backwards: to, from.
    back: Vec<(u32, u32)>,
    over: Vec<u32>,
    clean: Vec<u32>,
}

/// Searches the whole space of `model` for states without a way to an end.
#[must_use]
pub fn ends(model: &Migration) -> Ends {
    let mut graph = Graph::explore(model);
    graph.back.sort_unstable();
    let (stuck, first) = graph.unmet(&graph.over);
    let (unclean, unclean_first) = graph.unmet(&graph.clean);
    let way = first.map_or_else(Vec::new, |at| graph.way(at));
    let unclean_way = unclean_first.map_or_else(Vec::new, |at| graph.way(at));
    Ends {
        states: graph.parents.len(),
        stuck,
        example: first.and_then(|_| follow(model, &way).pop()),
        way,
        unclean,
        unclean_example: unclean_first.and_then(|_| follow(model, &unclean_way).pop()),
        unclean_way,
    }
}

/// The shortest way to a state that is so; empty when there is none.
pub(crate) fn nearest(model: &Migration, is_so: impl Fn(&State) -> bool) -> Vec<Step> {
    let mut graph = Graph::default();
    let mut open = VecDeque::new();
    for state in model.init_states() {
        let number = graph.meet(&state, None).0;
        open.push_back((number, state));
    }
    let mut steps = vec![];
    while let Some((from, before)) = open.pop_front() {
        if is_so(&before) {
            return graph.way(from);
        }
        model.actions(&before, &mut steps);
        for step in steps.drain(..) {
            let Some(after) = model.next_state(&before, step) else {
                continue;
            };
            let (to, new) = graph.meet(&after, Some((from, step)));
            if new {
                open.push_back((to, after));
            }
        }
    }
    vec![]
}

/// The states on a way.
pub(crate) fn follow(model: &Migration, way: &[Step]) -> Vec<State> {
    let mut states = model.init_states();
    for step in way {
        let next = states
            .last()
            .and_then(|state| model.next_state(state, *step));
        states.extend(next);
    }
    states
}

impl Graph {
    fn explore(model: &Migration) -> Self {
        let mut graph = Self::default();
        let mut open = VecDeque::new();
        for state in model.init_states() {
            let number = graph.meet(&state, None).0;
            open.push_back((number, state));
        }
        let mut steps = vec![];
        while let Some((from, before)) = open.pop_front() {
            graph.note_end(model, from, &before);
            model.actions(&before, &mut steps);
            for step in steps.drain(..) {
                let Some(after) = model.next_state(&before, step) else {
                    continue;
                };
                let (to, new) = graph.meet(&after, Some((from, step)));
                if !step.is_fault(&before) {
                    graph.back.push((to, from));
                }
                if new {
                    open.push_back((to, after));
                }
            }
        }
        graph
    }

    fn meet(&mut self, state: &State, parent: Parent) -> (u32, bool) {
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        let next = u32::try_from(self.parents.len()).expect("states fit into memory");
        match self.numbers.entry(hasher.finish()) {
            Entry::Occupied(known) => (*known.get(), false),
            Entry::Vacant(place) => {
                place.insert(next);
                self.parents.push(parent);
                (next, true)
            }
        }
    }

    fn note_end(&mut self, model: &Migration, number: u32, state: &State) {
        let job = state.ledger.state;
        if job.is_final() {
            self.over.push(number);
        }
        let died = state.died(&model.config);
        let source_runs = state.source.runs() || state.left || died;
        let target_runs = state.target.qemu.runs() || died;
        let clean = match job {
            JobState::Succeeded => target_runs && state.source.qemu == SourceQemu::Gone,
            JobState::Failed => source_runs && state.target.qemu == TargetQemu::None,
            JobState::Pending
            | JobState::Placing
            | JobState::Reserved
            | JobState::Preparing
            | JobState::Prepared
            | JobState::Copying
            | JobState::SwitchAllowed
            | JobState::HandedOver
            | JobState::Aborting
            | JobState::NeedsFencing => false,
        };
        if clean {
            self.clean.push(number);
        }
    }

    /// How many states no way leads from to one of `goals`, and the one met first.
    fn unmet(&self, goals: &[u32]) -> (usize, Option<u32>) {
        let mut met = vec![false; self.parents.len()];
        let mut open = goals.to_vec();
        for goal in goals {
            met[*goal as usize] = true;
        }
        while let Some(to) = open.pop() {
            let first = self.back.partition_point(|(end, _)| *end < to);
            for (_, from) in self.back[first..].iter().take_while(|(end, _)| *end == to) {
                if !std::mem::replace(&mut met[*from as usize], true) {
                    open.push(*from);
                }
            }
        }
        let stuck = met.iter().filter(|met| !**met).count();
        let first = met.iter().position(|met| !met);
        (stuck, first.and_then(|at| u32::try_from(at).ok()))
    }

    fn way(&self, mut at: u32) -> Vec<Step> {
        let mut way = vec![];
        while let Some((before, step)) = self.parents[at as usize] {
            way.push(step);
            at = before;
        }
        way.reverse();
        way
    }
}
