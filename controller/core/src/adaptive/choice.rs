//! How long to keep a model, when to have it back, and what that costs.

use std::time::Duration;

use super::gaps::millis;

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

impl Why {
    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::TooLittleData => "one break-even, for too few gaps between requests were seen",
            Self::Learned => "learned from the gaps between requests",
            Self::Bounded => "as far towards what was learned as the bound allows",
        }
    }
}

impl Choice {
    pub const fn rent(break_even: Duration) -> Self {
        Self { keep: break_even, prewarm: None, why: Why::TooLittleData }
    }

    /// By how much the worst next gap costs more than twice what the clairvoyant pays. The cost jumps where the model
    /// leaves and at the edges of the window, and the clairvoyant's stops growing at the price; so the worst is there.
    pub fn worst_loss_ms(&self, price_ms: u64) -> i128 {
        let keep = millis(self.keep);
        let window = self.prewarm.map(|window| [millis(window.from), millis(window.until)]);
        let edges = [Some(keep), Some(price_ms), window.map(|w| w[0]), window.map(|w| w[1])];
        let around = |edge: u64| [edge.saturating_sub(1), edge, edge.saturating_add(1)];
        let loss = |gap: u64| i128::from(cost_ms(self, gap, price_ms)) - 2 * i128::from(clairvoyant_ms(gap, price_ms));
        edges.into_iter().flatten().flat_map(around).map(loss).max().unwrap_or(0)
    }
}

/// What a gap costs under a choice, in milliseconds of holding.
pub fn cost_ms(choice: &Choice, gap_ms: u64, price_ms: u64) -> u64 {
    let keep = millis(choice.keep);
    if gap_ms <= keep {
        return gap_ms;
    }
    let Some(Window { from, until }) = choice.prewarm else { return keep + price_ms };
    let (from, until) = (millis(from).max(keep), millis(until).max(keep));
    match gap_ms {
        gap if gap < from => keep + price_ms,
        gap if gap <= until => keep + (gap - from),
        _ => keep + (until - from) + price_ms,
    }
}

/// What the gap costs who knows its length and either keeps the model or lets it go.
pub fn clairvoyant_ms(gap_ms: u64, price_ms: u64) -> u64 {
    gap_ms.min(price_ms)
}
