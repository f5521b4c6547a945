//! The state of the models as metrics, computed at scrape time.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hush_contract::ModelState;
use hush_contract::metrics as names;
use prometheus::GaugeVec;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use crate::metrics::gauge;
use crate::models::HandleMap;
use crate::runner::RunnerFactory;
use crate::snapshot::ModelSnapshot;

pub struct ResidencyCollector<F: RunnerFactory> {
    models: HandleMap<F>,
    state: GaugeVec,
    idle_seconds: GaugeVec,
    idle_since: GaugeVec,
    inflight: GaugeVec,
    queued: GaugeVec,
    generation: GaugeVec,
    loaded_seconds: GaugeVec,
    last_load_seconds: GaugeVec,
    hold_seconds: GaugeVec,
    resident_bytes: GaugeVec,
    demand_bytes: GaugeVec,
}

impl<F: RunnerFactory> ResidencyCollector<F> {
    pub(crate) fn new(models: HandleMap<F>) -> prometheus::Result<Self> {
        Ok(Self {
            models,
            state: gauge(names::MODEL_STATE)?,
            idle_seconds: gauge(names::MODEL_IDLE_SECONDS)?,
            idle_since: gauge(names::MODEL_IDLE_SINCE_TIMESTAMP_SECONDS)?,
            inflight: gauge(names::MODEL_INFLIGHT_REQUESTS)?,
            queued: gauge(names::MODEL_QUEUED_REQUESTS)?,
            generation: gauge(names::MODEL_GENERATION)?,
            loaded_seconds: gauge(names::MODEL_LOADED_SECONDS)?,
            last_load_seconds: gauge(names::MODEL_LAST_LOAD_SECONDS)?,
            hold_seconds: gauge(names::MODEL_HOLD_SECONDS)?,
            resident_bytes: gauge(names::RUNNER_RESIDENT_BYTES)?,
            demand_bytes: gauge(names::MODEL_MEMORY_DEMAND_BYTES)?,
        })
    }

    fn gauges(&self) -> [&GaugeVec; 11] {
        [
            &self.state,
            &self.idle_seconds,
            &self.idle_since,
            &self.inflight,
            &self.queued,
            &self.generation,
            &self.loaded_seconds,
            &self.last_load_seconds,
            &self.hold_seconds,
            &self.resident_bytes,
            &self.demand_bytes,
        ]
    }
}

impl<F: RunnerFactory> Collector for ResidencyCollector<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges().into_iter().flat_map(GaugeVec::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // A model that has been removed leaves no samples behind.
        self.gauges().into_iter().for_each(GaugeVec::reset);

        for model in self.models.all() {
            self.set_gauges(&model.snapshot());
        }

        self.gauges().into_iter().flat_map(GaugeVec::collect).collect()
    }
}

impl<F: RunnerFactory> ResidencyCollector<F> {
    fn set_gauges(&self, model: &ModelSnapshot) {
        let name = model.model.as_str();
        for state in ModelState::ALL {
            let value = if state == model.state { 1.0 } else { 0.0 };
            self.state.with_label_values(&[name, state.as_str()]).set(value);
        }

        let set = |gauge: &GaugeVec, value: f64| gauge.with_label_values(&[name]).set(value);
        set(&self.idle_seconds, model.idle.as_secs_f64());
        set(&self.idle_since, idle_since(SystemTime::now(), model.idle));
        set(&self.inflight, model.inflight as f64);
        set(&self.queued, model.queued as f64);
        set(&self.generation, model.generation as f64);
        set(&self.loaded_seconds, model.loaded_for.as_secs_f64());
        set(&self.last_load_seconds, model.last_load.unwrap_or_default().as_secs_f64());
        set(&self.hold_seconds, model.hold.unwrap_or_default().as_secs_f64());
        set(&self.resident_bytes, model.runner_pid.and_then(resident_bytes).unwrap_or(0) as f64);
        if model.memory.is_some() {
            set(&self.demand_bytes, model.demand_bytes.unwrap_or(0) as f64);
        }
    }
}

/// When the model became idle, in seconds of Unix time. Rounded to the millisecond, so that it is the same at each scrape.
fn idle_since(now: SystemTime, idle: Duration) -> f64 {
    if idle.is_zero() {
        return 0.0;
    }

    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.saturating_sub(idle).as_secs_f64() * 1e3).round() / 1e3
}

/// `None`: the process has just ended.
fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;

    Some(kilobytes * 1024)
}
