//! The format of a world file; `docs/policies.md` describes it.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_contract::WHISPER;
use hush_core as core;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::values::{BytesValue, DurationValue};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorldFile {
    pub now: Timestamp,
    #[serde(default = "default_stale_after")]
    stale_after: DurationValue,
    #[serde(default)]
    gpus: Vec<WorldFileGpu>,
    #[serde(default)]
    models: Vec<WorldFileModel>,
    #[serde(default)]
    memory: WorldFileMemory,
    #[serde(default)]
    namespaces: BTreeMap<String, core::Labels>,
    #[serde(default)]
    pub policies: Vec<serde_json::Value>,
    /// The plan that a test expects; ignored here.
    #[serde(default, rename = "expect")]
    _expect: Option<IgnoredAny>,
}

fn default_stale_after() -> DurationValue {
    DurationValue(Duration::from_secs(15))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WorldFileGpu {
    uuid: String,
    #[serde(default)]
    node: String,
    total: BytesValue,
    used: BytesValue,
    #[serde(default)]
    sample_age: DurationValue,
    #[serde(default)]
    disputed: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WorldFileModel {
    server: String,
    model: String,
    #[serde(default)]
    gpu: Option<String>,
    #[serde(default)]
    labels: core::Labels,
    #[serde(default = "whisper")]
    app: String,
    /// Left out: `Always` for Whisper, `Unavailable` for others.
    process_ending: Option<core::ProcessEnding>,
    state: core::ResidencyState,
    #[serde(default)]
    idle: DurationValue,
    #[serde(default)]
    inflight: u64,
    #[serde(default)]
    queued: u64,
    #[serde(default)]
    vram: BytesValue,
    #[serde(default)]
    generation: u64,
    #[serde(default)]
    loaded_for: DurationValue,
    #[serde(default)]
    reload: DurationValue,
    #[serde(default)]
    demand: BytesValue,
    #[serde(default)]
    sample_age: DurationValue,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WorldFileMemory {
    #[serde(default)]
    pressure: Vec<WorldFilePressure>,
    #[serde(default)]
    last_unload: Vec<WorldFileUnload>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WorldFilePressure {
    gpu: String,
    soft: Option<WorldFileSince>,
    hard: Option<WorldFileSince>,
    clear_since: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorldFileSince {
    since: Timestamp,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WorldFileUnload {
    gpu: String,
    completed_at: Timestamp,
}

/// The kind of a model's app where the file does not say it.
fn whisper() -> String {
    WHISPER.to_owned()
}

fn default_ending(app: &str) -> core::ProcessEnding {
    if app == WHISPER { core::ProcessEnding::Always } else { core::ProcessEnding::Unavailable }
}

impl WorldFile {
    pub fn memory(&self) -> core::StepMemory {
        let pressure = self.memory.pressure.iter().map(|entry| core::PressureMemory {
            gpu: core::GpuId(entry.gpu.clone()),
            soft_since: entry.soft.as_ref().map(|soft| soft.since),
            hard_since: entry.hard.as_ref().map(|hard| hard.since),
            clear_since: entry.clear_since,
        });
        let unloads = self.memory.last_unload.iter().map(|e| (core::GpuId(e.gpu.clone()), e.completed_at));

        core::StepMemory::restore(self.now, &pressure.collect::<Vec<_>>(), &unloads.collect::<Vec<_>>())
    }

    pub fn world(self) -> core::World {
        core::World {
            stale_after: self.stale_after.0,
            gpus: self.gpus.into_iter().map(WorldFileGpu::into_core).collect(),
            models: self.models.into_iter().map(WorldFileModel::into_core).collect(),
            namespaces: self.namespaces,
        }
    }
}

impl WorldFileGpu {
    fn into_core(self) -> core::ObservedGpu {
        core::ObservedGpu {
            uuid: core::GpuId(self.uuid),
            node: self.node,
            total_bytes: self.total.0,
            used_bytes: self.used.0,
            sample_age: self.sample_age.0,
            disputed: self.disputed,
        }
    }
}

impl WorldFileModel {
    fn into_core(self) -> core::ObservedModel {
        core::ObservedModel {
            key: core::ModelKey { server: core::ServerName(self.server), model: self.model },
            process_ending: self.process_ending.unwrap_or_else(|| default_ending(&self.app)),
            app: self.app,
            labels: self.labels,
            sample: core::ModelSample {
                gpu: self.gpu.map(core::GpuId),
                state: self.state,
                idle: self.idle.0,
                idle_since: None,
                inflight: self.inflight,
                queued: self.queued,
                vram_bytes: self.vram.0,
                generation: self.generation,
                loaded_for: self.loaded_for.0,
                reload: self.reload.0,
                demand_bytes: self.demand.0,
                hold: Duration::ZERO,
                arrivals: None,
            },
            sample_age: self.sample_age.0,
            back_off: false,
        }
    }
}
