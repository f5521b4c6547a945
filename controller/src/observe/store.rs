//! The last sample of every server, and the result of its last scrape.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hush_core::ServerName;
use tokio::sync::{Notify, watch};

use super::sample::ServerSample;

/// What is known of one server.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The last sample that could be read, and when its scrape began. The sample is at least as new as that.
    pub last: Option<(Instant, Arc<ServerSample>)>,
    /// Why the last scrape failed; `None`: it succeeded.
    pub failure: Option<String>,
    pub failures_in_a_row: u32,
    /// How long the last scrape took.
    pub took: Duration,
}

/// Shared between the scrapers, which write, and the loop, which reads. Cheap to clone.
#[derive(Clone)]
pub struct ObservationStore {
    observations: Arc<Mutex<BTreeMap<ServerName, Observation>>>,
    changes: watch::Sender<u64>,
    nudges: Arc<Mutex<BTreeMap<ServerName, Arc<Notify>>>>,
}

impl Default for ObservationStore {
    fn default() -> Self {
        Self { observations: Arc::default(), changes: watch::Sender::new(0), nudges: Arc::default() }
    }
}

impl ObservationStore {
    pub fn all(&self) -> BTreeMap<ServerName, Observation> {
        self.observations().clone()
    }

    /// A number that grows with each new sample.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Requests a sample of this server before its turn.
    pub fn nudge(&self, server: &ServerName) {
        if let Some(nudge) = self.nudges.lock().unwrap_or_else(PoisonError::into_inner).get(server) {
            nudge.notify_one();
        }
    }

    /// Notifies the scraper of this server of each [`Self::nudge`].
    pub(super) fn nudges(&self, server: &ServerName) -> Arc<Notify> {
        self.nudges.lock().unwrap_or_else(PoisonError::into_inner).entry(server.clone()).or_default().clone()
    }

    pub(super) fn succeeded(&self, server: &ServerName, begun: Instant, took: Duration, sample: ServerSample) {
        let seen = Observation { last: Some((begun, Arc::new(sample))), failure: None, failures_in_a_row: 0, took };
        self.observations().insert(server.clone(), seen);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Records a failed scrape. The last sample stays, and grows old. Returns the number of failures in a row.
    pub(super) fn failed(&self, server: &ServerName, took: Duration, failure: String) -> u32 {
        let mut all = self.observations();
        let seen = all.entry(server.clone()).or_default();
        seen.failure = Some(failure);
        seen.failures_in_a_row += 1;
        seen.took = took;
        seen.failures_in_a_row
    }

    pub(super) fn forget(&self, server: &ServerName) {
        self.observations().remove(server);
        self.nudges.lock().unwrap_or_else(PoisonError::into_inner).remove(server);
        self.changes.send_modify(|count| *count += 1);
    }

    fn observations(&self) -> MutexGuard<'_, BTreeMap<ServerName, Observation>> {
        self.observations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
