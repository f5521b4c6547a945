//! Unloads that servers report, until a sample shows them: a server that says that it has unloaded a model and goes on as
//! before is not told again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hush_core::{ModelKey, State, World};

use super::backoff::Verdict;

#[derive(Clone, Debug, Default)]
pub struct UnprovenUnloads(BTreeMap<ModelKey, Report>);

#[derive(Clone, Copy, Debug)]
struct Report {
    generation: u64,
    at: Instant,
}

impl UnprovenUnloads {
    /// A server has reported at `at` that it unloaded this generation of the model.
    pub fn reported(&mut self, key: ModelKey, generation: u64, at: Instant) {
        self.0.insert(key, Report { generation, at });
    }

    /// What the samples show of the reports before them; `now`: what the ages of the samples are counted from. A model
    /// that has been loaded again since has another generation.
    pub fn compare(&mut self, now: Instant, world: &World) -> Vec<(ModelKey, Verdict)> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let mut verdicts = Vec::new();
        for model in &world.models {
            let Some(report) = self.0.get(&model.key) else { continue };
            if now.checked_sub(model.sample_age).is_none_or(|sampled_at| sampled_at <= report.at) {
                continue;
            }
            let unchanged = model.state == State::Ready && model.generation == report.generation;
            let verdict = if unchanged { Verdict::NoEffect } else { Verdict::Done };
            self.0.remove(&model.key);
            verdicts.push((model.key.clone(), verdict));
        }
        verdicts
    }

    /// A server that shows nothing any more is forgotten like one that is gone.
    pub fn forget_before(&mut self, now: Instant, patience: Duration) {
        self.0.retain(|_, report| now.saturating_duration_since(report.at) <= patience);
    }
}

#[cfg(test)]
mod tests {
    use hush_core::{Labels, Model};

    use super::*;

    fn world(generation: u64, state: State, age: Duration) -> World {
        let model = Model {
            key: key(),
            gpu: None,
            labels: Labels::new(),
            state,
            idle: Duration::ZERO,
            idle_since: None,
            inflight: 0,
            queued: 0,
            vram_bytes: 0,
            generation,
            loaded_for: Duration::ZERO,
            reload: Duration::ZERO,
            demand_bytes: 0,
            sample_age: age,
            back_off: false,
            arrivals: None,
        };
        World {
            stale_after: Duration::from_secs(15),
            gpus: Vec::new(),
            models: vec![model],
            namespaces: Default::default(),
        }
    }

    fn key() -> ModelKey {
        ModelKey { server: "a/w".into(), model: "m".to_owned() }
    }

    #[test]
    fn a_report_is_compared_with_the_first_sample_after_it() {
        let second = Duration::from_secs(1);
        let reported = Instant::now() + 100 * second;
        for (generation, state, verdict) in [
            (3, State::Ready, Verdict::NoEffect),
            (3, State::Unloaded, Verdict::Done),
            (3, State::Draining, Verdict::Done),
            (4, State::Ready, Verdict::Done),
        ] {
            let mut reports = UnprovenUnloads::default();
            reports.reported(key(), 3, reported);
            let now = reported + second;
            assert!(reports.compare(now, &world(generation, state, 2 * second)).is_empty(), "the sample is older");
            let compared = reports.compare(now, &world(generation, state, second / 2));
            assert_eq!(compared, [(key(), verdict)], "{generation} {state:?}");
            assert!(reports.compare(now, &world(generation, state, second / 2)).is_empty(), "once");
        }
        let mut reports = UnprovenUnloads::default();
        reports.reported(key(), 3, reported);
        reports.forget_before(reported + 3 * second, 2 * second);
        assert!(reports.compare(reported + 3 * second, &world(3, State::Ready, Duration::ZERO)).is_empty());
    }
}
