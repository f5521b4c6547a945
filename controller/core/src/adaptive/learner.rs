//! The choice of a timeout, and the credit that bounds it.

use std::time::Duration;

use super::choice::{KeepReason, PrewarmWindow, ResidencyChoice, clairvoyant_ms, cost_ms};
use super::gap_histogram::{Gap, GapHistogram, millis, width_ms};

/// With fewer gaps than this no pattern can be seen.
const ENOUGH_GAPS: u64 = 8;
/// The credit is at most this many break-evens, so that a model whose pattern changes does not spend what it saved long
/// ago.
const MAX_CREDIT: i128 = 64;
/// Pre-warming must promise at least this much less than keeping or leaving, in percent.
const PREWARM_GAIN_PERCENT: u128 = 10;
/// The window covers the gaps between these two percentiles of the gaps that outlast the model.
const PREWARM_PERCENTILES: (u64, u64) = (5, 95);

/// What is learned from the gaps of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learner {
    /// The gaps that followed a gap of at most one break-even. In a burst other gaps are to be expected than after a
    /// pause, so the two are counted apart.
    after_short: GapHistogram,
    /// The gaps that followed a gap longer than one break-even.
    after_long: GapHistogram,
    last_was_long: Option<bool>,
    /// Twice the clairvoyant's cost less the cost of the choices so far. Never negative.
    credit_ms: i128,
    /// The choice as of the last gap.
    choice: ResidencyChoice,
}

impl Learner {
    /// Every strategy pays one break-even for the first load. Twice that, less the one paid, is the first credit.
    pub fn new(break_even: Duration) -> Self {
        Self {
            after_short: GapHistogram::default(),
            after_long: GapHistogram::default(),
            last_was_long: None,
            credit_ms: i128::from(millis(break_even)),
            choice: ResidencyChoice::one_break_even(break_even),
        }
    }

    /// Learns from a gap that has ended, during which the choice made before it was in force.
    pub fn observe(&mut self, gap: Gap, break_even: Duration) {
        let price = millis(break_even);
        let allowed = 2 * i128::from(clairvoyant_ms(gap.least_ms, price));
        let credit = self.credit_ms + allowed - i128::from(self.most_paid_ms(gap, price));
        self.credit_ms = credit.clamp(0, MAX_CREDIT * i128::from(price));

        match self.last_was_long {
            Some(true) => self.after_long.observe(gap.most_ms),
            Some(false) => self.after_short.observe(gap.most_ms),
            None => {}
        }

        self.last_was_long = Some(gap.most_ms > price);
        self.choice = self.decide(break_even);
    }

    /// What the choice cost at most, in milliseconds, as far as the gap is known. The cost jumps up at the time at which the
    /// model leaves and at the edges of the window.
    fn most_paid_ms(&self, gap: Gap, price: u64) -> u64 {
        let window = self.choice.prewarm;
        let jumps = [Some(self.choice.keep), window.map(|w| w.from), window.map(|w| w.until)];
        let around = jumps.into_iter().flatten().map(millis).flat_map(|jump| [jump.saturating_sub(1), jump, jump + 1]);
        let inside = around.filter(|ms| (gap.least_ms..=gap.most_ms).contains(ms));

        let candidates = [gap.least_ms, gap.most_ms].into_iter().chain(inside);
        candidates.map(|ms| cost_ms(&self.choice, ms, price)).max().unwrap_or(0)
    }

    /// The choice for the gap that begins now.
    pub fn choose(&self, break_even: Duration) -> ResidencyChoice {
        if self.choice.why == KeepReason::TooLittleData {
            ResidencyChoice::one_break_even(break_even)
        } else {
            self.choice
        }
    }

    fn decide(&self, break_even: Duration) -> ResidencyChoice {
        let alike = if self.last_was_long == Some(true) { &self.after_long } else { &self.after_short };
        let all;
        let gaps = if alike.observed() >= ENOUGH_GAPS {
            alike
        } else {
            all = self.after_short.with(&self.after_long);
            &all
        };

        if gaps.observed() < ENOUGH_GAPS {
            return ResidencyChoice::one_break_even(break_even);
        }

        let price = millis(break_even);
        let (unbounded_cost, _) = best_keep(gaps, price, 0..=u64::MAX);

        // Leaving earlier or later than after one break-even loses at most the difference, which the credit must pay for.
        let credit = u64::try_from(self.credit_ms).unwrap_or(0);
        let (cost, keep_ms) = best_keep(gaps, price, price.saturating_sub(credit)..=price.saturating_add(credit));
        let why = if unbounded_cost < cost { KeepReason::Bounded } else { KeepReason::Learned };

        let plain = ResidencyChoice { keep: Duration::from_millis(keep_ms), prewarm: None, why };
        self.prewarm(gaps, price, plain, cost).unwrap_or(plain)
    }

    /// A choice that unloads the model and loads it again before the next burst, where that promises a clearly lower cost
    /// and the credit pays for the worst case.
    fn prewarm(&self, gaps: &GapHistogram, price: u64, plain: ResidencyChoice, cost: u128) -> Option<ResidencyChoice> {
        let at_once = ResidencyChoice { keep: Duration::ZERO, ..plain };

        let windows = [plain, at_once].into_iter().filter_map(|choice| {
            let prewarm = Some(likely_window(gaps, millis(choice.keep), price)?);
            Some(ResidencyChoice { prewarm, why: KeepReason::Learned, ..choice })
        });

        let affordable = windows.filter(|choice| choice.worst_loss_ms(price) <= self.credit_ms);
        let priced = affordable.map(|choice| (expected_cost(gaps, &choice, price), choice));
        let (lowest, choice) = priced.min_by_key(|(cost, choice)| (*cost, choice.keep))?;
        (lowest * 100 <= cost * (100 - PREWARM_GAIN_PERCENT)).then_some(choice)
    }
}

/// The least expected cost within the range, and the time to keep the model at which it is reached; of several times the
/// shortest, so that memory is free for other models.
fn best_keep(gaps: &GapHistogram, price: u64, range: std::ops::RangeInclusive<u64>) -> (u128, u64) {
    let bounds = gaps.weights().iter().map(|(bound, _)| *bound).filter(|bound| range.contains(bound));
    let mut keeps: Vec<u64> = bounds.chain([*range.start()]).collect();
    if *range.end() != u64::MAX {
        keeps.push(*range.end());
    }

    keeps.sort_unstable();

    let mut longer: u128 = gaps.weights().iter().map(|(_, weight)| u128::from(*weight)).sum();
    let (mut held, mut next) = (0_u128, 0);
    let costs = keeps.into_iter().map(|keep| {
        while let Some((bound, weight)) = gaps.weights().get(next).filter(|(bound, _)| *bound <= keep) {
            held += u128::from(*bound) * u128::from(*weight);
            longer -= u128::from(*weight);
            next += 1;
        }

        (held + longer * u128::from(keep.saturating_add(price)), keep)
    });
    costs.min().unwrap_or((0, price))
}

/// The cost of a choice over the gaps that were seen, by their weights.
fn expected_cost(gaps: &GapHistogram, choice: &ResidencyChoice, price: u64) -> u128 {
    let cost = |(ms, weight): &(u64, u64)| u128::from(*weight) * u128::from(cost_ms(choice, *ms, price));
    gaps.weights().iter().map(cost).sum()
}

/// When the next request is likely to come, if it does not come within `keep_ms`. `None` where the model would hardly be
/// away.
fn likely_window(gaps: &GapHistogram, keep_ms: u64, price: u64) -> Option<PrewarmWindow> {
    let longer = || gaps.weights().iter().filter(|(bound, _)| *bound > keep_ms);
    let total: u64 = longer().map(|(_, weight)| weight).sum();
    let quantile = |percent: u64| {
        let mut below = 0;
        let found = longer().find(|(_, weight)| {
            below += weight;
            below * 100 >= total * percent
        });
        found.map(|(bound, _)| *bound)
    };

    let (early, late) = (quantile(PREWARM_PERCENTILES.0)?, quantile(PREWARM_PERCENTILES.1)?);
    let from = early.saturating_sub(width_ms(early)).max(keep_ms);
    let until = late + late / 16;
    let is_worth_it = from - keep_ms > price / 4 && until > from;
    is_worth_it.then_some(PrewarmWindow { from: Duration::from_millis(from), until: Duration::from_millis(until) })
}
