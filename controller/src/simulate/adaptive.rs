//! Adaptive residency against fixed timeouts and the clairvoyant, on gaps between requests.

use std::time::Duration;

use hush_core::adaptive::{Choice, Gap, Learner, Why, break_even, clairvoyant_ms, cost_ms};

use super::trace::{Dice, Kind};

/// Fixed timeouts to compare with; the last is `never`.
pub const FIXED: [(&str, Duration); 4] = [
    ("1m", Duration::from_secs(60)),
    ("5m", Duration::from_secs(300)),
    ("15m", Duration::from_secs(900)),
    ("never", Duration::from_secs(365 * 86_400)),
];

/// Costs of one trace in milliseconds of holding.
#[derive(Clone, Debug)]
pub struct Row {
    pub trace: &'static str,
    pub gaps: usize,
    pub optimum: u64,
    pub fixed: [u64; FIXED.len()],
    pub adaptive: u64,
    pub break_even: u64,
}

/// All traces of one seed over so many days, for a model that loads in `reload`.
pub fn compare(seed: u64, days: u64, reload: Duration) -> Vec<Row> {
    let seconds = days * 86_400;
    let between = |kind: Kind| {
        let times: Vec<u64> = kind.generate(seed, seconds).iter().map(|r| r.at.as_millis() as u64).collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<u64>>()
    };
    let mut rows = vec![
        row("poisson", &between(Kind::Poisson), reload),
        row("bursty", &between(Kind::Bursty), reload),
        row("office hours", &between(Kind::Office), reload),
        row("periodic", &periodic(seed, seconds), reload),
    ];
    rows.push(row("adversarial", &adversarial(seed, seconds, reload), reload));
    rows
}

/// A job every two hours, give or take a minute.
fn periodic(seed: u64, seconds: u64) -> Vec<u64> {
    let mut dice = Dice(seed);
    (0..seconds / 7200).map(|_| 7_140_000 + dice.below(120_000)).collect()
}

/// Each request comes just after the model has left, now and then just before.
fn adversarial(seed: u64, seconds: u64, reload: Duration) -> Vec<u64> {
    let price = break_even(reload);
    let mut learner = Learner::new(price);
    let mut dice = Dice(seed);
    let mut gaps = Vec::new();
    let mut sum = 0;
    while sum < seconds * 1000 {
        let keep = learner.choose(price).keep.as_millis() as u64;
        let gap = if dice.below(10) == 0 { keep.saturating_sub(1).max(1) } else { keep + 1 };
        learner.observe(Gap::exactly(Duration::from_millis(gap)), price);
        gaps.push(gap);
        sum += gap;
    }
    gaps
}

fn row(trace: &'static str, gaps: &[u64], reload: Duration) -> Row {
    let price = break_even(reload);
    let ms = price.as_millis() as u64;
    let fixed = FIXED.map(|(_, keep)| {
        let choice = Choice { keep, prewarm: None, why: Why::Learned };
        gaps.iter().map(|gap| cost_ms(&choice, *gap, ms)).sum()
    });
    let mut learner = Learner::new(price);
    let mut adaptive = 0;
    for gap in gaps {
        adaptive += cost_ms(&learner.choose(price), *gap, ms);
        learner.observe(Gap::exactly(Duration::from_millis(*gap)), price);
    }
    let optimum = gaps.iter().map(|gap| clairvoyant_ms(*gap, ms)).sum();
    Row { trace, gaps: gaps.len(), optimum, fixed, adaptive, break_even: ms }
}

/// Cost in hours of holding, and in brackets how many times the optimum.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!("{:<14}{:>7}{:>10}", "trace", "gaps", "optimum");
    for (name, _) in FIXED {
        text += &format!("{name:>17}");
    }
    text += &format!("{:>17}\n", "adaptive");
    let cell = |cost: u64, optimum: u64| {
        format!("{:>9.1} ({:>5.2})", cost as f64 / 3.6e6, cost as f64 / optimum.max(1) as f64)
    };
    let mut line = |name: &str, gaps: usize, optimum: u64, costs: &[u64]| {
        text += &format!("{name:<14}{gaps:>7}{:>10.1}", optimum as f64 / 3.6e6);
        for cost in costs {
            text += &cell(*cost, optimum);
        }
        text.push('\n');
    };
    let mut sums = [0_u64; FIXED.len() + 1];
    let mut optimum = 0;
    for row in rows {
        let costs: Vec<u64> = row.fixed.iter().copied().chain([row.adaptive]).collect();
        line(row.trace, row.gaps, row.optimum, &costs);
        sums.iter_mut().zip(&costs).for_each(|(sum, cost)| *sum += cost);
        optimum += row.optimum;
    }
    line("all", rows.iter().map(|row| row.gaps).sum(), optimum, &sums);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_twice_the_optimum_and_one_break_even_and_ahead_of_every_fixed_timeout_where_nobody_plays_against_it() {
        for seed in 1..=5 {
            for reload_ms in [500, 1500, 4000] {
                let rows = compare(seed, 28, Duration::from_millis(reload_ms));
                for row in &rows {
                    assert!(
                        row.adaptive <= 2 * row.optimum + row.break_even,
                        "seed {seed}, {reload_ms} ms\n{}",
                        table(&rows)
                    );
                }
                // The adversary answers the learner's own choices; no fixed timeout is answered.
                let natural = &rows[..rows.len() - 1];
                let adaptive: u64 = natural.iter().map(|row| row.adaptive).sum();
                let best = (0..FIXED.len()).map(|i| natural.iter().map(|row| row.fixed[i]).sum::<u64>()).min().unwrap();
                assert!(adaptive < best, "seed {seed}, {reload_ms} ms\n{}", table(&rows));
            }
        }
    }
}
