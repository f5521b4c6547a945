//! The last sample of every server, and how the last try went.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hush_core::ServerName;
use tokio::sync::{Notify, watch};

use super::sample::Sample;

/// What is known of one server.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The last sample that could be read, and when its scrape began: it is at least as new as that.
    pub last: Option<(Instant, Arc<Sample>)>,
    /// Why the last try failed; `None`: it did not.
    pub failure: Option<String>,
    pub failures_in_a_row: u32,
    pub took: Duration,
}

/// Cheap to clone: scrapers write, the loop reads.
#[derive(Clone)]
pub struct Store {
    observations: Arc<Mutex<BTreeMap<ServerName, Observation>>>,
    changes: watch::Sender<u64>,
    bells: Arc<Mutex<BTreeMap<ServerName, Arc<Notify>>>>,
}

impl Default for Store {
    fn default() -> Self {
        Self { observations: Arc::default(), changes: watch::Sender::new(0), bells: Arc::default() }
    }
}

impl Store {
    pub fn all(&self) -> BTreeMap<ServerName, Observation> {
        self.observations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts up at each new sample.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Asks for a sample of this server before its turn.
    pub fn nudge(&self, server: &ServerName) {
        if let Some(bell) = self.bells.lock().unwrap_or_else(PoisonError::into_inner).get(server) {
            bell.notify_one();
        }
    }

    pub(super) fn bell(&self, server: &ServerName) -> Arc<Notify> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner).entry(server.clone()).or_default().clone()
    }

    pub(super) fn succeeded(&self, server: &ServerName, begun: Instant, took: Duration, sample: Sample) {
        let seen = Observation { last: Some((begun, Arc::new(sample))), failure: None, failures_in_a_row: 0, took };
        self.observations.lock().unwrap_or_else(PoisonError::into_inner).insert(server.clone(), seen);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Keeps the last sample: it grows old by itself. Returns how many tries have failed now.
    pub(super) fn failed(&self, server: &ServerName, took: Duration, why: String) -> u32 {
        let mut all = self.observations.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = all.entry(server.clone()).or_default();
        seen.failure = Some(why);
        seen.failures_in_a_row += 1;
        seen.took = took;
        seen.failures_in_a_row
    }

    pub(super) fn forget(&self, server: &ServerName) {
        self.observations.lock().unwrap_or_else(PoisonError::into_inner).remove(server);
        self.bells.lock().unwrap_or_else(PoisonError::into_inner).remove(server);
        self.changes.send_modify(|count| *count += 1);
    }
}
