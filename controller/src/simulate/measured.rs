//! Compares adaptive residency with fixed timeouts by the whole core: requests take time, gaps are known as histograms, and
//! a decision is made every few seconds.

use std::time::Duration;

use hush_core::adaptive::break_even;
use hush_core::{Labels, ModelPolicy, PolicyKey, PolicyResidency, PolicySpec, Selector};

use super::adaptive::FIXED_TIMEOUTS;
use super::replay::{Hardware, replay_until};
use super::trace::{TraceKind, TraceRequest};

/// The costs of a trace in time of holding the model; a cold start costs a break-even.
#[derive(Clone, Debug)]
pub struct MeasuredCosts {
    pub trace: &'static str,
    pub requests: usize,
    /// The cost of a strategy that knows when the next request comes.
    pub optimum: Duration,
    /// The costs of the timeouts in [`FIXED_TIMEOUTS`], then that of adaptive residency.
    pub costs: Vec<Duration>,
}

pub fn measure(seed: u64, days: u64, reload: Duration) -> Vec<MeasuredCosts> {
    let labels = Labels::from([("app".to_owned(), "whisper".to_owned())]);
    let hardware = Hardware { gpu_bytes: 24 << 30, vram_bytes: 2 << 30, reload };
    TraceKind::ALL
        .into_iter()
        .map(|(trace, kind)| {
            let requests = kind.generate(seed, days * 86_400);
            let end = requests.last().map_or(Duration::ZERO, |request| request.at);
            let costs = compared_rules().into_iter().map(|asks| {
                let policy = policy(&labels, asks);
                let figures = replay_until(end, &requests, &[policy], &labels, "default/simulated", &hardware);
                let held_ms = figures.held_byte_ms / u128::from(hardware.vram_bytes);
                let cold_starts = u32::try_from(figures.cold_starts).unwrap_or(u32::MAX);

                Duration::from_millis(u64::try_from(held_ms).unwrap_or(u64::MAX)) + break_even(reload) * cold_starts
            });

            MeasuredCosts {
                trace,
                requests: requests.len(),
                optimum: optimum(&requests, break_even(reload)),
                costs: costs.collect(),
            }
        })
        .collect()
}

/// The timeouts in [`FIXED_TIMEOUTS`], then adaptive residency.
fn compared_rules() -> Vec<PolicySpec> {
    let fixed = FIXED_TIMEOUTS.map(|(name, timeout)| {
        let mode = if name == "never" { PolicyResidency::Resident } else { PolicyResidency::Idle };
        PolicySpec { residency: Some(mode), idle_timeout: Some(timeout), ..PolicySpec::default() }
    });
    fixed
        .into_iter()
        .chain([PolicySpec { residency: Some(PolicyResidency::Adaptive), ..PolicySpec::default() }])
        .collect()
}

fn policy(labels: &Labels, asks: PolicySpec) -> ModelPolicy {
    ModelPolicy {
        name: PolicyKey { namespace: Some("default".to_owned()), name: "compared".to_owned() },
        selector: Selector { labels: labels.clone(), expressions: Vec::new() },
        namespace_selector: None,
        models: Vec::new(),
        dry_run: false,
        asks,
    }
}

/// The cost of the first load, the time in which requests are served, and for each pause its length or a break-even,
/// whichever is less.
fn optimum(requests: &[TraceRequest], price: Duration) -> Duration {
    let mut busy_until: Option<Duration> = None;
    let mut cost = Duration::ZERO;

    for request in requests {
        let pause = busy_until.map_or(price, |until| request.at.saturating_sub(until).min(price));
        let start = busy_until.map_or(request.at, |until| until.max(request.at));
        let end = start.max(request.at + request.busy);

        cost += pause + (end - start);
        busy_until = Some(end);
    }
    cost
}

pub fn table(rows: &[MeasuredCosts]) -> String {
    let mut text = format!("{:<14}{:>9}{:>10}", "trace", "requests", "optimum");
    FIXED_TIMEOUTS
        .map(|(name, _)| name)
        .into_iter()
        .chain(["adaptive"])
        .for_each(|name| text += &format!("{name:>17}"));
    text.push('\n');

    let hours = |cost: &Duration| cost.as_secs_f64() / 3600.0;
    for row in rows {
        text += &format!("{:<14}{:>9}{:>10.1}", row.trace, row.requests, hours(&row.optimum));
        for cost in &row.costs {
            text += &format!("{:>9.1} ({:>5.2})", hours(cost), hours(cost) / hours(&row.optimum));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn through_the_controller_it_is_within_the_bound_and_ahead_of_every_fixed_timeout() {
        let rows = measure(1, 4, Duration::from_millis(1500));
        for row in &rows {
            assert!(row.costs[FIXED_TIMEOUTS.len()] <= row.optimum * 2, "{}", table(&rows));
        }

        let sum = |at: usize| rows.iter().map(|row| row.costs[at]).sum::<Duration>();
        assert!((0..FIXED_TIMEOUTS.len()).all(|fixed| sum(FIXED_TIMEOUTS.len()) < sum(fixed)), "{}", table(&rows));
    }
}
