//! Loads and unloads that no command of this controller caused: they were left to another controller beside this one, a
//! user asked for them, or the server's own residency did them.
//!
//! The core waits for them as for commands of its own, so that two controllers that see the same pressure do not both
//! answer it.

use std::collections::HashMap;
use std::time::Duration;

use hush_core::{
    Action, CommandOutcome, Decision, DecisionReason, GpuId, ModelKey, ObservedModel, ResidencyState, StepMemory,
    UnloadTerms, World, elapsed, sampled_at,
};
use jiff::Timestamp;

/// How long another controller may take for an action that this one has left to it. The other controller may see the same
/// world a scrape later, its command travels, and this controller needs a newer sample.
pub const PEER_COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub struct PeerActions {
    /// The models that this controller has commanded: `None` while the command is under way, then the time of its end.
    own_commands: HashMap<ModelKey, Option<Timestamp>>,
    actions: HashMap<ModelKey, PeerAction>,
    /// The GPU on which each model held memory when it was last seen.
    holders: HashMap<ModelKey, GpuId>,
}

/// An action that is expected of a peer, or that a peer was seen to begin.
#[derive(Clone, Copy, Debug)]
struct PeerAction {
    action: Action,
    since: Timestamp,
    generation: u64,
    begun: bool,
}

/// What a sample of the model says about an action.
enum PeerActionProgress {
    Pending,
    /// The action has ended, or the model is in the state in which it would have ended.
    Ended(CommandOutcome),
    /// The time for the action is over, and no peer did it.
    NotDone,
}

impl PeerActions {
    /// Records that this controller sends a command to the model.
    pub fn sent(&mut self, key: ModelKey) {
        self.actions.remove(&key);
        self.own_commands.insert(key, None);
    }

    /// Records the end of an own command. Samples from before `now` say nothing about the model's next change.
    pub fn ended(&mut self, now: Timestamp, key: &ModelKey) {
        if let Some(ended) = self.own_commands.get_mut(key) {
            *ended = Some(now);
        }
    }

    /// Records that another controller comes to the same decision and sends it.
    pub fn expect(&mut self, now: Timestamp, decision: &Decision) {
        let (action, generation) = (decision.action, decision.if_generation.unwrap_or_default());
        self.actions.insert(decision.key(), PeerAction { action, since: now, generation, begun: false });
    }

    /// Before each step: records in `memory` what peers have begun and ended. Returns the models on which an expected
    /// action did not happen in time.
    pub fn observe(&mut self, now: Timestamp, world: &World, memory: &mut StepMemory) -> Vec<ModelKey> {
        let mut not_done = Vec::new();

        for model in world.models.iter().filter(|model| model.sample_age <= world.stale_after) {
            let sampled_at = sampled_at(now, model.sample_age);
            match self.own_commands.get(&model.key) {
                None => {}
                // `now < ended`: the clock was set back meanwhile.
                Some(Some(ended)) if sampled_at > *ended || now < *ended => drop(self.own_commands.remove(&model.key)),
                Some(_) => {
                    self.holders.remove(&model.key);
                    continue;
                }
            }

            if self.observe_model(now, sampled_at, model, memory) {
                not_done.push(model.key.clone());
            }
            self.record_holder(model);
        }

        self.forget_stale(now, world, memory);
        not_done
    }

    /// Whether an action that was expected on this model did not happen in time.
    fn observe_model(
        &mut self,
        now: Timestamp,
        sampled_at: Timestamp,
        model: &ObservedModel,
        memory: &mut StepMemory,
    ) -> bool {
        let is_leaving = model.sample.state.is_leaving();
        let Some(action) = self.actions.get_mut(&model.key) else {
            self.observe_unexpected(now, sampled_at, model, memory);
            return false;
        };

        action.since = now.min(action.since);
        action.begun |= is_leaving;
        let (settled, is_not_done) = match action.progress(now, sampled_at, model) {
            PeerActionProgress::Pending => return false,
            PeerActionProgress::Ended(settled) => (settled, false),
            PeerActionProgress::NotDone => (CommandOutcome::Nothing, true),
        };

        memory.settle(&model.key, settled);
        self.actions.remove(&model.key);
        is_not_done
    }

    /// A model of which no action was expected: it may be leaving, or may have left since the last sample.
    fn observe_unexpected(
        &mut self,
        now: Timestamp,
        sampled_at: Timestamp,
        model: &ObservedModel,
        memory: &mut StepMemory,
    ) {
        let is_leaving = model.sample.state.is_leaving();
        let has_left = !model.sample.state.has_measured_memory() && self.holders.contains_key(&model.key);
        if is_leaving || has_left {
            memory.commanded(now, &observed_unload(model, self.holders.get(&model.key)));
        }

        if is_leaving {
            let action =
                PeerAction { action: Action::Unload, since: now, generation: model.sample.generation, begun: true };
            self.actions.insert(model.key.clone(), action);
        } else if has_left {
            memory.settle(&model.key, CommandOutcome::Unloaded { completed_at: sampled_at });
        }
    }

    fn record_holder(&mut self, model: &ObservedModel) {
        match model.sample.gpu.as_ref().filter(|_| model.sample.state.has_measured_memory()) {
            None => drop(self.holders.remove(&model.key)),
            Some(gpu) if self.holders.get(&model.key) == Some(gpu) => {}
            Some(gpu) => drop(self.holders.insert(model.key.clone(), gpu.clone())),
        }
    }

    /// Forgets models that are gone, and actions on models whose samples have been stale for too long.
    fn forget_stale(&mut self, now: Timestamp, world: &World, memory: &mut StepMemory) {
        if self.actions.is_empty() && self.holders.len() + self.own_commands.len() <= world.models.len() {
            return;
        }

        let is_fresh_by_model: HashMap<&ModelKey, bool> =
            world.models.iter().map(|model| (&model.key, model.sample_age <= world.stale_after)).collect();
        self.actions.retain(|key, action| {
            let is_late = elapsed(action.since, now) > PEER_COMMAND_TIMEOUT;
            let is_kept = is_fresh_by_model.get(key).is_some_and(|is_fresh| *is_fresh || !is_late);
            if !is_kept {
                memory.settle(key, CommandOutcome::Nothing);
            }
            is_kept
        });

        self.holders.retain(|key, _| is_fresh_by_model.contains_key(key));
        self.own_commands.retain(|key, ended| ended.is_none() || is_fresh_by_model.contains_key(key));
    }
}

impl PeerAction {
    fn progress(&self, now: Timestamp, sampled_at: Timestamp, model: &ObservedModel) -> PeerActionProgress {
        let is_late = elapsed(self.since, now) > PEER_COMMAND_TIMEOUT && sampled_at > self.since;
        let is_untouched = !self.begun && model.sample.generation == self.generation;
        let not_yet = if is_late { PeerActionProgress::NotDone } else { PeerActionProgress::Pending };

        match (self.action, model.sample.state) {
            // The peer decides how long a drain may take; the core itself stops waiting after some time.
            (Action::Unload, ResidencyState::Draining | ResidencyState::Unloading) => PeerActionProgress::Pending,
            (Action::Unload, ResidencyState::Ready) if is_untouched => not_yet,
            // The model has left, or it has left and was loaded again.
            (Action::Unload, _) => PeerActionProgress::Ended(CommandOutcome::Unloaded { completed_at: sampled_at }),
            (Action::Load, ResidencyState::Unloaded) => not_yet,
            (Action::Load, _) => PeerActionProgress::Ended(CommandOutcome::Loaded),
        }
    }
}

/// An unload that was seen to happen, as a decision that the core can wait for.
fn observed_unload(model: &ObservedModel, gpu: Option<&GpuId>) -> Decision {
    let gpu = gpu.or(model.sample.gpu.as_ref()).cloned();
    Decision { gpu, ..Decision::unload(model, DecisionReason::Manual, String::new(), UnloadTerms::default()) }
}
