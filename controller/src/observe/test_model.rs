//! A model for unit tests.

use std::time::Duration;

use hush_core::{Labels, ModelKey, ModelSample, ObservedModel, ProcessEnding, ResidencyState};

/// A model that is not loaded, on no GPU, with a sample of age zero.
pub fn observed_model(server: &str, name: &str) -> ObservedModel {
    ObservedModel {
        key: ModelKey { server: server.into(), model: name.to_owned() },
        app: hush_contract::WHISPER.to_owned(),
        labels: Labels::new(),
        sample: ModelSample {
            gpu: None,
            state: ResidencyState::Unloaded,
            idle: Duration::ZERO,
            idle_since: None,
            inflight: 0,
            queued: 0,
            vram_bytes: 0,
            generation: 1,
            loaded_for: Duration::ZERO,
            reload: Duration::ZERO,
            demand_bytes: 0,
            hold: Duration::ZERO,
            arrivals: None,
        },
        sample_age: Duration::ZERO,
        process_ending: ProcessEnding::Always,
        back_off: false,
    }
}
