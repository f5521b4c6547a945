//! Changes of all models, in one order, for whoever follows them. Bounded: a reader that is too slow loses the oldest
//! and is told how many.

use std::sync::{Arc, Mutex, PoisonError};

use hush_contract::ModelState;
use tokio::sync::broadcast;

use super::snapshot::Snapshot;

/// A model that comes and goes makes five or so.
const KEPT: usize = 256;

#[derive(Clone, Debug)]
pub struct Change {
    /// Counts up by one from 1, over all models.
    pub id: u64,
    pub from: ModelState,
    pub now: Snapshot,
}

#[derive(Clone)]
pub struct Feed {
    /// The id of the last change. Held while it is sent, so that the order is that of the ids.
    last: Arc<Mutex<u64>>,
    changes: broadcast::Sender<Change>,
}

impl Feed {
    pub(super) fn new() -> Self {
        Self { last: Arc::default(), changes: broadcast::Sender::new(KEPT) }
    }

    pub(super) fn publish(&self, from: ModelState, now: Snapshot) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        // Nobody may be listening.
        let _ = self.changes.send(Change { id: *last, from, now });
    }

    /// Changes from now on, and the id of the last one before: snapshots that are taken afterwards hold it.
    pub fn subscribe(&self) -> (u64, broadcast::Receiver<Change>) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        (*last, self.changes.subscribe())
    }

    /// The id of the last change.
    pub fn last_id(&self) -> u64 {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
