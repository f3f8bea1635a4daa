//! Wake-ups: a hint that something was committed. Never a promise: who waits also polls.

use std::time::Duration;

/// Wake-ups after commits of any process, over a connection of its own that is made again when
/// it breaks.
#[derive(Debug)]
pub struct Wakeups {}

impl Wakeups {
    /// Resolves at a commit since the last call, or after `max`. Answers whether it was a commit.
    pub async fn next(&mut self, max: Duration) -> bool {
        todo!()
    }
}
