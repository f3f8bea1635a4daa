//! What a person orders: the spec of a RollingMaintenance, read and checked.

use serde::Deserialize;
use std::collections::BTreeSet;

use super::time::{self, Moment};
use crate::affinity::{LabelSelector, Labels};

/// Exit code of a hook that says: leave this node out.
const SKIP: i32 = 70;
/// Most hooks of each kind.
const HOOKS_MAX: usize = 16;
/// Most arguments of a hook.
const ARGUMENTS_MAX: usize = 32;
/// Longest name of a hook, as the hosts' allow lists have them.
const NAME_MAX: usize = 63;
/// Longest time of one hook, seconds.
const TIMEOUT_MAX: u64 = 24 * 3600;

/// `spec` of a RollingMaintenance.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Order {
    /// Which nodes; empty means all.
    pub node_selector: LabelSelector,
    /// How many nodes may be out at once.
    pub max_unavailable: Share,
    /// Label whose values are failure domains, of which one at a time has nodes out; "" is none.
    pub failure_domain: String,
    /// Whether any one other node must be able to fail while nodes are out.
    pub spare_node: bool,
    /// Groups of machines of which only so many may move at once.
    pub budgets: Vec<Budget>,
    /// Who has to be approved of.
    pub approval: Approval,
    /// Names of nodes and of waves that may begin.
    pub approved: Vec<String>,
    /// Times in which nothing begins.
    pub freeze_windows: Vec<Window>,
    /// What is run for each node.
    pub hooks: Hooks,
    /// Exit code of a hook that leaves its node out.
    pub skip_exit_code: i32,
    /// What a node that failed means for those that wait.
    pub on_failure: OnFailure,
    /// Longest time for the emptying of one node, seconds; 0 is no limit.
    pub deadline_seconds: u64,
    /// Nothing begins while it is set; what has begun goes on.
    pub paused: bool,
    /// Ends it: nothing begins any more, and nodes that are being emptied are opened again.
    pub abort: bool,
    /// Whether machines go back to a node that they were moved from.
    pub fail_back: bool,
}

impl Default for Order {
    fn default() -> Self {
        Self {
            node_selector: LabelSelector::default(),
            max_unavailable: Share::default(),
            failure_domain: String::new(),
            spare_node: true,
            budgets: vec![],
            approval: Approval::default(),
            approved: vec![],
            freeze_windows: vec![],
            hooks: Hooks::default(),
            skip_exit_code: SKIP,
            on_failure: OnFailure::default(),
            deadline_seconds: 0,
            paused: false,
            abort: false,
            fail_back: false,
        }
    }
}

/// How many of the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Share {
    /// So many.
    Count(usize),
    /// `25%`, or `Safe`: as many as is safe.
    Words(String),
}

impl Default for Share {
    fn default() -> Self {
        Self::Count(1)
    }
}

impl Share {
    /// So many of `all`: at least one, with a percentage rounded down. `None` when it makes no sense.
    pub fn of(&self, all: usize) -> Option<usize> {
        match self {
            Self::Count(0) => None,
            Self::Count(count) => Some(*count),
            Self::Words(words) if words == "Safe" => Some(usize::MAX),
            Self::Words(words) => {
                let percent: usize = words.strip_suffix('%')?.parse().ok()?;
                (1..=100)
                    .contains(&percent)
                    .then(|| (all * percent / 100).max(1))
            }
        }
    }
}

/// A group of machines of which only so many may move at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Budget {
    /// For people.
    pub name: String,
    /// Labels of the instances; empty means all.
    pub selector: LabelSelector,
    /// Their namespaces; none means all.
    pub namespaces: BTreeSet<String>,
    /// How many may move at once.
    pub max_moving: usize,
}

impl Budget {
    /// Whether a machine is one of the group.
    pub fn has(&self, namespace: &str, labels: &Labels) -> bool {
        (self.namespaces.is_empty() || self.namespaces.contains(namespace))
            && self.selector.matches(labels)
    }
}

/// Who has to be approved of before it begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Approval {
    /// Nobody.
    #[default]
    None,
    /// Each node.
    Node,
    /// Each wave.
    Wave,
}

/// What a node that failed means for those that wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum OnFailure {
    /// They are left out.
    #[default]
    Stop,
    /// They go on.
    Continue,
}

/// A time in which nothing begins: between two moments, or daily between two times of day (UTC).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Window {
    /// `2026-12-24T00:00:00Z` or `22:00`.
    pub from: String,
    /// In the same form.
    pub to: String,
    /// `Mon` to `Sun`, the days on which a daily one begins; none means all.
    pub days: Vec<String>,
}

/// What is run for each node, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// Before the node is closed.
    pub before_drain: Vec<Hook>,
    /// When it is empty.
    pub drained: Vec<Hook>,
    /// When it is open again.
    pub after_reopen: Vec<Hook>,
}

/// One thing to run: a command that the node's own allow list names, or a call to a URL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hook {
    /// For people; differs from the others of its kind.
    pub name: String,
    /// Name in the hosts' allow lists; `None` for a webhook.
    pub command: Option<String>,
    /// Arguments, where the allow list lets them in.
    pub args: Vec<String>,
    /// Longest time of a command, seconds; `None` is ten minutes.
    pub timeout_seconds: Option<u64>,
    /// Whom to call; `None` for a command.
    pub webhook: Option<Webhook>,
}

/// A URL that is called.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Webhook {
    /// `https://` or `http://`.
    pub url: String,
    /// Longest wait for one answer, seconds; `None` is thirty.
    pub timeout_seconds: Option<u64>,
}

impl Hook {
    /// Longest time of the command, or longest wait for one answer, seconds.
    pub fn limit(&self) -> u64 {
        match &self.webhook {
            Some(webhook) => webhook.timeout_seconds.unwrap_or(30),
            None => self.timeout_seconds.unwrap_or(600),
        }
    }
}

/// What is wrong with an order, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Path of the field, from the object.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

impl Order {
    /// Everything that is wrong with it.
    pub fn flaws(&self) -> Vec<Flaw> {
        let mut flaws = Flaws(vec![]);
        if self.max_unavailable.of(1).is_none() {
            flaws.add(
                "spec.maxUnavailable",
                "a number from 1, a percentage from 1% to 100%, or Safe",
            );
        }
        for (at, budget) in self.budgets.iter().enumerate() {
            if budget.max_moving == 0 {
                let field = format!("spec.budgets[{at}].maxMoving");
                flaws.add(
                    &field,
                    "at least 1: with less its machines could never leave",
                );
            }
        }
        for (at, window) in self.freeze_windows.iter().enumerate() {
            window.check(&format!("spec.freezeWindows[{at}]"), &mut flaws);
        }
        for (field, hooks) in [
            ("spec.hooks.beforeDrain", &self.hooks.before_drain),
            ("spec.hooks.drained", &self.hooks.drained),
            ("spec.hooks.afterReopen", &self.hooks.after_reopen),
        ] {
            check_hooks(field, hooks, &mut flaws);
        }
        flaws.0
    }

    /// When the freeze ends that `now` is in; `None` when it is in none.
    pub fn frozen_until(&self, now: Moment) -> Option<Moment> {
        let windows = self.freeze_windows.iter();
        windows.filter_map(|window| window.until(now)).max()
    }
}

struct Flaws(Vec<Flaw>);

impl Flaws {
    fn add(&mut self, field: &str, message: &str) {
        self.0.push(Flaw {
            field: field.to_owned(),
            message: message.to_owned(),
        });
    }
}

impl Window {
    fn check(&self, field: &str, flaws: &mut Flaws) {
        let times = Moment::parse(&self.from).zip(Moment::parse(&self.to));
        let daily = time::minutes(&self.from).zip(time::minutes(&self.to));
        match (times, daily) {
            (Some((from, to)), _) => {
                if to <= from {
                    flaws.add(&format!("{field}.to"), "not after `from`");
                }
                if !self.days.is_empty() {
                    let why = "only for windows of times of day";
                    flaws.add(&format!("{field}.days"), why);
                }
            }
            (None, Some(_)) => {
                if !self.days.iter().all(|day| time::is_day(day)) {
                    let why = "days are Mon, Tue, Wed, Thu, Fri, Sat and Sun";
                    flaws.add(&format!("{field}.days"), why);
                }
            }
            (None, None) => flaws.add(
                field,
                "`from` and `to` are both times in UTC such as 2026-12-24T00:00:00Z, or both times \
                 of day such as 22:00",
            ),
        }
    }
}

fn check_hooks(field: &str, hooks: &[Hook], flaws: &mut Flaws) {
    if hooks.len() > HOOKS_MAX {
        flaws.add(field, &format!("at most {HOOKS_MAX}"));
    }
    let mut names = BTreeSet::new();
    for (at, hook) in hooks.iter().enumerate() {
        let at = format!("{field}[{at}]");
        if !is_name(&hook.name) {
            flaws.add(
                &format!("{at}.name"),
                "letters, digits, - and _, at most 63",
            );
        }
        if !names.insert(&hook.name) {
            flaws.add(&format!("{at}.name"), "another hook has this name");
        }
        match (&hook.command, &hook.webhook) {
            (Some(command), None) if !is_name(command) => {
                let why = "the name of a command in the hosts' allow lists, not a command line";
                flaws.add(&format!("{at}.command"), why);
            }
            (None, Some(webhook)) if !is_url(&webhook.url) => {
                flaws.add(&format!("{at}.webhook.url"), "an https:// or http:// URL");
            }
            (Some(_), None) | (None, Some(_)) => {}
            (Some(_), Some(_)) | (None, None) => {
                flaws.add(&at, "either command or webhook");
            }
        }
        if !(1..=TIMEOUT_MAX).contains(&hook.limit()) {
            flaws.add(&format!("{at}.timeoutSeconds"), "from 1 second to a day");
        }
        if hook.args.len() > ARGUMENTS_MAX {
            flaws.add(&format!("{at}.args"), &format!("at most {ARGUMENTS_MAX}"));
        }
    }
}

fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(plain)
}

fn is_url(text: &str) -> bool {
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    host.is_some_and(|host| !host.is_empty() && !host.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(text: &str) -> Order {
        serde_json::from_str(text).expect("an order")
    }

    #[test]
    fn a_share_is_a_number_a_percentage_or_what_is_safe() {
        let share = |text: &str| order(&format!("{{\"maxUnavailable\": {text}}}")).max_unavailable;
        for (text, of_ten) in [
            ("1", Some(1)),
            ("\"25%\"", Some(2)),
            ("\"1%\"", Some(1)),
            ("\"Safe\"", Some(usize::MAX)),
            ("0", None),
            ("\"0%\"", None),
            ("\"many\"", None),
        ] {
            assert_eq!(share(text).of(10), of_ten, "{text}");
        }
        assert_eq!(Order::default().max_unavailable.of(10), Some(1));
    }

    #[test]
    fn each_flaw_is_named_with_its_field() {
        let order = order(
            r#"{
                "maxUnavailable": "some",
                "budgets": [{ "name": "db" }],
                "freezeWindows": [{ "from": "22:00", "to": "2026-12-24T00:00:00Z" },
                                  { "from": "22:00", "to": "23:00", "days": ["Friday"] }],
                "hooks": { "drained": [{ "name": "a", "command": "rm -rf /" }, { "name": "a" },
                                       { "name": "c", "webhook": { "url": "ftp://x" } }] }
            }"#,
        );
        let fields: Vec<String> = order.flaws().into_iter().map(|flaw| flaw.field).collect();
        assert_eq!(
            fields,
            [
                "spec.maxUnavailable",
                "spec.budgets[0].maxMoving",
                "spec.freezeWindows[0]",
                "spec.freezeWindows[1].days",
                "spec.hooks.drained[0].command",
                "spec.hooks.drained[1].name",
                "spec.hooks.drained[1]",
                "spec.hooks.drained[2].webhook.url",
            ]
        );
        assert_eq!(Order::default().flaws(), []);
    }
}
