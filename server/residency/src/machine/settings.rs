//! How a model is kept, and the commands that change it.

use std::num::NonZeroUsize;
use std::time::Duration;

use hush_contract::UnloadReason;
use hush_contract::admin::UnloadMethod;

/// When a model stays in memory and when it leaves, where no controller decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResidencyRule {
    /// Loaded at start, loaded again after a loss, never unloaded by the server itself.
    Resident,
    /// Unloaded after this long without a request; `None`: never.
    Idle(Option<Duration>),
    /// Unloaded as soon as no request waits for it.
    OnDemand,
}

impl ResidencyRule {
    /// The rule for an idle timeout as settings give it: zero means never.
    pub fn idle(timeout: Duration) -> Self {
        Self::Idle((!timeout.is_zero()).then_some(timeout))
    }
}

/// What becomes of the requests that are still in flight when the time for a drain is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainEnd {
    /// The runner is ended under them; each is started again after the next load.
    Displace,
    /// The unload is given up and its command refused: nothing can start the requests again. A shutdown displaces them
    /// nevertheless.
    GiveUp,
}

/// The settings of one model's life. They may change while the model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifecycleSettings {
    pub residency: ResidencyRule,
    /// Requests that may wait; one more is refused.
    pub queue_limit: NonZeroUsize,
    /// Requests that may hold the model at the same time.
    pub concurrency: NonZeroUsize,
    /// The pause after the first failed load. It doubles with each further failure.
    pub backoff_first: Duration,
    pub backoff_max: Duration,
    /// How long an unload waits for the requests in flight when its command does not say.
    pub drain: Duration,
    pub drain_end: DrainEnd,
    /// What an unload ends when its command does not say, and what the server's own unloads end.
    pub unload_method: UnloadMethod,
    /// Whether the model takes memory of a device that is measured. Then it is not loaded before there is room, and an
    /// unload is complete when the memory has come back.
    pub accounted: bool,
}

impl Default for LifecycleSettings {
    fn default() -> Self {
        Self {
            residency: ResidencyRule::Idle(Some(Duration::from_secs(300))),
            queue_limit: NonZeroUsize::MIN.saturating_add(255),
            concurrency: NonZeroUsize::MIN,
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            drain: Duration::from_secs(30),
            drain_end: DrainEnd::Displace,
            unload_method: UnloadMethod::App,
            accounted: false,
        }
    }
}

/// A command to unload, and the conditions under which it is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnloadCommand {
    /// Only if the model is still of this generation.
    pub if_generation: Option<u64>,
    /// Only if no request has held the model for this long.
    pub if_idle: Option<Duration>,
    /// How long to wait for the requests in flight. Those that are not done by then are started again after the next
    /// load. `None`: [`LifecycleSettings::drain`].
    pub drain: Option<Duration>,
    /// For how long after the unload the model must not be loaded again.
    pub hold: Option<Duration>,
    /// What the unload ends. `None`: [`LifecycleSettings::unload_method`].
    pub method: Option<UnloadMethod>,
    pub reason: UnloadReason,
}

impl UnloadCommand {
    /// A command without conditions.
    pub const fn now(reason: UnloadReason) -> Self {
        Self { if_generation: None, if_idle: None, drain: None, hold: None, method: None, reason }
    }
}

/// A command to load, and the conditions under which it is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadCommand {
    /// Only if the model is still of this generation.
    pub if_generation: Option<u64>,
    /// Whether the command ends a hold; otherwise a hold refuses the command.
    pub despite_hold: bool,
}

impl LoadCommand {
    /// A command without conditions.
    pub const fn now() -> Self {
        Self { if_generation: None, despite_hold: true }
    }
}
