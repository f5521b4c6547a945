//! Adaptive residency: for each model the time to keep it, learned from the gaps between its requests.
//!
//! Holding a model through a gap costs its length; leaving and coming back costs one *break-even*, the time of holding
//! that one cold start is worth. Nobody knows a gap before it ends. Leaving after exactly one break-even costs at most
//! twice what a clairvoyant would pay (ski rental). Where the gaps have a shape, another time is better; how far it may
//! lie from the break-even is limited by a credit: what has been saved so far against twice the clairvoyant's cost. So
//! the bound of two holds on every sequence of gaps, whatever was learned. `docs/policies.md` has figures.
//! The shape of the histogram and the pre-warming follow "Serverless in the Wild" (USENIX ATC 2020).

mod choice;
mod gaps;
mod learner;
mod pupil;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::memory::sampled_at;
use crate::plan::{Decision, Reason};
use crate::world::{Model, ModelKey, World};

pub use choice::{Choice, Why, Window, clairvoyant_ms, cost_ms};
pub use gaps::Gap;
pub use learner::Learner;
use pupil::Pupil;

/// One second of waiting for a load is worth so many seconds of holding the model.
pub const HELD_PER_WAITED: u32 = 600;
const BREAK_EVEN_MIN: Duration = Duration::from_secs(60);
const BREAK_EVEN_MAX: Duration = Duration::from_secs(3600);

/// How long holding a model costs as much as loading it again.
pub fn break_even(reload: Duration) -> Duration {
    reload.saturating_mul(HELD_PER_WAITED).clamp(BREAK_EVEN_MIN, BREAK_EVEN_MAX)
}

/// One learner for each model that reports the gaps between its requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learners(BTreeMap<ModelKey, Pupil>);

impl Learners {
    /// Learns what has come since the last step, and forgets models that are gone.
    pub fn observe(&mut self, now: Timestamp, world: &World) {
        let mut reporting = 0;
        for model in &world.models {
            let Some(arrivals) = &model.arrivals else { continue };
            reporting += 1;
            let (at, price) = (sampled_at(now, model.sample_age), break_even(model.reload));
            match self.0.get_mut(&model.key) {
                Some(pupil) => pupil.learn(arrivals, price, at),
                None => {
                    self.0.insert(model.key.clone(), Pupil::new(arrivals, price, at));
                }
            }
        }
        if self.0.len() > reporting {
            let known: BTreeSet<&ModelKey> = world.models.iter().map(|model| &model.key).collect();
            self.0.retain(|key, _| known.contains(key));
        }
    }

    /// Notes who was called back before its next request: once for each is enough.
    pub fn record(&mut self, decisions: &[Decision]) {
        let called = decisions.iter().filter(|decision| !decision.dry_run && decision.reason == Reason::PreWarm);
        for decision in called {
            if let Some(pupil) = self.0.get_mut(&decision.key()) {
                pupil.note_prewarm();
            }
        }
    }

    pub fn choose(&self, model: &Model) -> Choice {
        let break_even = break_even(model.reload);
        self.0.get(&model.key).map_or_else(|| Choice::rent(break_even), |pupil| pupil.learner.choose(break_even))
    }

    /// How long it may be idle now, and why: while a request is expected, until that time is over.
    pub fn keep(&self, now: Timestamp, model: &Model) -> (Duration, Why) {
        let choice = self.choose(model);
        let expected = self.expected_within(now, model, &choice);
        (expected.map_or(choice.keep, |rest| choice.keep.max(model.idle.saturating_add(rest))), choice.why)
    }

    /// Whether an unloaded model should be there for a request that is likely to come.
    pub fn expects_request(&self, now: Timestamp, model: &Model) -> bool {
        let new = self.0.get(&model.key).is_some_and(|pupil| !pupil.prewarmed());
        new && self.expected_within(now, model, &self.choose(model)).is_some()
    }

    fn expected_within(&self, now: Timestamp, model: &Model, choice: &Choice) -> Option<Duration> {
        self.0.get(&model.key)?.expected_within(now, choice.prewarm?)
    }
}
