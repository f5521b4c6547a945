//! What everybody may see of a model.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hush_contract::ModelState;
use tokio::time::Instant;

use super::feed::Feed;
use super::machine::Residency;

/// A model at one moment. To decide anything by it is a race: send the owner a conditional command instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub model: String,
    /// As the server was told: `cpu`, `cuda:0`.
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
}

impl Facts {
    fn of(residency: Residency) -> Self {
        Self {
            residency,
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
        }
    }

    const fn is_busy(&self) -> bool {
        self.inflight + self.queued > 0
    }

    /// Whether those who follow the model hear of the step from `before` to here.
    fn is_news(&self, before: &Self) -> bool {
        (self.state, self.generation, self.is_busy(), self.hold_until.is_some(), self.residency)
            != (before.state, before.generation, before.is_busy(), before.hold_until.is_some(), before.residency)
    }
}

/// What does not change while a model lives.
#[derive(Clone, Debug)]
pub(super) struct About {
    pub(super) model: String,
    pub(super) device: String,
    pub(super) precision: Option<String>,
}

#[derive(Clone)]
pub(super) struct Board {
    about: Arc<About>,
    facts: Arc<Mutex<Facts>>,
    feed: Feed,
}

impl Board {
    pub(super) fn new(about: About, residency: Residency, feed: Feed) -> Self {
        Self { about: Arc::new(about), facts: Arc::new(Mutex::new(Facts::of(residency))), feed }
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
        let About { model, device, precision } = self.about.as_ref().clone();
        Snapshot {
            model,
            device,
            precision,
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
        }
    }
}
