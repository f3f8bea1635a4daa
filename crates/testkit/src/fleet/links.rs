//! The links of the hosts: all copies that leave a host share what its link carries, and so do those
//! that arrive.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use godwit_model::NodeName;
use tokio::sync::Notify;

/// All links, of one capacity each way.
#[derive(Debug)]
pub(crate) struct Links {
    capacity: u64,
    ends: Mutex<Ends>,
}

/// Who is to hear when another copy comes to an end of a link, or goes.
type Ends = HashMap<(NodeName, Way), Vec<Arc<Notify>>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    Out,
    In,
}

/// One copy's share of two links; given back when dropped.
#[derive(Debug)]
pub(crate) struct Leg<'a> {
    links: &'a Links,
    ends: [(NodeName, Way); 2],
    changed: Arc<Notify>,
}

impl Links {
    /// Links that carry `capacity` bytes a second.
    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            ends: Mutex::default(),
        }
    }

    /// Another copy from `source` to `target`.
    pub(crate) fn open(&self, source: &NodeName, target: &NodeName) -> Leg<'_> {
        let leg = Leg {
            links: self,
            ends: [(source.clone(), Way::Out), (target.clone(), Way::In)],
            changed: Arc::new(Notify::new()),
        };
        let mut ends = self.ends();
        for end in &leg.ends {
            let copies = ends.entry(end.clone()).or_default();
            copies.iter().for_each(|other| other.notify_one());
            copies.push(Arc::clone(&leg.changed));
        }
        drop(ends);
        leg
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leg<'_> {
    /// Bytes a second at present; `limit` is the copy's own, 0 for none.
    pub(crate) fn rate(&self, limit: u64) -> f64 {
        let ends = self.links.ends();
        let most = self
            .ends
            .iter()
            .filter_map(|end| ends.get(end))
            .map(Vec::len);
        let most = u32::try_from(most.max().unwrap_or(1).max(1)).unwrap_or(u32::MAX);
        #[expect(clippy::cast_precision_loss, reason = "rates need no more")]
        let (share, limit) = (self.links.capacity as f64 / f64::from(most), limit as f64);
        if limit > 0.0 { share.min(limit) } else { share }
    }

    /// Waits until the rate may differ.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Drop for Leg<'_> {
    fn drop(&mut self) {
        let mut ends = self.links.ends();
        for end in &self.ends {
            let Some(copies) = ends.get_mut(end) else {
                continue;
            };
            copies.retain(|other| !Arc::ptr_eq(other, &self.changed));
            copies.iter().for_each(|other| other.notify_one());
            if copies.is_empty() {
                ends.remove(end);
            }
        }
    }
}
