//! The GPUs and what models hold of them, as metrics of the moment of the scrape.

use std::collections::BTreeMap;
use std::time::Instant;

use hush_contract::metrics as names;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts};

use super::account::Accounts;

pub struct GpuCollector {
    accounts: Accounts,
    empty: Families,
}

impl GpuCollector {
    pub fn new(accounts: Accounts) -> prometheus::Result<Self> {
        Ok(Self { accounts, empty: Families::new()? })
    }
}

/// Made anew for each scrape: what is gone must not be told any more.
struct Families {
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

impl Families {
    fn new() -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str, labels: &[&str]| GaugeVec::new(Opts::new(name, help), labels);
        let (gpu, model) = ([names::LABEL_GPU_UUID], names::LABEL_MODEL);
        Ok(Self {
            up: gauge(names::GPU_UP, "1 while NVML answers.", &[])?,
            device_up: gauge(names::GPU_DEVICE_UP, "1 while the device answers.", &gpu)?,
            total: gauge(names::GPU_MEMORY_TOTAL_BYTES, "Memory of the device that processes can have.", &gpu)?,
            used: gauge(names::GPU_MEMORY_USED_BYTES, "Memory that processes hold.", &gpu)?,
            free: gauge(names::GPU_MEMORY_FREE_BYTES, "Memory that nobody holds.", &gpu)?,
            foreign: gauge(
                names::GPU_MEMORY_FOREIGN_BYTES,
                "Memory that others than the models of this server hold.",
                &gpu,
            )?,
            age: gauge(names::GPU_SAMPLE_AGE_SECONDS, "Seconds since the device's figures were read.", &gpu)?,
            info: gauge(
                names::GPU_INFO,
                "The device and its driver.",
                &[names::LABEL_GPU_UUID, names::LABEL_INDEX, names::LABEL_NAME, names::LABEL_DRIVER],
            )?,
            vram: gauge(
                names::MODEL_VRAM_BYTES,
                "Device memory that the model holds.",
                &[model, names::LABEL_GPU_UUID],
            )?,
            need: gauge(
                names::MODEL_NEED_BYTES,
                "Device memory that the next load is expected to take.",
                &[model, names::LABEL_GPU_UUID],
            )?,
            residual: gauge(
                names::MODEL_RESIDUAL_BYTES,
                "Device memory that the last unload has not given back yet.",
                &[model],
            )?,
            method: gauge(
                names::MODEL_VRAM_METHOD_INFO,
                "How the model's device memory is measured.",
                &[model, names::LABEL_GPU_UUID, names::LABEL_METHOD],
            )?,
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
        let Ok(families) = Families::new() else { return Vec::new() };
        let sampler = self.accounts.sampler();
        let view = sampler.view();
        let mut ours: BTreeMap<String, u64> = BTreeMap::new();
        for (model, memory) in self.accounts.list() {
            families.residual.with_label_values(&[model.as_str()]).set(memory.residual_bytes as f64);
            let Some(uuid) = &memory.gpu_uuid else { continue };
            let labels = [model.as_str(), uuid.as_str()];
            families.vram.with_label_values(&labels).set(memory.vram_bytes as f64);
            families.need.with_label_values(&labels).set(memory.need_bytes as f64);
            if let Some(method) = memory.method {
                families.method.with_label_values(&[model.as_str(), uuid.as_str(), method]).set(1.0);
            }
            *ours.entry(uuid.clone()).or_default() += memory.vram_bytes;
        }
        let was_seen = view.driver.is_some() || !view.devices.is_empty();
        if view.sequence > 0 && (sampler.is_expected() || was_seen) {
            let answers = view.fault.is_none() && view.begun.elapsed() <= sampler.age_max();
            families.up.with_label_values::<&str>(&[]).set(f64::from(u8::from(answers)));
        }
        let now = Instant::now();
        for device in &view.devices {
            let uuid = [device.uuid.as_str()];
            let set = |gauge: &GaugeVec, value: f64| gauge.with_label_values(&uuid).set(value);
            let memory = device.memory;
            let answers = device.fault.is_none() && device.taken.elapsed() <= sampler.age_max();
            set(&families.device_up, f64::from(u8::from(answers)));
            set(&families.total, memory.total_bytes as f64);
            set(&families.used, memory.used_bytes as f64);
            set(&families.free, memory.free_bytes as f64);
            let held = ours.get(&device.uuid).copied().unwrap_or(0);
            set(&families.foreign, memory.used_bytes.saturating_sub(held) as f64);
            set(&families.age, now.saturating_duration_since(device.taken).as_secs_f64());
            let (index, driver) = (device.index.to_string(), view.driver.clone().unwrap_or_default());
            let info = [device.uuid.as_str(), index.as_str(), device.name.as_str(), driver.as_str()];
            families.info.with_label_values(&info).set(1.0);
        }
        families.all().into_iter().flat_map(GaugeVec::collect).collect()
    }
}
