//! Which model holds how much of which device, and which is about to take some. Every model of the server has its
//! account here, so that two that load at once do not count on the same free bytes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hush_contract::metrics as names;
use tokio::time::sleep;

use super::need::{NeedKey, Needs};
use super::reclaim::Reclaim;
use super::sampler::Sampler;
use super::view::{Device, GpuRef, View};
use crate::metrics::Metrics;
use crate::residency::machine::{DeviceMemory, Reclaimed};

/// A driver that takes longer to answer is not waited for by a load.
const MEASURE_PATIENCE: Duration = Duration::from_secs(1);

/// Between two looks for memory that comes back: often at first, when it is most likely.
const LOOK_FIRST: Duration = Duration::from_millis(10);
const LOOK_LATER: Duration = Duration::from_millis(100);

/// Where a model's memory is counted, and what is known of its need before it was ever seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountSettings {
    pub gpu: GpuRef,
    pub precision: String,
    /// The least that it can need.
    pub weights_bytes: u64,
    pub estimate_bytes: u64,
}

/// The answer to a look for room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Measured {
    Room(DeviceMemory),
    /// It is larger than the device.
    NeverFits(String),
}

/// A model's device memory, as everybody may see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelMemory {
    /// `None`: its device has not been seen yet.
    pub gpu_uuid: Option<String>,
    pub vram_bytes: u64,
    pub need_bytes: u64,
    pub residual_bytes: u64,
    /// How `vram_bytes` was measured; `None` while it is not.
    pub method: Option<&'static str>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    inner: Arc<Inner>,
}

struct Inner {
    sampler: Sampler,
    needs: Needs,
    metrics: Arc<Metrics>,
    headroom_bytes: u64,
    reclaim_patience: Duration,
    book: Mutex<BTreeMap<String, Entry>>,
}

struct Entry {
    settings: AccountSettings,
    gpu_uuid: Option<String>,
    /// What a load in progress will take.
    claim: Option<u64>,
    /// The runner, while a model is loaded in it.
    pid: Option<u32>,
    /// The device before the load.
    before: Option<Device>,
    held: Option<Held>,
    /// From the order to leave until the next load.
    reclaim: Option<Reclaim>,
    residual_bytes: u64,
}

struct Held {
    method: &'static str,
    /// The process, as NVML numbers it, where that is known.
    pid: Option<u32>,
    bytes: u64,
    peak_bytes: u64,
    device: Device,
}

impl Accounts {
    /// Must be called inside a tokio runtime.
    pub fn start(
        sampler: Sampler,
        needs: Needs,
        metrics: Arc<Metrics>,
        headroom_bytes: u64,
        reclaim_patience: Duration,
    ) -> Self {
        let mut views = sampler.follow();
        let book = Mutex::default();
        let inner = Arc::new(Inner { sampler, needs, metrics, headroom_bytes, reclaim_patience, book });
        let follower = Arc::downgrade(&inner);
        tokio::spawn(async move {
            while views.changed().await.is_ok() {
                let Some(inner) = follower.upgrade() else { return };
                let view = views.borrow_and_update().clone();
                inner.follow(&view);
            }
        });
        Self { inner }
    }

    pub fn sampler(&self) -> &Sampler {
        &self.inner.sampler
    }

    pub fn open(&self, model: &str, settings: AccountSettings) -> Account {
        let entry = Entry {
            settings,
            gpu_uuid: None,
            claim: None,
            pid: None,
            before: None,
            held: None,
            reclaim: None,
            residual_bytes: 0,
        };
        self.inner.book().insert(model.to_owned(), entry);
        Account { model: model.to_owned(), inner: self.inner.clone() }
    }

    /// The account of a model whose settings may have changed while it is not loaded. What is known of its device is kept
    /// where that is still the same. `None`: its device is not measured any more.
    pub fn reopen(&self, model: &str, settings: Option<AccountSettings>) -> Option<Account> {
        let Some(settings) = settings else {
            self.inner.book().remove(model);
            return None;
        };
        let is_same = self.inner.book().get(model).is_some_and(|entry| entry.settings == settings);
        let account = Account { model: model.to_owned(), inner: self.inner.clone() };
        Some(if is_same { account } else { self.open(model, settings) })
    }

    /// By model.
    pub fn list(&self) -> Vec<(String, ModelMemory)> {
        let view = self.inner.sampler.view();
        let book = self.inner.book();
        book.iter().map(|(model, entry)| (model.clone(), self.inner.memory(model, entry, &view))).collect()
    }
}

impl Inner {
    fn book(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(model: &str, entry: &Entry, gpu_uuid: &str) -> NeedKey {
        NeedKey { model: model.to_owned(), precision: entry.settings.precision.clone(), gpu_uuid: gpu_uuid.to_owned() }
    }

    fn need_bytes(&self, model: &str, entry: &Entry, gpu_uuid: Option<&str>) -> u64 {
        let learnt = gpu_uuid.and_then(|uuid| self.needs.get(&Self::key(model, entry, uuid)));
        learnt.unwrap_or(entry.settings.estimate_bytes)
    }

    fn memory(&self, model: &str, entry: &Entry, view: &View) -> ModelMemory {
        let known = view.find(entry.settings.gpu).map(|device| device.uuid.clone());
        let gpu_uuid = known.or_else(|| entry.gpu_uuid.clone());
        ModelMemory {
            vram_bytes: entry.held.as_ref().map_or(0, |held| held.bytes),
            need_bytes: self.need_bytes(model, entry, gpu_uuid.as_deref()),
            residual_bytes: entry.residual_bytes,
            method: entry.held.as_ref().map(|held| held.method),
            gpu_uuid,
        }
    }

    fn hold(&self, model: &str, entry: &mut Entry, held: Held) {
        let (gpu_uuid, vram_bytes) = (&held.device.uuid, held.bytes);
        tracing::info!(model, gpu_uuid, vram_bytes, method = held.method, "holds device memory");
        self.needs.raise(&Self::key(model, entry, gpu_uuid), vram_bytes);
        entry.held = Some(held);
    }

    /// Keeps what is held and what is still missing up to date.
    fn follow(&self, view: &View) {
        let age_max = self.sampler.age_max();
        for (model, entry) in self.book().iter_mut() {
            let Some(device) = view.current(entry.settings.gpu, age_max) else { continue };
            entry.gpu_uuid = Some(device.uuid.clone());
            if let Some(held) = &mut entry.held {
                held.follow(device);
            } else if let Some(pid) = entry.pid {
                // Loaded while the driver was away: its own sum can still be told.
                let is_seen = entry.claim.is_none() && entry.before.is_none();
                if let Some(held) = is_seen.then(|| attribute(None, device, pid)).flatten() {
                    self.hold(model, entry, held);
                }
            } else if entry.claim.is_none()
                && entry.residual_bytes > 0
                && let Some(reclaim) = &mut entry.reclaim
            {
                reclaim.look(device);
                let left = reclaim.result().residual_bytes.min(entry.residual_bytes);
                let late = entry.residual_bytes - left;
                if late > 0 {
                    tracing::info!(model, late_bytes = late, residual_bytes = left, "memory came back late");
                    self.metrics.reclaimed_bytes_total.with_label_values(&[model]).inc_by(late);
                    entry.residual_bytes = left;
                }
            }
        }
    }
}

impl Held {
    fn follow(&mut self, device: &Device) {
        if device.taken < self.device.taken {
            return;
        }
        let listed = self.pid.and_then(|pid| device.processes.as_ref()?.get(&pid).copied());
        if let Some(bytes) = listed {
            self.bytes = bytes;
            self.peak_bytes = self.peak_bytes.max(bytes);
        }
        self.device = device.clone();
    }
}

/// One model's account; its owner has it.
#[derive(Clone)]
pub struct Account {
    model: String,
    inner: Arc<Inner>,
}

impl Account {
    pub fn memory(&self) -> ModelMemory {
        let view = self.inner.sampler.view();
        let book = self.inner.book();
        book.get(&self.model).map(|entry| self.inner.memory(&self.model, entry, &view)).unwrap_or_default()
    }

    /// Looks for room, and claims it where there is enough.
    pub async fn measure(&self) -> Measured {
        let view = self.inner.sampler.fresh(MEASURE_PATIENCE).await;
        self.room(&view.unwrap_or_else(|| self.inner.sampler.view()))
    }

    /// As [`Self::measure`], in a view that is there already.
    pub fn room(&self, view: &View) -> Measured {
        let age_max = self.inner.sampler.age_max();
        let mut book = self.inner.book();
        let Some(entry) = book.get(&self.model) else { return unknown(0) };
        let device = view.current(entry.settings.gpu, age_max);
        let uuid = device.map(|device| device.uuid.clone()).or_else(|| entry.gpu_uuid.clone());
        let need = self.inner.need_bytes(&self.model, entry, uuid.as_deref());
        let demand = need.saturating_add(self.inner.headroom_bytes);
        let Some(device) = device else { return unknown(demand) };
        let total = device.memory.total_bytes;
        if entry.settings.weights_bytes > total {
            return Measured::NeverFits(format!(
                "its weights are {} bytes and {} ({}) has {total}; use a smaller model or precision, or another device",
                entry.settings.weights_bytes, device.name, device.uuid
            ));
        }
        // What was learnt on a crowded device may be more than an empty one has: then it wants all of that.
        let demand_bytes = demand.min(total - total / 20);
        let claims = book.iter().filter(|(model, other)| **model != self.model && other.gpu_uuid == uuid);
        let claimed: u64 = claims.filter_map(|(_, other)| other.claim).sum();
        let available_bytes = Some(device.memory.free_bytes.saturating_sub(claimed));
        let memory = DeviceMemory { available_bytes, demand_bytes };
        if let Some(entry) = book.get_mut(&self.model) {
            entry.gpu_uuid = uuid;
            if memory.has_room() {
                entry.claim = Some(need);
                entry.before = Some(device.clone());
            }
        }
        Measured::Room(memory)
    }

    /// What was free when the room was claimed.
    pub fn limit_bytes(&self) -> Option<u64> {
        self.inner.book().get(&self.model)?.before.as_ref().map(|device| device.memory.free_bytes)
    }

    /// It does not load after all, or is done with it.
    pub fn release_claim(&self) {
        self.change(|entry| entry.claim = None);
    }

    /// The model is loaded: sees what that took.
    pub async fn loaded(&self, pid: u32) {
        self.change(|entry| {
            entry.pid = Some(pid);
            entry.reclaim = None;
            entry.residual_bytes = 0;
        });
        let view = self.inner.sampler.fresh(MEASURE_PATIENCE).await;
        let mut book = self.inner.book();
        let Some(entry) = book.get_mut(&self.model) else { return };
        if entry.pid != Some(pid) {
            return;
        }
        // From here on what it takes is seen.
        entry.claim = None;
        let before = entry.before.take();
        let Some(view) = view else { return };
        let age_max = self.inner.sampler.age_max();
        if let Some(device) = view.current(entry.settings.gpu, age_max)
            && let Some(held) = attribute(before.as_ref(), device, pid)
        {
            self.inner.hold(&self.model, entry, held);
        }
    }

    /// It needed more than it was thought to.
    pub fn out_of_memory(&self) {
        let mut book = self.inner.book();
        let Some(entry) = book.get_mut(&self.model) else { return };
        let Some(uuid) = entry.gpu_uuid.clone() else { return };
        let need = self.inner.need_bytes(&self.model, entry, Some(&uuid));
        let held = entry.held.as_ref().map_or(0, |held| held.peak_bytes);
        // It had what was free when it began, and that was not enough.
        let had = entry.before.as_ref().map_or(0, |device| device.memory.free_bytes);
        let raised = (need + need / 4).max(held + held / 4).max(had.min(need * 2));
        tracing::warn!(model = self.model, gpu_uuid = uuid, need_bytes = raised, "out of device memory");
        self.inner.needs.raise(&Inner::key(&self.model, entry, &uuid), raised);
    }

    /// It is told to go: remembers the device as it is now.
    pub fn leaving(&self) {
        let (view, age_max) = (self.inner.sampler.view(), self.inner.sampler.age_max());
        self.change(|entry| {
            let Some(held) = entry.held.as_mut().filter(|_| entry.reclaim.is_none()) else { return };
            if let Some(device) = view.current(entry.settings.gpu, age_max) {
                held.follow(device);
            }
            entry.reclaim = Some(Reclaim::begin(&held.device, held.bytes, held.pid));
        });
    }

    /// Its process is reaped.
    pub fn gone(&self) {
        let mut book = self.inner.book();
        let Some(entry) = book.get_mut(&self.model) else { return };
        entry.claim = None;
        entry.pid = None;
        entry.before = None;
        if let Some(held) = entry.held.take() {
            let key = Inner::key(&self.model, entry, &held.device.uuid);
            self.inner.needs.settle(&key, held.peak_bytes);
        }
    }

    /// Sees the memory come back, for a bounded time; `None` when nothing can be said.
    pub async fn reclaim(&self) -> Option<Reclaimed> {
        let (begun, age_max) = (Instant::now(), self.inner.sampler.age_max());
        let deadline = begun + self.inner.reclaim_patience;
        let mut seen = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(view) = self.inner.sampler.fresh(left.max(LOOK_FIRST)).await {
                let mut book = self.inner.book();
                let entry = book.get_mut(&self.model)?;
                let reclaim = entry.reclaim.as_mut()?;
                if let Some(device) = view.current(entry.settings.gpu, age_max) {
                    let done = reclaim.look(device);
                    seen = Some(reclaim.result());
                    if done.is_some() {
                        break;
                    }
                }
            }
            if Instant::now() >= deadline {
                break;
            }
            let is_early = begun.elapsed() < LOOK_LATER;
            sleep(if is_early { LOOK_FIRST } else { LOOK_LATER }).await;
        }
        if let Some(result) = &seen {
            // Not earlier: what comes back from here on is late, and counted as such.
            self.change(|entry| entry.residual_bytes = result.residual_bytes);
        }
        seen
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.inner.book().get_mut(&self.model) {
            change(entry);
        }
    }
}

fn unknown(demand_bytes: u64) -> Measured {
    Measured::Room(DeviceMemory { available_bytes: None, demand_bytes })
}

/// What a load took: its process's own sum where NVML lists it, else what the device's use grew by.
fn attribute(before: Option<&Device>, after: &Device, pid: u32) -> Option<Held> {
    let held = |method, pid, bytes| Held { method, pid, bytes, peak_bytes: bytes, device: after.clone() };
    if let Some(bytes) = after.processes.as_ref().and_then(|list| list.get(&pid)) {
        return Some(held(names::METHOD_PROCESS, Some(pid), *bytes));
    }
    let before = before?;
    let mut grown = after.memory.used_bytes.saturating_sub(before.memory.used_bytes);
    let mut stranger = None;
    if let (Some(old), Some(new)) = (&before.processes, &after.processes) {
        // In a container the numbers are the host's: ours is the one that came, if one came.
        let newcomers: Vec<_> = new.iter().filter(|(pid, _)| !old.contains_key(pid)).collect();
        let others_grew = new.iter().filter_map(|(pid, bytes)| Some(bytes.saturating_sub(*old.get(pid)?)));
        grown = grown.saturating_sub(others_grew.sum());
        if let [(pid, bytes)] = newcomers[..] {
            stranger = Some((*pid, *bytes)).filter(|(_, bytes)| bytes.abs_diff(grown) <= grown / 4);
        }
    }
    Some(match stranger {
        Some((pid, bytes)) => held(names::METHOD_DEVICE_DELTA, Some(pid), bytes),
        None => held(names::METHOD_DEVICE_DELTA, None, grown),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::view::Memory;

    const GIB: u64 = 1 << 30;

    fn device(used: u64, processes: Option<&[(u32, u64)]>) -> Device {
        Device {
            uuid: "GPU-1".to_owned(),
            index: 0,
            name: String::new(),
            memory: Memory { total_bytes: 16 * GIB, used_bytes: used, free_bytes: 16 * GIB - used },
            processes: processes.map(|list| list.iter().copied().collect()),
            taken: Instant::now(),
            fault: None,
        }
    }

    fn found(before: Option<Device>, after: Device) -> Option<(&'static str, Option<u32>, u64)> {
        attribute(before.as_ref(), &after, 7).map(|held| (held.method, held.pid, held.bytes))
    }

    #[test]
    fn a_listed_process_tells_itself() {
        let after = device(5 * GIB, Some(&[(1, GIB), (7, 3 * GIB)]));
        assert_eq!(found(None, after), Some(("process", Some(7), 3 * GIB)));
    }

    #[test]
    fn in_a_container_the_newcomer_is_ours_and_others_growth_is_not() {
        let before = || Some(device(GIB, Some(&[(1, GIB)])));
        let after = device(5 * GIB, Some(&[(1, 2 * GIB), (900_000, 3 * GIB)]));
        assert_eq!(found(before(), after), Some(("device_delta", Some(900_000), 3 * GIB)));
        let two = device(5 * GIB, Some(&[(1, GIB), (900_000, 3 * GIB), (900_001, GIB)]));
        assert_eq!(found(before(), two), Some(("device_delta", None, 4 * GIB)), "which of the two is not known");
    }

    #[test]
    fn without_a_list_the_device_tells() {
        assert_eq!(found(Some(device(GIB, None)), device(4 * GIB, None)), Some(("device_delta", None, 3 * GIB)));
        assert_eq!(found(Some(device(4 * GIB, None)), device(GIB, None)), Some(("device_delta", None, 0)));
        assert_eq!(found(None, device(4 * GIB, None)), None, "nothing to compare with");
    }
}
