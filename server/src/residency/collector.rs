//! State as metrics, computed at scrape time.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hush_contract::ModelState;
use hush_contract::metrics as names;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts};

use super::models::Registry;

pub struct ResidencyCollector {
    models: Registry,
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

impl ResidencyCollector {
    pub(super) fn new(models: Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| GaugeVec::new(Opts::new(name, help), &[names::LABEL_MODEL]);
        Ok(Self {
            models,
            state: GaugeVec::new(
                Opts::new(names::MODEL_STATE, "1 for the state that the model is in, 0 for the others."),
                &[names::LABEL_MODEL, names::LABEL_STATE],
            )?,
            idle_seconds: gauge(
                names::MODEL_IDLE_SECONDS,
                "Seconds since the last request or the load ended; 0 while busy or not loaded.",
            )?,
            idle_since: gauge(
                names::MODEL_IDLE_SINCE_TIMESTAMP_SECONDS,
                "When the last request (or the load) ended, in Unix time; 0 while busy or not loaded.",
            )?,
            inflight: gauge(names::MODEL_INFLIGHT_REQUESTS, "Requests that hold the model.")?,
            queued: gauge(names::MODEL_QUEUED_REQUESTS, "Requests that wait for the model.")?,
            generation: gauge(names::MODEL_GENERATION, "Grows by one at each load.")?,
            loaded_seconds: gauge(
                names::MODEL_LOADED_SECONDS,
                "Seconds since this generation became ready; 0 when it is not.",
            )?,
            last_load_seconds: gauge(names::MODEL_LAST_LOAD_SECONDS, "What the last load took; 0 before the first.")?,
            hold_seconds: gauge(
                names::MODEL_HOLD_SECONDS,
                "Seconds until the model may be loaded again, after an unload with a hold; 0 without one.",
            )?,
            resident_bytes: gauge(
                names::RUNNER_RESIDENT_BYTES,
                "Resident memory of the runner process; 0 when there is none.",
            )?,
            demand_bytes: gauge(
                names::MODEL_MEMORY_DEMAND_BYTES,
                "Device memory that must be free before the model loads, while it waits for that; 0 while it does not.",
            )?,
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

impl Collector for ResidencyCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges().into_iter().flat_map(GaugeVec::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Of models that have been removed nothing is left.
        self.gauges().into_iter().for_each(GaugeVec::reset);
        for model in self.models.all() {
            let now = model.snapshot();
            for state in ModelState::ALL {
                let value = if state == now.state { 1.0 } else { 0.0 };
                self.state.with_label_values(&[model.name(), state.as_str()]).set(value);
            }
            let set = |gauge: &GaugeVec, value: f64| gauge.with_label_values(&[model.name()]).set(value);
            set(&self.idle_seconds, now.idle.as_secs_f64());
            set(&self.idle_since, idle_since(SystemTime::now(), now.idle));
            set(&self.inflight, now.inflight as f64);
            set(&self.queued, now.queued as f64);
            set(&self.generation, now.generation as f64);
            set(&self.loaded_seconds, now.loaded_for.as_secs_f64());
            set(&self.last_load_seconds, now.last_load.unwrap_or_default().as_secs_f64());
            set(&self.hold_seconds, now.hold.unwrap_or_default().as_secs_f64());
            set(&self.resident_bytes, now.runner_pid.and_then(resident_bytes).unwrap_or(0) as f64);
            if now.memory.is_some() {
                set(&self.demand_bytes, now.demand_bytes.unwrap_or(0) as f64);
            }
        }
        self.gauges().into_iter().flat_map(GaugeVec::collect).collect()
    }
}

/// In seconds, to the millisecond: the same at each look.
fn idle_since(now: SystemTime, idle: Duration) -> f64 {
    if idle.is_zero() {
        return 0.0;
    }
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.saturating_sub(idle).as_secs_f64() * 1e3).round() / 1e3
}

/// `None` when the process has just gone.
fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
