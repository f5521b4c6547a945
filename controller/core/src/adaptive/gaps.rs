//! Gaps between requests in buckets that grow by an eighth of their octave, old ones fading.

use std::time::Duration;

/// A gap that is known to lie between two bounds, in milliseconds, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub least_ms: u64,
    pub most_ms: u64,
}

impl Gap {
    pub fn exactly(gap: Duration) -> Self {
        Self::between(gap, gap)
    }

    pub fn between(least: Duration, most: Duration) -> Self {
        let ms = |gap: Duration| u64::try_from(gap.as_millis()).unwrap_or(u64::MAX).min(LONGEST_MS);
        Self { least_ms: ms(least), most_ms: ms(most) }
    }
}

/// A year: nothing here depends on longer gaps, and sums of products stay far below their type's end.
pub const LONGEST_MS: u64 = 365 * 24 * 3600 * 1000;
/// One observation. Weights are integers and fade by 1/64 with each further observation.
pub const UNIT: u64 = 1 << 16;
const FADE_SHIFT: u32 = 6;
/// A weight below this is rounding, not memory.
const DUST: u64 = 1 << FADE_SHIFT;

/// Weights by bucket, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    weights: Vec<(u64, u64)>,
    observed: u64,
}

impl Gaps {
    pub fn observe(&mut self, gap_ms: u64) {
        self.observed = self.observed.saturating_add(1);
        for (_, weight) in &mut self.weights {
            *weight -= *weight >> FADE_SHIFT;
        }
        self.weights.retain(|(_, weight)| *weight > DUST);
        let bound = upper_bound_ms(gap_ms);
        match self.weights.binary_search_by_key(&bound, |(bound, _)| *bound) {
            Ok(at) => self.weights[at].1 += UNIT,
            Err(at) => self.weights.insert(at, (bound, UNIT)),
        }
    }

    /// Upper bound in milliseconds and weight of each bucket, ascending.
    pub fn weights(&self) -> &[(u64, u64)] {
        &self.weights
    }

    pub const fn observed(&self) -> u64 {
        self.observed
    }

    pub fn total(&self) -> u64 {
        self.weights.iter().map(|(_, weight)| weight).sum()
    }
}

/// The least number of the form m * 2^n with m in 8..16 (or below 8) that is not less.
fn upper_bound_ms(ms: u64) -> u64 {
    let ms = ms.min(LONGEST_MS);
    let shift = ms.checked_ilog2().unwrap_or(0).saturating_sub(3);
    ms.div_ceil(1 << shift) << shift
}

/// How far the bucket of this upper bound reaches down, at most.
pub fn width_ms(bound_ms: u64) -> u64 {
    1 << bound_ms.checked_ilog2().unwrap_or(0).saturating_sub(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_at_most_an_eighth_wider_than_its_gap() {
        for ms in (0..5_000).chain([60_000, 299_999, 300_000, 86_400_000, LONGEST_MS, u64::MAX]) {
            let bound = upper_bound_ms(ms);
            let ms = ms.min(LONGEST_MS);
            assert!(bound >= ms && bound - ms <= ms / 8, "{ms} {bound}");
        }
    }

    #[test]
    fn old_gaps_fade() {
        let mut gaps = Gaps::default();
        gaps.observe(1_000);
        for _ in 0..1_000 {
            gaps.observe(60_000);
        }
        assert_eq!(gaps.weights().len(), 1);
        assert!(gaps.total() <= 64 * UNIT + UNIT);
    }
}
