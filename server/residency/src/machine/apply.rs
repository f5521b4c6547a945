//! What an event changes.

use std::time::Duration;

use hush_contract::admin::{ProcessOutcome, UnloadMethod, UnloadOutcome};
use hush_contract::{UnloadReason, UnloadRefusal};

use super::{
    CommandId, LeaseId, LeaseLossCause, LifecycleSettings, LoadBackoff, LoadCommand, LossCause, MachineEffect,
    MachineEvent, MachineTime, MetricEvent, ModelMachine, ModelPhase, ModelRefusal, PendingReclaim, PendingUnload,
    QueuedRequest, ReclaimReport, RoomCheck, RunnerLoss, RunnerStop, STOP_RETRY, ShutdownProgress, UnloadCommand,
    UnloadReport, backoff,
};

impl ModelMachine {
    pub(super) fn apply(&mut self, now: MachineTime, event: MachineEvent, effects: &mut Vec<MachineEffect>) {
        match event {
            MachineEvent::Arrive { lease, again, patience } => self.arrive(now, lease, again, patience, effects),
            MachineEvent::End { lease } => self.end(now, lease),
            MachineEvent::Load { command, load } => self.load(now, command, load, effects),
            MachineEvent::Unload { command, unload } => self.unload(now, command, unload, effects),
            MachineEvent::Loaded { generation } => self.loaded(now, generation, effects),
            MachineEvent::FullyLoaded { generation } => self.fully_loaded(generation),
            MachineEvent::LoadFailed { generation, cause, out_of_memory } => {
                if generation == self.generation {
                    self.runner_could_not_load(now, cause, out_of_memory, effects);
                }
            }
            MachineEvent::Memory { memory } => {
                if self.expects_measurement() {
                    self.room = if memory.is_sufficient() { RoomCheck::Enough } else { RoomCheck::Short(memory) };
                }
            }
            MachineEvent::NeverFits { cause } => {
                if self.expects_measurement() {
                    self.room = RoomCheck::Unknown;
                    self.load_failed(now, cause, effects);
                }
            }
            MachineEvent::OutOfMemory { generation } => self.out_of_memory(now, generation, effects),
            MachineEvent::Reclaimed { generation, memory } => {
                if generation == self.generation {
                    self.reclaimed(now, memory, effects);
                }
            }
            MachineEvent::RunnerLost { generation, loss } => {
                if generation == self.generation {
                    self.runner_lost(now, loss, effects);
                }
            }
            MachineEvent::StopRefused { generation } => self.stop_refused(now, generation, effects),
            MachineEvent::ProcessKept { generation, outcome } => self.process_kept(generation, outcome),
            MachineEvent::Appeared => self.appeared(now, effects),
            MachineEvent::Occupy { lease } => self.occupy(now, lease, effects),
            MachineEvent::Visit { lease } => self.visit(lease, effects),
            MachineEvent::LeftByItself { generation } => self.left_by_itself(now, generation, effects),
            MachineEvent::Exited { generation } => self.exited(now, generation, effects),
            MachineEvent::ChangeSettings { lifecycle } => self.change_settings(lifecycle),
            MachineEvent::Shutdown { deadline } => self.begin_shutdown(deadline, effects),
            MachineEvent::Tick => {}
        }
    }

    /// Whether a measurement of the device changes anything.
    fn expects_measurement(&self) -> bool {
        matches!(self.phase, ModelPhase::Unloaded) && self.room != RoomCheck::Unknown
    }

    fn change_settings(&mut self, settings: LifecycleSettings) {
        // A setting that makes the model resident now wants it back.
        self.is_parked &= settings.residency == self.settings.residency;

        if settings.accounted != self.settings.accounted {
            // Another device must have room, or none.
            self.room = RoomCheck::Unknown;
        }

        self.settings = settings;
    }

    fn begin_shutdown(&mut self, deadline: MachineTime, effects: &mut Vec<MachineEffect>) {
        self.shutdown.get_or_insert(ShutdownProgress { deadline, is_forced: false });

        for command in self.load_commands.drain(..) {
            effects.push(MachineEffect::ReplyLoad { command, result: Err(ModelRefusal::ShuttingDown) });
        }
    }

    fn arrive(
        &mut self,
        now: MachineTime,
        lease: LeaseId,
        again: bool,
        max_cold_wait: Option<Duration>,
        effects: &mut Vec<MachineEffect>,
    ) {
        if !again && let Some(last) = self.last_arrival.replace(now) {
            effects.push(MachineEffect::Count(MetricEvent::Interarrival(now.since(last))));
        }

        if let Some(refusal) = self.arrival_refusal(now, again) {
            effects.push(MachineEffect::Refuse { lease, refusal });
            return;
        }

        self.is_parked = false;
        let until = max_cold_wait.map(|wait| now + wait);
        let request = QueuedRequest { lease, since: now, is_cold: !self.is_ready(), until };
        if again {
            self.queue.push_front(request);
        } else {
            self.queue.push_back(request);
        }
    }

    fn arrival_refusal(&self, now: MachineTime, again: bool) -> Option<ModelRefusal> {
        let limit = self.settings.queue_limit.get();
        let is_full = self.queue.len() >= limit && !self.has_free_lease();

        if self.is_closed_to(again) {
            Some(ModelRefusal::ShuttingDown)
        } else if let Some(refusal) = self.backoff_refusal(now) {
            Some(refusal)
        } else if is_full && !again {
            Some(ModelRefusal::QueueFull { limit, retry_after: self.queue_retry_after() })
        } else {
            None
        }
    }

    fn end(&mut self, now: MachineTime, lease: LeaseId) {
        self.queue.retain(|request| request.lease != lease);
        self.visits.remove(&lease);
        let Some(since) = self.granted.remove(&lease) else { return };

        let took = now.since(since);
        self.service_time = Some(self.service_time.map_or(took, |average| (average * 7 + took) / 8));
        self.lost_ready = 0;

        let is_free = self.granted.is_empty();
        if let ModelPhase::Ready { idle_since, asked_for } = &mut self.phase {
            *asked_for = false;
            if is_free {
                *idle_since = Some(now);
            }
        }
    }

    fn load(&mut self, now: MachineTime, command: CommandId, load: LoadCommand, effects: &mut Vec<MachineEffect>) {
        if let Some(refusal) = self.load_refusal(now, load) {
            effects.push(MachineEffect::ReplyLoad { command, result: Err(refusal) });
            return;
        }

        self.hold_until = None;
        self.is_parked = false;
        if let ModelPhase::Draining(unload)
        | ModelPhase::Unloading(Some(RunnerStop { unload, .. }))
        | ModelPhase::Reclaiming(PendingReclaim { unload, .. }) = &mut self.phase
        {
            unload.hold = None;
        }
        self.load_commands.push(command);
    }

    fn load_refusal(&self, now: MachineTime, load: LoadCommand) -> Option<ModelRefusal> {
        let hold_left = self.hold_left(now).filter(|_| !load.despite_hold);

        if self.is_closed_to(false) {
            Some(ModelRefusal::ShuttingDown)
        } else if load.if_generation.is_some_and(|wanted| wanted != self.generation) {
            Some(ModelRefusal::GenerationChanged)
        } else if let Some(retry_after) = hold_left {
            Some(ModelRefusal::Held { retry_after })
        } else {
            self.backoff_refusal(now)
        }
    }

    /// What is left of a hold, also of one that begins when the unload is complete.
    fn hold_left(&self, now: MachineTime) -> Option<Duration> {
        match &self.phase {
            ModelPhase::Draining(unload)
            | ModelPhase::Unloading(Some(RunnerStop { unload, .. }))
            | ModelPhase::Reclaiming(PendingReclaim { unload, .. }) => unload.hold,
            _ => self.hold_until.filter(|until| now < *until).map(|until| until.since(now)),
        }
    }

    fn unload(
        &mut self,
        now: MachineTime,
        command: CommandId,
        unload: UnloadCommand,
        effects: &mut Vec<MachineEffect>,
    ) {
        let is_unconditional = unload.if_generation.is_none() && unload.if_idle.is_none();
        if is_unconditional && matches!(self.phase, ModelPhase::Unloaded) {
            self.hold_unloaded(now, command, unload, effects);
            return;
        }

        if let Some(refusal) = self.unload_refusal(now, unload) {
            effects.push(MachineEffect::Count(MetricEvent::UnloadRefused(refusal)));
            effects.push(MachineEffect::ReplyUnload { command, result: Err(refusal) });
            return;
        }

        effects.push(MachineEffect::ReplyUnload { command, result: Ok(()) });
        self.is_parked = unload.hold.is_none();
        let idle_since = self.idle_since();
        self.phase = ModelPhase::Draining(PendingUnload {
            reason: unload.reason,
            command: Some(command),
            hold: unload.hold,
            method: self.unload_method(unload),
            since: now,
            until: now + unload.drain.unwrap_or(self.settings.drain),
            retry_at: None,
            idle_since,
            process: ProcessOutcome::Ended,
        });
    }

    fn unload_method(&self, unload: UnloadCommand) -> UnloadMethod {
        unload.method.unwrap_or(self.settings.unload_method)
    }

    /// The model is not in memory: an unload without conditions keeps it out.
    fn hold_unloaded(
        &mut self,
        now: MachineTime,
        command: CommandId,
        unload: UnloadCommand,
        effects: &mut Vec<MachineEffect>,
    ) {
        self.is_parked = unload.hold.is_none();
        self.hold_until = self.hold_until.max(unload.hold.map(|hold| now + hold));

        let report = UnloadReport {
            outcome: UnloadOutcome::AlreadyUnloaded,
            generation: self.generation,
            drain: Duration::ZERO,
            exit: Duration::ZERO,
            reclaim: Duration::ZERO,
            memory: None,
            process: None,
        };
        if self.unload_method(unload) == UnloadMethod::Process {
            effects.push(MachineEffect::EndUnusedProcess);
        }
        effects.push(MachineEffect::ReplyUnload { command, result: Ok(()) });
        effects.push(MachineEffect::Unloaded { command, report });
    }

    fn unload_refusal(&self, now: MachineTime, unload: UnloadCommand) -> Option<UnloadRefusal> {
        match &self.phase {
            ModelPhase::Unloaded | ModelPhase::Stopped => Some(UnloadRefusal::NotLoaded),
            ModelPhase::Loading { .. } => Some(UnloadRefusal::Loading),
            ModelPhase::Draining(_) | ModelPhase::Unloading(_) | ModelPhase::Reclaiming(_) => {
                Some(UnloadRefusal::Draining)
            }
            ModelPhase::Ready { .. } if unload.if_generation.is_some_and(|wanted| wanted != self.generation) => {
                Some(UnloadRefusal::GenerationChanged)
            }
            ModelPhase::Ready { idle_since, .. } => match (unload.if_idle, idle_since) {
                (Some(_), None) => Some(UnloadRefusal::Busy),
                (Some(wanted), Some(since)) if now.since(*since) < wanted => Some(UnloadRefusal::NotIdle),
                _ => None,
            },
        }
    }

    fn loaded(&mut self, now: MachineTime, generation: u64, effects: &mut Vec<MachineEffect>) {
        let ModelPhase::Loading { since } = self.phase else { return };
        if generation != self.generation {
            return;
        }

        self.failed_load = None;
        self.lost_loading = 0;
        self.out_of_memory_loads = 0;
        effects.push(MachineEffect::Count(MetricEvent::Loaded { total: now.since(since) }));

        self.count_cold_starts(now, effects);
        self.phase = ModelPhase::Ready { idle_since: Some(now), asked_for: !self.load_commands.is_empty() };
    }

    fn count_cold_starts(&mut self, now: MachineTime, effects: &mut Vec<MachineEffect>) {
        for request in &mut self.queue {
            if std::mem::take(&mut request.is_cold) {
                effects.push(MachineEffect::Count(MetricEvent::ColdStart(now.since(request.since))));
            }
        }
    }

    fn fully_loaded(&mut self, generation: u64) {
        if generation == self.generation && !matches!(self.phase, ModelPhase::Loading { .. }) {
            self.failed_loads = 0;
        }
    }

    fn runner_could_not_load(
        &mut self,
        now: MachineTime,
        cause: String,
        out_of_memory: bool,
        effects: &mut Vec<MachineEffect>,
    ) {
        if !matches!(self.phase, ModelPhase::Loading { .. } | ModelPhase::Ready { .. } | ModelPhase::Draining(_)) {
            return;
        }

        if out_of_memory {
            effects.push(MachineEffect::Count(MetricEvent::OutOfMemory));
            self.out_of_memory_loads += 1;
        }

        let detail = cause.clone();
        // More is known now of what the model needs: one more load may be tried, into that much room.
        if !out_of_memory || self.out_of_memory_loads > 1 {
            self.load_failed(now, cause, effects);
        }

        self.revoke_leases(LeaseLossCause::Runner(RunnerLoss { cause: LossCause::Exited, detail }), effects);
        self.wait_for_exit(now);
        effects.push(MachineEffect::KillRunner { generation: self.generation });
    }

    /// Refuses every request and command that waits; the next load is tried after a pause.
    fn load_failed(&mut self, now: MachineTime, cause: String, effects: &mut Vec<MachineEffect>) {
        let pause = backoff(&self.settings, self.failed_loads);
        self.failed_loads = self.failed_loads.saturating_add(1);
        self.lost_loading = 0;
        self.out_of_memory_loads = 0;
        self.failed_load = Some(LoadBackoff { cause, until: now + pause });
        effects.push(MachineEffect::Count(MetricEvent::LoadFailed));

        let Some(refusal) = self.backoff_refusal(now) else { return };
        for request in self.queue.drain(..) {
            effects.push(MachineEffect::Refuse { lease: request.lease, refusal: refusal.clone() });
        }
        for command in self.load_commands.drain(..) {
            effects.push(MachineEffect::ReplyLoad { command, result: Err(refusal.clone()) });
        }
    }

    /// The model has too little memory for its work. It is unloaded when the other requests that hold it are done, and
    /// loaded again into as much room as it is known to need by then.
    fn out_of_memory(&mut self, now: MachineTime, generation: u64, effects: &mut Vec<MachineEffect>) {
        if generation != self.generation || !self.is_ready() {
            return;
        }

        effects.push(MachineEffect::Count(MetricEvent::OutOfMemory));
        let until = now + self.settings.drain;
        self.phase = ModelPhase::Draining(PendingUnload::new(
            UnloadReason::OutOfMemory,
            self.settings.unload_method,
            now,
            until,
        ));
    }

    fn runner_lost(&mut self, now: MachineTime, loss: RunnerLoss, effects: &mut Vec<MachineEffect>) {
        match &self.phase {
            ModelPhase::Loading { .. } => {
                effects.push(MachineEffect::Count(MetricEvent::RunnerLost(loss.cause)));
                self.lost_loading += 1;

                // A second try costs little, except after a load that took its whole time.
                if self.lost_loading > 1 || loss.cause == LossCause::LoadTimeout {
                    self.load_failed(now, loss.detail, effects);
                }
                self.phase = ModelPhase::Unloading(None);
            }
            ModelPhase::Ready { .. } => {
                effects.push(MachineEffect::Count(MetricEvent::RunnerLost(loss.cause)));
                if self.lost_ready > 0 {
                    self.rest_until = Some(now + backoff(&self.settings, self.lost_ready - 1));
                }
                self.lost_ready = self.lost_ready.saturating_add(1);

                self.revoke_leases(LeaseLossCause::Runner(loss), effects);
                self.phase = ModelPhase::Unloading(None);
            }
            ModelPhase::Draining(_) => {
                effects.push(MachineEffect::Count(MetricEvent::RunnerLost(loss.cause)));
                self.revoke_leases(LeaseLossCause::Runner(loss), effects);
                self.wait_for_exit(now);
            }
            ModelPhase::Unloaded | ModelPhase::Unloading(_) | ModelPhase::Reclaiming(_) | ModelPhase::Stopped => {}
        }
    }

    /// The runner has work that no request stands for: the unload waits on, until its time is over.
    fn stop_refused(&mut self, now: MachineTime, generation: u64, effects: &mut Vec<MachineEffect>) {
        if generation != self.generation || !matches!(self.phase, ModelPhase::Unloading(Some(_))) {
            return;
        }

        let before = std::mem::replace(&mut self.phase, ModelPhase::Unloading(None));
        let ModelPhase::Unloading(Some(RunnerStop { unload, .. })) = before else { return };

        // A shutdown has no time to ask again.
        if self.shutdown.as_ref().is_some_and(|shutdown| shutdown.is_forced) {
            self.phase = ModelPhase::Unloading(Some(RunnerStop { unload, since: now }));
            effects.push(MachineEffect::KillRunner { generation });
            return;
        }

        self.phase = ModelPhase::Draining(PendingUnload { retry_at: Some(now + STOP_RETRY), ..unload });
    }

    fn process_kept(&mut self, generation: u64, outcome: ProcessOutcome) {
        if generation != self.generation {
            return;
        }

        if let ModelPhase::Draining(unload) | ModelPhase::Unloading(Some(RunnerStop { unload, .. })) = &mut self.phase {
            unload.process = outcome;
        }
    }

    /// The model is in memory although nothing loaded it from here: it is a new generation. A hold does not change that.
    fn appeared(&mut self, now: MachineTime, effects: &mut Vec<MachineEffect>) {
        if !matches!(self.phase, ModelPhase::Unloaded) || self.shutdown.is_some() {
            return;
        }

        self.generation += 1;
        self.room = RoomCheck::Unknown;
        self.failed_load = None;
        self.failed_loads = 0;
        effects.push(MachineEffect::AdoptRunner { generation: self.generation });
        effects.push(MachineEffect::Count(MetricEvent::Appeared));

        self.count_cold_starts(now, effects);
        self.phase = ModelPhase::Ready { idle_since: Some(now), asked_for: !self.load_commands.is_empty() };
    }

    fn occupy(&mut self, now: MachineTime, lease: LeaseId, effects: &mut Vec<MachineEffect>) {
        match &mut self.phase {
            ModelPhase::Ready { idle_since, .. } => *idle_since = None,
            ModelPhase::Draining(unload) => unload.idle_since = None,
            _ => {
                effects.push(MachineEffect::Refuse { lease, refusal: ModelRefusal::NotLoaded });
                return;
            }
        }

        self.granted.insert(lease, now);
        effects.push(MachineEffect::Grant { lease, generation: self.generation });
    }

    /// Grants a visit to a model that is in memory and is to stay there.
    fn visit(&mut self, lease: LeaseId, effects: &mut Vec<MachineEffect>) {
        if !self.is_ready() {
            effects.push(MachineEffect::Refuse { lease, refusal: ModelRefusal::NotLoaded });
            return;
        }

        self.visits.insert(lease);
        effects.push(MachineEffect::Grant { lease, generation: self.generation });
    }

    fn left_by_itself(&mut self, now: MachineTime, generation: u64, effects: &mut Vec<MachineEffect>) {
        if generation != self.generation {
            return;
        }

        let loss = RunnerLoss { cause: LossCause::Exited, detail: "the model was unloaded from elsewhere".to_owned() };
        match &self.phase {
            ModelPhase::Loading { .. } => self.runner_lost(now, loss, effects),
            ModelPhase::Ready { .. } => {
                self.revoke_leases(LeaseLossCause::Runner(loss), effects);
                let unload = PendingUnload::new(UnloadReason::Other, UnloadMethod::App, now, now);
                self.phase = ModelPhase::Unloading(Some(RunnerStop { unload, since: now }));
            }
            ModelPhase::Draining(_) => {
                self.revoke_leases(LeaseLossCause::Runner(loss), effects);
                self.wait_for_exit(now);
            }
            ModelPhase::Unloaded | ModelPhase::Unloading(_) | ModelPhase::Reclaiming(_) | ModelPhase::Stopped => {}
        }
    }

    fn exited(&mut self, now: MachineTime, generation: u64, effects: &mut Vec<MachineEffect>) {
        if generation != self.generation {
            return;
        }
        if matches!(self.phase, ModelPhase::Loading { .. } | ModelPhase::Ready { .. } | ModelPhase::Draining(_)) {
            let loss = RunnerLoss { cause: LossCause::Exited, detail: "it ended by itself".to_owned() };
            self.runner_lost(now, loss, effects);
        }

        if !matches!(self.phase, ModelPhase::Unloading(_)) {
            return;
        }
        let before = std::mem::replace(&mut self.phase, ModelPhase::Unloaded);
        let ModelPhase::Unloading(Some(RunnerStop { unload, since })) = before else { return };

        let total = now.since(unload.since);
        effects.push(MachineEffect::Count(MetricEvent::Unloaded { reason: unload.reason, total }));

        let (drain, exit) = (since.since(unload.since), now.since(since));
        let pending = PendingReclaim { unload, exit, drain, since: now };
        if self.settings.accounted && self.shutdown.is_none() {
            self.phase = ModelPhase::Reclaiming(pending);
            effects.push(MachineEffect::Reclaim { generation });
        } else {
            self.complete_unload(now, pending, None, effects);
        }
    }

    pub(super) fn reclaimed(
        &mut self,
        now: MachineTime,
        memory: Option<ReclaimReport>,
        effects: &mut Vec<MachineEffect>,
    ) {
        if !matches!(self.phase, ModelPhase::Reclaiming(_)) {
            return;
        }
        let before = std::mem::replace(&mut self.phase, ModelPhase::Unloaded);
        let ModelPhase::Reclaiming(pending) = before else { return };

        if let Some(memory) = memory {
            let took = now.since(pending.since);
            effects.push(MachineEffect::Count(MetricEvent::Reclaimed { memory, took }));
        }
        self.complete_unload(now, pending, memory, effects);
    }

    fn complete_unload(
        &mut self,
        now: MachineTime,
        pending: PendingReclaim,
        memory: Option<ReclaimReport>,
        effects: &mut Vec<MachineEffect>,
    ) {
        let PendingReclaim { unload, exit, drain, since } = pending;
        // A model that appeared during a hold and is unloaded again stays away for as long as that hold says.
        self.hold_until = self.hold_until.max(unload.hold.map(|hold| now + hold));

        let Some(command) = unload.command else { return };
        let report = UnloadReport {
            outcome: UnloadOutcome::Unloaded,
            generation: self.generation,
            drain,
            exit,
            reclaim: now.since(since),
            memory,
            process: Some(unload.process),
        };
        effects.push(MachineEffect::Unloaded { command, report });
    }
}
