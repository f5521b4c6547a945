//! The invariants that must hold in every world. `docs/policies.md` has them in words, with the bounds.

mod at_rest;
mod liveness;
mod namespaces;
mod safety;
mod timing;
mod tracker;

use hush_core::{Action, Decision, ObservedGpu, ObservedModel, Plan, StepMemory, World};
use jiff::Timestamp;

use crate::controller_sim::ControllerSim;
use crate::expected_rules::{ExpectedRules, expected_rules};
use crate::scenario::Scenario;

pub use at_rest::{REST_MS, at_the_end};
pub use tracker::InvariantTracker;

/// How an invariant was violated.
pub type Violation = String;

/// Gives the violation unless the invariant holds.
pub fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(why()) }
}

/// One step of the controller, with everything that its decisions rest on.
pub struct DecisionContext<'a> {
    pub now: u64,
    pub wall: Timestamp,
    pub scenario: &'a Scenario,
    pub controller: &'a ControllerSim,
    pub world: &'a World,
    pub plan: &'a Plan,
    /// The memory of the controller before the step.
    pub memory: &'a StepMemory,
}

/// A model as the controller knows it, and what was decided on it.
pub struct KnownModel<'a> {
    /// The index of the simulated model.
    pub model_index: usize,
    pub model: &'a ObservedModel,
    pub gpu: Option<&'a ObservedGpu>,
    pub expected: Option<ExpectedRules>,
    pub sampled_at: u64,
    pub fresh: bool,
    pub decision: Option<&'a Decision>,
}

impl KnownModel<'_> {
    /// Whether the model is to be unloaded.
    pub fn leaves(&self) -> bool {
        self.decision.is_some_and(|decision| decision.action == Action::Unload)
    }

    pub fn is_gpu_fresh(&self, world: &World) -> bool {
        self.gpu.is_some_and(|gpu| gpu.sample_age <= world.stale_after)
    }
}

impl DecisionContext<'_> {
    /// Every model that the controller knows.
    pub fn known(&self) -> Vec<KnownModel<'_>> {
        let keys: Vec<_> = self.scenario.models.iter().map(|spec| &spec.key).collect();
        self.world.models.iter().map(|model| self.known_model(model, &keys)).collect()
    }

    fn known_model<'a>(&'a self, model: &'a ObservedModel, keys: &[&hush_core::ModelKey]) -> KnownModel<'a> {
        let gpu = self.world.gpus.iter().find(|gpu| Some(&gpu.uuid) == model.sample.gpu.as_ref());
        let names_model = |decision: &&Decision| {
            !decision.dry_run && decision.server == model.key.server && decision.model == model.key.model
        };

        KnownModel {
            model_index: keys.iter().position(|key| **key == model.key).unwrap(),
            model,
            gpu,
            expected: expected_rules(self.scenario, model, gpu.map(|gpu| gpu.total_bytes), self.wall),
            sampled_at: self.now - u64::try_from(model.sample_age.as_millis()).unwrap(),
            fresh: model.sample_age <= self.world.stale_after,
            decision: self.plan.decisions.iter().find(names_model),
        }
    }
}
