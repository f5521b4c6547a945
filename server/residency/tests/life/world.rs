//! The world around the machine, with its own bookkeeping of what must hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hush_contract::ModelState;
use hush_residency::machine::{
    CommandId, LeaseId, LifecycleSettings, MachineEffect, MachineEvent, MachineTime, ModelMachine,
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RunnerPhase {
    Loading,
    Loaded,
    /// Lost, stopped or killed; not yet reaped.
    Ending,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LeasePhase {
    Waiting,
    Holding,
}

/// All times in milliseconds.
pub struct MachineWorld {
    pub machine: ModelMachine,
    pub settings: LifecycleSettings,
    pub now: u64,
    pub generation: u64,
    pub runner: Option<RunnerPhase>,
    pub leases: BTreeMap<LeaseId, LeasePhase>,
    /// The leases that wait, in the order in which they must be granted.
    pub order: VecDeque<LeaseId>,
    pub ended: BTreeSet<LeaseId>,
    /// Leases that lost their runner and have not arrived again.
    pub lost: Vec<LeaseId>,
    pub last_id: u64,
    /// Load and unload commands without an answer.
    pub loads: BTreeSet<CommandId>,
    pub unloads: BTreeSet<CommandId>,
    pub idle_since: Option<u64>,
    pub hold_until: u64,
    /// The hold of the unload that goes on.
    pub next_hold: Option<u64>,
    /// When the accepted unload, or the shutdown, may stop waiting for requests.
    pub drain_until: u64,
    /// The runner was asked to end, and not killed.
    pub was_asked_to_end: bool,
    /// The runner of this generation has refused to end: an unload without a command may end its wait at once.
    pub has_refused_to_end: bool,
    /// Leases of work that was at work already.
    pub occupying: BTreeSet<LeaseId>,
    /// Requests that must find the model in memory and are no activity: all that were, and those that go on.
    pub visitors: BTreeSet<LeaseId>,
    pub visits: BTreeSet<LeaseId>,
    /// Since when the model was idle when the unload command came; `None`: there was activity since.
    pub idle_at_unload: Option<u64>,
    pub is_shutting_down: bool,
    pub is_stopped: bool,
    /// Until when a lease waits for a model that is not in memory.
    pub cold_wait_until: BTreeMap<LeaseId, u64>,
    /// An answer to [`MachineEffect::Measure`] is due.
    pub is_measuring: bool,
    /// A measurement with room is being passed to the machine.
    pub has_room: bool,
    /// An answer to [`MachineEffect::Reclaim`] is due.
    pub is_reclaiming: bool,
}

impl MachineWorld {
    pub fn new(settings: LifecycleSettings) -> Self {
        let mut world = Self {
            machine: ModelMachine::new(settings),
            settings,
            now: 0,
            generation: 0,
            runner: None,
            leases: BTreeMap::new(),
            order: VecDeque::new(),
            ended: BTreeSet::new(),
            lost: Vec::new(),
            last_id: 0,
            loads: BTreeSet::new(),
            unloads: BTreeSet::new(),
            idle_since: None,
            hold_until: 0,
            next_hold: None,
            drain_until: u64::MAX,
            was_asked_to_end: false,
            has_refused_to_end: false,
            occupying: BTreeSet::new(),
            visitors: BTreeSet::new(),
            visits: BTreeSet::new(),
            idle_at_unload: None,
            is_shutting_down: false,
            is_stopped: false,
            cold_wait_until: BTreeMap::new(),
            is_measuring: false,
            has_room: false,
            is_reclaiming: false,
        };

        world.step(MachineEvent::Tick);
        world
    }

    pub fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub fn holding(&self) -> usize {
        self.leases.values().filter(|lease| **lease == LeasePhase::Holding).count()
    }

    pub fn waiting(&self) -> usize {
        self.leases.len() - self.holding()
    }

    pub fn step(&mut self, event: MachineEvent) -> Vec<MachineEffect> {
        let effects = self.machine.step(MachineTime::from_millis(self.now), event);

        for effect in &effects {
            self.check_effect(effect);
        }
        self.check_invariants();

        effects
    }

    fn check_invariants(&self) {
        assert_eq!(self.machine.inflight(), self.holding());
        assert_eq!(self.machine.queued(), self.waiting());
        assert_eq!(self.machine.generation(), self.generation);

        let is_ready = self.machine.state() == ModelState::Ready;
        let idle_since = (is_ready && self.holding() == 0).then_some(self.idle_since).flatten();
        assert_eq!(self.machine.idle_since().map(MachineTime::as_millis), idle_since, "the idle clock");
        assert_eq!(is_ready, self.machine.state() == ModelState::Ready && self.runner == Some(RunnerPhase::Loaded));

        let is_overdue = |(lease, until): (&LeaseId, &u64)| {
            self.leases.get(lease) == Some(&LeasePhase::Waiting) && *until <= self.now
        };
        assert!(is_ready || !self.cold_wait_until.iter().any(is_overdue), "waits longer than it wants to");
        assert!(self.machine.shortage().is_none() || self.machine.state() == ModelState::WaitingForMemory);

        if let Some(deadline) = self.machine.deadline() {
            assert!(deadline.as_millis() > self.now, "a deadline in the past would spin");
        }
    }

    /// Whether a request, a command or the shutdown still waits for its end.
    fn is_something_due(&self) -> bool {
        let has_command = !self.loads.is_empty() || !self.unloads.is_empty();

        !self.leases.is_empty() || has_command || self.is_shutting_down && !self.is_stopped
    }

    /// From here on every request, runner and device does its part: then everything must come to an end.
    pub fn run_to_the_end(&mut self) {
        for _ in 0..2000 {
            let is_runner_busy = matches!(self.runner, Some(RunnerPhase::Loading | RunnerPhase::Ending));
            let holding = self.leases.iter().find(|(_, lease)| **lease == LeasePhase::Holding).map(|(id, _)| *id);

            if is_runner_busy || self.is_reclaiming || self.is_measuring {
                self.answer();
            } else if self.machine.shortage().is_some() {
                self.measure_memory(true);
            } else if let Some(lease) = holding.or(self.visits.first().copied()) {
                self.end(lease);
            } else if self.is_something_due() {
                let deadline = self.machine.deadline().expect("a request or a command waits, so a deadline is due");
                self.now = deadline.as_millis();
                self.step(MachineEvent::Tick);
            } else {
                break;
            }
        }

        assert!(self.leases.is_empty(), "a request was lost: {:?}", self.machine);
        assert!(self.loads.is_empty() && self.unloads.is_empty(), "a command was lost: {:?}", self.machine);
        if self.is_shutting_down {
            assert!(self.is_stopped && self.runner.is_none(), "{:?}", self.machine);
        }
    }
}
