//! One model's learner, and how the samples of its server become gaps.

use std::time::Duration;

use jiff::Timestamp;

use super::choice::Window;
use super::gaps::Gap;
use super::learner::Learner;
use crate::memory::elapsed;
use crate::world::Arrivals;

/// More gaps than this of one length from one sample tell nothing more.
const MAX_ALIKE: u64 = 64;

#[derive(Clone, Debug, PartialEq)]
pub struct Pupil {
    pub learner: Learner,
    seen: Arrivals,
    seen_at: Timestamp,
    last_arrival: Option<Arrival>,
    /// It was called back since then; once is enough.
    prewarmed: bool,
}

/// Between two samples.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Arrival {
    after: Timestamp,
    by: Timestamp,
}

impl Pupil {
    pub fn new(arrivals: &Arrivals, break_even: Duration, at: Timestamp) -> Self {
        let learner = Learner::new(break_even);
        Self { learner, seen: arrivals.clone(), seen_at: at, last_arrival: None, prewarmed: false }
    }

    /// Takes a sample that was taken at `at`.
    pub fn learn(&mut self, arrivals: &Arrivals, break_even: Duration, at: Timestamp) {
        if self.seen == *arrivals {
            self.seen_at = at;
            return;
        }
        let before = std::mem::replace(&mut self.seen, arrivals.clone());
        let since = std::mem::replace(&mut self.seen_at, at);
        let same_bounds = before.buckets.iter().map(|b| b.0).eq(arrivals.buckets.iter().map(|b| b.0));
        // A server that restarted counts from zero, and does not count its first request.
        if !same_bounds || arrivals.count < before.count {
            self.last_arrival = None;
            return;
        }
        let last = self.last_arrival.replace(Arrival { after: since, by: at });
        self.prewarmed = false;
        // Only the first of several gaps reaches back before the last sample: the longest.
        let mut by_time = last.map(|last| Gap::between(elapsed(last.by, since), elapsed(last.after, at)));
        let between_samples = Gap::between(Duration::ZERO, elapsed(since, at));
        for (gap, count) in new_gaps(&before, arrivals).into_iter().rev() {
            for _ in 0..count.min(MAX_ALIKE) {
                let known = by_time.take().unwrap_or(if last.is_some() { between_samples } else { gap });
                self.learner.observe(gap.narrowed(known).closed(), break_even);
            }
        }
    }

    /// The request that is expected by now, if one is: how long it may still take.
    pub fn expected_within(&self, now: Timestamp, window: Window) -> Option<Duration> {
        let waited = elapsed(self.last_arrival?.by, now);
        (window.from..window.until).contains(&waited).then(|| window.until - waited)
    }

    pub const fn prewarmed(&self) -> bool {
        self.prewarmed
    }

    pub const fn note_prewarm(&mut self) {
        self.prewarmed = true;
    }
}

/// By bucket, ascending, how many came between two samples of a histogram.
fn new_gaps(before: &Arrivals, after: &Arrivals) -> Vec<(Gap, u64)> {
    let mut gaps = Vec::new();
    let mut shortest = Duration::ZERO;
    let (mut old_below, mut new_below) = (0, 0);
    for ((bound, new), (_, old)) in after.buckets.iter().zip(&before.buckets) {
        let came = (new - new_below.min(*new)).saturating_sub(old - old_below.min(*old));
        gaps.push((Gap::between(shortest, *bound), came));
        (shortest, old_below, new_below) = (*bound, *old, *new);
    }
    let beyond = (after.count - new_below.min(after.count)).saturating_sub(before.count - old_below.min(before.count));
    // Nothing tells how much longer than the last bound.
    gaps.push((Gap::between(shortest, Duration::MAX), beyond));
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(counts: [u64; 2], count: u64) -> Arrivals {
        let bounds = [Duration::from_secs(60), Duration::from_secs(600)];
        Arrivals { buckets: bounds.into_iter().zip(counts).collect(), count }
    }

    #[test]
    fn gaps_are_the_difference_of_two_samples() {
        let came = new_gaps(&arrivals([1, 2], 2), &arrivals([2, 5], 6));
        assert_eq!(came.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1, 2, 1]);
        assert_eq!(came[1].0, Gap::between(Duration::from_secs(60), Duration::from_secs(600)));
    }

    #[test]
    fn the_times_of_the_samples_say_more_than_the_bucket() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let price = Duration::from_secs(300);
        let mut pupil = Pupil::new(&arrivals([0, 0], 0), price, at(0));
        pupil.learn(&arrivals([1, 1], 1), price, at(5));
        pupil.learn(&arrivals([1, 1], 1), price, at(395));
        // In the bucket from 60 to 600 seconds, and by the clock between 390 and 400.
        pupil.learn(&arrivals([1, 2], 2), price, at(400));
        let mut exact = Learner::new(price);
        exact.observe(Gap::between(Duration::ZERO, Duration::from_secs(60)), price);
        exact.observe(Gap::between(Duration::from_secs(390), Duration::from_secs(400)), price);
        assert_eq!(pupil.learner, exact);
    }

    #[test]
    fn a_restarted_server_teaches_nothing_false() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let price = Duration::from_secs(300);
        let mut pupil = Pupil::new(&arrivals([5, 9], 9), price, at(0));
        let fresh = pupil.learner.clone();
        pupil.learn(&arrivals([0, 1], 1), price, at(5));
        assert_eq!(pupil.learner, fresh);
    }
}
