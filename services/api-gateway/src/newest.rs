//! How far the ledger is, asked once for all reads that wait for the answer.
//!
//! Another gateway may have acknowledged a write that isn't in this one's cache yet. Who reads the
//! latest state must see it, so such a read asks the ledger first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use godwit_ledger::Ledger;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// Asks for the newest revision.
pub(crate) struct Newest {
    ledger: Ledger,
    /// Questions that were begun.
    begun: AtomicU64,
    answer: Mutex<Answer>,
}

#[derive(Default)]
struct Answer {
    /// Which question it answers.
    question: u64,
    /// `None` when there was no answer.
    revision: Option<u64>,
}

impl Newest {
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            begun: AtomicU64::new(0),
            answer: Mutex::default(),
        }
    }

    /// The newest revision at some moment of this call; `None` when the ledger doesn't say it
    /// within `max`.
    pub(crate) async fn ask(&self, max: Duration) -> Option<u64> {
        // Only a question that is begun from here on can know of what was written before.
        let wanted = self.begun.load(Ordering::SeqCst) + 1;
        let mut answer = self.answer.lock().await;
        if answer.question < wanted {
            let question = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            let asked = timeout(max, self.ledger.revision()).await;
            let revision = asked.ok().and_then(Result::ok).map(|newest| newest.0);
            *answer = Answer { question, revision };
        }
        answer.revision
    }
}
