//! What everybody may see of a model.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hush_contract::ModelState;
use tokio::time::Instant;

use super::machine::Residency;

/// A model at one moment. To decide anything by it is a race: send the owner a conditional command instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub model: String,
    pub state: ModelState,
    pub generation: u64,
    /// Requests that hold the model.
    pub inflight: usize,
    /// Requests that wait for it.
    pub queued: usize,
    /// Since the last request or the load ended; zero while busy or not loaded.
    pub idle: Duration,
    /// How long this generation has been ready; zero when it is not.
    pub loaded_for: Duration,
    pub runner_pid: Option<u32>,
    pub residency: Residency,
    /// Why the last load failed.
    pub failure: Option<Failure>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub cause: String,
    /// Until the next try may begin.
    pub retry_after: Duration,
}

/// The owner writes, everybody reads; what grows with time is computed by the reader.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) state: ModelState,
    pub(super) generation: u64,
    pub(super) inflight: usize,
    pub(super) queued: usize,
    pub(super) idle_since: Option<Instant>,
    pub(super) loaded_since: Option<Instant>,
    pub(super) runner_pid: Option<u32>,
    pub(super) failure: Option<(String, Instant)>,
}

#[derive(Clone)]
pub(super) struct Board {
    residency: Residency,
    facts: Arc<Mutex<Facts>>,
}

impl Board {
    pub(super) fn new(residency: Residency) -> Self {
        let facts = Facts {
            state: ModelState::Unloaded,
            generation: 0,
            inflight: 0,
            queued: 0,
            idle_since: None,
            loaded_since: None,
            runner_pid: None,
            failure: None,
        };
        Self { residency, facts: Arc::new(Mutex::new(facts)) }
    }

    pub(super) fn write(&self, facts: Facts) {
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = facts;
    }

    pub(super) fn read(&self, model: &str) -> Snapshot {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let elapsed = |since: Option<Instant>| since.map_or(Duration::ZERO, |since| since.elapsed());
        Snapshot {
            model: model.to_owned(),
            state: facts.state,
            generation: facts.generation,
            inflight: facts.inflight,
            queued: facts.queued,
            idle: elapsed(facts.idle_since),
            loaded_for: elapsed(facts.loaded_since),
            runner_pid: facts.runner_pid,
            residency: self.residency,
            failure: facts
                .failure
                .map(|(cause, until)| Failure { cause, retry_after: until.saturating_duration_since(Instant::now()) }),
        }
    }
}
