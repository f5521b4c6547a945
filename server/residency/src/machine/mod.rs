//! The life of one model as a pure function: `step(now, event) -> effects`. No clock, no task, no process.
//!
//! ```text
//! Unloaded --wanted, room--> Loading --> Ready --unload--> Draining --no request holds it--> Unloading --reaped--> Unloaded
//! ```
//! A model whose device is measured also needs room before it loads, and after its runner is reaped it stays `Unloading`
//! until its memory is back.
//!
//! An event changes the facts (`apply`); then the machine does everything that these facts and the time allow
//! (`advance`). Whatever depends on time is in [`ModelMachine::deadline`], so no timer can be stale.

mod advance;
mod apply;
mod event;
mod report;
mod settings;
mod time;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hush_contract::admin::{ProcessOutcome, UnloadMethod};
use hush_contract::{ModelState, UnloadReason};

pub use event::{ColdReason, CommandId, LeaseId, LeaseLossCause, MachineEffect, MachineEvent, ModelRefusal};
pub use report::{LossCause, MemoryAvailability, MetricEvent, ReclaimReport, ReclaimVerdict, RunnerLoss, UnloadReport};
pub use settings::{DrainEnd, LifecycleSettings, LoadCommand, ResidencyRule, UnloadCommand};
pub use time::MachineTime;

/// The longest `Retry-After` that known clients honour.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

/// How long a request is taken to hold the model before the first one has ended.
const SERVICE_TIME_GUESS: Duration = Duration::from_secs(5);

/// The pause after a refusal of the runner to end, before it is asked again.
const STOP_RETRY: Duration = Duration::from_millis(250);

/// The state of one model.
#[derive(Debug)]
pub struct ModelMachine {
    settings: LifecycleSettings,
    phase: ModelPhase,
    /// The number of the running runner, or of the last one.
    generation: u64,
    /// The requests that hold the model, and when each got it.
    granted: BTreeMap<LeaseId, MachineTime>,
    /// Requests that must find the model in memory and are no activity.
    visits: BTreeSet<LeaseId>,
    queue: VecDeque<QueuedRequest>,
    /// Load commands without an answer.
    load_commands: Vec<CommandId>,
    failed_load: Option<LoadBackoff>,
    /// Failed loads in a row.
    failed_loads: u32,
    room: RoomCheck,
    /// Loads in a row that ran out of memory.
    out_of_memory_loads: u32,
    /// Runners in a row that were lost while they loaded.
    lost_loading: u32,
    /// Runners in a row that were lost before a request was finished.
    lost_ready: u32,
    /// The server itself does not load a resident model before this.
    rest_until: Option<MachineTime>,
    /// The model must not be loaded before this, for whatever reason.
    hold_until: Option<MachineTime>,
    /// A resident model that was unloaded by a command stays away until a request or a command wants it.
    is_parked: bool,
    last_arrival: Option<MachineTime>,
    /// The moving average of how long requests hold the model.
    service_time: Option<Duration>,
    shutdown: Option<ShutdownProgress>,
}

#[derive(Debug)]
enum ModelPhase {
    Unloaded,
    Loading {
        since: MachineTime,
    },
    Ready {
        /// `None` while a request holds the model.
        idle_since: Option<MachineTime>,
        /// A load command wanted the model and no request has held it yet: [`ResidencyRule::OnDemand`] keeps it.
        asked_for: bool,
    },
    Draining(PendingUnload),
    /// The runner is ending; `None`: it was lost.
    Unloading(Option<RunnerStop>),
    /// The runner is gone, and its memory is on its way back.
    Reclaiming(PendingReclaim),
    Stopped,
}

/// What is known of the room for the next load, while nothing is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoomCheck {
    Unknown,
    Asked,
    Enough,
    Short(MemoryAvailability),
}

/// An unload that waits for the requests in flight.
#[derive(Debug)]
struct PendingUnload {
    reason: UnloadReason,
    command: Option<CommandId>,
    hold: Option<Duration>,
    method: UnloadMethod,
    since: MachineTime,
    until: MachineTime,
    /// The runner has refused to end; it is asked again at this time.
    retry_at: Option<MachineTime>,
    /// Since when the model was idle, when the unload began.
    idle_since: Option<MachineTime>,
    /// What becomes of the process that holds the model.
    process: ProcessOutcome,
}

impl PendingUnload {
    const fn new(reason: UnloadReason, method: UnloadMethod, since: MachineTime, until: MachineTime) -> Self {
        let process = ProcessOutcome::Ended;

        Self { reason, command: None, hold: None, method, since, until, retry_at: None, idle_since: None, process }
    }
}

/// An unload that waits for the runner to be reaped.
#[derive(Debug)]
struct RunnerStop {
    unload: PendingUnload,
    since: MachineTime,
}

/// An unload that waits for the memory to come back.
#[derive(Debug)]
struct PendingReclaim {
    unload: PendingUnload,
    exit: Duration,
    drain: Duration,
    since: MachineTime,
}

#[derive(Debug)]
struct QueuedRequest {
    lease: LeaseId,
    since: MachineTime,
    /// The model was not ready when the request came.
    is_cold: bool,
    /// Until when the request waits for a model that is not in memory.
    until: Option<MachineTime>,
}

/// The pause after a failed load.
#[derive(Debug)]
struct LoadBackoff {
    cause: String,
    until: MachineTime,
}

#[derive(Debug)]
struct ShutdownProgress {
    deadline: MachineTime,
    /// The deadline is over: no request waits any longer.
    is_forced: bool,
}

impl ModelMachine {
    pub fn new(settings: LifecycleSettings) -> Self {
        Self {
            settings,
            phase: ModelPhase::Unloaded,
            generation: 0,
            granted: BTreeMap::new(),
            visits: BTreeSet::new(),
            queue: VecDeque::new(),
            load_commands: Vec::new(),
            failed_load: None,
            failed_loads: 0,
            room: RoomCheck::Unknown,
            out_of_memory_loads: 0,
            lost_loading: 0,
            lost_ready: 0,
            rest_until: None,
            hold_until: None,
            is_parked: false,
            last_arrival: None,
            service_time: None,
            shutdown: None,
        }
    }

    /// Takes one event and returns what is to be done, in this order. `now` never goes back.
    pub fn step(&mut self, now: MachineTime, event: MachineEvent) -> Vec<MachineEffect> {
        let mut effects = Vec::new();

        self.apply(now, event, &mut effects);
        self.advance(now, &mut effects);

        effects
    }

    /// When [`MachineEvent::Tick`] is due; later than the last step, or never.
    pub fn deadline(&self) -> Option<MachineTime> {
        let own = match &self.phase {
            // While room was asked for or is short, the next event comes from the device.
            ModelPhase::Unloaded if self.is_wanted() && self.room == RoomCheck::Unknown => {
                let backoff_ends = self.failed_load.as_ref().map(|failed| failed.until);
                let rest_ends = if self.is_asked_for() { None } else { self.rest_until };
                [self.hold_until, backoff_ends, rest_ends].into_iter().flatten().max()
            }
            // The end of a visit is an event.
            ModelPhase::Ready { idle_since: Some(since), .. } if self.visits.is_empty() => {
                match self.settings.residency {
                    ResidencyRule::Idle(Some(timeout)) => Some(*since + timeout),
                    _ => None,
                }
            }
            ModelPhase::Draining(unload) => match unload.retry_at {
                Some(retry_at) if self.is_drained() => Some(retry_at.min(unload.until)),
                _ => Some(unload.until),
            },
            _ => None,
        };

        let shutdown = self.shutdown.as_ref().filter(|shutdown| !shutdown.is_forced).map(|shutdown| shutdown.deadline);
        let cold_wait_ends =
            if self.is_ready() { None } else { self.queue.iter().filter_map(|request| request.until).min() };

        own.into_iter().chain(shutdown).chain(cold_wait_ends).min()
    }

    pub fn state(&self) -> ModelState {
        match &self.phase {
            ModelPhase::Unloaded if self.is_wanted() && (self.hold_until.is_some() || self.shortage().is_some()) => {
                ModelState::WaitingForMemory
            }
            ModelPhase::Unloaded if self.failed_load.is_some() => ModelState::Failed,
            ModelPhase::Unloaded | ModelPhase::Stopped => ModelState::Unloaded,
            ModelPhase::Loading { .. } => ModelState::Loading,
            ModelPhase::Ready { .. } => ModelState::Ready,
            ModelPhase::Draining(_) => ModelState::Draining,
            ModelPhase::Unloading(_) | ModelPhase::Reclaiming(_) => ModelState::Unloading,
        }
    }

    /// What the device lacks, while the model waits for that.
    pub fn shortage(&self) -> Option<MemoryAvailability> {
        match self.room {
            RoomCheck::Short(memory) if self.is_wanted() => Some(memory),
            _ => None,
        }
    }

    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The number of requests that hold the model.
    pub fn inflight(&self) -> usize {
        self.granted.len()
    }

    /// The number of requests that wait for the model.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Since when the model has been ready without a request that holds it; `None` while it is busy or not loaded.
    pub const fn idle_since(&self) -> Option<MachineTime> {
        match self.phase {
            ModelPhase::Ready { idle_since, .. } => idle_since,
            _ => None,
        }
    }

    /// Until when the model must not be loaded.
    pub const fn hold_until(&self) -> Option<MachineTime> {
        self.hold_until
    }

    pub const fn residency(&self) -> ResidencyRule {
        self.settings.residency
    }

    /// Why the last load failed, and when the next may be tried.
    pub fn failure(&self) -> Option<(&str, MachineTime)> {
        self.failed_load.as_ref().map(|failed| (failed.cause.as_str(), failed.until))
    }

    /// Whether no request holds the model and none must find it in memory.
    fn is_drained(&self) -> bool {
        self.granted.is_empty() && self.visits.is_empty()
    }

    /// Ends every lease and every visit.
    fn revoke_leases(&mut self, why: LeaseLossCause, effects: &mut Vec<MachineEffect>) {
        let visits = std::mem::take(&mut self.visits);
        for lease in std::mem::take(&mut self.granted).into_keys().chain(visits) {
            effects.push(MachineEffect::Lost { lease, why: why.clone() });
        }
    }

    /// Whether a shutdown refuses a request. Requests that had arrived before are served until the deadline, also when
    /// they lose their runner (`again`).
    fn is_closed_to(&self, again: bool) -> bool {
        let refuses = |shutdown: &ShutdownProgress| !again || shutdown.is_forced;

        matches!(self.phase, ModelPhase::Stopped) || self.shutdown.as_ref().is_some_and(refuses)
    }

    /// The refusal during the pause after a failed load.
    fn backoff_refusal(&self, now: MachineTime) -> Option<ModelRefusal> {
        let failed = self.failed_load.as_ref().filter(|failed| now < failed.until)?;

        Some(ModelRefusal::LoadFailed { cause: failed.cause.clone(), retry_after: failed.until.since(now) })
    }

    const fn is_ready(&self) -> bool {
        matches!(self.phase, ModelPhase::Ready { .. })
    }

    /// Whether one more request could hold the model at once.
    fn has_free_lease(&self) -> bool {
        self.is_ready() && self.granted.len() < self.settings.concurrency.get()
    }

    /// Whether a request or a load command waits for the model.
    fn is_asked_for(&self) -> bool {
        !self.queue.is_empty() || !self.load_commands.is_empty()
    }

    /// Whether the model should be in memory.
    fn is_wanted(&self) -> bool {
        let is_resident = self.settings.residency == ResidencyRule::Resident;

        self.is_asked_for() || is_resident && !self.is_parked && self.shutdown.is_none()
    }

    /// Whether the model should be loaded now, room apart.
    fn may_start(&self, now: MachineTime) -> bool {
        let is_rested = self.is_asked_for() || self.rest_until.is_none();

        self.is_wanted() && is_rested && self.hold_until.is_none() && self.backoff_refusal(now).is_none()
    }

    /// When the queue may have room again.
    fn queue_retry_after(&self) -> Duration {
        let service_time = self.service_time.unwrap_or(SERVICE_TIME_GUESS);
        let rounds = u32::try_from(self.queue.len() / self.settings.concurrency).unwrap_or(u32::MAX);

        service_time.saturating_mul(rounds).clamp(Duration::from_secs(1), RETRY_AFTER_MAX)
    }
}

/// The pause after `failures` failures before this one.
fn backoff(settings: &LifecycleSettings, failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);

    settings.backoff_first.saturating_mul(factor).min(settings.backoff_max)
}
