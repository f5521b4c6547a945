//! GapHistogram between requests in buckets that grow by a sixteenth of their octave. Older gaps weigh less.

use std::time::Duration;

/// A gap that is known to lie between two bounds, in milliseconds, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap {
    pub least_ms: u64,
    pub most_ms: u64,
}

impl Gap {
    pub fn exactly(gap: Duration) -> Self {
        Self::between(gap, gap)
    }

    pub fn between(least: Duration, most: Duration) -> Self {
        Self { least_ms: millis(least), most_ms: millis(most) }
    }

    /// A gap without an upper bound counts as at most twice as long as its lower bound.
    #[must_use]
    pub fn closed(self) -> Self {
        let is_open = self.most_ms == LONGEST_MS;
        let most_ms = if is_open { self.least_ms.saturating_mul(2).min(LONGEST_MS) } else { self.most_ms };
        Self { most_ms, ..self }
    }

    /// The bounds on which both agree; those of `self` where they contradict each other.
    #[must_use]
    pub fn narrowed(self, other: Self) -> Self {
        let both = Self { least_ms: self.least_ms.max(other.least_ms), most_ms: self.most_ms.min(other.most_ms) };
        if both.least_ms <= both.most_ms { both } else { self }
    }
}

/// A year: nothing here depends on longer gaps, and sums of products stay far below the maximum of their type.
pub const LONGEST_MS: u64 = 365 * 24 * 3600 * 1000;

/// At most [`LONGEST_MS`].
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(LONGEST_MS)
}

/// The weight of one observation. Weights are integers and lose 1/64 with each further observation.
const UNIT: u64 = 1 << 16;
const FADE_SHIFT: u32 = 6;
/// A smaller weight is only a rounding error.
const WEIGHT_MIN: u64 = 1 << FADE_SHIFT;
/// An octave has 2 to the power of this number of buckets.
const BUCKET_BITS: u32 = 4;

/// The weight of each bucket, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GapHistogram {
    weights: Vec<(u64, u64)>,
    observed: u64,
}

impl GapHistogram {
    pub fn observe(&mut self, gap_ms: u64) {
        self.observed = self.observed.saturating_add(1);
        for (_, weight) in &mut self.weights {
            *weight -= *weight >> FADE_SHIFT;
        }

        self.weights.retain(|(_, weight)| *weight > WEIGHT_MIN);
        self.add(upper_bound_ms(gap_ms), UNIT);
    }

    /// The sum of both histograms.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let mut all = Self { weights: self.weights.clone(), observed: self.observed.saturating_add(other.observed) };
        for &(bound, weight) in &other.weights {
            all.add(bound, weight);
        }
        all
    }

    fn add(&mut self, bound_ms: u64, weight: u64) {
        match self.weights.binary_search_by_key(&bound_ms, |(bound, _)| *bound) {
            Ok(at) => self.weights[at].1 += weight,
            Err(at) => self.weights.insert(at, (bound_ms, weight)),
        }
    }

    /// Upper bound in milliseconds and weight of each bucket, ascending.
    pub fn weights(&self) -> &[(u64, u64)] {
        &self.weights
    }

    /// The number of gaps observed.
    pub const fn observed(&self) -> u64 {
        self.observed
    }
}

/// The least number of the form m * 2^n, with m in 16..32 (or below 16), that is not less than `ms`.
fn upper_bound_ms(ms: u64) -> u64 {
    let ms = ms.min(LONGEST_MS);
    let shift = ms.checked_ilog2().unwrap_or(0).saturating_sub(BUCKET_BITS);
    ms.div_ceil(1 << shift) << shift
}

/// The greatest width of the bucket with this upper bound.
pub fn width_ms(bound_ms: u64) -> u64 {
    1 << bound_ms.checked_ilog2().unwrap_or(0).saturating_sub(BUCKET_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_at_most_a_sixteenth_wider_than_its_gap() {
        for ms in (0..5_000).chain([60_000, 299_999, 300_000, 86_400_000, LONGEST_MS, u64::MAX]) {
            let bound = upper_bound_ms(ms);
            let ms = ms.min(LONGEST_MS);
            assert!(bound >= ms && bound - ms <= ms / 16 && bound - ms < width_ms(bound).max(1), "{ms} {bound}");
        }
    }

    #[test]
    fn old_gaps_fade() {
        let mut gaps = GapHistogram::default();
        gaps.observe(1_000);
        for _ in 0..1_000 {
            gaps.observe(60_000);
        }
        assert_eq!(gaps.weights().len(), 1);
        assert!(gaps.weights()[0].1 <= 64 * UNIT + UNIT);
    }

    #[test]
    fn the_sum_has_the_gaps_of_both() {
        let histogram = |gaps: &[u64]| {
            let mut histogram = GapHistogram::default();
            gaps.iter().for_each(|gap| histogram.observe(*gap));
            histogram
        };

        let both = histogram(&[16, 4096]).with(&histogram(&[16]));
        assert_eq!(both.observed(), 3);
        assert_eq!(both.weights().iter().map(|(bound, _)| *bound).collect::<Vec<_>>(), [16, 4096]);
        assert!(both.weights()[0].1 > UNIT);
    }

    #[test]
    fn bounds_narrow_each_other_unless_they_contradict() {
        let gap = |least_ms, most_ms| Gap { least_ms, most_ms };
        assert_eq!(gap(300, 600).narrowed(gap(0, 400)), gap(300, 400));
        assert_eq!(gap(300, 600).narrowed(gap(700, 800)), gap(300, 600));
    }
}
