//! Random and adversarial histories of one model: whatever happens in whatever order, no request is lost, there is at
//! most one runner, none without room for it, and an unload does exactly what its condition says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::time::Duration;

use hush_contract::admin::UnloadOutcome;
use hush_contract::{ModelState, UnloadReason, UnloadRefusal};
use hush_server::residency::machine::{
    CommandId, Count, DeviceMemory, Effect, Event, LeaseId, Load, Loss, LossCause, LostWhy, Machine, Moment, Policy,
    Reclaimed, Refusal, Residency, Unload, Verdict,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Act {
    /// With this much patience for a model that is not there.
    Arrive(Option<u64>),
    /// The n-th living lease ends, waiting or holding.
    End(usize),
    /// The n-th lost lease arrives again.
    Again(usize),
    Load,
    Unload {
        generation_off: Option<u64>,
        if_idle: Option<u64>,
        drain: Option<u64>,
        hold: Option<u64>,
    },
    /// The runner answers what it was asked.
    Answer,
    /// While it loads, or when what was left to the first work turns out to be broken.
    LoadFails {
        out_of_memory: bool,
    },
    Settles,
    /// The model moves to a device that is measured, or to one that is not.
    Moves {
        accounted: bool,
    },
    /// The device is measured, asked for or not.
    Memory {
        has_room: bool,
    },
    NeverFits,
    /// Work on the runner finds too little memory.
    OutOfMemory,
    Lost(LossCause),
    /// The runner is reaped without a word before.
    Vanishes,
    /// News of a runner that is long gone.
    Stale,
    Advance(u64),
    ToDeadline,
    Shutdown(u64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Runner {
    Loading,
    Loaded,
    /// Lost, stopped or killed; not yet reaped.
    Ending,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lease {
    Waiting,
    Holding,
}

/// The world around the machine, with its own bookkeeping of what must hold.
struct World {
    machine: Machine,
    policy: Policy,
    now: u64,
    generation: u64,
    runner: Option<Runner>,
    leases: BTreeMap<LeaseId, Lease>,
    order: VecDeque<LeaseId>,
    ended: BTreeSet<LeaseId>,
    lost: Vec<LeaseId>,
    next: u64,
    loads: BTreeSet<CommandId>,
    unloads: BTreeSet<CommandId>,
    idle_since: Option<u64>,
    hold_until: u64,
    hold_next: Option<u64>,
    /// When the accepted unload, or the shutdown, may stop waiting.
    patience: u64,
    shutdown: bool,
    stopped: bool,
    grants: usize,
    /// When the patience of those that wait ends.
    ends: BTreeMap<LeaseId, u64>,
    /// An answer to [`Effect::Measure`] is due.
    measuring: bool,
    /// Holds while a measurement with room is told.
    has_room: bool,
    /// An answer to [`Effect::Reclaim`] is due.
    reclaiming: bool,
}

impl World {
    fn new(policy: Policy) -> Self {
        let mut world = Self {
            machine: Machine::new(policy),
            policy,
            now: 0,
            generation: 0,
            runner: None,
            leases: BTreeMap::new(),
            order: VecDeque::new(),
            ended: BTreeSet::new(),
            lost: Vec::new(),
            next: 0,
            loads: BTreeSet::new(),
            unloads: BTreeSet::new(),
            idle_since: None,
            hold_until: 0,
            hold_next: None,
            patience: u64::MAX,
            shutdown: false,
            stopped: false,
            grants: 0,
            ends: BTreeMap::new(),
            measuring: false,
            has_room: false,
            reclaiming: false,
        };
        world.step(Event::Tick);
        world
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn holding(&self) -> usize {
        self.leases.values().filter(|lease| **lease == Lease::Holding).count()
    }

    fn waiting(&self) -> usize {
        self.leases.len() - self.holding()
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.machine.step(Moment::from_millis(self.now), event);
        for effect in &effects {
            self.check(effect);
        }
        assert_eq!(self.machine.inflight(), self.holding());
        assert_eq!(self.machine.queued(), self.waiting());
        assert_eq!(self.machine.generation(), self.generation);
        let ready = self.machine.state() == ModelState::Ready;
        let idle = (ready && self.holding() == 0).then_some(self.idle_since).flatten();
        assert_eq!(self.machine.idle_since().map(Moment::as_millis), idle, "the idle clock");
        assert_eq!(ready, self.machine.state() == ModelState::Ready && self.runner == Some(Runner::Loaded));
        let overdue =
            |(lease, end): (&LeaseId, &u64)| self.leases.get(lease) == Some(&Lease::Waiting) && *end <= self.now;
        assert!(ready || !self.ends.iter().any(overdue), "waits longer than it wants to");
        assert!(self.machine.shortage().is_none() || self.machine.state() == ModelState::WaitingForMemory);
        if let Some(deadline) = self.machine.deadline() {
            assert!(deadline.as_millis() > self.now, "a deadline in the past would spin");
        }
        effects
    }

    fn check(&mut self, effect: &Effect) {
        match effect {
            Effect::Measure => {
                assert!(self.policy.accounted && self.runner.is_none() && !self.reclaiming);
                assert!(self.now >= self.hold_until, "measured for a load that a hold forbids");
                self.measuring = true;
            }
            Effect::Reclaim { generation } => {
                assert_eq!((*generation, self.runner), (self.generation, None), "not reaped");
                assert!(self.policy.accounted && !self.shutdown);
                self.reclaiming = true;
            }
            Effect::StartRunner { generation } => {
                assert!(self.has_room || !self.policy.accounted, "loaded without room");
                assert!(!self.reclaiming, "loaded into memory that is still on its way back");
                assert_eq!(self.runner, None, "one runner at a time");
                assert_eq!(*generation, self.generation + 1);
                assert!(self.now >= self.hold_until, "loaded into a hold");
                self.generation = *generation;
                self.runner = Some(Runner::Loading);
            }
            Effect::StopRunner { generation } | Effect::KillRunner { generation } => {
                assert_eq!(*generation, self.generation);
                assert!(self.runner.is_some());
                assert_eq!(self.holding(), 0, "stopped under a lease");
                self.runner = Some(Runner::Ending);
            }
            Effect::Grant { lease, generation } => {
                assert_eq!(*generation, self.generation);
                assert_eq!(self.runner, Some(Runner::Loaded), "granted without a model");
                assert_eq!(self.order.pop_front(), Some(*lease), "first come, first served");
                assert_eq!(self.leases.insert(*lease, Lease::Holding), Some(Lease::Waiting));
                assert!(self.holding() <= self.policy.concurrency.get());
                self.grants += 1;
            }
            Effect::Refuse { lease, refusal } => {
                assert_eq!(self.leases.remove(lease), Some(Lease::Waiting), "refused twice or never asked");
                self.order.retain(|waiting| waiting != lease);
                assert!(self.ended.insert(*lease));
                match refusal {
                    Refusal::ShuttingDown => assert!(self.shutdown),
                    Refusal::ColdHold { retry_after, .. } => {
                        assert!(self.ends.get(lease).is_some_and(|end| *end <= self.now), "its patience was not over");
                        assert_ne!(self.machine.state(), ModelState::Ready);
                        assert!((1..=120).contains(&retry_after.as_secs()));
                    }
                    Refusal::QueueFull { .. } | Refusal::LoadFailed { .. } => {}
                    Refusal::GenerationChanged | Refusal::Held { .. } => unreachable!("an answer to a command"),
                }
            }
            Effect::Lost { lease, why } => {
                assert_eq!(self.leases.remove(lease), Some(Lease::Holding));
                assert!(self.ended.insert(*lease));
                self.lost.push(*lease);
                if *why == LostWhy::Displaced {
                    assert_eq!(self.machine.state(), ModelState::Unloading);
                    assert!(self.now >= self.patience, "displaced before its time");
                }
            }
            Effect::ReplyLoad { command, .. } => assert!(self.loads.remove(command), "answered twice"),
            Effect::ReplyUnload { command, result } => {
                if result.is_err() {
                    assert!(self.unloads.remove(command), "answered twice");
                }
            }
            Effect::Unloaded { command, report } => {
                assert!(self.unloads.remove(command), "answered twice");
                assert_eq!(report.generation, self.generation);
                assert_eq!(self.runner, None, "not reaped");
                assert!(!self.reclaiming || self.shutdown, "before its memory was seen to come back");
                assert!(report.memory.is_none() || self.policy.accounted);
                let hold_until = self.hold_next.take().map_or(0, |hold| self.now + hold);
                self.hold_until = match report.outcome {
                    UnloadOutcome::Unloaded => hold_until,
                    UnloadOutcome::AlreadyUnloaded => self.hold_until.max(hold_until),
                };
            }
            Effect::Count(Count::ColdStart(_) | Count::Loaded { .. }) => assert!(self.runner.is_some()),
            Effect::Count(_) => {}
            Effect::Stopped => {
                assert!(self.shutdown && !self.stopped);
                assert_eq!(self.runner, None);
                assert!(self.leases.is_empty());
                self.stopped = true;
            }
        }
    }

    fn arrive(&mut self, again: bool, patience: Option<u64>) {
        let lease = LeaseId(self.id());
        if let Some(patience) = patience {
            self.ends.insert(lease, self.now + patience);
        }
        let free = self.machine.state() == ModelState::Ready && self.holding() < self.policy.concurrency.get();
        let full = self.waiting() >= self.policy.queue_limit.get() && !free;
        self.leases.insert(lease, Lease::Waiting);
        if again {
            self.order.push_front(lease);
        } else {
            self.order.push_back(lease);
        }
        let effects = self.step(Event::Arrive { lease, again, patience: patience.map(Duration::from_millis) });
        let refused = effects.iter().any(|effect| matches!(effect, Effect::Refuse { lease: l, .. } if *l == lease));
        let for_room =
            effects.iter().any(|effect| matches!(effect, Effect::Refuse { refusal: Refusal::QueueFull { .. }, .. }));
        if full && !again {
            assert!(refused, "the queue has a bound");
        }
        assert!(!for_room || full && !again, "refused with room in the queue");
    }

    fn end(&mut self, lease: LeaseId) {
        if self.leases.remove(&lease) == Some(Lease::Holding) && self.holding() == 0 {
            self.idle_since = Some(self.now);
        }
        self.order.retain(|waiting| *waiting != lease);
        self.ended.insert(lease);
        self.step(Event::End { lease });
    }

    fn memory(&mut self, has_room: bool) {
        // A loser of a race: nobody asks any more, and nothing may come of it.
        let is_wanted = self.measuring || self.machine.shortage().is_some();
        self.measuring = false;
        self.has_room = has_room && is_wanted;
        let available_bytes = Some(if has_room { 8 } else { 7 });
        let effects = self.step(Event::Memory { memory: DeviceMemory { available_bytes, demand_bytes: 8 } });
        let starts = effects.iter().any(|effect| matches!(effect, Effect::StartRunner { .. }));
        assert!(!starts || self.has_room);
        self.has_room = false;
    }

    fn reclaimed(&mut self) {
        self.reclaiming = false;
        let memory = Reclaimed {
            vram_before_bytes: 8,
            reclaimed_bytes: 8,
            residual_bytes: 0,
            taken_bytes: 0,
            verdict: Verdict::Returned,
        };
        let generation = self.generation;
        self.step(Event::Reclaimed { generation, memory: Some(memory) });
    }

    fn answer(&mut self) {
        let generation = self.generation;
        match self.runner {
            None if self.reclaiming => self.reclaimed(),
            None if self.measuring => self.memory(true),
            Some(Runner::Loading) => {
                self.runner = Some(Runner::Loaded);
                self.idle_since = Some(self.now);
                self.step(Event::Loaded { generation });
            }
            Some(Runner::Ending) => {
                self.runner = None;
                self.step(Event::Exited { generation });
            }
            Some(Runner::Loaded) | None => {
                self.step(Event::Tick);
            }
        }
    }

    fn unload(&mut self, generation_off: Option<u64>, if_idle: Option<u64>, drain: Option<u64>, hold: Option<u64>) {
        let command = CommandId(self.id());
        let unload = Unload {
            if_generation: generation_off.map(|off| self.generation + off),
            if_idle: if_idle.map(Duration::from_millis),
            drain: drain.map(Duration::from_millis),
            hold: hold.map(Duration::from_millis),
            reason: UnloadReason::Manual,
        };
        let expected = match self.machine.state() {
            ModelState::Unloaded | ModelState::Failed | ModelState::WaitingForMemory => {
                let unconditional = generation_off.is_none() && if_idle.is_none();
                if unconditional && !self.stopped { Ok(()) } else { Err(UnloadRefusal::NotLoaded) }
            }
            ModelState::Loading => Err(UnloadRefusal::Loading),
            ModelState::Draining | ModelState::Unloading => Err(UnloadRefusal::Draining),
            ModelState::Ready if generation_off.is_some_and(|off| off != 0) => Err(UnloadRefusal::GenerationChanged),
            ModelState::Ready if if_idle.is_some() && self.holding() > 0 => Err(UnloadRefusal::Busy),
            ModelState::Ready
                if if_idle.is_some_and(|wanted| self.now - self.idle_since.unwrap_or(self.now) < wanted) =>
            {
                Err(UnloadRefusal::NotIdle)
            }
            ModelState::Ready => Ok(()),
        };
        let before = format!("{:?}", self.machine);
        self.unloads.insert(command);
        if expected.is_ok() {
            self.hold_next = hold;
        }
        if expected.is_ok() && self.runner.is_some() {
            let own = self.now + drain.unwrap_or(2000);
            self.patience = if self.shutdown { own.min(self.patience) } else { own };
        }
        let effects = self.step(Event::Unload { command, unload });
        assert!(effects.contains(&Effect::ReplyUnload { command, result: expected }), "{expected:?}: {effects:?}");
        if let Err(refusal) = expected {
            assert_eq!(before, format!("{:?}", self.machine), "a refused command changes nothing");
            let counted = Effect::Count(Count::UnloadRefused(refusal));
            assert_eq!(effects, [counted, Effect::ReplyUnload { command, result: expected }]);
        }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Arrive(patience) => self.arrive(false, *patience),
            Act::Again(n) => {
                if !self.lost.is_empty() {
                    self.lost.remove(n % self.lost.len());
                    self.arrive(true, None);
                }
            }
            Act::End(n) => {
                let lease = self.leases.keys().nth(n % self.leases.len().max(1)).copied();
                // Ends come late and twice: the drop of a lease that was lost.
                let late = self.ended.iter().nth(n % self.ended.len().max(1)).copied();
                match (lease, late) {
                    (Some(lease), _) => self.end(lease),
                    (None, Some(late)) => self.end(late),
                    (None, None) => {}
                }
            }
            Act::Load => {
                let command = CommandId(self.id());
                self.loads.insert(command);
                if !self.shutdown {
                    let refused = self.machine.failure().is_some_and(|(_, until)| until.as_millis() > self.now);
                    if !refused {
                        self.hold_until = 0;
                        self.hold_next = None;
                    }
                }
                self.step(Event::Load { command, load: Load::now() });
            }
            Act::Unload { generation_off, if_idle, drain, hold } => {
                self.unload(*generation_off, *if_idle, *drain, *hold)
            }
            Act::Answer => self.answer(),
            Act::LoadFails { out_of_memory } => {
                if matches!(self.runner, Some(Runner::Loading | Runner::Loaded)) {
                    let generation = self.generation;
                    let cause = "no such file".to_owned();
                    self.step(Event::LoadFailed { generation, cause, out_of_memory: *out_of_memory });
                    // With less memory than it needs it is tried once more.
                    assert!(self.waiting() == 0 || *out_of_memory, "whoever waits is told");
                    assert_eq!((self.holding(), self.runner), (0, Some(Runner::Ending)));
                }
            }
            Act::Settles => {
                if self.runner == Some(Runner::Loaded) {
                    let generation = self.generation;
                    self.step(Event::Settled { generation });
                }
            }
            Act::Moves { accounted } => {
                // What is on its way back was measured for the device before.
                if !self.reclaiming {
                    self.measuring &= self.policy.accounted == *accounted;
                    self.policy.accounted = *accounted;
                    let policy = self.policy;
                    self.step(Event::Policy { policy });
                }
            }
            Act::Memory { has_room } => self.memory(*has_room),
            Act::NeverFits => {
                if self.measuring {
                    self.measuring = false;
                    self.step(Event::NeverFits { cause: "too large".to_owned() });
                    // Under a hold nobody is told yet: it is measured again when the hold ends.
                    let held = self.machine.state() == ModelState::WaitingForMemory;
                    assert!(self.waiting() == 0 || self.runner.is_some() || held, "whoever waits is told");
                }
            }
            Act::OutOfMemory => {
                if self.runner == Some(Runner::Loaded) {
                    if self.machine.state() == ModelState::Ready {
                        let own = self.now + 2000;
                        self.patience = if self.shutdown { own.min(self.patience) } else { own };
                        self.hold_next = None;
                    }
                    let generation = self.generation;
                    self.step(Event::OutOfMemory { generation });
                    assert_ne!(self.machine.state(), ModelState::Ready);
                }
            }
            Act::Lost(cause) => {
                if self.runner.is_some() {
                    self.runner = Some(Runner::Ending);
                    let generation = self.generation;
                    self.step(Event::RunnerLost { generation, loss: Loss { cause: *cause, detail: "x".to_owned() } });
                    assert_eq!(self.holding(), 0);
                }
            }
            Act::Vanishes => {
                if self.runner.take().is_some() {
                    let generation = self.generation;
                    self.step(Event::Exited { generation });
                }
            }
            Act::Stale => {
                let generation = self.generation.wrapping_sub(1);
                let loss = Loss { cause: LossCause::Exited, detail: "old".to_owned() };
                for event in [
                    Event::Loaded { generation },
                    Event::Settled { generation },
                    Event::LoadFailed { generation, cause: "old".to_owned(), out_of_memory: true },
                    Event::OutOfMemory { generation },
                    Event::Reclaimed { generation, memory: None },
                    Event::RunnerLost { generation, loss },
                    Event::Exited { generation },
                ] {
                    self.step(event);
                }
            }
            Act::Advance(millis) => {
                // Time passes through every deadline on its way, as it does for the owner.
                let target = self.now + millis;
                while let Some(deadline) = self.machine.deadline().filter(|deadline| deadline.as_millis() <= target) {
                    self.now = deadline.as_millis();
                    self.step(Event::Tick);
                }
                self.now = target;
                self.step(Event::Tick);
            }
            Act::ToDeadline => {
                if let Some(deadline) = self.machine.deadline() {
                    self.now = deadline.as_millis();
                    self.step(Event::Tick);
                }
            }
            Act::Shutdown(after) => {
                self.shutdown = true;
                self.reclaiming = false;
                let draining = self.machine.state() == ModelState::Draining;
                self.patience = if draining { self.patience.min(self.now + after) } else { self.now + after };
                let deadline = Moment::from_millis(self.now + after);
                self.step(Event::Shutdown { deadline });
            }
        }
    }

    /// From here on everybody does their part: then everything must come to an end.
    fn run_out(&mut self) {
        for _ in 0..2000 {
            let holding = self.leases.iter().find(|(_, lease)| **lease == Lease::Holding).map(|(id, _)| *id);
            if matches!(self.runner, Some(Runner::Loading | Runner::Ending)) || self.reclaiming || self.measuring {
                self.answer();
            } else if self.machine.shortage().is_some() {
                self.memory(true);
            } else if let Some(lease) = holding {
                self.end(lease);
            } else if !self.leases.is_empty() || !self.loads.is_empty() || !self.unloads.is_empty() {
                let deadline = self.machine.deadline().expect("somebody waits, so something must be due");
                self.now = deadline.as_millis();
                self.step(Event::Tick);
            } else {
                break;
            }
        }
        assert!(self.leases.is_empty(), "a request was lost: {:?}", self.machine);
        assert!(self.loads.is_empty() && self.unloads.is_empty(), "a command was lost: {:?}", self.machine);
        if self.shutdown {
            assert!(self.stopped && self.runner.is_none(), "{:?}", self.machine);
        }
    }
}

fn acts() -> impl Strategy<Value = Act> {
    let cause = prop_oneof![
        Just(LossCause::Exited),
        Just(LossCause::Killed),
        Just(LossCause::Hung),
        Just(LossCause::LoadTimeout)
    ];
    prop_oneof![
        8 => proptest::option::weighted(0.4, 0_u64..3000).prop_map(Act::Arrive),
        6 => any::<usize>().prop_map(Act::End),
        3 => any::<usize>().prop_map(Act::Again),
        1 => Just(Act::Load),
        4 => (
            proptest::option::weighted(0.5, prop_oneof![4 => Just(0_u64), 1 => Just(1)]),
            proptest::option::of(0_u64..3000),
            proptest::option::of(prop_oneof![Just(0_u64), 1_u64..2000]),
            proptest::option::weighted(0.3, 0_u64..4000),
        ).prop_map(|(generation_off, if_idle, drain, hold)| Act::Unload { generation_off, if_idle, drain, hold }),
        10 => Just(Act::Answer),
        2 => any::<bool>().prop_map(|out_of_memory| Act::LoadFails { out_of_memory }),
        1 => Just(Act::Settles),
        1 => any::<bool>().prop_map(|accounted| Act::Moves { accounted }),
        3 => any::<bool>().prop_map(|has_room| Act::Memory { has_room }),
        1 => Just(Act::NeverFits),
        1 => Just(Act::OutOfMemory),
        2 => cause.prop_map(Act::Lost),
        1 => Just(Act::Vanishes),
        1 => Just(Act::Stale),
        4 => (0_u64..2500).prop_map(Act::Advance),
        2 => Just(Act::ToDeadline),
    ]
}

fn policies() -> impl Strategy<Value = Policy> {
    let residency = prop_oneof![
        Just(Residency::Resident),
        Just(Residency::Idle(None)),
        (1_u64..3000).prop_map(|ms| Residency::Idle(Some(Duration::from_millis(ms)))),
        Just(Residency::OnDemand),
    ];
    (residency, 1_usize..5, 1_usize..4, any::<bool>()).prop_map(|(residency, queue, concurrency, accounted)| Policy {
        residency,
        queue_limit: NonZeroUsize::new(queue).unwrap(),
        concurrency: NonZeroUsize::new(concurrency).unwrap(),
        backoff_first: Duration::from_secs(1),
        backoff_max: Duration::from_secs(60),
        drain: Duration::from_secs(2),
        accounted,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn every_history_ends_well(
        policy in policies(),
        history in proptest::collection::vec(acts(), 0..120),
        shutdown in proptest::option::weighted(0.4, (0_u64..3000, proptest::collection::vec(acts(), 0..30))),
    ) {
        let mut world = World::new(policy);
        for act in &history {
            world.act(act);
        }
        if let Some((after, rest)) = shutdown {
            world.act(&Act::Shutdown(after));
            for act in &rest {
                world.act(act);
            }
        }
        world.run_out();
    }
}
