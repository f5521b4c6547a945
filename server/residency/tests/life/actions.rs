//! What may happen to the machine, by requests, commands, runners, devices and time.

use std::time::Duration;

use hush_contract::{ModelState, UnloadReason, UnloadRefusal};
use hush_residency::machine::{
    CommandId, LeaseId, LoadCommand, LossCause, MachineEffect, MachineEvent, MachineTime, MemoryAvailability,
    MetricEvent, ModelRefusal, ReclaimReport, ReclaimVerdict, RunnerLoss, UnloadCommand,
};

use crate::world::{LeasePhase, MachineWorld, RunnerPhase};

/// How long an unload drains where its command does not say, as the settings of the histories have it.
const DRAIN_MILLIS: u64 = 2000;

/// All times in milliseconds.
#[derive(Clone, Debug)]
pub enum MachineAction {
    /// A request arrives that waits at most this long for a model that is not in memory.
    Arrive(Option<u64>),
    /// The n-th living lease ends, whether it waits or holds the model.
    End(usize),
    /// The n-th lost lease arrives again.
    ArriveAgain(usize),
    Load,
    Unload {
        generation_off: Option<u64>,
        if_idle: Option<u64>,
        drain: Option<u64>,
        hold: Option<u64>,
    },
    /// The runner or the device answers what it was asked.
    Answer,
    /// The load fails, also when the model can work already and a part of its load was left to the first work.
    FailLoad {
        out_of_memory: bool,
    },
    Settle,
    /// The model moves to a device that is measured, or to one that is not.
    ChangeDevice {
        accounted: bool,
    },
    /// The device is measured, whether the machine has asked for it or not.
    MeasureMemory {
        has_room: bool,
    },
    NeverFits,
    /// Work on the runner finds too little memory.
    RunOutOfMemory,
    LoseRunner(LossCause),
    /// The runner that was asked to end has work and refuses.
    RefuseStop,
    /// The model is in memory although nothing loaded it from here.
    Appear,
    /// Work that did not pass through here is seen.
    Occupy,
    /// A request must find the model in memory, and is no activity.
    Visit,
    EndVisit(usize),
    /// The model is unloaded from elsewhere.
    LeaveByItself,
    /// The runner is reaped without an event before.
    ReapUnannounced,
    /// Events of a runner that is gone for long.
    SendStaleEvents,
    LetTimePass(u64),
    ToDeadline,
    Shutdown(u64),
}

impl MachineWorld {
    pub fn act(&mut self, action: &MachineAction) {
        match action {
            MachineAction::Arrive(max_cold_wait) => self.arrive(false, *max_cold_wait),
            MachineAction::ArriveAgain(n) => {
                if !self.lost.is_empty() {
                    self.lost.remove(n % self.lost.len());
                    self.arrive(true, None);
                }
            }
            MachineAction::End(n) => self.end_some_lease(*n),
            MachineAction::Load => self.load(),
            MachineAction::Unload { generation_off, if_idle, drain, hold } => {
                self.unload(*generation_off, *if_idle, *drain, *hold);
            }
            MachineAction::Answer => self.answer(),
            MachineAction::FailLoad { out_of_memory } => self.fail_load(*out_of_memory),
            MachineAction::Settle => {
                if self.runner == Some(RunnerPhase::Loaded) {
                    let generation = self.generation;
                    self.step(MachineEvent::FullyLoaded { generation });
                }
            }
            MachineAction::ChangeDevice { accounted } => self.change_device(*accounted),
            MachineAction::MeasureMemory { has_room } => self.measure_memory(*has_room),
            MachineAction::NeverFits => self.never_fits(),
            MachineAction::RunOutOfMemory => self.run_out_of_memory(),
            MachineAction::LoseRunner(cause) => self.lose_runner(*cause),
            MachineAction::RefuseStop => self.refuse_stop(),
            MachineAction::Appear => self.appear(),
            MachineAction::Occupy => self.occupy(),
            MachineAction::Visit => self.visit(),
            MachineAction::EndVisit(n) => {
                if let Some(lease) = self.visits.iter().nth(n % self.visits.len().max(1)).copied() {
                    self.end(lease);
                }
            }
            MachineAction::LeaveByItself => self.leave_by_itself(),
            MachineAction::ReapUnannounced => {
                if self.runner.take().is_some() {
                    let generation = self.generation;
                    self.step(MachineEvent::Exited { generation });
                }
            }
            MachineAction::SendStaleEvents => self.send_stale_events(),
            MachineAction::LetTimePass(millis) => self.let_time_pass(*millis),
            MachineAction::ToDeadline => {
                if let Some(deadline) = self.machine.deadline() {
                    self.now = deadline.as_millis();
                    self.step(MachineEvent::Tick);
                }
            }
            MachineAction::Shutdown(after) => self.shut_down(*after),
        }
    }

    fn arrive(&mut self, again: bool, max_cold_wait: Option<u64>) {
        let lease = LeaseId(self.next_id());
        if let Some(wait) = max_cold_wait {
            self.cold_wait_until.insert(lease, self.now + wait);
        }

        let is_ready = self.machine.state() == ModelState::Ready;
        let is_free = is_ready && self.holding() < self.settings.concurrency.get();
        let is_full = self.waiting() >= self.settings.queue_limit.get() && !is_free;

        self.leases.insert(lease, LeasePhase::Waiting);
        if again {
            self.order.push_front(lease);
        } else {
            self.order.push_back(lease);
        }
        let patience = max_cold_wait.map(Duration::from_millis);
        let effects = self.step(MachineEvent::Arrive { lease, again, patience });

        let is_refused = effects
            .iter()
            .any(|effect| matches!(effect, MachineEffect::Refuse { lease: refused, .. } if *refused == lease));
        if is_full && !again {
            assert!(is_refused, "the queue has a bound");
        }

        let refused_by_queue = effects
            .iter()
            .any(|effect| matches!(effect, MachineEffect::Refuse { refusal: ModelRefusal::QueueFull { .. }, .. }));
        assert!(!refused_by_queue || is_full && !again, "refused with room in the queue");
    }

    /// Ends the n-th living lease, or one that has ended: ends come late and twice, by the drop of a lease that was lost.
    fn end_some_lease(&mut self, n: usize) {
        let living = self.leases.keys().nth(n % self.leases.len().max(1)).copied();
        let ended = self.ended.iter().nth(n % self.ended.len().max(1)).copied();

        if let Some(lease) = living.or(ended) {
            self.end(lease);
        }
    }

    pub fn end(&mut self, lease: LeaseId) {
        if self.visits.remove(&lease) {
            self.step(MachineEvent::End { lease });
            return;
        }
        if self.leases.remove(&lease) == Some(LeasePhase::Holding) && self.holding() == 0 {
            self.idle_since = Some(self.now);
        }
        self.order.retain(|waiting| *waiting != lease);
        self.ended.insert(lease);

        self.step(MachineEvent::End { lease });
    }

    fn load(&mut self) {
        let command = CommandId(self.next_id());
        self.loads.insert(command);

        let is_backing_off = self.machine.failure().is_some_and(|(_, until)| until.as_millis() > self.now);
        if !self.is_shutting_down && !is_backing_off {
            self.hold_until = 0;
            self.next_hold = None;
        }

        self.step(MachineEvent::Load { command, load: LoadCommand::now() });
    }

    fn unload(&mut self, generation_off: Option<u64>, if_idle: Option<u64>, drain: Option<u64>, hold: Option<u64>) {
        let command = CommandId(self.next_id());
        let unload = UnloadCommand {
            if_generation: generation_off.map(|off| self.generation + off),
            if_idle: if_idle.map(Duration::from_millis),
            drain: drain.map(Duration::from_millis),
            hold: hold.map(Duration::from_millis),
            method: None,
            reason: UnloadReason::Manual,
        };
        let expected = self.expected_verdict(generation_off, if_idle);
        let before = format!("{:?}", self.machine);

        self.unloads.insert(command);
        if expected.is_ok() {
            self.next_hold = hold;
        }
        if expected.is_ok() && self.runner.is_some() {
            self.begin_drain(drain.unwrap_or(DRAIN_MILLIS));
            self.idle_at_unload = self.machine.idle_since().map(MachineTime::as_millis);
        }
        let effects = self.step(MachineEvent::Unload { command, unload });

        let reply = MachineEffect::ReplyUnload { command, result: expected };
        assert!(effects.contains(&reply), "{expected:?}: {effects:?}");
        if let Err(refusal) = expected {
            assert_eq!(before, format!("{:?}", self.machine), "a refused command changes nothing");
            assert_eq!(effects, [MachineEffect::Count(MetricEvent::UnloadRefused(refusal)), reply]);
        }
    }

    fn expected_verdict(&self, generation_off: Option<u64>, if_idle: Option<u64>) -> Result<(), UnloadRefusal> {
        match self.machine.state() {
            ModelState::Unloaded | ModelState::Failed | ModelState::WaitingForMemory => {
                let is_unconditional = generation_off.is_none() && if_idle.is_none();
                if is_unconditional && !self.is_stopped { Ok(()) } else { Err(UnloadRefusal::NotLoaded) }
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
        }
    }

    /// An unload that begins now may wait this long for requests.
    fn begin_drain(&mut self, drain_millis: u64) {
        let until = self.now + drain_millis;

        self.drain_until = if self.is_shutting_down { until.min(self.drain_until) } else { until };
    }

    pub fn answer(&mut self) {
        let generation = self.generation;

        match self.runner {
            None if self.is_reclaiming => self.give_memory_back(),
            None if self.is_measuring => self.measure_memory(true),
            Some(RunnerPhase::Loading) => {
                self.runner = Some(RunnerPhase::Loaded);
                self.idle_since = Some(self.now);
                self.step(MachineEvent::Loaded { generation });
            }
            Some(RunnerPhase::Ending) => {
                self.runner = None;
                self.step(MachineEvent::Exited { generation });
            }
            Some(RunnerPhase::Loaded) | None => {
                self.step(MachineEvent::Tick);
            }
        }
    }

    fn fail_load(&mut self, out_of_memory: bool) {
        if !matches!(self.runner, Some(RunnerPhase::Loading | RunnerPhase::Loaded)) {
            return;
        }

        let (generation, cause) = (self.generation, "no such file".to_owned());
        self.step(MachineEvent::LoadFailed { generation, cause, out_of_memory });

        // A load that ran out of memory is tried once more, so its requests may go on waiting.
        assert!(self.waiting() == 0 || out_of_memory, "each waiting request is refused");
        assert_eq!((self.holding(), self.runner), (0, Some(RunnerPhase::Ending)));
    }

    fn change_device(&mut self, accounted: bool) {
        // Memory that is on its way back was measured for the device before.
        if self.is_reclaiming {
            return;
        }

        self.is_measuring &= self.settings.accounted == accounted;
        self.settings.accounted = accounted;
        let lifecycle = self.settings;
        self.step(MachineEvent::ChangeSettings { lifecycle });
    }

    pub fn measure_memory(&mut self, has_room: bool) {
        // A measurement that comes when the machine does not want one any more must change nothing.
        let is_wanted = self.is_measuring || self.machine.shortage().is_some();
        self.is_measuring = false;
        self.has_room = has_room && is_wanted;

        let available_bytes = Some(if has_room { 8 } else { 7 });
        let memory = MemoryAvailability { available_bytes, demand_bytes: 8 };
        let effects = self.step(MachineEvent::Memory { memory });

        let starts = effects.iter().any(|effect| matches!(effect, MachineEffect::StartRunner { .. }));
        assert!(!starts || self.has_room);
        self.has_room = false;
    }

    fn never_fits(&mut self) {
        if !self.is_measuring {
            return;
        }

        self.is_measuring = false;
        self.step(MachineEvent::NeverFits { cause: "too large".to_owned() });

        // Under a hold no request is refused yet: the device is measured again when the hold ends.
        let is_held = self.machine.state() == ModelState::WaitingForMemory;
        assert!(self.waiting() == 0 || self.runner.is_some() || is_held, "each waiting request is refused");
    }

    fn give_memory_back(&mut self) {
        self.is_reclaiming = false;

        let memory = ReclaimReport {
            vram_before_bytes: 8,
            reclaimed_bytes: 8,
            residual_bytes: 0,
            taken_bytes: 0,
            verdict: ReclaimVerdict::Returned,
        };
        let generation = self.generation;
        self.step(MachineEvent::Reclaimed { generation, memory: Some(memory) });
    }

    fn run_out_of_memory(&mut self) {
        if self.runner != Some(RunnerPhase::Loaded) {
            return;
        }

        if self.machine.state() == ModelState::Ready {
            self.begin_drain(DRAIN_MILLIS);
            self.next_hold = None;
            self.idle_at_unload = None;
        }
        let generation = self.generation;
        self.step(MachineEvent::OutOfMemory { generation });

        assert_ne!(self.machine.state(), ModelState::Ready);
    }

    fn lose_runner(&mut self, cause: LossCause) {
        if self.runner.is_none() {
            return;
        }

        self.was_asked_to_end = false;
        self.runner = Some(RunnerPhase::Ending);
        let generation = self.generation;
        let loss = RunnerLoss { cause, detail: "x".to_owned() };
        self.step(MachineEvent::RunnerLost { generation, loss });

        assert_eq!(self.holding(), 0);
    }

    fn refuse_stop(&mut self) {
        if self.runner != Some(RunnerPhase::Ending) || !self.was_asked_to_end {
            return;
        }

        self.runner = Some(RunnerPhase::Loaded);
        self.was_asked_to_end = false;
        self.has_refused_to_end = true;
        self.idle_at_unload = None;
        let generation = self.generation;
        self.step(MachineEvent::StopRefused { generation });
    }

    fn appear(&mut self) {
        let before = format!("{:?}", self.machine);
        let is_unloaded = self.runner.is_none() && !self.is_reclaiming && !self.is_shutting_down;
        if is_unloaded {
            self.idle_since = Some(self.now);
        }

        let effects = self.step(MachineEvent::Appeared);

        if is_unloaded {
            assert!(effects.contains(&MachineEffect::AdoptRunner { generation: self.generation }), "{effects:?}");
        } else if self.machine.deadline().is_none() {
            assert_eq!((before, effects), (format!("{:?}", self.machine), vec![]), "the model is known");
        }
    }

    fn occupy(&mut self) {
        let lease = LeaseId(self.next_id());
        let is_loaded = self.machine.state().is_loaded();
        self.leases.insert(lease, LeasePhase::Waiting);
        self.occupying.insert(lease);

        self.idle_at_unload = None;
        self.step(MachineEvent::Occupy { lease });

        assert_eq!(self.leases.contains_key(&lease), is_loaded, "{:?}", self.machine);
    }

    fn visit(&mut self) {
        let lease = LeaseId(self.next_id());
        let is_ready = self.machine.state() == ModelState::Ready;
        self.visitors.insert(lease);
        if is_ready {
            self.visits.insert(lease);
        }

        let effects = self.step(MachineEvent::Visit { lease });

        let is_granted = effects.iter().any(|effect| matches!(effect, MachineEffect::Grant { .. }));
        assert_eq!(is_granted, is_ready, "{:?}", self.machine);
    }

    fn leave_by_itself(&mut self) {
        if self.runner != Some(RunnerPhase::Loaded) {
            return;
        }

        self.runner = Some(RunnerPhase::Ending);
        self.was_asked_to_end = false;
        if self.machine.state() == ModelState::Ready {
            self.next_hold = None;
        }
        let generation = self.generation;
        self.step(MachineEvent::LeftByItself { generation });

        assert_eq!(self.holding(), 0);
    }

    fn send_stale_events(&mut self) {
        let generation = self.generation.wrapping_sub(1);
        let loss = RunnerLoss { cause: LossCause::Exited, detail: "old".to_owned() };

        for event in [
            MachineEvent::Loaded { generation },
            MachineEvent::FullyLoaded { generation },
            MachineEvent::LoadFailed { generation, cause: "old".to_owned(), out_of_memory: true },
            MachineEvent::OutOfMemory { generation },
            MachineEvent::Reclaimed { generation, memory: None },
            MachineEvent::RunnerLost { generation, loss },
            MachineEvent::Exited { generation },
            MachineEvent::StopRefused { generation },
            MachineEvent::LeftByItself { generation },
        ] {
            self.step(event);
        }
    }

    /// Time passes through every deadline on its way, as it does for the actor.
    fn let_time_pass(&mut self, millis: u64) {
        let target = self.now + millis;

        while let Some(deadline) = self.machine.deadline().filter(|deadline| deadline.as_millis() <= target) {
            self.now = deadline.as_millis();
            self.step(MachineEvent::Tick);
        }

        self.now = target;
        self.step(MachineEvent::Tick);
    }

    fn shut_down(&mut self, after_millis: u64) {
        self.is_shutting_down = true;
        self.is_reclaiming = false;

        let deadline = self.now + after_millis;
        let is_draining = self.machine.state() == ModelState::Draining;
        self.drain_until = if is_draining { self.drain_until.min(deadline) } else { deadline };

        self.step(MachineEvent::Shutdown { deadline: MachineTime::from_millis(deadline) });
    }
}
