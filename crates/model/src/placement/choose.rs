//! The choice: which nodes are ruled out, and which of the rest is best.
//!
//! Points are those of Kubernetes' scheduler in kind and weight: 100 for each thing that is as good
//! as can be, times its weight.

use std::collections::HashSet;

use crate::NodeName;

use super::crowds::{NOWHERE, Tally};
use super::demand::{Ask, Leaning, Spread};
use super::fleet::{Fleet, Wish};
use super::mask;
use super::{Obstacle, Placement, Verdict};

/// Points of crowds near that are liked, and of an even spread.
const CROWD_POINTS: i64 = 200;

/// How good a node is: its rank, then its points.
type Merit = (u8, f64);
/// A node by its place, and how good it is.
type Ranked = (usize, Merit);

/// Where a machine goes, and what was next best.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The best node.
    pub node: NodeName,
    /// The next best; `None` when no other will do.
    pub runner_up: Option<RunnerUp>,
}

/// The next best node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerUp {
    /// Which.
    pub node: NodeName,
    /// Points of the best, and its own.
    pub points: [i64; 2],
}

impl Fleet {
    /// The best node for a machine, or nothing when none will do.
    pub fn choose(&mut self, ask: Ask<'_>) -> Option<NodeName> {
        self.choose_between(ask).map(|choice| choice.node)
    }

    /// The best node for a machine and the next best, or nothing when none will do.
    pub fn choose_between(&mut self, ask: Ask<'_>) -> Option<Choice> {
        let wish = self.intern(ask.demand);
        // It doesn't stand in its own way where it is now.
        self.count_all(ask.machine, false);
        let best = self.best(wish, ask);
        self.count_all(ask.machine, true);
        let [first, second] = best;
        let (at, (_, points)) = first?;
        Some(Choice {
            node: self.nodes[at].name.clone(),
            runner_up: second.map(|(at, (_, less))| RunnerUp {
                node: self.nodes[at].name.clone(),
                points: [whole(points), whole(less)],
            }),
        })
    }

    /// What speaks against each node.
    pub fn explain(&mut self, ask: Ask<'_>) -> Vec<Verdict> {
        let wish = self.intern(ask.demand);
        self.count_all(ask.machine, false);
        let rules = self.rules(&self.wishes[wish]);
        let nodes = self.nodes.iter().enumerate();
        let verdicts = nodes.map(|(at, node)| Verdict {
            node: node.name.clone(),
            obstacles: self.obstacles(at, (&self.wishes[wish], &rules), ask),
        });
        let verdicts = verdicts.collect();
        self.count_all(ask.machine, true);
        verdicts
    }

    /// The choice, and the reasons for every node.
    pub fn place(&mut self, ask: Ask<'_>) -> Placement {
        Placement {
            chosen: self.choose(ask),
            verdicts: self.explain(ask),
        }
    }

    /// The best and the next best, each with its merit.
    fn best(&self, wish: usize, ask: Ask<'_>) -> [Option<Ranked>; 2] {
        let wish = &self.wishes[wish];
        let rules = self.rules(wish);
        let source = ask.source.and_then(|name| self.node(name));
        let home = ask.home.map(|name| self.node(name));
        let rank = self.ranks(ask.leaning);
        let mask = &self.masks[wish.mask];
        let [mut best, mut next]: [Option<Ranked>; 2] = [None, None];
        // Names make ties the same everywhere.
        let goes_before = |(at, merit): Ranked, known: Option<Ranked>| {
            known.is_none_or(|(other, most)| {
                merit > most || (merit == most && self.nodes[at].name < self.nodes[other].name)
            })
        };
        for (at, (row, verdict)) in self.rows.iter().zip(&mask.verdicts).enumerate() {
            let fits = verdict.fits
                && row.open
                && !row.closed
                && row.has_room(wish.demand.room)
                && !row.is_full(ask.inbound_max)
                && source != Some(at)
                && home.is_none_or(|home| home == Some(at))
                && rules.allow(at);
            if !fits {
                continue;
            }
            let points = row.points(wish.demand.room) + f64::from(verdict.points);
            let merit = (rank(at), points + rules.points(at));
            let one = (at, merit);
            if goes_before(one, best) {
                next = best.replace(one);
            } else if goes_before(one, next) {
                next = Some(one);
            }
        }
        [best, next]
    }

    /// What goes before all points: 2 for the preferred node, 0 for one to be avoided, else 1.
    fn ranks(&self, leaning: Leaning<'_>) -> impl Fn(usize) -> u8 {
        let preferred = leaning.preferred.and_then(|name| self.node(name));
        let avoid = leaning.avoid.iter().filter_map(|name| self.node(name));
        let avoid: Vec<usize> = avoid.collect();
        move |at| match (avoid.contains(&at), preferred == Some(at)) {
            (true, _) => 0,
            (false, true) => 2,
            (false, false) => 1,
        }
    }

    fn obstacles(
        &self,
        at: usize,
        (wish, rules): (&Wish, &Rules<'_>),
        ask: Ask<'_>,
    ) -> Vec<Obstacle> {
        let (node, row) = (&self.nodes[at], &self.rows[at]);
        let mut found = vec![];
        let mut rule = |broken: bool, obstacle: Obstacle| {
            if broken {
                found.push(obstacle);
            }
        };
        rule(ask.source == Some(&node.name), Obstacle::Source);
        rule(!node.ready, Obstacle::NotReady);
        rule(node.cordoned || row.closed, Obstacle::Cordoned);
        // Anywhere else it would find no disk, or be given an empty one.
        let away = ask.home.is_some_and(|home| *home != node.name);
        rule(away, Obstacle::LocalDisks);
        let room = wish.demand.room;
        rule(row.lacks_memory(room), Obstacle::Memory);
        rule(row.lacks_cpu(room), Obstacle::Cpu);
        for size in row.lacks_hugepages(room) {
            rule(true, Obstacle::Hugepages(size));
        }
        rule(row.is_full(ask.inbound_max), Obstacle::Inbound);
        mask::obstacles(&wish.demand.needs, node, &mut |obstacle| {
            found.push(obstacle)
        });
        rules.obstacles(at, &mut found);
        found
    }

    fn rules<'a>(&'a self, wish: &'a Wish) -> Rules<'a> {
        let crowd = |at: usize| Around {
            domains: self.topology.domains(self.crowds.get(at).key),
            members: &self.crowds.get(at).members,
            enemies: &self.crowds.get(at).enemies,
        };
        let within = |at: usize| wish.within.contains(&at);
        let near = wish.near.iter().map(|&at| {
            let around = crowd(at);
            // The first of a crowd that wants to be together may go anywhere.
            (around, around.members.total == 0 && within(at))
        });
        let hostile = wish.within.iter().map(|&at| crowd(at));
        let liked = wish.demand.liked.iter().zip(&wish.liked);
        let spread = wish.demand.spread.iter().zip(&wish.spread);
        Rules {
            apart: wish.apart.iter().map(|&at| crowd(at)).collect(),
            hostile: hostile.filter(|one| one.enemies.total > 0).collect(),
            near: near.collect(),
            liked_all: wish.demand.liked.iter().map(|one| one.0.abs()).sum(),
            liked: liked
                .map(|((weight, _), &at)| (*weight, crowd(at)))
                .collect(),
            spread: spread
                .map(|(rule, &at)| self.even(rule, crowd(at), (wish.mask, within(at))))
                .collect(),
        }
    }

    /// How full a domain may be.
    fn even<'a>(
        &self,
        rule: &Spread,
        around: Around<'a>,
        (mask, itself): (usize, bool),
    ) -> Even<'a> {
        let selected = self.masks[mask].verdicts.iter().map(|one| one.selected);
        let mut least = u32::MAX;
        let mut domains = HashSet::new();
        for (&domain, selected) in around.domains.iter().zip(selected) {
            if selected && domain != NOWHERE {
                least = least.min(around.members.at(domain));
                if rule.min_domains > 1 {
                    domains.insert(domain);
                }
            }
        }
        if least == u32::MAX || (rule.min_domains as usize > domains.len() && rule.min_domains > 1)
        {
            least = 0;
        }
        Even {
            around,
            required: rule.required,
            // Its own place counts when it is one of the crowd.
            most: (least + rule.max_skew).saturating_sub(u32::from(itself)),
            fullest: around.members.most(),
        }
    }
}

/// Points as people are shown them.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a cast of a float saturates"
)]
fn whole(points: f64) -> i64 {
    points.round() as i64
}

/// What a machine's neighbours say about nodes.
struct Rules<'a> {
    /// Who must not be near.
    apart: Vec<Around<'a>>,
    /// Crowds of which the machine is one and which somebody doesn't bear near.
    hostile: Vec<Around<'a>>,
    /// Who must be near, and whether nobody yet is well, too.
    near: Vec<(Around<'a>, bool)>,
    liked: Vec<(i32, Around<'a>)>,
    /// Sum of all weights.
    liked_all: i32,
    spread: Vec<Even<'a>>,
}

/// A crowd, by domain.
#[derive(Clone, Copy)]
struct Around<'a> {
    /// By node.
    domains: &'a [u32],
    members: &'a Tally,
    enemies: &'a Tally,
}

/// A rule of spread.
struct Even<'a> {
    around: Around<'a>,
    required: bool,
    /// How many may be in a domain before.
    most: u32,
    /// How many are in the fullest.
    fullest: u32,
}

impl Around<'_> {
    fn members(&self, node: usize) -> u32 {
        self.members.at(self.domains[node])
    }

    fn is_nowhere(&self, node: usize) -> bool {
        self.domains[node] == NOWHERE
    }
}

impl Even<'_> {
    fn allows(&self, node: usize) -> bool {
        !self.required || (!self.around.is_nowhere(node) && self.around.members(node) <= self.most)
    }
}

impl Rules<'_> {
    fn allow(&self, node: usize) -> bool {
        let near = |(around, first): &(Around<'_>, bool)| {
            !around.is_nowhere(node) && (*first || around.members(node) > 0)
        };
        self.apart.iter().all(|around| around.members(node) == 0)
            && self.is_borne(node)
            && self.near.iter().all(near)
            && self.spread.iter().all(|rule| rule.allows(node))
    }

    fn is_borne(&self, node: usize) -> bool {
        let mut hostile = self.hostile.iter();
        hostile.all(|around| around.enemies.at(around.domains[node]) == 0)
    }

    fn obstacles(&self, node: usize, found: &mut Vec<Obstacle>) {
        let mut rule = |broken: bool, obstacle: Obstacle| {
            if broken {
                found.push(obstacle);
            }
        };
        let mut near = self.near.iter();
        let lonely = near.any(|(around, first)| {
            around.is_nowhere(node) || (!first && around.members(node) == 0)
        });
        rule(lonely, Obstacle::Affinity);
        let mut apart = self.apart.iter();
        rule(
            apart.any(|one| one.members(node) > 0),
            Obstacle::AntiAffinity,
        );
        rule(!self.is_borne(node), Obstacle::ForeignAntiAffinity);
        let required = || self.spread.iter().filter(|rule| rule.required);
        let nowhere = required().any(|rule| rule.around.is_nowhere(node));
        rule(nowhere, Obstacle::SpreadLabel);
        let uneven = !nowhere && required().any(|rule| !rule.allows(node));
        rule(uneven, Obstacle::Spread);
    }

    #[expect(clippy::cast_precision_loss, reason = "a score needs no more")]
    fn points(&self, node: usize) -> f64 {
        let mut points = 0;
        for (weight, around) in &self.liked {
            if around.members(node) > 0 {
                points += CROWD_POINTS * i64::from(*weight) / i64::from(self.liked_all.max(1));
            }
        }
        for rule in self.spread.iter().filter(|rule| !rule.required) {
            let (here, most) = (rule.around.members(node), rule.fullest);
            points -= CROWD_POINTS * i64::from(here) / i64::from(most.max(1));
        }
        points as f64
    }
}
