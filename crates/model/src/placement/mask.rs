//! Which nodes are what a machine needs, whoever else is there: judged once for machines alike.

use crate::affinity::Labels;
use crate::vmi::Toleration;

use super::demand::Needs;
use super::{Candidate, Obstacle, Taint};

/// What Kubernetes' scheduler gives a taint that should keep machines away, against 100 for a node
/// that is liked in all respects.
const TAINT_POINTS: i32 = 300;
/// What it gives a node that matches all of the preferred node affinity.
const AFFINITY_POINTS: i32 = 200;

/// All nodes, judged by the same needs.
#[derive(Debug, Clone)]
pub(super) struct Mask {
    pub(super) needs: Needs,
    /// By node.
    pub(super) verdicts: Vec<Verdict>,
}

/// One node.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Verdict {
    /// Whether it is what is needed.
    pub(super) fits: bool,
    /// Whether it is what the machine asked for by selectors and affinity; spread counts on it.
    pub(super) selected: bool,
    /// How much it is liked.
    pub(super) points: i32,
}

impl Mask {
    pub(super) fn new<'a>(needs: &Needs, nodes: impl Iterator<Item = &'a Candidate>) -> Self {
        Self {
            needs: needs.clone(),
            verdicts: nodes.map(|node| judge(needs, node)).collect(),
        }
    }

    /// A node came or changed.
    pub(super) fn set(&mut self, at: usize, node: &Candidate) {
        let verdict = judge(&self.needs, node);
        match self.verdicts.get_mut(at) {
            Some(known) => *known = verdict,
            None => self.verdicts.push(verdict),
        }
    }
}

fn judge(needs: &Needs, node: &Candidate) -> Verdict {
    let mut fits = true;
    obstacles(needs, node, &mut |_| fits = false);
    Verdict {
        fits,
        selected: selected(needs, node),
        points: points(needs, node),
    }
}

/// Tells `found` everything that speaks against `node`.
pub(super) fn obstacles(needs: &Needs, node: &Candidate, found: &mut dyn FnMut(Obstacle)) {
    for taint in &node.taints {
        // Kubernetes counts a cordon once, not as a taint too.
        let counts = taint.effect != "PreferNoSchedule"
            && !(node.cordoned && taint.key == "node.kubernetes.io/unschedulable");
        if counts && !is_borne(needs, taint) {
            found(Obstacle::Taint(taint.key.clone()));
        }
    }
    if !selected(needs, node) {
        found(Obstacle::Selector);
    }
    let facts = &node.facts;
    for network in &needs.networks {
        if !facts.networks.contains(network) {
            found(Obstacle::Network(network.clone()));
        }
    }
    if let Some(image) = &needs.image
        && !facts.images.contains(image)
    {
        found(Obstacle::Image(image.clone()));
    }
    for path in needs.storage.iter().filter(|path| !facts.has_storage(path)) {
        found(Obstacle::Storage(path.clone()));
    }
    if !facts.machine_types.contains(&needs.machine_type) {
        found(Obstacle::MachineType(needs.machine_type.clone()));
    }
    if !facts.cpu_models.contains(&needs.cpu_model) {
        found(Obstacle::CpuModel(needs.cpu_model.clone()));
    }
    let accelerator = needs.accelerator.as_ref();
    if accelerator.is_some_and(|accelerator| *accelerator != facts.accelerator) {
        found(Obstacle::Accelerator);
    }
}

fn selected(needs: &Needs, node: &Candidate) -> bool {
    let has = |labels: &Labels| {
        let mut labels = labels.iter();
        labels.all(|(key, value)| node.labels.get(key) == Some(value))
    };
    let affinity = needs.affinity.as_ref();
    needs.selectors.iter().all(has)
        && affinity.is_none_or(|wanted| wanted.matches(node.name.as_str(), &node.labels))
}

fn points(needs: &Needs, node: &Candidate) -> i32 {
    let unwelcome = node
        .taints
        .iter()
        .filter(|taint| taint.effect == "PreferNoSchedule" && !is_borne(needs, taint));
    let taints = i32::try_from(unwelcome.count()).unwrap_or(i32::MAX);
    let (mut liked, mut all) = (0, 0);
    for term in &needs.preferred {
        all += term.weight;
        if term.preference.matches(node.name.as_str(), &node.labels) {
            liked += term.weight;
        }
    }
    let affinity = (AFFINITY_POINTS * liked).checked_div(all).unwrap_or(0);
    affinity - taints.saturating_mul(TAINT_POINTS)
}

fn is_borne(needs: &Needs, taint: &Taint) -> bool {
    needs.tolerations.iter().any(|one| bears(one, taint))
}

fn bears(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration
        .effect
        .as_deref()
        .is_none_or(|e| e.is_empty() || e == taint.effect);
    let exists = toleration.operator.as_deref() == Some("Exists");
    let key = (exists && toleration.key.is_empty()) || toleration.key == taint.key;
    effect && key && (exists || toleration.value == taint.value)
}
