//! The GPUs and what models hold of them, as metrics, computed at scrape time.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_contract::metrics as names;
use prometheus::GaugeVec;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::account::Accounts;
use super::reading::GpuDevice;
use crate::metrics::gauge;

pub struct GpuCollector {
    accounts: Accounts,
    /// For the descriptions of the metrics.
    empty: GpuGauges,
}

impl GpuCollector {
    pub fn new(accounts: Accounts) -> prometheus::Result<Self> {
        Ok(Self { accounts, empty: GpuGauges::new()? })
    }
}

/// Created for each scrape, so that nothing is reported of a device or model that is gone.
struct GpuGauges {
    up: GaugeVec,
    device_up: GaugeVec,
    total: GaugeVec,
    used: GaugeVec,
    free: GaugeVec,
    foreign: GaugeVec,
    age: GaugeVec,
    info: GaugeVec,
    vram: GaugeVec,
    need: GaugeVec,
    residual: GaugeVec,
    method: GaugeVec,
}

impl GpuGauges {
    fn new() -> prometheus::Result<Self> {
        Ok(Self {
            up: gauge(names::GPU_UP)?,
            device_up: gauge(names::GPU_DEVICE_UP)?,
            total: gauge(names::GPU_MEMORY_TOTAL_BYTES)?,
            used: gauge(names::GPU_MEMORY_USED_BYTES)?,
            free: gauge(names::GPU_MEMORY_FREE_BYTES)?,
            foreign: gauge(names::GPU_MEMORY_FOREIGN_BYTES)?,
            age: gauge(names::GPU_SAMPLE_AGE_SECONDS)?,
            info: gauge(names::GPU_INFO)?,
            vram: gauge(names::MODEL_VRAM_BYTES)?,
            need: gauge(names::MODEL_NEED_BYTES)?,
            residual: gauge(names::MODEL_RESIDUAL_BYTES)?,
            method: gauge(names::MODEL_VRAM_METHOD_INFO)?,
        })
    }

    fn all(&self) -> [&GaugeVec; 12] {
        [
            &self.up,
            &self.device_up,
            &self.total,
            &self.used,
            &self.free,
            &self.foreign,
            &self.age,
            &self.info,
            &self.vram,
            &self.need,
            &self.residual,
            &self.method,
        ]
    }
}

impl Collector for GpuCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.empty.all().into_iter().flat_map(GaugeVec::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(gauges) = GpuGauges::new() else { return Vec::new() };
        let sampler = self.accounts.sampler();
        let reading = sampler.reading();

        let models_hold = self.set_models(&gauges);

        let was_seen = reading.driver.is_some() || !reading.devices.is_empty();
        if reading.sequence > 0 && (sampler.is_expected() || was_seen) {
            let answers = reading.fault.is_none() && reading.begun.elapsed() <= sampler.age_max();
            gauges.up.with_label_values::<&str>(&[]).set(f64::from(u8::from(answers)));
        }

        for device in &reading.devices {
            let held_bytes = models_hold.get(&device.uuid).copied().unwrap_or(0);
            let driver = reading.driver.as_deref().unwrap_or_default();
            set_device(&gauges, device, held_bytes, driver, sampler.age_max());
        }

        gauges.all().into_iter().flat_map(GaugeVec::collect).collect()
    }
}

impl GpuCollector {
    /// Returns what the models of this server hold of each device, by its UUID.
    fn set_models(&self, gauges: &GpuGauges) -> BTreeMap<String, u64> {
        let mut held_bytes: BTreeMap<String, u64> = BTreeMap::new();

        for (model, memory) in self.accounts.list() {
            gauges.residual.with_label_values(&[model.as_str()]).set(memory.residual_bytes as f64);
            let Some(uuid) = &memory.gpu_uuid else { continue };

            let labels = [model.as_str(), uuid.as_str()];
            gauges.vram.with_label_values(&labels).set(memory.vram_bytes as f64);
            gauges.need.with_label_values(&labels).set(memory.need_bytes as f64);
            if let Some(method) = memory.method {
                gauges.method.with_label_values(&[model.as_str(), uuid.as_str(), method]).set(1.0);
            }
            *held_bytes.entry(uuid.clone()).or_default() += memory.vram_bytes;
        }

        held_bytes
    }
}

/// `held_bytes`: what the models of this server hold of the device.
fn set_device(gauges: &GpuGauges, device: &GpuDevice, held_bytes: u64, driver: &str, age_max: Duration) {
    let memory = device.memory;
    let age = device.taken.elapsed();
    let answers = device.fault.is_none() && age <= age_max;

    let set = |gauge: &GaugeVec, value: f64| gauge.with_label_values(&[device.uuid.as_str()]).set(value);
    set(&gauges.device_up, f64::from(u8::from(answers)));
    set(&gauges.total, memory.total_bytes as f64);
    set(&gauges.used, memory.used_bytes as f64);
    set(&gauges.free, memory.free_bytes as f64);
    set(&gauges.foreign, memory.used_bytes.saturating_sub(held_bytes) as f64);
    set(&gauges.age, age.as_secs_f64());

    let index = device.index.to_string();
    let info = [device.uuid.as_str(), index.as_str(), device.name.as_str(), driver];
    gauges.info.with_label_values(&info).set(1.0);
}
