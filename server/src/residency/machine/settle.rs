//! What follows from the facts and the time, without any event.

use std::time::Duration;

use hush_contract::UnloadReason;

use super::types::{Cold, Effect, LostWhy, Moment, Refusal, Residency};
use super::{Leaving, Machine, Phase, RETRY_AFTER_MAX, Room, Stopping};

/// When to ask again for a model that is not there yet, where nothing better is known.
const COLD_RETRY: Duration = Duration::from_secs(15);

impl Machine {
    /// Does what facts and time allow. Each arm changes the phase at most once, towards the next event.
    pub(super) fn settle(&mut self, now: Moment, out: &mut Vec<Effect>) {
        expire(&mut self.hold_until, now);
        expire(&mut self.rest_until, now);
        self.end_patience(now, out);
        self.enforce_shutdown(now, out);
        if let Phase::Ready { .. } = self.phase {
            self.grant(now, out);
            self.leave_if_due(now);
        }
        let due = match &self.phase {
            Phase::Draining(leaving) => self.granted.is_empty() || now >= leaving.until,
            _ => false,
        };
        if due {
            let generation = self.generation;
            if self.granted.is_empty() {
                out.push(Effect::StopRunner { generation });
            } else {
                self.lose_all(LostWhy::Displaced, out);
                out.push(Effect::KillRunner { generation });
            }
            if let Phase::Draining(leaving) = std::mem::replace(&mut self.phase, Phase::Unloading(None)) {
                self.phase = Phase::Unloading(Some(Stopping { leaving, since: now }));
            }
        }
        if matches!(self.phase, Phase::Unloaded) {
            if self.may_start(now) {
                self.start(now, out);
                return;
            }
            // By the time that it may, another may be there.
            self.room = Room::Unknown;
            if self.shutdown.is_some() && self.queue.is_empty() {
                self.phase = Phase::Stopped;
                out.push(Effect::Stopped);
            }
        }
    }

    /// Loads, once there is known to be room.
    fn start(&mut self, now: Moment, out: &mut Vec<Effect>) {
        match self.room {
            Room::Unknown if self.policy.accounted => {
                self.room = Room::Asked;
                out.push(Effect::Measure);
            }
            Room::Asked | Room::Short(_) => {}
            Room::Unknown | Room::Enough => {
                self.room = Room::Unknown;
                self.generation += 1;
                self.phase = Phase::Loading { since: now };
                out.push(Effect::StartRunner { generation: self.generation });
            }
        }
    }

    /// A queue before a model that is there moves; patience is for one that is not.
    fn end_patience(&mut self, now: Moment, out: &mut Vec<Effect>) {
        if self.is_ready() {
            return;
        }
        let why = match (self.hold_until, self.room) {
            (Some(_), _) => Cold::Held,
            (None, Room::Short(memory)) => Cold::NoRoom(memory),
            (None, _) => Cold::Loading,
        };
        let held = self.hold_until.map(|until| until.since(now));
        let retry_after = held.unwrap_or(COLD_RETRY).clamp(Duration::from_secs(1), RETRY_AFTER_MAX);
        self.queue.retain(|waiting| {
            let over = waiting.until.is_some_and(|until| now >= until);
            if over {
                let refusal = Refusal::ColdHold { waited: now.since(waiting.since), why, retry_after };
                out.push(Effect::Refuse { lease: waiting.lease, refusal });
            }
            !over
        });
    }

    /// At the deadline nobody is waited for any more; without anybody left, not until then.
    fn enforce_shutdown(&mut self, now: Moment, out: &mut Vec<Effect>) {
        if self.shutdown.is_some() {
            // Nobody will look at the proof.
            self.reclaimed(now, None, out);
        }
        let Some(shutdown) = &mut self.shutdown else { return };
        if now >= shutdown.deadline && !shutdown.forced {
            shutdown.forced = true;
            for waiting in self.queue.drain(..) {
                out.push(Effect::Refuse { lease: waiting.lease, refusal: Refusal::ShuttingDown });
            }
        }
        let deadline = shutdown.deadline;
        if self.queue.is_empty() {
            match &mut self.phase {
                Phase::Loading { .. } => {
                    self.phase = Phase::Unloading(None);
                    out.push(Effect::KillRunner { generation: self.generation });
                }
                Phase::Ready { .. } if self.granted.is_empty() || now >= deadline => {
                    self.phase = Phase::Draining(leaving(UnloadReason::Shutdown, now, deadline));
                }
                Phase::Draining(leaving) => leaving.until = leaving.until.min(deadline),
                _ => {}
            }
        }
    }

    fn grant(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let generation = self.generation;
        for command in self.loads.drain(..) {
            out.push(Effect::ReplyLoad { command, result: Ok(generation) });
        }
        while self.granted.len() < self.policy.concurrency.get() {
            let Some(waiting) = self.queue.pop_front() else { break };
            self.granted.insert(waiting.lease, now);
            if let Phase::Ready { idle_since, .. } = &mut self.phase {
                *idle_since = None;
            }
            out.push(Effect::Grant { lease: waiting.lease, generation });
        }
    }

    fn leave_if_due(&mut self, now: Moment) {
        let Phase::Ready { idle_since: Some(since), asked_for } = self.phase else { return };
        let reason = match self.policy.residency {
            Residency::OnDemand if !asked_for => UnloadReason::OnDemand,
            Residency::Idle(Some(timeout)) if now.since(since) >= timeout => UnloadReason::IdleTimeout,
            _ => return,
        };
        self.phase = Phase::Draining(leaving(reason, now, now));
    }
}

const fn leaving(reason: UnloadReason, since: Moment, until: Moment) -> Leaving {
    Leaving { reason, command: None, hold: None, since, until }
}

fn expire(until: &mut Option<Moment>, now: Moment) {
    *until = until.filter(|until| now < *until);
}
