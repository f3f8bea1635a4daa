//! Hooks of one node: which is to run next, and what its answers mean.
//!
//! A run is recorded before its host hears of it, and has a name of its own that a host never runs
//! twice. Of a webhook, each call is recorded before it is made, by the one who makes it.

use super::facts::{Action, Call, Facts};
use super::order::{Hook, Order};
use super::record::{HookRecord, NodeRecord, Stage};
use super::time::Moment;

/// A host that is silent for so long after the end of a hook's time has failed, seconds.
const SILENCE_MAX: u64 = 60;
/// So long after the end of its time a call of a webhook is given up, seconds: whoever made it died.
const CALL_GRACE: u64 = 5;
/// Most calls of a webhook that nobody answers.
const CALLS_MAX: u32 = 6;
/// Longest pause between two calls of a webhook, seconds.
const PAUSE_MAX: u64 = 60;
/// Exit code of a hook that ran out of time: that of `timeout`.
const OUT_OF_TIME: i32 = 124;
/// Exit code of a webhook that never answered.
const NO_ANSWER: i32 = 1;

/// What was heard of a run, or of one call of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// It runs.
    Running,
    /// The host can't be reached, or nobody answers the call; another may.
    Silent(String),
    /// It ended.
    Ended {
        /// 0 is good.
        code: i32,
        /// The end of what it wrote.
        output: String,
    },
}

/// Under what an answer is found: the run of a command, or one call of a webhook.
pub fn call_key(record: &HookRecord) -> String {
    match record.attempt {
        0 => record.run.clone(),
        attempt => format!("{}.{attempt}", record.run),
    }
}

/// How the hooks of one stage stand.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hooked {
    /// One runs, or is to run.
    Pending,
    /// All ended well, or there are none.
    Done,
    /// One says that the node is to be left out.
    Skip(String),
    /// One failed.
    Failed(String),
}

/// What one round knows of a node whose hooks are to run.
pub(super) struct Hooking<'a> {
    pub(super) order: &'a Order,
    /// Place of the node among the recorded.
    pub(super) at: usize,
    pub(super) stage: Stage,
    /// Whether a hook that has not begun may begin.
    pub(super) may_begin: bool,
    /// Whether those that have not begun are left out.
    pub(super) leave_rest: bool,
}

impl Hooking<'_> {
    /// Goes on with the hooks of the stage.
    pub(super) fn advance(
        &self,
        node: &mut NodeRecord,
        facts: &Facts<'_>,
        actions: &mut Vec<Action>,
    ) -> Hooked {
        let hooks = match self.stage {
            Stage::BeforeDrain => &self.order.hooks.before_drain,
            Stage::Drained => &self.order.hooks.drained,
            Stage::AfterReopen => &self.order.hooks.after_reopen,
        };
        for (index, hook) in hooks.iter().enumerate() {
            let known = node
                .hooks
                .iter()
                .position(|run| run.stage == self.stage && run.name == hook.name);
            let Some(known) = known else {
                if self.leave_rest {
                    return Hooked::Done;
                }
                if self.may_begin {
                    let run = self.run(hook, index, facts);
                    node.hooks.push(run);
                    let name = &node.name;
                    let record = node.hooks.last_mut().expect("it was just added");
                    go_on((hook, name), record, facts, actions);
                }
                return Hooked::Pending;
            };
            let name = &node.name;
            let record = &mut node.hooks[known];
            if record.exit_code.is_none() {
                go_on((hook, name), record, facts, actions);
            }
            match record.exit_code {
                None => return Hooked::Pending,
                Some(0) => {}
                Some(code) if code == self.order.skip_exit_code => {
                    return Hooked::Skip(format!("hook {} said so (exit code {code})", hook.name));
                }
                Some(code) => {
                    let said = record.output.lines().last().unwrap_or_default();
                    let colon = if said.is_empty() { "" } else { ": " };
                    return Hooked::Failed(format!(
                        "hook {} failed with exit code {code}{colon}{said}",
                        hook.name
                    ));
                }
            }
        }
        Hooked::Done
    }

    fn run(&self, hook: &Hook, index: usize, facts: &Facts<'_>) -> HookRecord {
        HookRecord {
            name: hook.name.clone(),
            stage: self.stage,
            run: format!("{}-{}-{}-{index}", facts.uid, self.at, self.stage.as_str()),
            started_at: facts.now,
            ended_at: None,
            exit_code: None,
            output: String::new(),
            attempt: 0,
            called_until_at: None,
            next_call_at: None,
        }
    }
}

/// Takes in what was heard of a run that has not ended, and orders the next call of a webhook.
fn go_on(
    (hook, node): (&Hook, &crate::NodeName),
    record: &mut HookRecord,
    facts: &Facts<'_>,
    actions: &mut Vec<Action>,
) {
    let now = facts.now;
    let heard = facts.heard.get(&call_key(record));
    if let Some(Heard::Ended { code, output }) = heard {
        end(record, now, (*code, output.clone()));
        return;
    }
    if hook.webhook.is_some() {
        call((hook, node), record, (heard, now), actions);
        return;
    }
    if now > record.started_at.after(hook.limit() + SILENCE_MAX) {
        let why = match heard {
            Some(Heard::Silent(why)) => format!("nothing was heard of it in time: {why}"),
            Some(Heard::Running | Heard::Ended { .. }) | None => {
                "it did not end in time".to_owned()
            }
        };
        end(record, now, (OUT_OF_TIME, why));
    }
}

fn call(
    (hook, node): (&Hook, &crate::NodeName),
    record: &mut HookRecord,
    (heard, now): (Option<&Heard>, Moment),
    actions: &mut Vec<Action>,
) {
    if let Some(until) = record.called_until_at {
        let why = match heard {
            Some(Heard::Silent(why)) => why.clone(),
            Some(Heard::Running | Heard::Ended { .. }) | None if now <= until => return,
            Some(Heard::Running | Heard::Ended { .. }) | None => {
                "no answer was recorded".to_owned()
            }
        };
        record.called_until_at = None;
        if record.attempt >= CALLS_MAX {
            let why = format!("not answered {CALLS_MAX} times; the last: {why}");
            end(record, now, (NO_ANSWER, why));
            return;
        }
        record.output = why;
        let pause = 2_u64.saturating_pow(record.attempt - 1).min(PAUSE_MAX);
        record.next_call_at = Some(now.after(pause));
    }
    if record.next_call_at.is_some_and(|next| now < next) {
        return;
    }
    record.attempt += 1;
    record.next_call_at = None;
    record.called_until_at = Some(now.after(hook.limit() + CALL_GRACE));
    actions.push(Action::Call(Call {
        key: call_key(record),
        node: node.clone(),
        hook: hook.clone(),
        stage: record.stage,
        attempt: record.attempt,
    }));
}

fn end(record: &mut HookRecord, now: Moment, (code, output): (i32, String)) {
    record.exit_code = Some(code);
    record.output = output;
    record.ended_at = Some(now);
    record.called_until_at = None;
}
