//! How much of which device each model holds, and how much the loads in progress will take. Every model of the server has
//! its account here, so that two models that load at once do not count on the same free bytes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;

use super::holding::MemoryHolding;
use super::need::{NeedKey, Needs};
use super::reading::{GpuDevice, GpuReading, GpuRef};
use super::reclaim::ReclaimTracker;
use super::sampler::GpuSampler;
use crate::machine::{MemoryAvailability, ReclaimReport};
use crate::metrics::ResidencyMetrics;

/// How long a load waits for the driver to answer.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(1);

/// The pauses between two readings while memory comes back: short at first, when it is most likely to.
const FIRST_RECLAIM_PAUSE: Duration = Duration::from_millis(10);
const LATER_RECLAIM_PAUSE: Duration = Duration::from_millis(100);

/// Where a model's memory is counted, and what is known of its need before the model was ever loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountSettings {
    pub gpu: GpuRef,
    pub precision: String,
    /// The least that the model can need.
    pub weights_bytes: u64,
    pub estimate_bytes: u64,
}

/// Whether a load has room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoomMeasurement {
    Room(MemoryAvailability),
    /// The model is larger than the device.
    NeverFits(String),
}

/// A model's device memory, for display and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelMemory {
    /// `None`: the device has not been seen yet.
    pub gpu_uuid: Option<String>,
    pub vram_bytes: u64,
    pub need_bytes: u64,
    pub residual_bytes: u64,
    /// How `vram_bytes` was measured; `None` while it is not.
    pub method: Option<&'static str>,
}

/// The accounts of all models of a server. Cheap to clone; clones are the same accounts.
#[derive(Clone)]
pub struct Accounts {
    inner: Arc<AccountsInner>,
}

struct AccountsInner {
    sampler: GpuSampler,
    needs: Needs,
    metrics: ResidencyMetrics,
    /// What must stay free beside a model.
    headroom_bytes: u64,
    /// How long an unload waits for its memory to come back.
    reclaim_timeout: Duration,
    entries: Mutex<BTreeMap<String, AccountEntry>>,
}

struct AccountEntry {
    settings: AccountSettings,
    gpu_uuid: Option<String>,
    /// What a load in progress will take.
    claim: Option<u64>,
    /// The processes of the runner, while a model is loaded in it.
    pids: Vec<u32>,
    /// The device before the load.
    before: Option<GpuDevice>,
    holding: Option<MemoryHolding>,
    /// From the command to unload until the next load.
    reclaim: Option<ReclaimTracker>,
    residual_bytes: u64,
}

impl AccountEntry {
    const fn new(settings: AccountSettings) -> Self {
        Self {
            settings,
            gpu_uuid: None,
            claim: None,
            pids: Vec::new(),
            before: None,
            holding: None,
            reclaim: None,
            residual_bytes: 0,
        }
    }
}

impl Accounts {
    /// `headroom_bytes`: what must stay free beside a model. `reclaim_timeout`: how long an unload waits for its memory
    /// to come back. Must be called inside a tokio runtime.
    pub fn start(
        sampler: GpuSampler,
        needs: Needs,
        metrics: &ResidencyMetrics,
        headroom_bytes: u64,
        reclaim_timeout: Duration,
    ) -> Self {
        let readings = sampler.follow();
        let inner = Arc::new(AccountsInner {
            sampler,
            needs,
            metrics: metrics.clone(),
            headroom_bytes,
            reclaim_timeout,
            entries: Mutex::default(),
        });

        tokio::spawn(AccountsInner::follow_readings(Arc::downgrade(&inner), readings));
        Self { inner }
    }

    pub fn sampler(&self) -> &GpuSampler {
        &self.inner.sampler
    }

    pub fn open(&self, model: &str, settings: AccountSettings) -> ModelAccount {
        self.inner.entries().insert(model.to_owned(), AccountEntry::new(settings));

        ModelAccount { model: model.to_owned(), inner: self.inner.clone() }
    }

    /// The account of a model whose settings may have changed while it was not loaded. What is known of its device is kept
    /// where the settings are the same. `None`: the model's device is not measured any more.
    pub fn reopen(&self, model: &str, settings: Option<AccountSettings>) -> Option<ModelAccount> {
        let Some(settings) = settings else {
            self.inner.entries().remove(model);
            return None;
        };

        let is_same = self.inner.entries().get(model).is_some_and(|entry| entry.settings == settings);
        let account = ModelAccount { model: model.to_owned(), inner: self.inner.clone() };
        Some(if is_same { account } else { self.open(model, settings) })
    }

    /// The memory of every model, with its name.
    pub fn list(&self) -> Vec<(String, ModelMemory)> {
        let reading = self.inner.sampler.reading();
        let entries = self.inner.entries();

        entries.iter().map(|(model, entry)| (model.clone(), self.inner.memory(model, entry, &reading))).collect()
    }
}

impl AccountsInner {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, AccountEntry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn need_key(model: &str, entry: &AccountEntry, gpu_uuid: &str) -> NeedKey {
        NeedKey { model: model.to_owned(), precision: entry.settings.precision.clone(), gpu_uuid: gpu_uuid.to_owned() }
    }

    fn need_bytes(&self, model: &str, entry: &AccountEntry, gpu_uuid: Option<&str>) -> u64 {
        let learnt = gpu_uuid.and_then(|uuid| self.needs.get(&Self::need_key(model, entry, uuid)));

        learnt.unwrap_or(entry.settings.estimate_bytes)
    }

    fn memory(&self, model: &str, entry: &AccountEntry, reading: &GpuReading) -> ModelMemory {
        let read_uuid = reading.find(entry.settings.gpu).map(|device| device.uuid.clone());
        let gpu_uuid = read_uuid.or_else(|| entry.gpu_uuid.clone());

        ModelMemory {
            vram_bytes: entry.holding.as_ref().map_or(0, |holding| holding.bytes),
            need_bytes: self.need_bytes(model, entry, gpu_uuid.as_deref()),
            residual_bytes: entry.residual_bytes,
            method: entry.holding.as_ref().map(|holding| holding.method),
            gpu_uuid,
        }
    }

    fn set_holding(&self, model: &str, entry: &mut AccountEntry, holding: MemoryHolding) {
        let (gpu_uuid, vram_bytes) = (&holding.device.uuid, holding.bytes);
        let method = holding.method;
        if vram_bytes == 0 {
            // No warning: some models take their memory with their first request.
            tracing::info!(model, gpu_uuid, method, "the load took no device memory");
        } else {
            tracing::info!(model, gpu_uuid, vram_bytes, method, "holds device memory");
        }

        self.needs.raise(&Self::need_key(model, entry, gpu_uuid), vram_bytes);
        entry.holding = Some(holding);
    }

    async fn follow_readings(inner: std::sync::Weak<Self>, mut readings: watch::Receiver<Arc<GpuReading>>) {
        while readings.changed().await.is_ok() {
            let Some(inner) = inner.upgrade() else { return };

            let reading = readings.borrow_and_update().clone();
            inner.update_entries(&reading);
        }
    }

    /// Keeps up to date what each model holds, and what is still missing of the last unload.
    fn update_entries(&self, reading: &GpuReading) {
        let age_max = self.sampler.age_max();

        for (model, entry) in self.entries().iter_mut() {
            let Some(device) = reading.current(entry.settings.gpu, age_max) else { continue };
            entry.gpu_uuid = Some(device.uuid.clone());

            if let Some(holding) = &mut entry.holding {
                holding.update(device);
            } else if !entry.pids.is_empty() {
                // Loaded while the driver did not answer: the list of processes still tells what the model holds.
                let load_is_over = entry.claim.is_none() && entry.before.is_none();
                let holding = load_is_over.then(|| MemoryHolding::of_load(None, device, &entry.pids)).flatten();
                if let Some(holding) = holding {
                    self.set_holding(model, entry, holding);
                }
            } else if entry.claim.is_none() && entry.residual_bytes > 0 {
                self.count_late_memory(model, entry, device);
            }
        }
    }

    /// Counts memory that comes back after the unload has stopped waiting for it.
    fn count_late_memory(&self, model: &str, entry: &mut AccountEntry, device: &GpuDevice) {
        let Some(reclaim) = &mut entry.reclaim else { return };

        reclaim.sample(device);
        let left = reclaim.report().residual_bytes.min(entry.residual_bytes);
        let late = entry.residual_bytes - left;
        if late > 0 {
            tracing::info!(model, late_bytes = late, residual_bytes = left, "memory came back late");
            self.metrics.reclaimed_bytes_total.with_label_values(&[model]).inc_by(late);
            entry.residual_bytes = left;
        }
    }
}

/// The account of one model, for its actor. Cheap to clone; clones are the same account.
#[derive(Clone)]
pub struct ModelAccount {
    model: String,
    inner: Arc<AccountsInner>,
}

impl ModelAccount {
    pub fn memory(&self) -> ModelMemory {
        let reading = self.inner.sampler.reading();
        let entries = self.inner.entries();

        entries.get(&self.model).map(|entry| self.inner.memory(&self.model, entry, &reading)).unwrap_or_default()
    }

    /// Measures whether a load has room, and claims the room where there is enough.
    pub async fn measure(&self) -> RoomMeasurement {
        let reading = self.inner.sampler.fresh(MEASURE_TIMEOUT).await;

        self.room(&reading.unwrap_or_else(|| self.inner.sampler.reading()))
    }

    /// As [`Self::measure`], with a reading that is there already.
    pub fn room(&self, reading: &GpuReading) -> RoomMeasurement {
        let mut entries = self.inner.entries();
        let Some(entry) = entries.get(&self.model) else { return unknown_room(0) };

        let device = reading.current(entry.settings.gpu, self.inner.sampler.age_max());
        let uuid = device.map(|device| device.uuid.clone()).or_else(|| entry.gpu_uuid.clone());
        let need = self.inner.need_bytes(&self.model, entry, uuid.as_deref());
        let need_and_headroom = need.saturating_add(self.inner.headroom_bytes);

        let Some(device) = device else { return unknown_room(need_and_headroom) };
        let total = device.memory.total_bytes;
        if entry.settings.weights_bytes > total {
            return RoomMeasurement::NeverFits(format!(
                "its weights are {} bytes and {} ({}) has {total}; use a smaller model or precision, or another device",
                entry.settings.weights_bytes, device.name, device.uuid
            ));
        }

        // What was learnt on a crowded device may be more than an empty one has: then the model needs all of that.
        let demand_bytes = need_and_headroom.min(total - total / 20);
        let others = entries.iter().filter(|(model, other)| **model != self.model && other.gpu_uuid == uuid);
        let claimed: u64 = others.filter_map(|(_, other)| other.claim).sum();
        let available_bytes = Some(device.memory.free_bytes.saturating_sub(claimed));
        let memory = MemoryAvailability { available_bytes, demand_bytes };

        if let Some(entry) = entries.get_mut(&self.model) {
            entry.gpu_uuid = uuid;
            if memory.is_sufficient() {
                entry.claim = Some(need);
                entry.before = Some(device.clone());
            }
        }
        RoomMeasurement::Room(memory)
    }

    /// What was free when the room was claimed.
    pub fn limit_bytes(&self) -> Option<u64> {
        let entries = self.inner.entries();

        entries.get(&self.model)?.before.as_ref().map(|device| device.memory.free_bytes)
    }

    /// The model does not load after all.
    pub fn release_claim(&self) {
        self.change(|entry| entry.claim = None);
    }

    /// The model is loaded in these processes: measures what that took.
    pub async fn loaded(&self, pids: &[u32]) {
        self.change(|entry| {
            entry.pids = pids.to_vec();
            entry.reclaim = None;
            entry.residual_bytes = 0;
        });

        let reading = self.inner.sampler.fresh(MEASURE_TIMEOUT).await;

        let mut entries = self.inner.entries();
        let Some(entry) = entries.get_mut(&self.model) else { return };
        if entry.pids != pids {
            return;
        }
        // From here on the device's figures contain what the model took.
        entry.claim = None;
        let before = entry.before.take();

        let Some(reading) = reading else { return };
        if let Some(device) = reading.current(entry.settings.gpu, self.inner.sampler.age_max())
            && let Some(holding) = MemoryHolding::of_load(before.as_ref(), device, pids)
        {
            self.inner.set_holding(&self.model, entry, holding);
        }
    }

    /// The model needed more than was known: raises its need.
    pub fn out_of_memory(&self) {
        let mut entries = self.inner.entries();
        let Some(entry) = entries.get_mut(&self.model) else { return };
        let Some(uuid) = entry.gpu_uuid.clone() else { return };

        let need = self.inner.need_bytes(&self.model, entry, Some(&uuid));
        let held = entry.holding.as_ref().map_or(0, |holding| holding.peak_bytes);
        // The model could take what was free when its load began, and that was not enough.
        let had = entry.before.as_ref().map_or(0, |device| device.memory.free_bytes);
        let raised = (need + need / 4).max(held + held / 4).max(had.min(need * 2));

        tracing::warn!(model = self.model, gpu_uuid = uuid, need_bytes = raised, "out of device memory");
        self.inner.needs.raise(&AccountsInner::need_key(&self.model, entry, &uuid), raised);
    }

    /// The runner is about to end: remembers the device as it is now.
    pub fn begin_unload(&self) {
        let reading = self.inner.sampler.reading();
        let age_max = self.inner.sampler.age_max();

        self.change(|entry| {
            let Some(holding) = entry.holding.as_mut().filter(|_| entry.reclaim.is_none()) else { return };

            if let Some(device) = reading.current(entry.settings.gpu, age_max) {
                holding.update(device);
            }
            entry.reclaim = Some(ReclaimTracker::begin(&holding.device, holding.bytes, &holding.pids));
        });
    }

    /// The runner goes on after all.
    pub fn cancel_unload(&self) {
        self.change(|entry| entry.reclaim = None);
    }

    /// The runner is reaped.
    pub fn runner_exited(&self) {
        let mut entries = self.inner.entries();
        let Some(entry) = entries.get_mut(&self.model) else { return };

        entry.claim = None;
        entry.pids.clear();
        entry.before = None;
        if let Some(holding) = entry.holding.take() {
            let key = AccountsInner::need_key(&self.model, entry, &holding.device.uuid);
            self.inner.needs.record_peak(&key, holding.peak_bytes);
        }
    }

    /// Watches the memory come back, for a bounded time; `None` when nothing could be measured.
    pub async fn reclaim(&self) -> Option<ReclaimReport> {
        let begun = Instant::now();
        let deadline = begun + self.inner.reclaim_timeout;
        let mut last_report = None;

        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(reading) = self.inner.sampler.fresh(left.max(FIRST_RECLAIM_PAUSE)).await {
                let mut entries = self.inner.entries();
                let entry = entries.get_mut(&self.model)?;
                let reclaim = entry.reclaim.as_mut()?;

                if let Some(device) = reading.current(entry.settings.gpu, self.inner.sampler.age_max()) {
                    let complete = reclaim.sample(device);
                    last_report = Some(reclaim.report());
                    if complete.is_some() {
                        break;
                    }
                }
            }

            if Instant::now() >= deadline {
                break;
            }
            let is_early = begun.elapsed() < LATER_RECLAIM_PAUSE;
            sleep(if is_early { FIRST_RECLAIM_PAUSE } else { LATER_RECLAIM_PAUSE }).await;
        }

        if let Some(report) = &last_report {
            // Not earlier: what comes back from here on is late, and counted as such.
            self.change(|entry| entry.residual_bytes = report.residual_bytes);
        }
        last_report
    }

    fn change(&self, change: impl FnOnce(&mut AccountEntry)) {
        if let Some(entry) = self.inner.entries().get_mut(&self.model) {
            change(entry);
        }
    }
}

/// The device does not answer: how much is free is not known.
const fn unknown_room(demand_bytes: u64) -> RoomMeasurement {
    RoomMeasurement::Room(MemoryAvailability { available_bytes: None, demand_bytes })
}
