//! What is remembered from step to step to check the invariants.

use std::collections::BTreeMap;

use hush_core::{Action, CommandOutcome, GpuId};

use super::timing::{Crossings, Evictions, ReliefDeadlines};
use super::{DecisionContext, KnownModel, Violation, liveness, namespaces, safety};
use crate::controller_sim::{ControllerSim, DeliveryStage, SentCommand};
use crate::scenario::Scenario;
use crate::world_sim::WorldSim;

/// One step of this many is computed again, with everything in another order and without the dry runs.
const REPEAT_EVERY: u64 = 16;

/// Checks the invariants as a world is played.
#[derive(Debug, Default)]
pub struct InvariantTracker {
    steps: u64,
    /// For each model when a decision last named it.
    pub decided: BTreeMap<usize, u64>,
    /// For each model when an unload was last reported as ended.
    pub settled: BTreeMap<usize, u64>,
    /// For each model when its server last accepted an unload from the controller.
    pub accepted: BTreeMap<usize, u64>,
    /// For each GPU when an unload was last decided.
    pub gpu_decided: BTreeMap<GpuId, u64>,
    /// For each GPU when an unload was last reported as ended.
    pub gpu_settled: BTreeMap<GpuId, u64>,
    pub crossings: Crossings,
    evictions: Evictions,
    relief_deadlines: ReliefDeadlines,
}

impl InvariantTracker {
    /// Checks the decisions of one step.
    pub fn check_decisions(&mut self, context: &DecisionContext<'_>) -> Result<(), Violation> {
        let known = context.known();
        self.crossings.observe(context, &known);
        safety::check(self, context, &known)?;
        liveness::check(self, context, &known)?;
        namespaces::check(context, &known)?;

        self.steps += 1;
        if self.steps.is_multiple_of(REPEAT_EVERY) {
            safety::check_other_order(context)?;
        }

        self.remember(context, &known);
        Ok(())
    }

    fn remember(&mut self, context: &DecisionContext<'_>, known: &[KnownModel<'_>]) {
        for known in known {
            let Some(decision) = known.decision else { continue };
            self.decided.insert(known.model_index, context.now);
            if let (Action::Unload, Some(gpu)) = (decision.action, &decision.gpu) {
                self.gpu_decided.insert(gpu.clone(), context.now);
            }
        }
    }

    /// A server has accepted a command.
    pub fn command_accepted(
        &mut self,
        now: u64,
        sent: &SentCommand,
        scenario: &Scenario,
        world_sim: &WorldSim,
    ) -> Result<(), Violation> {
        if sent.decision.action == Action::Unload {
            self.accepted.insert(sent.model_index, now);
            self.evictions.begin(now, sent, scenario, world_sim)?;
        }

        Ok(())
    }

    /// From now on nothing changes from outside; see [`super::at_rest`].
    pub fn come_to_rest(&mut self) {
        self.evictions.come_to_rest();
    }

    pub fn command_settled(&mut self, now: u64, sent: &SentCommand, outcome: CommandOutcome) {
        let CommandOutcome::Unloaded { .. } = outcome else { return };

        self.settled.insert(sent.model_index, now);
        if let Some(gpu) = &sent.decision.gpu {
            self.gpu_settled.insert(gpu.clone(), now);
        }
    }

    /// Whether the model was last unloaded for hard pressure, since the world came to rest.
    pub fn left_under_hard_pressure(&self, model_index: usize) -> bool {
        self.evictions.left_under_hard_pressure(model_index)
    }

    /// Checks the deadlines after time has passed.
    pub fn time_passed(
        &mut self,
        now: u64,
        scenario: &Scenario,
        world_sim: &WorldSim,
        controller: &ControllerSim,
    ) -> Result<(), Violation> {
        self.evictions.observe(now, world_sim);
        self.relief_deadlines.observe(now, scenario, world_sim, controller)
    }

    /// The controller may not know what happened before this time, or take it for older than it is.
    pub fn known_since(&self, controller: &ControllerSim) -> u64 {
        controller.restarted.max(controller.clock_stepped).unwrap_or(0)
    }

    /// Whether the controller may have to wait on this GPU: a command is under way, or the sample does not show the last
    /// unload.
    pub fn may_wait(&self, context: &DecisionContext<'_>, known: &KnownModel<'_>) -> bool {
        let Some(gpu) = known.gpu else { return true };
        let sampled_at = context.now - u64::try_from(gpu.sample_age.as_millis()).unwrap();
        let newer = |times: &BTreeMap<GpuId, u64>| times.get(&gpu.uuid).is_some_and(|at| sampled_at <= *at);
        let under_way = context.controller.sent_commands.iter().filter(|sent| sent.decided_at < context.now);
        let mut under_way = under_way.filter(|sent| sent.decision.action == Action::Unload);
        under_way.any(|sent| sent.decision.gpu.as_ref() == Some(&gpu.uuid))
            || newer(&self.gpu_decided)
            || newer(&self.gpu_settled)
    }

    /// Whether the controller may assume that a command for the model is under way, or that its sample was used or is older than
    /// the end of its unload.
    pub fn may_spare(&self, context: &DecisionContext<'_>, known: &KnownModel<'_>) -> bool {
        let under_way = context.controller.sent_commands.iter().filter(|sent| sent.decided_at < context.now);
        let mut under_way = under_way.filter(|sent| sent.model_index == known.model_index);
        let newer =
            |times: &BTreeMap<usize, u64>| times.get(&known.model_index).is_some_and(|at| known.sampled_at <= *at);
        under_way.next().is_some() || newer(&self.decided) || newer(&self.settled)
    }

    /// Whether an unload is on its way to the server of the model.
    pub fn is_leaving(&self, context: &DecisionContext<'_>, model_index: usize) -> bool {
        let out =
            |sent: &&SentCommand| matches!(sent.stage, DeliveryStage::OnItsWay { .. }) && sent.decided_at < context.now;
        let mut sent_commands = context.controller.sent_commands.iter().filter(out);
        sent_commands.any(|sent| sent.model_index == model_index && sent.decision.action == Action::Unload)
    }
}
