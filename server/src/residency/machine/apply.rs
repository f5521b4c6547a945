//! What an event changes.

use std::time::Duration;

use hush_contract::admin::UnloadOutcome;
use hush_contract::{UnloadReason, UnloadRefusal};

use super::types::{
    CommandId, Count, Effect, Event, LeaseId, Load, Loss, LossCause, LostWhy, Moment, Reclaimed, Refusal, Unload,
    UnloadReport,
};
use super::{Failure, Leaving, Machine, Phase, Room, Settling, Shutdown, Stopping, Waiting, backoff};

impl Machine {
    pub(super) fn apply(&mut self, now: Moment, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Arrive { lease, again, patience } => self.arrive(now, lease, again, patience, out),
            Event::End { lease } => self.end(now, lease),
            Event::Load { command, load } => self.load(now, command, load, out),
            Event::Unload { command, unload } => self.unload(now, command, unload, out),
            Event::Loaded { generation } => self.loaded(now, generation, out),
            Event::Settled { generation } => {
                if generation == self.generation && !matches!(self.phase, Phase::Loading { .. }) {
                    self.failed_loads = 0;
                }
            }
            Event::LoadFailed { generation, cause, out_of_memory } => {
                if generation == self.generation {
                    self.loading_failed(now, cause, out_of_memory, out);
                }
            }
            Event::Memory { memory } => {
                if matches!(self.phase, Phase::Unloaded) && self.room != Room::Unknown {
                    self.room = if memory.has_room() { Room::Enough } else { Room::Short(memory) };
                }
            }
            Event::NeverFits { cause } => {
                if matches!(self.phase, Phase::Unloaded) && self.room != Room::Unknown {
                    self.room = Room::Unknown;
                    self.load_failed(now, cause, out);
                }
            }
            Event::OutOfMemory { generation } => self.out_of_memory(now, generation, out),
            Event::Reclaimed { generation, memory } => {
                if generation == self.generation {
                    self.reclaimed(now, memory, out);
                }
            }
            Event::RunnerLost { generation, loss } => {
                if generation == self.generation {
                    self.lost(now, loss, out);
                }
            }
            Event::Exited { generation } => self.exited(now, generation, out),
            Event::Policy { policy } => {
                // Whoever makes it resident now wants it back.
                self.parked &= policy.residency == self.policy.residency;
                if policy.accounted != self.policy.accounted {
                    // It is another device that must have room, or none.
                    self.room = Room::Unknown;
                }
                self.policy = policy;
            }
            Event::Shutdown { deadline } => {
                self.shutdown.get_or_insert(Shutdown { deadline, forced: false });
                for command in self.loads.drain(..) {
                    out.push(Effect::ReplyLoad { command, result: Err(Refusal::ShuttingDown) });
                }
            }
            Event::Tick => {}
        }
    }

    fn arrive(&mut self, now: Moment, lease: LeaseId, again: bool, patience: Option<Duration>, out: &mut Vec<Effect>) {
        if !again && let Some(last) = self.last_arrival.replace(now) {
            out.push(Effect::Count(Count::Interarrival(now.since(last))));
        }
        let full = self.queue.len() >= self.policy.queue_limit.get() && !self.has_room();
        let refusal = if self.closed_to(again) {
            Some(Refusal::ShuttingDown)
        } else if let Some(refusal) = self.backing_off(now) {
            Some(refusal)
        } else if full && !again {
            Some(Refusal::QueueFull { limit: self.policy.queue_limit.get(), retry_after: self.retry_after() })
        } else {
            None
        };
        if let Some(refusal) = refusal {
            out.push(Effect::Refuse { lease, refusal });
            return;
        }
        self.parked = false;
        let until = patience.map(|patience| now + patience);
        let waiting = Waiting { lease, since: now, cold: !self.is_ready(), until };
        if again {
            self.queue.push_front(waiting);
        } else {
            self.queue.push_back(waiting);
        }
    }

    fn end(&mut self, now: Moment, lease: LeaseId) {
        self.queue.retain(|waiting| waiting.lease != lease);
        let Some(since) = self.granted.remove(&lease) else { return };
        let took = now.since(since);
        self.service = Some(self.service.map_or(took, |average| (average * 7 + took) / 8));
        self.lost_ready = 0;
        let nobody = self.granted.is_empty();
        if let Phase::Ready { idle_since, asked_for } = &mut self.phase {
            *asked_for = false;
            if nobody {
                *idle_since = Some(now);
            }
        }
    }

    fn load(&mut self, now: Moment, command: CommandId, load: Load, out: &mut Vec<Effect>) {
        let held = self.held_for(now).filter(|_| !load.despite_hold);
        let refusal = if self.closed_to(false) {
            Some(Refusal::ShuttingDown)
        } else if load.if_generation.is_some_and(|wanted| wanted != self.generation) {
            Some(Refusal::GenerationChanged)
        } else if let Some(retry_after) = held {
            Some(Refusal::Held { retry_after })
        } else {
            self.backing_off(now)
        };
        if let Some(refusal) = refusal {
            out.push(Effect::ReplyLoad { command, result: Err(refusal) });
            return;
        }
        self.hold_until = None;
        self.parked = false;
        if let Phase::Draining(leaving)
        | Phase::Unloading(Some(Stopping { leaving, .. }))
        | Phase::Reclaiming(Settling { leaving, .. }) = &mut self.phase
        {
            leaving.hold = None;
        }
        self.loads.push(command);
    }

    /// What is left of a hold, also of one that begins when the model has left.
    fn held_for(&self, now: Moment) -> Option<Duration> {
        match &self.phase {
            Phase::Draining(leaving)
            | Phase::Unloading(Some(Stopping { leaving, .. }))
            | Phase::Reclaiming(Settling { leaving, .. }) => leaving.hold,
            _ => self.hold_until.filter(|until| now < *until).map(|until| until.since(now)),
        }
    }

    fn unload(&mut self, now: Moment, command: CommandId, unload: Unload, out: &mut Vec<Effect>) {
        let unconditional = unload.if_generation.is_none() && unload.if_idle.is_none();
        if unconditional && matches!(self.phase, Phase::Unloaded) {
            self.parked = unload.hold.is_none();
            self.hold_until = self.hold_until.max(unload.hold.map(|hold| now + hold));
            let (outcome, none) = (UnloadOutcome::AlreadyUnloaded, Duration::ZERO);
            let generation = self.generation;
            let report = UnloadReport { outcome, generation, drain: none, exit: none, settle: none, memory: None };
            out.push(Effect::ReplyUnload { command, result: Ok(()) });
            out.push(Effect::Unloaded { command, report });
            return;
        }
        let refusal = match &self.phase {
            Phase::Unloaded | Phase::Stopped => Some(UnloadRefusal::NotLoaded),
            Phase::Loading { .. } => Some(UnloadRefusal::Loading),
            Phase::Draining(_) | Phase::Unloading(_) | Phase::Reclaiming(_) => Some(UnloadRefusal::Draining),
            Phase::Ready { .. } if unload.if_generation.is_some_and(|wanted| wanted != self.generation) => {
                Some(UnloadRefusal::GenerationChanged)
            }
            Phase::Ready { idle_since, .. } => match (unload.if_idle, idle_since) {
                (Some(_), None) => Some(UnloadRefusal::Busy),
                (Some(wanted), Some(since)) if now.since(*since) < wanted => Some(UnloadRefusal::NotIdle),
                _ => None,
            },
        };
        if let Some(refusal) = refusal {
            out.push(Effect::Count(Count::UnloadRefused(refusal)));
            out.push(Effect::ReplyUnload { command, result: Err(refusal) });
            return;
        }
        out.push(Effect::ReplyUnload { command, result: Ok(()) });
        self.parked = unload.hold.is_none();
        self.phase = Phase::Draining(Leaving {
            reason: unload.reason,
            command: Some(command),
            hold: unload.hold,
            since: now,
            until: now + unload.drain.unwrap_or(self.policy.drain),
        });
    }

    fn loaded(&mut self, now: Moment, generation: u64, out: &mut Vec<Effect>) {
        let Phase::Loading { since } = self.phase else { return };
        if generation != self.generation {
            return;
        }
        self.failure = None;
        self.lost_loading = 0;
        self.out_of_memory = 0;
        out.push(Effect::Count(Count::Loaded { total: now.since(since) }));
        for waiting in &mut self.queue {
            if std::mem::take(&mut waiting.cold) {
                out.push(Effect::Count(Count::ColdStart(now.since(waiting.since))));
            }
        }
        self.phase = Phase::Ready { idle_since: Some(now), asked_for: !self.loads.is_empty() };
    }

    fn loading_failed(&mut self, now: Moment, cause: String, out_of_memory: bool, out: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Loading { .. } | Phase::Ready { .. } | Phase::Draining(_)) {
            return;
        }
        if out_of_memory {
            out.push(Effect::Count(Count::OutOfMemory));
            self.out_of_memory += 1;
        }
        let detail = cause.clone();
        // Now more is known of what it needs: once it may try again, with that much room.
        if !out_of_memory || self.out_of_memory > 1 {
            self.load_failed(now, cause, out);
        }
        self.lose_all(LostWhy::Runner(Loss { cause: LossCause::Exited, detail }), out);
        let before = std::mem::replace(&mut self.phase, Phase::Unloading(None));
        if let Phase::Draining(leaving) = before {
            self.phase = Phase::Unloading(Some(Stopping { leaving, since: now }));
        }
        out.push(Effect::KillRunner { generation: self.generation });
    }

    /// Whoever waits is told why; the next try is due after a pause.
    fn load_failed(&mut self, now: Moment, cause: String, out: &mut Vec<Effect>) {
        let pause = backoff(&self.policy, self.failed_loads);
        self.failed_loads = self.failed_loads.saturating_add(1);
        self.lost_loading = 0;
        self.out_of_memory = 0;
        self.failure = Some(Failure { cause, until: now + pause });
        out.push(Effect::Count(Count::LoadFailed));
        let Some(refusal) = self.backing_off(now) else { return };
        for waiting in self.queue.drain(..) {
            out.push(Effect::Refuse { lease: waiting.lease, refusal: refusal.clone() });
        }
        for command in self.loads.drain(..) {
            out.push(Effect::ReplyLoad { command, result: Err(refusal.clone()) });
        }
    }

    /// What it holds is not enough for its work. It leaves when the others that hold it are done, and comes back into as
    /// much room as it is known to need by then.
    fn out_of_memory(&mut self, now: Moment, generation: u64, out: &mut Vec<Effect>) {
        if generation != self.generation || !self.is_ready() {
            return;
        }
        out.push(Effect::Count(Count::OutOfMemory));
        self.phase = Phase::Draining(Leaving {
            reason: UnloadReason::OutOfMemory,
            command: None,
            hold: None,
            since: now,
            until: now + self.policy.drain,
        });
    }

    fn lost(&mut self, now: Moment, loss: Loss, out: &mut Vec<Effect>) {
        match &self.phase {
            Phase::Loading { .. } => {
                out.push(Effect::Count(Count::RunnerLost(loss.cause)));
                self.lost_loading += 1;
                // A second try costs little, except after a load that took its whole time.
                if self.lost_loading > 1 || loss.cause == LossCause::LoadTimeout {
                    self.load_failed(now, loss.detail, out);
                }
                self.phase = Phase::Unloading(None);
            }
            Phase::Ready { .. } => {
                out.push(Effect::Count(Count::RunnerLost(loss.cause)));
                if self.lost_ready > 0 {
                    self.rest_until = Some(now + backoff(&self.policy, self.lost_ready - 1));
                }
                self.lost_ready = self.lost_ready.saturating_add(1);
                self.lose_all(LostWhy::Runner(loss), out);
                self.phase = Phase::Unloading(None);
            }
            Phase::Draining(_) => {
                out.push(Effect::Count(Count::RunnerLost(loss.cause)));
                self.lose_all(LostWhy::Runner(loss), out);
                if let Phase::Draining(leaving) = std::mem::replace(&mut self.phase, Phase::Unloading(None)) {
                    self.phase = Phase::Unloading(Some(Stopping { leaving, since: now }));
                }
            }
            Phase::Unloaded | Phase::Unloading(_) | Phase::Reclaiming(_) | Phase::Stopped => {}
        }
    }

    fn exited(&mut self, now: Moment, generation: u64, out: &mut Vec<Effect>) {
        if generation != self.generation {
            return;
        }
        if matches!(self.phase, Phase::Loading { .. } | Phase::Ready { .. } | Phase::Draining(_)) {
            self.lost(now, Loss { cause: LossCause::Exited, detail: "it ended by itself".to_owned() }, out);
        }
        if !matches!(self.phase, Phase::Unloading(_)) {
            return;
        }
        let Phase::Unloading(stopping) = std::mem::replace(&mut self.phase, Phase::Unloaded) else { return };
        let Some(Stopping { leaving, since }) = stopping else { return };
        out.push(Effect::Count(Count::Unloaded { reason: leaving.reason, total: now.since(leaving.since) }));
        let (drain, exit) = (since.since(leaving.since), now.since(since));
        let settling = Settling { leaving, exit, drain, since: now };
        if self.policy.accounted && self.shutdown.is_none() {
            self.phase = Phase::Reclaiming(settling);
            out.push(Effect::Reclaim { generation });
        } else {
            self.unloaded(now, settling, None, out);
        }
    }

    pub(super) fn reclaimed(&mut self, now: Moment, memory: Option<Reclaimed>, out: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Reclaiming(_)) {
            return;
        }
        let Phase::Reclaiming(settling) = std::mem::replace(&mut self.phase, Phase::Unloaded) else { return };
        if let Some(memory) = memory {
            out.push(Effect::Count(Count::Reclaimed { memory, took: now.since(settling.since) }));
        }
        self.unloaded(now, settling, memory, out);
    }

    fn unloaded(&mut self, now: Moment, settling: Settling, memory: Option<Reclaimed>, out: &mut Vec<Effect>) {
        let Settling { leaving, exit, drain, since } = settling;
        self.hold_until = leaving.hold.map(|hold| now + hold);
        if let Some(command) = leaving.command {
            let (outcome, generation) = (UnloadOutcome::Unloaded, self.generation);
            let report = UnloadReport { outcome, generation, drain, exit, settle: now.since(since), memory };
            out.push(Effect::Unloaded { command, report });
        }
    }
}
