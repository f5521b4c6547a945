//! A script at one moment: numbers, not rules.

use crate::observed::Holder;
use crate::script::{Device, ProcessList, Script};

/// Pids of another namespace never meet ours, which end at 2^22.
const OTHER_NAMESPACE: u32 = 1 << 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    pub reserved: u64,
    pub used: u64,
    pub free: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    pub pid: u32,
    /// `None`: the driver does not tell.
    pub bytes: Option<u64>,
    pub graphics: bool,
}

/// Which device a handle means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub gpu: usize,
    pub mig: Option<usize>,
}

pub fn device(script: &Script, place: Place) -> Option<&Device> {
    let gpu = script.devices.get(place.gpu)?;
    match place.mig {
        None => Some(gpu),
        Some(instance) => gpu.mig.get(instance),
    }
}

pub fn by_uuid(script: &Script, uuid: &str) -> Option<Place> {
    script.devices.iter().enumerate().find_map(|(gpu, device)| {
        if device.uuid == uuid {
            return Some(Place { gpu, mig: None });
        }
        let instance = device.mig.iter().position(|instance| instance.uuid == uuid)?;
        Some(Place { gpu, mig: Some(instance) })
    })
}

/// Everybody who holds memory of this device, and how much.
fn everybody(device: &Device, holders: &[Holder], now: u64) -> Vec<Running> {
    let scripted = device.processes.iter().map(|p| Running { pid: p.pid, bytes: Some(p.bytes), graphics: p.graphics });
    let ours = holders.iter().filter(|holder| holder.device == device.uuid);
    let living = ours.clone().filter(|holder| holder.died_unix_ms.is_none());
    let living = living.map(|holder| Running { pid: holder.pid, bytes: Some(holder.bytes_at(now)), graphics: false });
    let takers = ours.filter(|holder| holder.died_unix_ms.is_some()).filter_map(|holder| holder.guest.taker);
    let takers = takers.map(|taker| Running { pid: taker.pid, bytes: Some(taker.bytes), graphics: false });
    scripted.chain(living).chain(takers).collect()
}

pub fn memory(device: &Device, holders: &[Holder], now: u64) -> Memory {
    let changed =
        device.changes.iter().filter(|change| change.at_unix_ms <= now).max_by_key(|change| change.at_unix_ms);
    let nameless = changed.map_or(device.used_bytes, |change| change.used_bytes);
    let named: u64 = everybody(device, holders, now).iter().filter_map(|running| running.bytes).sum();
    let ghosts = holders.iter().filter(|holder| holder.device == device.uuid && holder.died_unix_ms.is_some());
    let ghosts: u64 = ghosts.map(|holder| holder.bytes_at(now)).sum();
    let instances: u64 = device.mig.iter().map(|instance| memory(instance, holders, now).used).sum();
    let usable = device.total_bytes.saturating_sub(device.reserved_bytes);
    let used = (nameless + named + ghosts + instances).min(usable);
    Memory { total: device.total_bytes, reserved: device.reserved_bytes, used, free: usable - used }
}

/// As a process list tells it; `None`: not supported.
pub fn running(device: &Device, holders: &[Holder], now: u64) -> Option<Vec<Running>> {
    let everybody = everybody(device, holders, now).into_iter();
    match device.process_list {
        ProcessList::Pids => Some(everybody.collect()),
        ProcessList::HostPids => {
            Some(everybody.map(|running| Running { pid: running.pid + OTHER_NAMESPACE, ..running }).collect())
        }
        ProcessList::WithoutMemory => Some(everybody.map(|running| Running { bytes: None, ..running }).collect()),
        ProcessList::NotSupported => None,
    }
}
