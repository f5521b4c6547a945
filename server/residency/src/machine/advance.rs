//! What follows from the facts and the time, without any event.

use std::time::Duration;

use hush_contract::admin::UnloadMethod;
use hush_contract::{UnloadReason, UnloadRefusal};

use super::{
    ColdReason, DrainEnd, LeaseLossCause, MachineEffect, MachineTime, MetricEvent, ModelMachine, ModelPhase,
    ModelRefusal, PendingUnload, RETRY_AFTER_MAX, ResidencyRule, RoomCheck, RunnerStop,
};

/// When a client should ask again for a model that is not in memory, where nothing better is known.
const COLD_RETRY: Duration = Duration::from_secs(15);

impl ModelMachine {
    /// Does what the facts and the time allow. Each arm changes the phase at most once, towards the next event.
    pub(super) fn advance(&mut self, now: MachineTime, effects: &mut Vec<MachineEffect>) {
        clear_if_over(&mut self.hold_until, now);
        clear_if_over(&mut self.rest_until, now);
        self.give_up_unload_if_due(now, effects);
        self.refuse_overdue_requests(now, effects);
        self.enforce_shutdown(now, effects);

        if self.is_ready() {
            self.grant(now, effects);
            self.begin_unload_if_due(now);
        }

        self.finish_drain_if_due(now, effects);

        if matches!(self.phase, ModelPhase::Unloaded) {
            self.start_or_stop(now, effects);
        }
    }

    fn finish_drain_if_due(&mut self, now: MachineTime, effects: &mut Vec<MachineEffect>) {
        self.give_up_unload_if_due(now, effects);
        let ModelPhase::Draining(unload) = &self.phase else { return };

        let is_drained = self.is_drained();
        let may_ask = unload.retry_at.is_none_or(|retry_at| now >= retry_at);
        let is_over = now >= unload.until;

        let generation = self.generation;
        if is_drained && may_ask && !(is_over && unload.retry_at.is_some()) {
            effects.push(MachineEffect::StopRunner { generation, method: unload.method });
        } else if is_over {
            self.revoke_leases(LeaseLossCause::Displaced, effects);
            effects.push(MachineEffect::KillRunner { generation });
        } else {
            return;
        }

        self.wait_for_exit(now);
    }

    /// From `Draining` back to `Ready`, where requests are still in flight and nothing could start them again.
    fn give_up_unload_if_due(&mut self, now: MachineTime, effects: &mut Vec<MachineEffect>) {
        let ModelPhase::Draining(unload) = &self.phase else { return };
        let is_busy = !self.is_drained() || unload.retry_at.is_some();
        let may_give_up = self.settings.drain_end == DrainEnd::GiveUp && self.shutdown.is_none();
        if !is_busy || !may_give_up || now < unload.until {
            return;
        }

        let command = unload.command;
        // A visit alone is no activity.
        let idle_since = unload.idle_since.filter(|_| unload.retry_at.is_none()).unwrap_or(now);
        let idle_since = self.granted.is_empty().then_some(idle_since);
        self.phase = ModelPhase::Ready { idle_since, asked_for: false };
        self.is_parked = false;

        effects.push(MachineEffect::Count(MetricEvent::UnloadRefused(UnloadRefusal::Busy)));
        if let Some(command) = command {
            effects.push(MachineEffect::UnloadGivenUp { command, refusal: UnloadRefusal::Busy });
        }
        self.grant(now, effects);
    }

    /// From `Draining` to `Unloading`, with what is known of the unload.
    pub(super) fn wait_for_exit(&mut self, now: MachineTime) {
        let before = std::mem::replace(&mut self.phase, ModelPhase::Unloading(None));

        if let ModelPhase::Draining(unload) = before {
            self.phase = ModelPhase::Unloading(Some(RunnerStop { unload, since: now }));
        }
    }

    fn start_or_stop(&mut self, now: MachineTime, effects: &mut Vec<MachineEffect>) {
        if self.may_start(now) {
            self.start_if_room(now, effects);
            return;
        }

        // By the time that the model may start, other processes may hold the memory.
        self.room = RoomCheck::Unknown;

        if self.shutdown.is_some() && self.queue.is_empty() {
            self.phase = ModelPhase::Stopped;
            effects.push(MachineEffect::Stopped);
        }
    }

    /// Loads once there is known to be room.
    fn start_if_room(&mut self, now: MachineTime, effects: &mut Vec<MachineEffect>) {
        match self.room {
            RoomCheck::Unknown if self.settings.accounted => {
                self.room = RoomCheck::Asked;
                effects.push(MachineEffect::Measure);
            }
            RoomCheck::Asked | RoomCheck::Short(_) => {}
            RoomCheck::Unknown | RoomCheck::Enough => {
                self.room = RoomCheck::Unknown;
                self.generation += 1;
                self.phase = ModelPhase::Loading { since: now };
                effects.push(MachineEffect::StartRunner { generation: self.generation });
            }
        }
    }

    /// Refuses the requests that have waited as long as they were to wait for a model that is not in memory. The queue
    /// before a loaded model has no such limit, because it moves.
    fn refuse_overdue_requests(&mut self, now: MachineTime, effects: &mut Vec<MachineEffect>) {
        if self.is_ready() {
            return;
        }

        let why = match (self.hold_until, self.room) {
            (Some(_), _) => ColdReason::Held,
            (None, RoomCheck::Short(memory)) => ColdReason::NoRoom(memory),
            (None, _) => ColdReason::Loading,
        };
        let hold_left = self.hold_until.map(|until| until.since(now));
        let retry_after = hold_left.unwrap_or(COLD_RETRY).clamp(Duration::from_secs(1), RETRY_AFTER_MAX);

        self.queue.retain(|request| {
            let is_overdue = request.until.is_some_and(|until| now >= until);
            if is_overdue {
                let refusal = ModelRefusal::ColdHold { waited: now.since(request.since), why, retry_after };
                effects.push(MachineEffect::Refuse { lease: request.lease, refusal });
            }
            !is_overdue
        });
    }

    /// While requests are left, waits for them until the deadline; without any, unloads at once.
    fn enforce_shutdown(&mut self, now: MachineTime, effects: &mut Vec<MachineEffect>) {
        if self.shutdown.is_some() {
            // The server ends: the proof that the memory is back would have no reader.
            self.reclaimed(now, None, effects);
        }

        let Some(shutdown) = &mut self.shutdown else { return };
        let deadline = shutdown.deadline;

        if now >= deadline && !shutdown.is_forced {
            shutdown.is_forced = true;
            for request in self.queue.drain(..) {
                effects.push(MachineEffect::Refuse { lease: request.lease, refusal: ModelRefusal::ShuttingDown });
            }
        }

        if !self.queue.is_empty() {
            return;
        }
        match &mut self.phase {
            ModelPhase::Loading { .. } => {
                self.phase = ModelPhase::Unloading(None);
                effects.push(MachineEffect::KillRunner { generation: self.generation });
            }
            ModelPhase::Ready { .. } if self.granted.is_empty() || now >= deadline => {
                self.phase =
                    ModelPhase::Draining(PendingUnload::new(UnloadReason::Shutdown, UnloadMethod::App, now, deadline));
            }
            ModelPhase::Draining(unload) => unload.until = unload.until.min(deadline),
            _ => {}
        }
    }

    fn grant(&mut self, now: MachineTime, effects: &mut Vec<MachineEffect>) {
        let generation = self.generation;
        for command in self.load_commands.drain(..) {
            effects.push(MachineEffect::ReplyLoad { command, result: Ok(generation) });
        }

        while self.granted.len() < self.settings.concurrency.get() {
            let Some(request) = self.queue.pop_front() else { break };

            self.granted.insert(request.lease, now);
            if let ModelPhase::Ready { idle_since, .. } = &mut self.phase {
                *idle_since = None;
            }
            effects.push(MachineEffect::Grant { lease: request.lease, generation });
        }
    }

    fn begin_unload_if_due(&mut self, now: MachineTime) {
        let ModelPhase::Ready { idle_since: Some(since), asked_for } = self.phase else { return };
        if !self.visits.is_empty() {
            return;
        }

        let reason = match self.settings.residency {
            ResidencyRule::OnDemand if !asked_for => UnloadReason::OnDemand,
            ResidencyRule::Idle(Some(timeout)) if now.since(since) >= timeout => UnloadReason::IdleTimeout,
            _ => return,
        };

        self.phase = ModelPhase::Draining(PendingUnload::new(reason, self.settings.unload_method, now, now));
    }
}

fn clear_if_over(until: &mut Option<MachineTime>, now: MachineTime) {
    *until = until.filter(|until| now < *until);
}
