//! What everybody may see of a model.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hush_contract::ModelState;
use tokio::time::Instant;

use super::feed::Feed;
use super::machine::Residency;
use super::models::ModelSettings;
use crate::gpu::{Account, ModelMemory};

/// A model at one moment. To decide anything by it is a race: send the owner a conditional command instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub model: String,
    /// Where it is loaded, or will be: `cpu`, `cuda:0`.
    pub device: String,
    /// How its weights are stored; `None`: not known.
    pub precision: Option<String>,
    pub residency: Residency,
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
    /// Until it may be loaded again after an unload with a hold; `None`: no hold.
    pub hold: Option<Duration>,
    /// What the last load took; `None`: there was none.
    pub last_load: Option<Duration>,
    pub runner_pid: Option<u32>,
    /// Why the last load failed.
    pub failure: Option<Failure>,
    /// What must be free before it loads, while it waits for that.
    pub demand_bytes: Option<u64>,
    /// Of its device; `None`: that is not measured.
    pub memory: Option<ModelMemory>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub cause: String,
    /// Until the next try may begin.
    pub retry_after: Duration,
}

/// The owner writes, everybody reads; what grows with time is computed by the reader.
#[derive(Clone)]
pub(super) struct Facts {
    pub(super) device: String,
    pub(super) precision: Option<String>,
    /// `None`: its device is not measured.
    pub(super) account: Option<Account>,
    pub(super) residency: Residency,
    pub(super) state: ModelState,
    pub(super) generation: u64,
    pub(super) inflight: usize,
    pub(super) queued: usize,
    pub(super) idle_since: Option<Instant>,
    pub(super) loaded_since: Option<Instant>,
    pub(super) hold_until: Option<Instant>,
    pub(super) last_load: Option<Duration>,
    pub(super) runner_pid: Option<u32>,
    pub(super) failure: Option<(String, Instant)>,
    pub(super) demand_bytes: Option<u64>,
}

impl Facts {
    /// Before its owner has said anything.
    fn of(settings: &ModelSettings) -> Self {
        Self {
            device: settings.spec.device.clone(),
            precision: settings.precision.clone(),
            account: None,
            residency: settings.policy.residency,
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

    /// Whether those who follow the model hear of the step from `before` to here.
    fn is_news(&self, before: &Self) -> bool {
        let state = |facts: &Self| (facts.state, facts.generation, facts.is_busy(), facts.hold_until.is_some());
        state(self) != state(before)
            || (self.residency, &self.device, &self.precision) != (before.residency, &before.device, &before.precision)
    }
}

#[derive(Clone)]
pub(super) struct Board {
    model: Arc<str>,
    facts: Arc<Mutex<Facts>>,
    feed: Feed,
}

impl Board {
    pub(super) fn new(settings: &ModelSettings, feed: Feed) -> Self {
        let facts = Arc::new(Mutex::new(Facts::of(settings)));
        Self { model: settings.name.as_str().into(), facts, feed }
    }

    /// For the owner alone.
    pub(super) fn write(&self, facts: Facts) {
        let before = std::mem::replace(&mut *self.facts.lock().unwrap_or_else(PoisonError::into_inner), facts.clone());
        if facts.is_news(&before) {
            self.feed.publish(before.state, self.snapshot(facts));
        }
    }

    pub(super) fn read(&self) -> Snapshot {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.snapshot(facts)
    }

    fn snapshot(&self, facts: Facts) -> Snapshot {
        let elapsed = |since: Option<Instant>| since.map_or(Duration::ZERO, |since| since.elapsed());
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        Snapshot {
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
            failure: facts.failure.map(|(cause, until)| Failure { cause, retry_after: left(until) }),
            demand_bytes: facts.demand_bytes,
            memory: facts.account.as_ref().map(Account::memory),
        }
    }
}
