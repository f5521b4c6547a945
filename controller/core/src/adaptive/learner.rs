//! The choice of a timeout, and the credit that bounds it.

use std::time::Duration;

use super::choice::{Choice, Why, Window, clairvoyant_ms, cost_ms};
use super::gaps::{Gap, Gaps, millis, width_ms};

/// With fewer gaps than this there is no shape to speak of.
const ENOUGH_GAPS: u64 = 8;
/// Credit beyond this many break-evens buys nothing more: a model whose habits change must not live on old merits.
const MAX_CREDIT: i128 = 64;
/// Pre-warming must promise at least this much less than keeping or leaving, in percent.
const PREWARM_GAIN_PERCENT: u128 = 10;
/// It catches the gaps between these two parts of a hundred of the longer ones.
const PREWARM_FOR: (u64, u64) = (5, 95);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learner {
    /// The gaps that followed one up to a break-even, and those that followed a longer one: in a burst, and after a
    /// pause, different things are to be expected.
    after_short: Gaps,
    after_long: Gaps,
    last_was_long: Option<bool>,
    /// Twice the clairvoyant's cost less our own, so far. Never negative.
    credit_ms: i128,
    /// The choice as of the last gap.
    choice: Choice,
}

impl Learner {
    /// The first load costs everybody one break-even. Twice that less our own is the credit to begin with.
    pub fn new(break_even: Duration) -> Self {
        Self {
            after_short: Gaps::default(),
            after_long: Gaps::default(),
            last_was_long: None,
            credit_ms: i128::from(millis(break_even)),
            choice: Choice::rent(break_even),
        }
    }

    /// A gap has ended; it was lived through under the choice made before it.
    pub fn observe(&mut self, gap: Gap, break_even: Duration) {
        let price = millis(break_even);
        let due = 2 * i128::from(clairvoyant_ms(gap.least_ms, price));
        let credit = self.credit_ms + due - i128::from(self.most_paid_ms(gap, price));
        self.credit_ms = credit.clamp(0, MAX_CREDIT * i128::from(price));
        match self.last_was_long {
            Some(true) => self.after_long.observe(gap.most_ms),
            Some(false) => self.after_short.observe(gap.most_ms),
            None => {}
        }
        self.last_was_long = Some(gap.most_ms > price);
        self.choice = self.decide(break_even);
    }

    /// What the choice cost at most, as far as the gap is known: the cost jumps up where the model leaves and at the
    /// edges of the window.
    fn most_paid_ms(&self, gap: Gap, price: u64) -> u64 {
        let window = self.choice.prewarm;
        let jumps = [Some(self.choice.keep), window.map(|w| w.from), window.map(|w| w.until)];
        let jumps = jumps.into_iter().flatten().map(millis).flat_map(|jump| [jump.saturating_sub(1), jump, jump + 1]);
        let inside = jumps.filter(|jump| (gap.least_ms..=gap.most_ms).contains(jump));
        let all = [gap.least_ms, gap.most_ms].into_iter().chain(inside);
        all.map(|ms| cost_ms(&self.choice, ms, price)).max().unwrap_or(0)
    }

    pub fn choose(&self, break_even: Duration) -> Choice {
        if self.choice.why == Why::TooLittleData { Choice::rent(break_even) } else { self.choice }
    }

    fn decide(&self, break_even: Duration) -> Choice {
        let here = if self.last_was_long == Some(true) { &self.after_long } else { &self.after_short };
        let all;
        let gaps = if here.observed() >= ENOUGH_GAPS {
            here
        } else {
            all = self.after_short.with(&self.after_long);
            &all
        };
        if gaps.observed() < ENOUGH_GAPS {
            return Choice::rent(break_even);
        }
        let price = millis(break_even);
        let (wish, _) = best_keep(gaps, price, 0..=u64::MAX);
        // Leaving earlier or later than after one break-even loses at most the difference.
        let credit = u64::try_from(self.credit_ms).unwrap_or(0);
        let (cost, keep_ms) = best_keep(gaps, price, price.saturating_sub(credit)..=price.saturating_add(credit));
        let why = if wish < cost { Why::Bounded } else { Why::Learned };
        let plain = Choice { keep: Duration::from_millis(keep_ms), prewarm: None, why };
        self.prewarm(gaps, price, plain, cost).unwrap_or(plain)
    }

    /// Leave, and be back before the next burst: where that promises clearly less, and the credit pays for the worst.
    fn prewarm(&self, gaps: &Gaps, price: u64, plain: Choice, cost: u128) -> Option<Choice> {
        let at_once = Choice { keep: Duration::ZERO, ..plain };
        let windows = [plain, at_once].into_iter().filter_map(|choice| {
            let prewarm = Some(likely_window(gaps, millis(choice.keep), price)?);
            Some(Choice { prewarm, why: Why::Learned, ..choice })
        });
        let affordable = windows.filter(|choice| choice.worst_loss_ms(price) <= self.credit_ms);
        let priced = affordable.map(|choice| (expected(gaps, &choice, price), choice));
        let (less, choice) = priced.min_by_key(|(cost, choice)| (*cost, choice.keep))?;
        (less * 100 <= cost * (100 - PREWARM_GAIN_PERCENT)).then_some(choice)
    }
}

/// The time of least expected cost within the range, and that cost. Of equals the shorter: memory that nobody needs is
/// somebody else's.
fn best_keep(gaps: &Gaps, price: u64, range: std::ops::RangeInclusive<u64>) -> (u128, u64) {
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

/// Weighed by what was seen.
fn expected(gaps: &Gaps, choice: &Choice, price: u64) -> u128 {
    let cost = |(ms, weight): &(u64, u64)| u128::from(*weight) * u128::from(cost_ms(choice, *ms, price));
    gaps.weights().iter().map(cost).sum()
}

/// When the next request comes, if it does not come within `keep_ms`; worth it only where the model is away for a while.
fn likely_window(gaps: &Gaps, keep_ms: u64, price: u64) -> Option<Window> {
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
    let (early, late) = (quantile(PREWARM_FOR.0)?, quantile(PREWARM_FOR.1)?);
    let from = early.saturating_sub(width_ms(early)).max(keep_ms);
    let until = late + late / 16;
    let worth = from - keep_ms > price / 4 && until > from;
    worth.then_some(Window { from: Duration::from_millis(from), until: Duration::from_millis(until) })
}
