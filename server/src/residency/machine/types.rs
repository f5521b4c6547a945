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
    /// The model takes memory of a device that is measured: none is loaded without room, and an unload is complete
    /// when the memory has come back.
    pub accounted: bool,
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
            accounted: false,
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

/// The device's memory, measured for the next load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Free, less what other loads in progress will take; `None`: nobody can tell, and that forbids nothing.
    pub available_bytes: Option<u64>,
    /// What the model needs and what must stay free beside it.
    pub demand_bytes: u64,
}

impl DeviceMemory {
    pub fn has_room(&self) -> bool {
        self.available_bytes.is_none_or(|available| available >= self.demand_bytes)
    }
}

/// What an unload gave back, as the device's figures prove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reclaimed {
    /// What the model held before it left.
    pub vram_before_bytes: u64,
    /// How much of it is back.
    pub reclaimed_bytes: u64,
    /// How much is not.
    pub residual_bytes: u64,
    /// What others took meanwhile.
    pub taken_bytes: u64,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of it is back.
    Returned,
    /// All of it is back, and others took some.
    Taken,
    /// Some is not back although the process is gone.
    Residual,
    /// Less is free than should be, and no list says who holds it.
    Unattributed,
}

impl Verdict {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::Taken => "taken",
            Self::Residual => "residual",
            Self::Unattributed => "unattributed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request wants the model. `again`: its runner was lost under it; it has waited its turn already. `patience`: how
    /// long it waits for a model that is not in memory; `None`: as long as it takes.
    Arrive {
        lease: LeaseId,
        again: bool,
        patience: Option<Duration>,
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
    /// Work may begin.
    Loaded {
        generation: u64,
    },
    /// All of it is loaded: nothing of the load can fail any more.
    Settled {
        generation: u64,
    },
    /// May come even after [`Event::Loaded`], when what was left to the first work turns out to be broken.
    /// `out_of_memory`: the device had too little, whatever was measured before.
    LoadFailed {
        generation: u64,
        cause: String,
        out_of_memory: bool,
    },
    /// The answer to [`Effect::Measure`], and news while the model waits for memory.
    Memory {
        memory: DeviceMemory,
    },
    /// The other answer: it can never fit.
    NeverFits {
        cause: String,
    },
    /// Work failed because the device had too little memory.
    OutOfMemory {
        generation: u64,
    },
    /// The answer to [`Effect::Reclaim`]; `None`: nothing could be measured.
    Reclaimed {
        generation: u64,
        memory: Option<Reclaimed>,
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
    /// Another policy holds from now on; nobody who waits is sent away by it.
    Policy {
        policy: Policy,
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
    /// Look whether the device has room: [`Event::Memory`] or [`Event::NeverFits`] must follow.
    Measure,
    /// The runner is reaped. See its memory come back, for a bounded time: [`Event::Reclaimed`] must follow.
    Reclaim {
        generation: u64,
    },
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
    /// Its patience ended before the model was there.
    ColdHold {
        waited: Duration,
        why: Cold,
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

/// Why a model that is wanted is not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cold {
    Loading,
    /// The device has no room for it.
    NoRoom(DeviceMemory),
    /// Whoever unloaded it wants it to stay away for a while.
    Held,
}

impl fmt::Display for Cold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loading => f.write_str("it is still loading"),
            Self::Held => f.write_str("it was unloaded to make room and stays away for a while"),
            Self::NoRoom(DeviceMemory { available_bytes, demand_bytes }) => {
                let available = available_bytes.unwrap_or_default();
                write!(f, "its device has {available} bytes free and it needs {demand_bytes}")
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnloadReport {
    pub outcome: UnloadOutcome,
    pub generation: u64,
    /// Waiting for what was in flight.
    pub drain: Duration,
    /// From there until the runner was reaped.
    pub exit: Duration,
    /// From there until its memory was back, or nobody waited any longer.
    pub settle: Duration,
    /// `None`: its device is not measured.
    pub memory: Option<Reclaimed>,
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
    Reclaimed {
        memory: Reclaimed,
        took: Duration,
    },
    OutOfMemory,
    UnloadRefused(UnloadRefusal),
    RunnerLost(LossCause),
    Interarrival(Duration),
    /// How long a request waited that found the model not loaded.
    ColdStart(Duration),
}
