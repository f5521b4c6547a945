//! The choice of a timeout, and the credit that bounds it.

use std::time::Duration;

use super::gaps::{Gap, Gaps};

/// With fewer gaps than this there is no shape to speak of.
const ENOUGH_GAPS: u64 = 8;
/// Credit beyond this many break-evens buys nothing more: a model whose habits change must not live on old merits.
const MAX_CREDIT: i128 = 64;
/// Pre-warming must promise at least this much less than keeping or leaving, in percent.
const PREWARM_GAIN_PERCENT: u128 = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learner {
    gaps: Gaps,
    /// Twice the clairvoyant's cost less our own, so far. Never negative.
    credit_ms: i128,
    /// The choice as of the last gap.
    choice: Choice,
}

/// Keep it for so long after a request; if `prewarm`, have it there again in that window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub keep: Duration,
    pub prewarm: Option<Window>,
    pub why: Why,
}

/// Counted from the last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub from: Duration,
    pub until: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Too few gaps: one break-even.
    TooLittleData,
    /// The least expected cost over the gaps seen.
    Learned,
    /// What was learned lies further from the break-even than the credit allows.
    Bounded,
}

impl Choice {
    pub const fn rent(break_even: Duration) -> Self {
        Self { keep: break_even, prewarm: None, why: Why::TooLittleData }
    }
}

/// What a gap costs under a choice, in milliseconds of holding.
pub fn cost_ms(choice: &Choice, gap_ms: u64, break_even_ms: u64) -> u64 {
    let keep = millis(choice.keep);
    if gap_ms <= keep {
        return gap_ms;
    }
    let Some(Window { from, until }) = choice.prewarm else { return keep + break_even_ms };
    let (from, until) = (millis(from).max(keep), millis(until).max(keep));
    match gap_ms {
        gap if gap < from => keep + break_even_ms,
        gap if gap <= until => keep + (gap - from),
        _ => keep + (until - from) + break_even_ms,
    }
}

/// What the gap costs who knows its length and either keeps the model or lets it go.
pub fn clairvoyant_ms(gap_ms: u64, break_even_ms: u64) -> u64 {
    gap_ms.min(break_even_ms)
}

impl Learner {
    pub fn new(break_even: Duration) -> Self {
        let credit_ms = i128::from(millis(break_even));
        Self { gaps: Gaps::default(), credit_ms, choice: Choice::rent(break_even) }
    }

    /// A gap has ended; it was lived through under the choice made before it.
    pub fn observe(&mut self, gap: Gap, break_even: Duration) {
        let price = millis(break_even);
        // The worst that the bounds allow: the cost jumps where the model leaves and at the edges of the window.
        let jumps = [Some(self.choice.keep), self.choice.prewarm.map(|w| w.from), self.choice.prewarm.map(|w| w.until)];
        let jumps = jumps.into_iter().flatten().flat_map(|jump| [millis(jump), millis(jump) + 1]);
        let inside = jumps.filter(|jump| (gap.least_ms..=gap.most_ms).contains(jump));
        let paid =
            [gap.least_ms, gap.most_ms].into_iter().chain(inside).map(|ms| cost_ms(&self.choice, ms, price)).max();
        let due = 2 * i128::from(clairvoyant_ms(gap.least_ms, price));
        let credit = self.credit_ms + due - i128::from(paid.unwrap_or(0));
        self.credit_ms = credit.clamp(0, MAX_CREDIT * i128::from(price));
        self.gaps.observe(gap.most_ms);
        self.choice = self.decide(break_even);
    }

    pub fn choose(&self, break_even: Duration) -> Choice {
        if self.gaps.observed() < ENOUGH_GAPS { Choice::rent(break_even) } else { self.choice }
    }

    fn decide(&self, break_even: Duration) -> Choice {
        if self.gaps.observed() < ENOUGH_GAPS {
            return Choice::rent(break_even);
        }
        let price = millis(break_even);
        let keeps = std::iter::once(0).chain(self.gaps.weights().iter().map(|(bound, _)| *bound)).chain([price]);
        let keeps = keeps.map(|ms| Choice { keep: Duration::from_millis(ms), prewarm: None, why: Why::Learned });
        let plain: Vec<(u128, Choice)> = keeps.map(|choice| (self.expected(&choice, price), choice)).collect();
        // Of equals the shorter: memory that nobody needs is somebody else's.
        let best = |choices: &mut dyn Iterator<Item = (u128, Choice)>| choices.min_by_key(|(cost, c)| (*cost, c.keep));
        let wished = best(&mut plain.iter().copied());
        let allowed = best(&mut plain.iter().copied().filter(|(_, choice)| self.affords(choice, price)));
        let Some((cost, mut choice)) = allowed else { return Choice::rent(break_even) };
        if wished.is_some_and(|(wish, _)| wish < cost) {
            choice.why = Why::Bounded;
        }
        match self.prewarm(price).map(|choice| (self.expected(&choice, price), choice)) {
            Some((less, prewarm))
                if less * 100 <= cost * (100 - PREWARM_GAIN_PERCENT) && self.affords(&prewarm, price) =>
            {
                prewarm
            }
            _ => choice,
        }
    }

    /// Leave at once and be back for the middle nine tenths of the gaps.
    fn prewarm(&self, price: u64) -> Option<Choice> {
        let total = self.gaps.total();
        let quantile = |percent: u64| {
            let mut below = 0;
            let found = self.gaps.weights().iter().find(|(_, weight)| {
                below += weight;
                below * 100 >= total * percent
            });
            found.map(|(bound, _)| *bound)
        };
        let (early, late) = (quantile(5)?, quantile(95)?);
        let from = early.saturating_sub(super::gaps::width_ms(early));
        let until = late + late / 16;
        let worth = from > price / 4 && until > from;
        let window = Window { from: Duration::from_millis(from), until: Duration::from_millis(until) };
        worth.then_some(Choice { keep: Duration::ZERO, prewarm: Some(window), why: Why::Learned })
    }

    /// Weighed by what was seen.
    fn expected(&self, choice: &Choice, price: u64) -> u128 {
        self.gaps
            .weights()
            .iter()
            .map(|(ms, weight)| u128::from(*weight) * u128::from(cost_ms(choice, *ms, price)))
            .sum()
    }

    /// Whether the worst next gap leaves the credit at zero or more.
    fn affords(&self, choice: &Choice, price: u64) -> bool {
        let keep = millis(choice.keep);
        let edges =
            choice.prewarm.map_or([keep + 1, u64::MAX / 4, price], |w| [millis(w.from), millis(w.until) + 1, price]);
        let edges = edges.into_iter().flat_map(|edge| [edge.saturating_sub(1), edge, edge + 1]).chain([keep, keep + 1]);
        let loss = |gap: u64| i128::from(cost_ms(choice, gap, price)) - 2 * i128::from(clairvoyant_ms(gap, price));
        edges.map(loss).max().unwrap_or(0) <= self.credit_ms
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 8).min(u64::MAX / 8)
}
