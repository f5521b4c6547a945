//! Unloads that servers have reported and no sample shows yet. A server that reports an unload and shows the model as
//! before would otherwise get the same command again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hush_core::{ModelKey, ResidencyState, World};

use super::backoff::CommandVerdict;

#[derive(Clone, Debug, Default)]
pub struct UnverifiedUnloads(BTreeMap<ModelKey, ReportedUnload>);

#[derive(Clone, Copy, Debug)]
struct ReportedUnload {
    generation: u64,
    at: Instant,
}

impl UnverifiedUnloads {
    /// Records that a server reported at `at` that it unloaded this generation of the model.
    pub fn reported(&mut self, key: ModelKey, generation: u64, at: Instant) {
        self.0.insert(key, ReportedUnload { generation, at });
    }

    /// Compares each report with the first sample after it, and returns the verdicts. The ages of the samples are counted
    /// from `now`. A model that was loaded again since the report has another generation.
    pub fn compare(&mut self, now: Instant, world: &World) -> Vec<(ModelKey, CommandVerdict)> {
        if self.0.is_empty() {
            return Vec::new();
        }

        let mut verdicts = Vec::new();
        for model in &world.models {
            let Some(report) = self.0.get(&model.key) else { continue };
            if now.checked_sub(model.sample_age).is_none_or(|sampled_at| sampled_at <= report.at) {
                continue;
            }

            let is_unchanged =
                model.sample.state == ResidencyState::Ready && model.sample.generation == report.generation;
            let verdict = if is_unchanged { CommandVerdict::NoEffect } else { CommandVerdict::Done };
            self.0.remove(&model.key);
            verdicts.push((model.key.clone(), verdict));
        }
        verdicts
    }

    /// Forgets reports that are older than `timeout`: the server shows nothing any more.
    pub fn forget_before(&mut self, now: Instant, timeout: Duration) {
        self.0.retain(|_, report| now.saturating_duration_since(report.at) <= timeout);
    }
}

#[cfg(test)]
mod tests {
    use hush_core::ObservedModel;

    use super::*;
    use crate::observe::test_model::observed_model;

    fn world(generation: u64, state: ResidencyState, age: Duration) -> World {
        let mut model = ObservedModel { sample_age: age, ..observed_model("a/w", "m") };
        (model.sample.state, model.sample.generation) = (state, generation);
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
            (3, ResidencyState::Ready, CommandVerdict::NoEffect),
            (3, ResidencyState::Unloaded, CommandVerdict::Done),
            (3, ResidencyState::Draining, CommandVerdict::Done),
            (4, ResidencyState::Ready, CommandVerdict::Done),
        ] {
            let mut reports = UnverifiedUnloads::default();
            reports.reported(key(), 3, reported);

            let now = reported + second;
            assert!(reports.compare(now, &world(generation, state, 2 * second)).is_empty(), "the sample is older");

            let compared = reports.compare(now, &world(generation, state, second / 2));
            assert_eq!(compared, [(key(), verdict)], "{generation} {state:?}");
            assert!(reports.compare(now, &world(generation, state, second / 2)).is_empty(), "once");
        }

        let mut reports = UnverifiedUnloads::default();
        reports.reported(key(), 3, reported);
        reports.forget_before(reported + 3 * second, 2 * second);
        assert!(reports.compare(reported + 3 * second, &world(3, ResidencyState::Ready, Duration::ZERO)).is_empty());
    }
}
