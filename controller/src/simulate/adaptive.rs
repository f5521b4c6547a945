//! Compares adaptive residency with fixed timeouts, and with the optimum of a strategy that knows the future, on gaps between
//! requests.

use std::time::Duration;

use hush_core::adaptive::{Gap, KeepReason, Learner, ResidencyChoice, break_even, clairvoyant_ms, cost_ms};

use super::trace::{SplitMix64, TraceKind};

/// Fixed timeouts to compare with; the last is `never`.
pub const FIXED_TIMEOUTS: [(&str, Duration); 4] = [
    ("1m", Duration::from_secs(60)),
    ("5m", Duration::from_secs(300)),
    ("15m", Duration::from_secs(900)),
    ("never", Duration::from_secs(365 * 86_400)),
];

/// The costs of one trace in milliseconds of holding the model. The first load is included, which no strategy can avoid.
#[derive(Clone, Debug)]
pub struct CostRow {
    pub trace: &'static str,
    pub gaps: usize,
    pub optimum: u64,
    /// The costs of the timeouts in [`FIXED_TIMEOUTS`], then that of the learner.
    pub costs: [u64; FIXED_TIMEOUTS.len() + 1],
}

#[derive(Clone, Debug)]
pub struct AdaptiveComparison {
    /// Traces that do not depend on the strategy.
    pub fixed_traces: Vec<CostRow>,
    /// A trace that is generated against the learner, from what it is about to do.
    pub against_learner: CostRow,
    /// For each strategy the cost and the optimum of a trace that is generated against it.
    pub own_adversary: [(u64, u64); FIXED_TIMEOUTS.len() + 1],
}

/// How long a model is held: for a fixed timeout, or for as long as the learner chooses.
#[derive(Clone, Debug)]
enum HoldingStrategy {
    Fixed(Duration),
    Learner(Box<Learner>),
}

impl HoldingStrategy {
    fn all(price: Duration) -> [Self; FIXED_TIMEOUTS.len() + 1] {
        let [a, b, c, d] = FIXED_TIMEOUTS.map(|(_, keep)| Self::Fixed(keep));
        [a, b, c, d, Self::Learner(Box::new(Learner::new(price)))]
    }

    fn choice(&self, price: Duration) -> ResidencyChoice {
        match self {
            Self::Fixed(keep) => ResidencyChoice { keep: *keep, prewarm: None, why: KeepReason::Learned },
            Self::Learner(learner) => learner.choose(price),
        }
    }

    fn observe(&mut self, gap: u64, price: Duration) {
        if let Self::Learner(learner) = self {
            learner.observe(Gap::exactly(Duration::from_millis(gap)), price);
        }
    }

    /// The cost of gaps, in milliseconds.
    fn cost(&mut self, gaps: &[u64], price: Duration) -> u64 {
        let ms = millis(price);

        gaps.iter().fold(ms, |sum, gap| {
            let cost = cost_ms(&self.choice(price), *gap, ms);
            self.observe(*gap, price);
            sum + cost
        })
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// Compares the strategies on all traces of a seed, for a model that loads in `reload`.
pub fn compare(seed: u64, days: u64, reload: Duration) -> AdaptiveComparison {
    let (seconds, price) = (days * 86_400, break_even(reload));
    let gaps_of = |kind: TraceKind| {
        let times: Vec<u64> = kind.generate(seed, seconds).iter().map(|request| millis(request.at)).collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<u64>>()
    };

    let fixed_traces = vec![
        row("poisson", &gaps_of(TraceKind::Poisson), price),
        row("bursty", &gaps_of(TraceKind::Bursty), price),
        row("office hours", &gaps_of(TraceKind::Office), price),
        row("periodic", &periodic(seed, seconds), price),
        row("adversarial", &gaps_of(TraceKind::Adversarial), price),
        row("hardest", &hardest(seed, seconds, price), price),
    ];
    let [.., learner] = HoldingStrategy::all(price);
    AdaptiveComparison {
        fixed_traces,
        against_learner: row("reads along", &adversary(learner, seconds, price), price),
        own_adversary: HoldingStrategy::all(price).map(|strategy| {
            let gaps = adversary(strategy.clone(), seconds, price);
            (strategy.clone().cost(&gaps, price), optimum(&gaps, price))
        }),
    }
}

/// Gaps of a job that runs every two hours, give or take a minute.
fn periodic(seed: u64, seconds: u64) -> Vec<u64> {
    let mut random = SplitMix64(seed);
    (0..seconds / 7200).map(|_| 7_140_000 + random.below(120_000)).collect()
}

/// Gaps for which the expected cost of every strategy that does not load the model again by itself is at least e/(e-1)
/// times the optimum: however long the model has been held already, to hold it longer costs as much as to unload it.
fn hardest(seed: u64, seconds: u64, price: Duration) -> Vec<u64> {
    let mut random = SplitMix64(seed);
    let mean = price.as_secs_f64() * 1e3;
    let (mut gaps, mut sum) = (Vec::new(), 0);

    while sum < seconds * 1000 {
        let short = random.exponential(mean);
        let gap = if short <= mean { short as u64 + 1 } else { (mean * (2.0 + 8.0 * random.uniform())) as u64 };
        gaps.push(gap);
        sum += gap;
    }
    gaps
}

/// Gaps that are each the worst for what the strategy is about to do: a request comes just after the model was unloaded, or
/// just outside the window in which it is loaded again.
fn adversary(mut strategy: HoldingStrategy, seconds: u64, price: Duration) -> Vec<u64> {
    let ms = millis(price);
    let (mut gaps, mut left) = (Vec::new(), seconds * 1000);
    while left > 0 {
        let choice = strategy.choice(price);
        let edges = [Some(choice.keep), choice.prewarm.map(|w| w.from), choice.prewarm.map(|w| w.until)];
        let edges = edges.into_iter().flatten().map(millis).flat_map(|edge| [edge.saturating_sub(1), edge + 1]);
        let edges = edges.filter(|gap| *gap > 0).map(|gap| gap.min(left));

        let loss = |gap: &u64| i128::from(cost_ms(&choice, *gap, ms)) - 2 * i128::from(clairvoyant_ms(*gap, ms));
        let gap = edges.max_by_key(loss).unwrap_or(left);
        strategy.observe(gap, price);
        gaps.push(gap);
        left -= gap;
    }
    gaps
}

fn optimum(gaps: &[u64], price: Duration) -> u64 {
    let ms = millis(price);
    gaps.iter().fold(ms, |sum, gap| sum + clairvoyant_ms(*gap, ms))
}

fn row(trace: &'static str, gaps: &[u64], price: Duration) -> CostRow {
    let costs = HoldingStrategy::all(price).map(|mut strategy| strategy.cost(gaps, price));
    CostRow { trace, gaps: gaps.len(), optimum: optimum(gaps, price), costs }
}

impl AdaptiveComparison {
    /// The sums of the traces that do not depend on the strategy.
    pub fn total(&self) -> CostRow {
        let mut costs = [0; FIXED_TIMEOUTS.len() + 1];
        for row in &self.fixed_traces {
            costs.iter_mut().zip(&row.costs).for_each(|(sum, cost)| *sum += cost);
        }

        let gaps = self.fixed_traces.iter().map(|row| row.gaps).sum();
        let optimum = self.fixed_traces.iter().map(|row| row.optimum).sum();
        CostRow { trace: "all of these", gaps, optimum, costs }
    }

    /// Cost in hours of holding, and in brackets how many times the optimum.
    pub fn table(&self) -> String {
        let names = FIXED_TIMEOUTS.map(|(name, _)| name).into_iter().chain(["adaptive"]);
        let mut text = format!("{:<14}{:>7}{:>10}", "trace", "gaps", "optimum");
        names.for_each(|name| text += &format!("{name:>17}"));
        text.push('\n');

        for row in self.fixed_traces.iter().chain([&self.total(), &self.against_learner]) {
            text += &format!("{:<14}{:>7}{:>10.1}", row.trace, row.gaps, hours(row.optimum));
            row.costs.iter().for_each(|cost| text += &cell(*cost, row.optimum));
            text.push('\n');
        }

        text += &format!("{:<31}", "each its own adversary");
        for (cost, optimum) in self.own_adversary {
            text += &format!("{:>17.2}", cost as f64 / optimum as f64);
        }
        text.push('\n');
        text
    }
}

fn hours(ms: u64) -> f64 {
    ms as f64 / 3.6e6
}

fn cell(cost: u64, optimum: u64) -> String {
    format!("{:>9.1} ({:>5.2})", hours(cost), cost as f64 / optimum.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn for_each_comparison(check: impl Fn(&AdaptiveComparison, &str)) {
        for seed in 1..=3 {
            for reload_ms in [500, 1500, 4000] {
                let comparison = compare(seed, 28, Duration::from_millis(reload_ms));
                check(&comparison, &format!("seed {seed}, {reload_ms} ms\n{}", comparison.table()));
            }
        }
    }

    #[test]
    fn never_worse_than_twice_the_optimum() {
        for_each_comparison(|comparison, table| {
            for row in comparison.fixed_traces.iter().chain([&comparison.against_learner]) {
                assert!(row.costs[FIXED_TIMEOUTS.len()] <= 2 * row.optimum, "{}: {table}", row.trace);
            }
            let (cost, optimum) = comparison.own_adversary[FIXED_TIMEOUTS.len()];
            assert!(cost <= 2 * optimum, "{table}");
        });
    }

    #[test]
    fn ahead_of_every_fixed_timeout_over_the_mixed_set() {
        for_each_comparison(|comparison, table| {
            let [fixed @ .., adaptive] = comparison.total().costs;
            assert!(fixed.iter().all(|fixed| adaptive < *fixed), "{table}");

            // It is so without the periodic trace too, on which pre-warming gains most.
            let without: Vec<&CostRow> = comparison.fixed_traces.iter().filter(|row| row.trace != "periodic").collect();
            let sum = |at: usize| without.iter().map(|row| row.costs[at]).sum::<u64>();
            assert!((0..FIXED_TIMEOUTS.len()).all(|fixed| sum(FIXED_TIMEOUTS.len()) < sum(fixed)), "{table}");
        });
    }

    #[test]
    fn no_fixed_timeout_but_the_break_even_keeps_the_bound_against_its_own_adversary() {
        for_each_comparison(|comparison, table| {
            let better = |(cost, optimum): &&(u64, u64)| *cost <= 2 * optimum + optimum / 100;
            assert!(comparison.own_adversary[..FIXED_TIMEOUTS.len()].iter().filter(better).count() <= 1, "{table}");
        });
    }
}
