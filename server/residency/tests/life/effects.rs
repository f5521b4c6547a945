//! What must hold for each effect, and what it changes in the world.

use hush_contract::{ModelState, UnloadRefusal};
use hush_residency::machine::{
    CommandId, DrainEnd, LeaseId, LeaseLossCause, MachineEffect, MetricEvent, ModelRefusal, UnloadReport,
};

use crate::world::{LeasePhase, MachineWorld, RunnerPhase};

impl MachineWorld {
    pub fn check_effect(&mut self, effect: &MachineEffect) {
        match effect {
            MachineEffect::Measure => {
                assert!(self.settings.accounted && self.runner.is_none() && !self.is_reclaiming);
                assert!(self.now >= self.hold_until, "measured for a load that a hold forbids");
                self.is_measuring = true;
            }
            MachineEffect::Reclaim { generation } => {
                assert_eq!((*generation, self.runner), (self.generation, None), "not reaped");
                assert!(self.settings.accounted && !self.is_shutting_down);
                self.is_reclaiming = true;
            }
            MachineEffect::StartRunner { generation } => self.check_start(*generation),
            MachineEffect::AdoptRunner { generation } => self.check_adoption(*generation),
            MachineEffect::StopRunner { generation, .. } | MachineEffect::KillRunner { generation } => {
                self.was_asked_to_end = matches!(effect, MachineEffect::StopRunner { .. });
                assert_eq!(*generation, self.generation);
                assert!(self.runner.is_some());
                assert_eq!((self.holding(), self.visits.len()), (0, 0), "stopped under a lease or a visit");
                self.runner = Some(RunnerPhase::Ending);
            }
            MachineEffect::Grant { lease, generation } => self.check_grant(*lease, *generation),
            MachineEffect::Refuse { lease, refusal } => self.check_refusal(*lease, refusal),
            MachineEffect::Lost { lease, why } => self.check_lost_lease(*lease, why),
            MachineEffect::ReplyLoad { command, .. } => assert!(self.loads.remove(command), "answered twice"),
            MachineEffect::ReplyUnload { command, result } => {
                if result.is_err() {
                    assert!(self.unloads.remove(command), "answered twice");
                }
            }
            MachineEffect::UnloadGivenUp { command, refusal } => {
                assert!(self.unloads.remove(command), "answered twice");
                assert_eq!(*refusal, UnloadRefusal::Busy);
                assert_eq!((self.runner, self.is_shutting_down), (Some(RunnerPhase::Loaded), false));
                assert!(self.now >= self.drain_until, "given up before its time");
                self.next_hold = None;
            }
            MachineEffect::Unloaded { command, report } => self.check_unload_report(*command, report),
            MachineEffect::Count(MetricEvent::ColdStart(_) | MetricEvent::Loaded { .. }) => {
                assert!(self.runner.is_some());
            }
            // An unload that is given up although no request holds the model: the runner itself has work, or a visit goes
            // on, which is no activity.
            MachineEffect::Count(MetricEvent::UnloadRefused(UnloadRefusal::Busy)) => {
                if self.holding() == 0 {
                    self.idle_since = self.idle_at_unload.take().or(Some(self.now));
                }
            }
            MachineEffect::EndUnusedProcess => assert_eq!(self.runner, None, "a model is in it"),
            MachineEffect::Count(_) => {}
            MachineEffect::Stopped => {
                assert!(self.is_shutting_down && !self.is_stopped);
                assert_eq!(self.runner, None);
                assert!(self.leases.is_empty());
                self.is_stopped = true;
            }
        }
    }

    fn check_start(&mut self, generation: u64) {
        assert!(self.has_room || !self.settings.accounted, "loaded without room");
        assert!(!self.is_reclaiming, "loaded into memory that is still on its way back");
        assert_eq!(self.runner, None, "one runner at a time");
        assert_eq!(generation, self.generation + 1);
        assert!(self.now >= self.hold_until, "loaded into a hold");

        self.generation = generation;
        self.was_asked_to_end = false;
        self.has_refused_to_end = false;
        self.runner = Some(RunnerPhase::Loading);
    }

    fn check_adoption(&mut self, generation: u64) {
        assert_eq!((self.runner, self.is_reclaiming), (None, false), "one runner at a time");
        assert_eq!(generation, self.generation + 1);

        self.generation = generation;
        self.was_asked_to_end = false;
        self.has_refused_to_end = false;
        // The answer to a measurement that was asked for before changes nothing any more.
        self.is_measuring = false;
        self.runner = Some(RunnerPhase::Loaded);
    }

    fn check_grant(&mut self, lease: LeaseId, generation: u64) {
        assert_eq!(generation, self.generation);
        assert_eq!(self.runner, Some(RunnerPhase::Loaded), "granted without a model");
        if self.visitors.contains(&lease) {
            assert!(self.visits.contains(&lease), "granted although the model was about to leave");
            return;
        }
        assert_eq!(self.leases.insert(lease, LeasePhase::Holding), Some(LeasePhase::Waiting));
        if self.occupying.contains(&lease) {
            return;
        }

        assert_eq!(self.order.pop_front(), Some(lease), "first come, first served");
        assert!(self.holding() <= self.settings.concurrency.get());
    }

    fn check_refusal(&mut self, lease: LeaseId, refusal: &ModelRefusal) {
        if self.visitors.contains(&lease) {
            assert_eq!(*refusal, ModelRefusal::NotLoaded);
            assert!(!self.visits.contains(&lease), "the model was there");
            return;
        }
        assert_eq!(self.leases.remove(&lease), Some(LeasePhase::Waiting), "refused twice or never asked");
        self.order.retain(|waiting| *waiting != lease);
        assert!(self.ended.insert(lease));

        match refusal {
            ModelRefusal::ShuttingDown => assert!(self.is_shutting_down),
            ModelRefusal::ColdHold { retry_after, .. } => {
                let is_over = self.cold_wait_until.get(&lease).is_some_and(|until| *until <= self.now);
                assert!(is_over, "refused before its longest wait was over");
                assert_ne!(self.machine.state(), ModelState::Ready);
                assert!((1..=120).contains(&retry_after.as_secs()));
            }
            ModelRefusal::NotLoaded => assert!(self.occupying.contains(&lease)),
            ModelRefusal::QueueFull { .. } | ModelRefusal::LoadFailed { .. } => {}
            ModelRefusal::GenerationChanged | ModelRefusal::Held { .. } => unreachable!("an answer to a command"),
        }
    }

    fn check_lost_lease(&mut self, lease: LeaseId, why: &LeaseLossCause) {
        if self.visitors.contains(&lease) {
            assert!(self.visits.remove(&lease), "lost twice");
        } else {
            assert_eq!(self.leases.remove(&lease), Some(LeasePhase::Holding));
            assert!(self.ended.insert(lease));
            self.lost.push(lease);
        }

        if *why == LeaseLossCause::Displaced {
            assert!(self.settings.drain_end == DrainEnd::Displace || self.is_shutting_down, "displaced, not given up");
            assert_eq!(self.machine.state(), ModelState::Unloading);
            assert!(self.now >= self.drain_until || self.has_refused_to_end, "displaced before its time");
        }
    }

    fn check_unload_report(&mut self, command: CommandId, report: &UnloadReport) {
        assert!(self.unloads.remove(&command), "answered twice");
        assert_eq!(report.generation, self.generation);
        assert_eq!(self.runner, None, "not reaped");
        assert!(!self.is_reclaiming || self.is_shutting_down, "before its memory was seen to come back");
        assert!(report.memory.is_none() || self.settings.accounted);

        let hold_until = self.next_hold.take().map_or(0, |hold| self.now + hold);
        self.hold_until = self.hold_until.max(hold_until);
    }
}
