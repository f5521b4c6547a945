//! Adaptive residency: for each model the time to keep it, learned from the gaps between its requests.
//!
//! Holding a model through a gap costs the length of the gap; unloading it and loading it again costs one *break-even*,
//! the time of holding that one cold start is worth. The length of a gap is not known before the gap ends. Unloading
//! after exactly one break-even costs at most twice what an optimal strategy that knows all gaps, the *clairvoyant*, would
//! pay (the ski rental problem). Where the gaps have a pattern, another time is better. How far that time may lie from
//! the break-even is limited by a credit: what has been saved so far, measured against twice the clairvoyant's cost. So
//! the factor of two holds on every sequence of gaps, whatever was learned. `docs/policies.md` has figures.
//! The form of the histogram and the pre-warming follow "Serverless in the Wild" (USENIX ATC 2020).

mod choice;
mod gap_histogram;
mod learner;
mod tracked_model;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::plan::{Decision, DecisionReason};
use crate::time::sampled_at;
use crate::world::{ModelKey, ObservedModel, World};

pub use choice::{KeepReason, PrewarmWindow, ResidencyChoice, clairvoyant_ms, cost_ms};
pub use gap_histogram::Gap;
pub use learner::Learner;
use tracked_model::TrackedModel;

/// One second of waiting for a load is worth this many seconds of holding the model.
pub const HELD_PER_WAITED: u32 = 600;
const BREAK_EVEN_MIN: Duration = Duration::from_secs(60);
const BREAK_EVEN_MAX: Duration = Duration::from_secs(3600);

/// The time for which holding a model costs as much as loading it again. `reload`: how long a load takes.
pub fn break_even(reload: Duration) -> Duration {
    reload.saturating_mul(HELD_PER_WAITED).clamp(BREAK_EVEN_MIN, BREAK_EVEN_MAX)
}

/// One learner for each model that reports the gaps between its requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learners(BTreeMap<ModelKey, TrackedModel>);

impl Learners {
    /// Learns from the requests since the last step, and forgets models that are gone.
    pub fn observe(&mut self, now: Timestamp, world: &World) {
        let mut reporting = 0;
        for model in &world.models {
            let Some(arrivals) = &model.sample.arrivals else { continue };
            reporting += 1;
            let at = sampled_at(now, model.sample_age);
            let price = break_even(model.sample.reload);
            match self.0.get_mut(&model.key) {
                Some(tracked) => tracked.learn(arrivals, price, at),
                None => {
                    self.0.insert(model.key.clone(), TrackedModel::new(arrivals, price, at));
                }
            }
        }

        if self.0.len() > reporting {
            let known: BTreeSet<&ModelKey> = world.models.iter().map(|model| &model.key).collect();
            self.0.retain(|key, _| known.contains(key));
        }
    }

    /// Notes which models are loaded before their next request: each is pre-warmed once.
    pub fn record(&mut self, decisions: &[Decision]) {
        let prewarmed =
            decisions.iter().filter(|decision| !decision.dry_run && decision.reason == DecisionReason::PreWarm);
        for decision in prewarmed {
            if let Some(tracked) = self.0.get_mut(&decision.key()) {
                tracked.note_prewarm();
            }
        }
    }

    /// The choice for the model as of its last gap; one break-even for a model that is not tracked.
    pub fn choose(&self, model: &ObservedModel) -> ResidencyChoice {
        let break_even = break_even(model.sample.reload);
        self.0
            .get(&model.key)
            .map_or_else(|| ResidencyChoice::one_break_even(break_even), |tracked| tracked.learner.choose(break_even))
    }

    /// How long the model may be idle now, and why. While a request is expected, the model stays until that window ends.
    pub fn keep(&self, now: Timestamp, model: &ObservedModel) -> (Duration, KeepReason) {
        let choice = self.choose(model);
        let rest_of_window = self.expected_within(now, model, &choice);
        let keep = rest_of_window.map_or(choice.keep, |rest| choice.keep.max(model.sample.idle.saturating_add(rest)));
        (keep, choice.why)
    }

    /// Whether an unloaded model should be loaded for a request that is likely to come.
    pub fn expects_request(&self, now: Timestamp, model: &ObservedModel) -> bool {
        let can_prewarm = self.0.get(&model.key).is_some_and(|tracked| !tracked.is_prewarmed());
        can_prewarm && self.expected_within(now, model, &self.choose(model)).is_some()
    }

    fn expected_within(&self, now: Timestamp, model: &ObservedModel, choice: &ResidencyChoice) -> Option<Duration> {
        self.0.get(&model.key)?.expected_within(now, choice.prewarm?)
    }
}
