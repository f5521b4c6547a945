//! What goes into the machine and what comes out.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Add;
use std::time::Duration;

use hush_contract::admin::UnloadOutcome;
use hush_contract::{UnloadReason, UnloadRefusal};

/// A point on a clock that only grows, in milliseconds since its owner started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    pub const START: Self = Self(0);

    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// One request for the model, from its arrival to its end. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// One command that wants an answer. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// When a model stays and when it leaves, without any controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// Loaded at start, loaded again after a loss, never unloaded by itself.
    Resident,
    /// Leaves after this long without a request; `None`: never.
    Idle(Option<Duration>),
    /// Leaves as soon as nobody waits for it.
    OnDemand,
}

impl Residency {
    /// The timeout as people give it: zero means never.
    pub fn idle(timeout: Duration) -> Self {
        Self::Idle((!timeout.is_zero()).then_some(timeout))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub residency: Residency,
    /// Requests that may wait; one more is refused.
    pub queue_limit: NonZeroUsize,
    /// Requests that may hold the model at the same time.
    pub concurrency: NonZeroUsize,
    /// Pause after the first failed load; doubles with each further one.
    pub backoff_first: Duration,
    pub backoff_max: Duration,
    /// How long an unload waits for what is in flight when its command does not say.
    pub drain: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            residency: Residency::Idle(Some(Duration::from_secs(300))),
            queue_limit: NonZeroUsize::MIN.saturating_add(255),
            concurrency: NonZeroUsize::MIN,
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            drain: Duration::from_secs(30),
        }
    }
}

/// An order to leave, and what must hold for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unload {
    pub if_generation: Option<u64>,
    /// Only if nothing has held the model for this long.
    pub if_idle: Option<Duration>,
    /// How long to wait for what is in flight; what is not done then is started again elsewhere.
    pub drain: Option<Duration>,
    /// How long after it has left not to load it again, whoever asks.
    pub hold: Option<Duration>,
    pub reason: UnloadReason,
}

impl Unload {
    /// Without conditions.
    pub const fn now(reason: UnloadReason) -> Self {
        Self { if_generation: None, if_idle: None, drain: None, hold: None, reason }
    }
}

/// An order to come, and what must hold for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub if_generation: Option<u64>,
    /// Ends a hold; otherwise a hold refuses the order.
    pub despite_hold: bool,
}

impl Load {
    /// Without conditions.
    pub const fn now() -> Self {
        Self { if_generation: None, despite_hold: true }
    }
}

/// How a runner was lost, as metrics count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossCause {
    /// It ended by itself, or spoke nonsense and was ended.
    Exited,
    /// A signal that was not ours: most often the kernel, out of memory.
    Killed,
    /// No sign of life while it worked.
    Hung,
    LoadTimeout,
}

impl LossCause {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Killed => "killed",
            Self::Hung => "hung",
            Self::LoadTimeout => "load_timeout",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    pub cause: LossCause,
    /// For people.
    pub detail: String,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request wants the model. `again`: its runner was lost under it; it has waited its turn already.
    Arrive {
        lease: LeaseId,
        again: bool,
    },
    /// A request has ended, whether it was waiting or holding.
    End {
        lease: LeaseId,
    },
    /// Have the model in memory, for no request in particular.
    Load {
        command: CommandId,
        load: Load,
    },
    Unload {
        command: CommandId,
        unload: Unload,
    },
    Loaded {
        generation: u64,
    },
    LoadFailed {
        generation: u64,
        cause: String,
    },
    /// The runner is useless. [`Event::Exited`] follows when it is reaped.
    RunnerLost {
        generation: u64,
        loss: Loss,
    },
    /// The runner is reaped: nothing of it is left.
    Exited {
        generation: u64,
    },
    /// Serve what has arrived, take nothing new, stop; at `deadline` without further waiting.
    Shutdown {
        deadline: Moment,
    },
    /// Time has passed.
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start a runner and load the model.
    StartRunner {
        generation: u64,
    },
    /// Ask the runner to exit, kill it if it does not.
    StopRunner {
        generation: u64,
    },
    KillRunner {
        generation: u64,
    },
    Grant {
        lease: LeaseId,
        generation: u64,
    },
    Refuse {
        lease: LeaseId,
        refusal: Refusal,
    },
    /// The lease has ended with its runner; its request may arrive again under a new one.
    Lost {
        lease: LeaseId,
        why: LostWhy,
    },
    ReplyLoad {
        command: CommandId,
        result: Result<u64, Refusal>,
    },
    /// The unload will happen, or nothing has changed.
    ReplyUnload {
        command: CommandId,
        result: Result<(), UnloadRefusal>,
    },
    /// An accepted unload is complete.
    Unloaded {
        command: CommandId,
        report: UnloadReport,
    },
    Count(Count),
    /// The answer to [`Event::Shutdown`]: nothing is left.
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LostWhy {
    Runner(Loss),
    /// An unload could not wait any longer.
    Displaced,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    QueueFull {
        limit: usize,
        retry_after: Duration,
    },
    LoadFailed {
        cause: String,
        retry_after: Duration,
    },
    /// Loaded again since the command was decided.
    GenerationChanged,
    /// An unload asked for a pause.
    Held {
        retry_after: Duration,
    },
    ShuttingDown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnloadReport {
    pub outcome: UnloadOutcome,
    pub generation: u64,
    /// Waiting for what was in flight.
    pub drain: Duration,
    /// From there until the runner was reaped.
    pub exit: Duration,
}

/// What metrics want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    Loaded {
        total: Duration,
    },
    LoadFailed,
    Unloaded {
        reason: UnloadReason,
        total: Duration,
    },
    UnloadRefused(UnloadRefusal),
    RunnerLost(LossCause),
    Interarrival(Duration),
    /// How long a request waited that found the model not loaded.
    ColdStart(Duration),
}
