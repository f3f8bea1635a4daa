//! Answers that count for a short time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most answers that are kept: more come from somebody who makes them up, and asking again costs
/// only time.
const ENTRIES_MAX: usize = 4096;

/// A digest of what was asked, so that no token is kept.
type Key = [u8; 32];

/// Answers with the time at which each of them ends.
pub(super) struct Brief<T>(Mutex<HashMap<Key, (Instant, T)>>);

impl<T> Default for Brief<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Brief<T> {
    /// The answer, if it still counts.
    pub(super) fn get(&self, key: &Key) -> Option<T> {
        let answers = self.lock();
        let (end, answer) = answers.get(key)?;
        (*end > Instant::now()).then(|| answer.clone())
    }

    /// Keeps it for `time`.
    pub(super) fn keep(&self, key: Key, answer: T, time: Duration) {
        let mut answers = self.lock();
        let now = Instant::now();
        if answers.len() >= ENTRIES_MAX {
            answers.retain(|_, (end, _)| *end > now);
        }
        if answers.len() >= ENTRIES_MAX {
            answers.clear();
        }
        answers.insert(key, (now + time, answer));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, (Instant, T)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_until_its_time_is_over() {
        let answers = Brief::default();
        answers.keep([1; 32], "yes", Duration::from_secs(10));
        answers.keep([2; 32], "no", Duration::ZERO);
        assert_eq!(answers.get(&[1; 32]), Some("yes"));
        assert_eq!(answers.get(&[2; 32]), None);
    }

    #[test]
    fn who_makes_up_questions_fills_no_memory() {
        let answers = Brief::default();
        for n in 0..=ENTRIES_MAX {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            answers.keep(key, (), Duration::from_secs(10));
        }
        assert!(answers.lock().len() <= ENTRIES_MAX);
    }
}
