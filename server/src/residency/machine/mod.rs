//! The life of one model as a pure function: `step(now, event) -> effects`. No clock, no task, no process.
//!
//! ```text
//! Unloaded --wanted, room--> Loading --> Ready --unload--> Draining --nobody holds it--> Unloading --reaped--> Unloaded
//! ```
//! A model whose device is measured also asks for the room before it loads, and after it is reaped it stays `Unloading`
//! until its memory is back.
//!
//! An event changes the facts (`apply`); then the machine does everything that these facts and the time
//! allow (`settle`). Whatever depends on time is in [`Machine::deadline`], so no timer can be stale.

mod apply;
mod settle;
mod types;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hush_contract::{ModelState, UnloadReason};

pub use types::{
    Cold, CommandId, Count, DeviceMemory, Effect, Event, LeaseId, Load, Loss, LossCause, LostWhy, Moment, Policy,
    Reclaimed, Refusal, Residency, Unload, UnloadReport, Verdict,
};

/// The longest `Retry-After` that the clients we know honour.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub struct Machine {
    policy: Policy,
    phase: Phase,
    /// Of the runner that lives, or of the last that did.
    generation: u64,
    /// Lease and when it was granted.
    granted: BTreeMap<LeaseId, Moment>,
    queue: VecDeque<Waiting>,
    loads: Vec<CommandId>,
    failure: Option<Failure>,
    /// One after the other.
    failed_loads: u32,
    room: Room,
    /// Loads that ran out of memory one after the other.
    out_of_memory: u32,
    /// Runners lost one after the other while they loaded.
    lost_loading: u32,
    /// Runners lost one after the other without a finished request.
    lost_ready: u32,
    /// A resident model is not loaded by itself before this.
    rest_until: Option<Moment>,
    /// Nobody may load before this.
    hold_until: Option<Moment>,
    /// A resident model that was told to leave stays away until it is wanted.
    parked: bool,
    last_arrival: Option<Moment>,
    /// Moving average of how long requests hold the model.
    service: Option<Duration>,
    shutdown: Option<Shutdown>,
}

#[derive(Debug)]
enum Phase {
    Unloaded,
    Loading {
        since: Moment,
    },
    Ready {
        idle_since: Option<Moment>,
        asked_for: bool,
    },
    Draining(Leaving),
    /// The runner is on its way out; `None`: it was lost.
    Unloading(Option<Stopping>),
    /// The runner is gone, its memory is on its way back.
    Reclaiming(Settling),
    Stopped,
}

/// What is known of the room for the next load, while nothing is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Unknown,
    Asked,
    Enough,
    Short(DeviceMemory),
}

#[derive(Debug)]
struct Leaving {
    reason: UnloadReason,
    command: Option<CommandId>,
    hold: Option<Duration>,
    since: Moment,
    until: Moment,
}

#[derive(Debug)]
struct Stopping {
    leaving: Leaving,
    since: Moment,
}

#[derive(Debug)]
struct Settling {
    leaving: Leaving,
    exit: Duration,
    drain: Duration,
    since: Moment,
}

#[derive(Debug)]
struct Waiting {
    lease: LeaseId,
    since: Moment,
    cold: bool,
    /// When its patience with a cold model ends.
    until: Option<Moment>,
}

#[derive(Debug)]
struct Failure {
    cause: String,
    until: Moment,
}

#[derive(Debug)]
struct Shutdown {
    deadline: Moment,
    forced: bool,
}

impl Machine {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            phase: Phase::Unloaded,
            generation: 0,
            granted: BTreeMap::new(),
            queue: VecDeque::new(),
            loads: Vec::new(),
            failure: None,
            failed_loads: 0,
            room: Room::Unknown,
            out_of_memory: 0,
            lost_loading: 0,
            lost_ready: 0,
            rest_until: None,
            hold_until: None,
            parked: false,
            last_arrival: None,
            service: None,
            shutdown: None,
        }
    }

    /// Takes one event and returns what is to be done, in this order. `now` never goes back.
    pub fn step(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.apply(now, event, &mut out);
        self.settle(now, &mut out);
        out
    }

    /// When [`Event::Tick`] is due; later than the last step, or never.
    pub fn deadline(&self) -> Option<Moment> {
        let own = match &self.phase {
            // With the room asked for or waited for, the device is what it waits for.
            Phase::Unloaded if self.wanted() && self.room == Room::Unknown => {
                let failed = self.failure.as_ref().map(|failure| failure.until);
                let resting = if self.asked() { None } else { self.rest_until };
                [self.hold_until, failed, resting].into_iter().flatten().max()
            }
            Phase::Ready { idle_since: Some(since), .. } => match self.policy.residency {
                Residency::Idle(Some(timeout)) => Some(*since + timeout),
                _ => None,
            },
            Phase::Draining(leaving) => Some(leaving.until),
            _ => None,
        };
        let shutdown = self.shutdown.as_ref().filter(|shutdown| !shutdown.forced).map(|shutdown| shutdown.deadline);
        let patience = if self.is_ready() { None } else { self.queue.iter().filter_map(|waiting| waiting.until).min() };
        own.into_iter().chain(shutdown).chain(patience).min()
    }

    pub fn state(&self) -> ModelState {
        match &self.phase {
            Phase::Unloaded if self.wanted() && (self.hold_until.is_some() || self.shortage().is_some()) => {
                ModelState::WaitingForMemory
            }
            Phase::Unloaded if self.failure.is_some() => ModelState::Failed,
            Phase::Unloaded | Phase::Stopped => ModelState::Unloaded,
            Phase::Loading { .. } => ModelState::Loading,
            Phase::Ready { .. } => ModelState::Ready,
            Phase::Draining(_) => ModelState::Draining,
            Phase::Unloading(_) | Phase::Reclaiming(_) => ModelState::Unloading,
        }
    }

    /// What the device lacks, while the model waits for that.
    pub fn shortage(&self) -> Option<DeviceMemory> {
        match self.room {
            Room::Short(memory) if self.wanted() => Some(memory),
            _ => None,
        }
    }

    pub const fn generation(&self) -> u64 {
        self.generation
    }

    pub fn inflight(&self) -> usize {
        self.granted.len()
    }

    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Since when it has been ready with nobody holding it; `None` while busy or not loaded.
    pub const fn idle_since(&self) -> Option<Moment> {
        match self.phase {
            Phase::Ready { idle_since, .. } => idle_since,
            _ => None,
        }
    }

    /// Until when it may not be loaded.
    pub const fn hold_until(&self) -> Option<Moment> {
        self.hold_until
    }

    pub const fn residency(&self) -> Residency {
        self.policy.residency
    }

    /// Why the last load failed, and when the next may be tried.
    pub fn failure(&self) -> Option<(&str, Moment)> {
        self.failure.as_ref().map(|failure| (failure.cause.as_str(), failure.until))
    }

    fn lose_all(&mut self, why: LostWhy, out: &mut Vec<Effect>) {
        for lease in std::mem::take(&mut self.granted).into_keys() {
            out.push(Effect::Lost { lease, why: why.clone() });
        }
    }

    /// What has arrived is served until the deadline, also when its runner is lost; nothing new is taken.
    fn closed_to(&self, again: bool) -> bool {
        matches!(self.phase, Phase::Stopped) || self.shutdown.as_ref().is_some_and(|shutdown| !again || shutdown.forced)
    }

    fn backing_off(&self, now: Moment) -> Option<Refusal> {
        let failure = self.failure.as_ref().filter(|failure| now < failure.until)?;
        Some(Refusal::LoadFailed { cause: failure.cause.clone(), retry_after: failure.until.since(now) })
    }

    const fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready { .. })
    }

    fn has_room(&self) -> bool {
        self.is_ready() && self.granted.len() < self.policy.concurrency.get()
    }

    /// Somebody waits for it.
    fn asked(&self) -> bool {
        !self.queue.is_empty() || !self.loads.is_empty()
    }

    fn wanted(&self) -> bool {
        let resident = self.policy.residency == Residency::Resident && !self.parked && self.shutdown.is_none();
        self.asked() || resident
    }

    fn may_start(&self, now: Moment) -> bool {
        let rested = self.asked() || self.rest_until.is_none();
        self.wanted() && rested && self.hold_until.is_none() && self.backing_off(now).is_none()
    }

    /// When there may be room in the queue again.
    fn retry_after(&self) -> Duration {
        let service = self.service.unwrap_or(Duration::from_secs(5));
        let waiting = u32::try_from(self.queue.len() / self.policy.concurrency).unwrap_or(u32::MAX);
        service.saturating_mul(waiting).clamp(Duration::from_secs(1), RETRY_AFTER_MAX)
    }
}

fn backoff(policy: &Policy, times: u32) -> Duration {
    policy.backoff_first.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX)).min(policy.backoff_max)
}
