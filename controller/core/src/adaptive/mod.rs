//! Adaptive residency: for each model the time to keep it, learned from the gaps between its requests.
//!
//! Holding a model through a gap costs its length; leaving and coming back costs one *break-even*, the time of holding
//! that one cold start is worth. Nobody knows a gap before it ends. Leaving after exactly one break-even costs at most
//! twice what a clairvoyant would pay (ski rental). Where the gaps have a shape, another time is better; how far it may
//! lie from the break-even is limited by a credit: what has been saved so far against twice the clairvoyant's cost. So
//! the bound of two holds on every sequence of gaps, up to one break-even in total, whatever was learned.
//! The shape of the histogram and the pre-warming follow "Serverless in the Wild" (USENIX ATC 2020).

mod gaps;
mod learner;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::memory::{elapsed, sampled_at};
use crate::world::{Arrivals, Model, ModelKey, World};

pub use gaps::Gap;
pub use learner::{Choice, Learner, Why, Window, clairvoyant_ms, cost_ms};

/// One second of waiting for a load is worth so many seconds of holding the model.
pub const HELD_PER_WAITED: u32 = 600;
const BREAK_EVEN_MIN: Duration = Duration::from_secs(60);
const BREAK_EVEN_MAX: Duration = Duration::from_secs(3600);
/// More gaps than this from one sample tell nothing more.
const MAX_GAPS_PER_BUCKET: u64 = 64;

/// How long holding a model costs as much as loading it again.
pub fn break_even(reload: Duration) -> Duration {
    reload.saturating_mul(HELD_PER_WAITED).clamp(BREAK_EVEN_MIN, BREAK_EVEN_MAX)
}

/// One learner for each model that reports the gaps between its requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learners(BTreeMap<ModelKey, Pupil>);

#[derive(Clone, Debug, PartialEq)]
struct Pupil {
    learner: Learner,
    seen: Arrivals,
    last_arrival: Option<Timestamp>,
}

impl Learners {
    /// Learns what has come since the last step, and forgets models that are gone.
    pub fn observe(&mut self, now: Timestamp, world: &World) {
        let mut known = std::mem::take(&mut self.0);
        for model in &world.models {
            let Some(arrivals) = &model.arrivals else { continue };
            let at = sampled_at(now, model.sample_age);
            let pupil = match known.remove(&model.key) {
                Some(mut pupil) => {
                    pupil.learn(arrivals, break_even(model.reload), at);
                    pupil
                }
                None => Pupil {
                    learner: Learner::new(break_even(model.reload)),
                    seen: arrivals.clone(),
                    last_arrival: None,
                },
            };
            self.0.insert(model.key.clone(), pupil);
        }
    }

    pub fn choose(&self, model: &Model) -> Choice {
        let break_even = break_even(model.reload);
        self.0.get(&model.key).map_or_else(|| Choice::rent(break_even), |pupil| pupil.learner.choose(break_even))
    }

    /// How long it may be idle now; longer while a request is expected.
    pub fn keep(&self, now: Timestamp, model: &Model) -> Duration {
        let choice = self.choose(model);
        match choice.prewarm {
            Some(window) if self.in_window(now, model, window) => choice.keep.max(window.until - window.from),
            _ => choice.keep,
        }
    }

    /// Whether an unloaded model should be there for a request that is likely to come.
    pub fn expects_request(&self, now: Timestamp, model: &Model) -> bool {
        self.choose(model).prewarm.is_some_and(|window| self.in_window(now, model, window))
    }

    fn in_window(&self, now: Timestamp, model: &Model, window: Window) -> bool {
        let last = self.0.get(&model.key).and_then(|pupil| pupil.last_arrival);
        last.is_some_and(|last| (window.from..window.until).contains(&elapsed(last, now)))
    }
}

impl Pupil {
    fn learn(&mut self, arrivals: &Arrivals, break_even: Duration, at: Timestamp) {
        let before = std::mem::replace(&mut self.seen, arrivals.clone());
        let same_bounds = before.buckets.iter().map(|b| b.0).eq(arrivals.buckets.iter().map(|b| b.0));
        // A server that restarted counts from zero.
        if !same_bounds || arrivals.count < before.count {
            return;
        }
        if arrivals.count > before.count {
            self.last_arrival = Some(at);
        }
        let mut shortest = Duration::ZERO;
        let (mut old_below, mut new_below) = (0, 0);
        for ((bound, new), (_, old)) in arrivals.buckets.iter().zip(&before.buckets) {
            let came = (new - new_below.min(*new)).saturating_sub(old - old_below.min(*old));
            self.take(came, Gap::between(shortest, *bound), break_even);
            (shortest, old_below, new_below) = (*bound, *old, *new);
        }
        let beyond =
            (arrivals.count - new_below.min(arrivals.count)).saturating_sub(before.count - old_below.min(before.count));
        self.take(beyond, Gap::between(shortest, shortest.saturating_mul(2)), break_even);
    }

    fn take(&mut self, count: u64, gap: Gap, break_even: Duration) {
        for _ in 0..count.min(MAX_GAPS_PER_BUCKET) {
            self.learner.observe(gap, break_even);
        }
    }
}
