//! The state of a model as everything but its actor sees it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hush_contract::ModelState;
use tokio::time::Instant;

use crate::change_feed::ChangeFeed;
use crate::gpu::{ModelAccount, ModelMemory};
use crate::machine::ResidencyRule;
use crate::models::ModelSettings;
use crate::runner::RunnerSpec;

/// A model at one moment. To act on it is a race: send the actor a conditional command instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSnapshot {
    pub model: String,
    /// Where the model is loaded, or will be: `cpu`, `cuda:0`.
    pub device: String,
    /// How the weights are stored; `None`: not known.
    pub precision: Option<String>,
    pub residency: ResidencyRule,
    pub state: ModelState,
    pub generation: u64,
    /// Requests that hold the model.
    pub inflight: usize,
    /// Requests that wait for the model.
    pub queued: usize,
    /// Since the last request or the load ended; zero while the model is busy or not loaded.
    pub idle: Duration,
    /// How long this generation has been ready; zero when it is not.
    pub loaded_for: Duration,
    /// How long the model must not be loaded, after an unload with a hold; `None`: no hold.
    pub hold: Option<Duration>,
    /// How long the last load took; `None`: there was none.
    pub last_load: Option<Duration>,
    /// The main process of the runner.
    pub runner_pid: Option<u32>,
    /// Why the last load failed.
    pub failure: Option<FailedLoad>,
    /// What must be free before the model loads, while it waits for that.
    pub demand_bytes: Option<u64>,
    /// The model's memory on its device; `None`: the device is not measured.
    pub memory: Option<ModelMemory>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedLoad {
    pub cause: String,
    /// Until the next load may be tried.
    pub retry_after: Duration,
}

/// What the actor writes. What grows with time is computed when a snapshot is read.
#[derive(Clone)]
pub(crate) struct ModelFacts {
    pub(crate) device: String,
    pub(crate) precision: Option<String>,
    /// `None`: the model's device is not measured.
    pub(crate) account: Option<ModelAccount>,
    pub(crate) residency: ResidencyRule,
    pub(crate) state: ModelState,
    pub(crate) generation: u64,
    pub(crate) inflight: usize,
    pub(crate) queued: usize,
    pub(crate) idle_since: Option<Instant>,
    pub(crate) loaded_since: Option<Instant>,
    pub(crate) hold_until: Option<Instant>,
    pub(crate) last_load: Option<Duration>,
    pub(crate) runner_pid: Option<u32>,
    pub(crate) failure: Option<(String, Instant)>,
    pub(crate) demand_bytes: Option<u64>,
}

impl ModelFacts {
    /// The facts before the actor has written any.
    fn before_start<S: RunnerSpec>(settings: &ModelSettings<S>) -> Self {
        Self {
            device: settings.spec.device().to_owned(),
            precision: settings.precision.clone(),
            account: None,
            residency: settings.lifecycle.residency,
            state: ModelState::Unloaded,
            generation: 0,
            inflight: 0,
            queued: 0,
            idle_since: None,
            loaded_since: None,
            hold_until: None,
            last_load: None,
            runner_pid: None,
            failure: None,
            demand_bytes: None,
        }
    }

    const fn is_busy(&self) -> bool {
        self.inflight + self.queued > 0
    }

    /// Whether the step from `before` to these facts is published in the change feed.
    fn is_change(&self, before: &Self) -> bool {
        let state = |facts: &Self| (facts.state, facts.generation, facts.is_busy(), facts.hold_until.is_some());

        state(self) != state(before)
            || (self.residency, &self.device, &self.precision) != (before.residency, &before.device, &before.precision)
    }
}

/// Where the actor publishes its model's state. Cheap to clone; clones are the same cell.
#[derive(Clone)]
pub(crate) struct SnapshotCell {
    model: Arc<str>,
    facts: Arc<Mutex<ModelFacts>>,
    feed: ChangeFeed,
}

impl SnapshotCell {
    pub(crate) fn new<S: RunnerSpec>(settings: &ModelSettings<S>, feed: ChangeFeed) -> Self {
        let facts = Arc::new(Mutex::new(ModelFacts::before_start(settings)));

        Self { model: settings.name.as_str().into(), facts, feed }
    }

    /// Only the actor of the model writes.
    pub(crate) fn write(&self, facts: ModelFacts) {
        let before = std::mem::replace(&mut *self.facts.lock().unwrap_or_else(PoisonError::into_inner), facts.clone());

        if facts.is_change(&before) {
            self.feed.publish(before.state, self.snapshot(facts));
        }
    }

    pub(crate) fn read(&self) -> ModelSnapshot {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone();

        self.snapshot(facts)
    }

    fn snapshot(&self, facts: ModelFacts) -> ModelSnapshot {
        let elapsed = |since: Option<Instant>| since.map_or(Duration::ZERO, |since| since.elapsed());
        let left = |until: Instant| until.saturating_duration_since(Instant::now());

        ModelSnapshot {
            model: self.model.to_string(),
            device: facts.device,
            precision: facts.precision,
            residency: facts.residency,
            state: facts.state,
            generation: facts.generation,
            inflight: facts.inflight,
            queued: facts.queued,
            idle: elapsed(facts.idle_since),
            loaded_for: elapsed(facts.loaded_since),
            hold: facts.hold_until.map(left).filter(|left| !left.is_zero()),
            last_load: facts.last_load,
            runner_pid: facts.runner_pid,
            failure: facts.failure.map(|(cause, until)| FailedLoad { cause, retry_after: left(until) }),
            demand_bytes: facts.demand_bytes,
            memory: facts.account.as_ref().map(ModelAccount::memory),
        }
    }
}
