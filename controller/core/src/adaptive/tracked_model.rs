//! The learner of one model, and how the samples of its server become gaps.

use std::time::Duration;

use jiff::Timestamp;

use super::choice::PrewarmWindow;
use super::gap_histogram::Gap;
use super::learner::Learner;
use crate::time::elapsed;
use crate::world::ArrivalHistogram;

/// More gaps than this of one bucket in one sample add nothing to what is learned.
const MAX_GAPS_OF_BUCKET: u64 = 64;

/// A model that reports the gaps between its requests.
#[derive(Clone, Debug, PartialEq)]
pub struct TrackedModel {
    pub learner: Learner,
    seen: ArrivalHistogram,
    seen_at: Timestamp,
    last_arrival: Option<ArrivalBounds>,
    /// The model was loaded for an expected request since the last arrival; once is enough.
    prewarmed: bool,
}

/// An arrival that lies between two samples.
#[derive(Clone, Copy, Debug, PartialEq)]
struct ArrivalBounds {
    after: Timestamp,
    by: Timestamp,
}

impl TrackedModel {
    pub fn new(arrivals: &ArrivalHistogram, break_even: Duration, at: Timestamp) -> Self {
        let learner = Learner::new(break_even);
        Self { learner, seen: arrivals.clone(), seen_at: at, last_arrival: None, prewarmed: false }
    }

    /// Takes a sample that was taken at `at`.
    pub fn learn(&mut self, arrivals: &ArrivalHistogram, break_even: Duration, at: Timestamp) {
        if self.seen == *arrivals {
            self.seen_at = at;
            return;
        }

        let before = std::mem::replace(&mut self.seen, arrivals.clone());
        let since = std::mem::replace(&mut self.seen_at, at);
        let same_bounds = before.buckets.iter().map(|b| b.0).eq(arrivals.buckets.iter().map(|b| b.0));

        // A server that has restarted counts from zero, and does not count its first request.
        if !same_bounds || arrivals.count < before.count {
            self.last_arrival = None;
            return;
        }

        let last = self.last_arrival.replace(ArrivalBounds { after: since, by: at });
        self.prewarmed = false;

        // Where several gaps ended, only the first of them, the longest, reaches back before the last sample.
        let mut first_by_time = last.map(|last| Gap::between(elapsed(last.by, since), elapsed(last.after, at)));
        let between_samples = Gap::between(Duration::ZERO, elapsed(since, at));
        for (gap, count) in new_gaps(&before, arrivals).into_iter().rev() {
            for _ in 0..count.min(MAX_GAPS_OF_BUCKET) {
                let known = first_by_time.take().unwrap_or(if last.is_some() { between_samples } else { gap });
                self.learner.observe(gap.narrowed(known).closed(), break_even);
            }
        }
    }

    /// How long an expected request may still take to arrive; `None`: none is expected now.
    pub fn expected_within(&self, now: Timestamp, window: PrewarmWindow) -> Option<Duration> {
        let waited = elapsed(self.last_arrival?.by, now);
        (window.from..window.until).contains(&waited).then(|| window.until - waited)
    }

    pub const fn is_prewarmed(&self) -> bool {
        self.prewarmed
    }

    pub const fn note_prewarm(&mut self) {
        self.prewarmed = true;
    }
}

/// For each bucket, ascending, how many gaps ended between two samples of a histogram.
fn new_gaps(before: &ArrivalHistogram, after: &ArrivalHistogram) -> Vec<(Gap, u64)> {
    let mut gaps = Vec::new();
    let mut shortest = Duration::ZERO;
    let (mut old_below, mut new_below) = (0, 0);
    for ((bound, new), (_, old)) in after.buckets.iter().zip(&before.buckets) {
        let added = (new - new_below.min(*new)).saturating_sub(old - old_below.min(*old));
        gaps.push((Gap::between(shortest, *bound), added));
        (shortest, old_below, new_below) = (*bound, *old, *new);
    }

    let beyond = (after.count - new_below.min(after.count)).saturating_sub(before.count - old_below.min(before.count));

    // These gaps have no upper bound.
    gaps.push((Gap::between(shortest, Duration::MAX), beyond));
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(counts: [u64; 2], count: u64) -> ArrivalHistogram {
        let bounds = [Duration::from_secs(60), Duration::from_secs(600)];
        ArrivalHistogram { buckets: bounds.into_iter().zip(counts).collect(), count }
    }

    #[test]
    fn gaps_are_the_difference_of_two_samples() {
        let gaps = new_gaps(&arrivals([1, 2], 2), &arrivals([2, 5], 6));
        assert_eq!(gaps.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1, 2, 1]);
        assert_eq!(gaps[1].0, Gap::between(Duration::from_secs(60), Duration::from_secs(600)));
    }

    #[test]
    fn the_times_of_the_samples_say_more_than_the_bucket() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let price = Duration::from_secs(300);
        let mut tracked = TrackedModel::new(&arrivals([0, 0], 0), price, at(0));
        tracked.learn(&arrivals([1, 1], 1), price, at(5));
        tracked.learn(&arrivals([1, 1], 1), price, at(395));

        // The gap is in the bucket from 60 to 600 seconds, and by the times of the samples between 390 and 400 seconds.
        tracked.learn(&arrivals([1, 2], 2), price, at(400));

        let mut exact = Learner::new(price);
        exact.observe(Gap::between(Duration::ZERO, Duration::from_secs(60)), price);
        exact.observe(Gap::between(Duration::from_secs(390), Duration::from_secs(400)), price);
        assert_eq!(tracked.learner, exact);
    }

    #[test]
    fn nothing_is_learned_from_a_restart_of_the_server() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let price = Duration::from_secs(300);
        let mut tracked = TrackedModel::new(&arrivals([5, 9], 9), price, at(0));
        let fresh = tracked.learner.clone();
        tracked.learn(&arrivals([0, 1], 1), price, at(5));
        assert_eq!(tracked.learner, fresh);
    }
}
