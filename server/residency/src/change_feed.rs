//! The changes of all models, in one order. The feed is bounded: a reader that is too slow loses the oldest changes and
//! learns how many.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hush_contract::ModelState;
use tokio::sync::broadcast;

use crate::snapshot::ModelSnapshot;

/// A model that is loaded and unloaded makes about five changes.
const CHANGES_KEPT: usize = 256;

#[derive(Clone, Debug)]
pub struct ModelChange {
    /// Counts up by one from 1, over all models.
    pub id: u64,
    pub from: ModelState,
    pub now: ModelSnapshot,
}

#[derive(Clone)]
pub struct ChangeFeed {
    /// The id of the last change. Locked while a change is sent, so that the order is that of the ids.
    last_id: Arc<Mutex<u64>>,
    changes: broadcast::Sender<ModelChange>,
}

impl ChangeFeed {
    pub(crate) fn new() -> Self {
        Self { last_id: Arc::default(), changes: broadcast::Sender::new(CHANGES_KEPT) }
    }

    pub(crate) fn publish(&self, from: ModelState, now: ModelSnapshot) {
        let mut last_id = self.lock();
        *last_id += 1;

        // Without a subscriber the change is dropped.
        let _ = self.changes.send(ModelChange { id: *last_id, from, now });
    }

    /// The changes from now on, and the id of the last one before: snapshots that are taken afterwards contain it.
    pub fn subscribe(&self) -> (u64, broadcast::Receiver<ModelChange>) {
        let last_id = self.lock();

        (*last_id, self.changes.subscribe())
    }

    /// The id of the last change.
    pub fn last_id(&self) -> u64 {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.last_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
