//! How much each tenant does at once, and how often.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::config::Limits;

/// Users whose rate is remembered; beyond it those who were quiet are forgotten, which changes
/// nothing for them.
const REMEMBERED_MAX: usize = 4096;

/// What a user can have several of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thing {
    Request,
    Watch,
}

/// Counts by user.
pub(crate) struct Users {
    open: Mutex<HashMap<String, Open>>,
    rate: DefaultKeyedRateLimiter<String>,
    clock: DefaultClock,
}

#[derive(Default)]
struct Open {
    requests: usize,
    watches: usize,
}

impl Open {
    fn of(&mut self, thing: Thing) -> &mut usize {
        match thing {
            Thing::Request => &mut self.requests,
            Thing::Watch => &mut self.watches,
        }
    }
}

impl Users {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        let number = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(number(limits.user_rate));
        Arc::new(Self {
            open: Mutex::default(),
            rate: RateLimiter::keyed(quota.allow_burst(number(limits.user_burst))),
            clock: DefaultClock::default(),
        })
    }

    /// Counts a request of the user.
    ///
    /// # Errors
    /// With how long to wait, if they make too many.
    pub(crate) fn pace(&self, user: &str) -> Result<(), Duration> {
        if self.rate.len() > REMEMBERED_MAX {
            self.rate.retain_recent();
        }
        let checked = self.rate.check_key(&user.to_owned());
        checked.map_err(|until| until.wait_time_from(self.clock.now()))
    }

    /// One more of the user's, until it is dropped, unless there are `most`.
    pub(crate) fn begin(self: &Arc<Self>, user: &str, thing: Thing, most: usize) -> Option<Began> {
        let mut open = self.lock();
        let count = open.entry(user.to_owned()).or_default().of(thing);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Began {
            users: Arc::clone(self),
            user: user.to_owned(),
            thing,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something of a user's that goes on.
pub(crate) struct Began {
    users: Arc<Users>,
    user: String,
    thing: Thing,
}

impl Drop for Began {
    fn drop(&mut self) {
        let mut open = self.users.lock();
        let Some(mine) = open.get_mut(&self.user) else {
            return;
        };
        *mine.of(self.thing) -= 1;
        if mine.requests + mine.watches == 0 {
            open.remove(&self.user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_a_count_of_their_own() {
        let users = Users::new(&Limits::default());
        let first = users.begin("a", Thing::Watch, 1);
        assert!(first.is_some());
        assert!(users.begin("a", Thing::Watch, 1).is_none());
        assert!(users.begin("a", Thing::Request, 1).is_some());
        assert!(users.begin("b", Thing::Watch, 1).is_some());
        drop(first);
        assert!(users.begin("a", Thing::Watch, 1).is_some());
        assert!(users.lock().is_empty(), "who does nothing is forgotten");
    }

    #[test]
    fn who_asks_too_often_is_told_how_long_to_wait() {
        let limits = Limits {
            user_rate: 1,
            user_burst: 2,
            ..Limits::default()
        };
        let users = Users::new(&limits);
        assert!(users.pace("a").is_ok() && users.pace("a").is_ok());
        let wait = users.pace("a").unwrap_err();
        assert!(
            wait > Duration::ZERO && wait <= Duration::from_secs(1),
            "{wait:?}"
        );
        assert!(users.pace("b").is_ok());
    }
}
