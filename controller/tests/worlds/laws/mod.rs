//! What must hold in every world. `docs/policies.md` says it in words, with the bounds.

mod duty;
mod end;
mod safety;
mod tenants;
mod time;
mod watch;

use hush_core::{Action, Decision, ObservedGpu, ObservedModel, Plan, StepMemory, World};
use jiff::Timestamp;

use crate::expected::{Expected, expected};
use crate::host::Host;
use crate::scenario::Scenario;

pub use end::{REST_MS, at_the_end};
pub use watch::Watch;

/// A law and how it was broken.
pub type Broken = String;

pub fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(why()) }
}

/// One decision of the controller, with everything that it rests on.
pub struct Moment<'a> {
    pub now: u64,
    pub wall: Timestamp,
    pub scenario: &'a Scenario,
    pub host: &'a Host,
    pub world: &'a World,
    pub plan: &'a Plan,
    /// As it was before.
    pub memory: &'a StepMemory,
}

/// A model as the controller sees it, and what was decided on it.
pub struct Known<'a> {
    /// Place of the guest.
    pub guest: usize,
    pub model: &'a ObservedModel,
    pub gpu: Option<&'a ObservedGpu>,
    pub expected: Option<Expected>,
    pub sampled_at: u64,
    pub fresh: bool,
    pub decision: Option<&'a Decision>,
}

impl Known<'_> {
    pub fn leaves(&self) -> bool {
        self.decision.is_some_and(|decision| decision.action == Action::Unload)
    }

    pub fn card_fresh(&self, world: &World) -> bool {
        self.gpu.is_some_and(|gpu| gpu.sample_age <= world.stale_after)
    }
}

impl Moment<'_> {
    pub fn known(&self) -> Vec<Known<'_>> {
        let places: Vec<_> = self.scenario.guests.iter().map(|spec| &spec.key).collect();
        let known = |model| self.know(model, &places);
        self.world.models.iter().map(known).collect()
    }

    fn know<'a>(&'a self, model: &'a ObservedModel, places: &[&hush_core::ModelKey]) -> Known<'a> {
        let gpu = self.world.gpus.iter().find(|gpu| Some(&gpu.uuid) == model.gpu.as_ref());
        let named = |decision: &&Decision| {
            !decision.dry_run && decision.server == model.key.server && decision.model == model.key.model
        };
        Known {
            guest: places.iter().position(|key| **key == model.key).unwrap(),
            model,
            gpu,
            expected: expected(self.scenario, model, gpu.map(|gpu| gpu.total_bytes), self.wall),
            sampled_at: self.now - u64::try_from(model.sample_age.as_millis()).unwrap(),
            fresh: model.sample_age <= self.world.stale_after,
            decision: self.plan.decisions.iter().find(named),
        }
    }
}
