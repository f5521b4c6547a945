//! How long to keep a model, when to load it again, and what that costs.

use std::time::Duration;

use super::gap_histogram::millis;

/// How long to keep a model after a request, and when to have it loaded again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidencyChoice {
    pub keep: Duration,
    /// `Some`: the model is loaded during this window.
    pub prewarm: Option<PrewarmWindow>,
    pub why: KeepReason,
}

/// When the next request is expected, counted from the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrewarmWindow {
    pub from: Duration,
    pub until: Duration,
}

/// How the time for which a model is kept was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepReason {
    /// Too few gaps were seen: one break-even.
    TooLittleData,
    /// The time with the least expected cost over the gaps that were seen.
    Learned,
    /// What was learned lies further from the break-even than the credit allows.
    Bounded,
}

impl KeepReason {
    /// The text for people, as it stands in the details of a plan.
    pub const fn description(self) -> &'static str {
        match self {
            Self::TooLittleData => "one break-even, for too few gaps between requests were seen",
            Self::Learned => "learned from the gaps between requests",
            Self::Bounded => "as far towards what was learned as the bound allows",
        }
    }
}

impl ResidencyChoice {
    /// Keeps the model for one break-even.
    pub const fn one_break_even(break_even: Duration) -> Self {
        Self { keep: break_even, prewarm: None, why: KeepReason::TooLittleData }
    }

    /// By how much the worst next gap costs more than twice what the clairvoyant pays, in milliseconds. The cost jumps at
    /// the time at which the model leaves and at the edges of the window, and the clairvoyant's cost stops growing at the
    /// price; so the worst gap is at one of these points.
    pub fn worst_loss_ms(&self, price_ms: u64) -> i128 {
        let keep = millis(self.keep);
        let window = self.prewarm.map(|window| [millis(window.from), millis(window.until)]);
        let edges = [Some(keep), Some(price_ms), window.map(|w| w[0]), window.map(|w| w[1])];

        let around = |edge: u64| [edge.saturating_sub(1), edge, edge.saturating_add(1)];
        let loss = |gap: u64| i128::from(cost_ms(self, gap, price_ms)) - 2 * i128::from(clairvoyant_ms(gap, price_ms));
        edges.into_iter().flatten().flat_map(around).map(loss).max().unwrap_or(0)
    }
}

/// What a gap costs under a choice, in milliseconds of holding. `price_ms`: one break-even.
pub fn cost_ms(choice: &ResidencyChoice, gap_ms: u64, price_ms: u64) -> u64 {
    let keep = millis(choice.keep);
    if gap_ms <= keep {
        return gap_ms;
    }

    let Some(PrewarmWindow { from, until }) = choice.prewarm else { return keep + price_ms };
    let (from, until) = (millis(from).max(keep), millis(until).max(keep));
    match gap_ms {
        gap if gap < from => keep + price_ms,
        gap if gap <= until => keep + (gap - from),
        _ => keep + (until - from) + price_ms,
    }
}

/// What a gap costs a strategy that knows its length, in milliseconds of holding: it keeps the model through the gap, or
/// unloads it at once.
pub fn clairvoyant_ms(gap_ms: u64, price_ms: u64) -> u64 {
    gap_ms.min(price_ms)
}
