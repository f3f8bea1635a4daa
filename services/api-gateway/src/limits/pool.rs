//! Something that there is only so much of, a part of it for operators.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A share of a [`Pool`]; given back when dropped.
pub(crate) type Share = OwnedSemaphorePermit;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// A member of an operators' group.
    Operator,
    /// Everyone else.
    Tenant,
}

/// Tenants take from what is shared; operators take the reserve when that is used up.
#[derive(Clone)]
pub(crate) struct Pool {
    shared: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    shared_size: usize,
}

impl Pool {
    /// A pool of `all` units, `reserved` of them for operators.
    pub(crate) fn new(all: usize, reserved: usize) -> Self {
        let shared_size = all - reserved.min(all);
        Self {
            shared: Arc::new(Semaphore::new(shared_size)),
            reserve: Arc::new(Semaphore::new(reserved)),
            shared_size,
        }
    }

    /// Takes `units`, or nothing if they aren't there. Whoever asks for more than what is shared
    /// among all gets that, when nobody else has any of it.
    pub(crate) fn take(&self, class: Class, units: usize) -> Option<Share> {
        let few = |most: usize| u32::try_from(units.min(most)).ok();
        let shared = Arc::clone(&self.shared).try_acquire_many_owned(few(self.shared_size)?);
        match (shared, class) {
            (Ok(share), _) => Some(share),
            (Err(_), Class::Tenant) => None,
            (Err(_), Class::Operator) => self.take_reserved(units),
        }
    }

    /// Takes `units` of the reserve.
    pub(crate) fn take_reserved(&self, units: usize) -> Option<Share> {
        let units = u32::try_from(units).ok()?;
        Arc::clone(&self.reserve).try_acquire_many_owned(units).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_who_take_all_leave_the_reserve_to_operators() {
        let pool = Pool::new(5, 2);
        let taken: Vec<Share> = (0..3).filter_map(|_| pool.take(Class::Tenant, 1)).collect();
        assert_eq!(taken.len(), 3);
        assert!(pool.take(Class::Tenant, 1).is_none());
        let first = pool.take(Class::Operator, 1);
        assert!(first.is_some() && pool.take(Class::Operator, 1).is_some());
        let _second = pool.take(Class::Operator, 1);
        assert!(pool.take(Class::Operator, 1).is_none());
        drop(taken);
        assert!(pool.take(Class::Tenant, 3).is_some());
    }

    #[test]
    fn more_than_there_is_waits_for_all_of_it() {
        let pool = Pool::new(5, 2);
        let small = pool.take(Class::Tenant, 1);
        assert!(pool.take(Class::Tenant, 100).is_none());
        drop(small);
        assert!(pool.take(Class::Tenant, 100).is_some());
    }
}
