//! A script at one moment: numbers, not rules.

use crate::observed::MemoryHolder;
use crate::script::{ProcessList, Script, ScriptedDevice};

/// Pids of another namespace never meet ours, which end at 2^22.
const OTHER_NAMESPACE: u32 = 1 << 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScriptedMemory {
    pub total: u64,
    pub reserved: u64,
    pub used: u64,
    pub free: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningProcess {
    pub pid: u32,
    /// `None`: the driver does not tell.
    pub bytes: Option<u64>,
    pub graphics: bool,
}

/// Which device a handle means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePosition {
    pub gpu: usize,
    pub mig: Option<usize>,
}

pub fn device(script: &Script, place: DevicePosition) -> Option<&ScriptedDevice> {
    let gpu = script.devices.get(place.gpu)?;
    match place.mig {
        None => Some(gpu),
        Some(instance) => gpu.mig.get(instance),
    }
}

pub fn by_uuid(script: &Script, uuid: &str) -> Option<DevicePosition> {
    script.devices.iter().enumerate().find_map(|(gpu, device)| {
        if device.uuid == uuid {
            return Some(DevicePosition { gpu, mig: None });
        }
        let instance = device.mig.iter().position(|instance| instance.uuid == uuid)?;
        Some(DevicePosition { gpu, mig: Some(instance) })
    })
}

/// Every process that holds memory of this device, and how much.
fn all_holders(device: &ScriptedDevice, holders: &[MemoryHolder], now: u64) -> Vec<RunningProcess> {
    let scripted =
        device.processes.iter().map(|p| RunningProcess { pid: p.pid, bytes: Some(p.bytes), graphics: p.graphics });
    let ours = holders.iter().filter(|holder| holder.device == device.uuid);
    let living = ours.clone().filter(|holder| holder.died_unix_ms.is_none());
    let living =
        living.map(|holder| RunningProcess { pid: holder.pid, bytes: Some(holder.bytes_at(now)), graphics: false });
    let takers = ours.filter(|holder| holder.died_unix_ms.is_some()).filter_map(|holder| holder.guest.taker);
    let takers = takers.map(|taker| RunningProcess { pid: taker.pid, bytes: Some(taker.bytes), graphics: false });
    scripted.chain(living).chain(takers).collect()
}

pub fn memory(device: &ScriptedDevice, holders: &[MemoryHolder], now: u64) -> ScriptedMemory {
    let changed =
        device.changes.iter().filter(|change| change.at_unix_ms <= now).max_by_key(|change| change.at_unix_ms);
    let nameless = changed.map_or(device.used_bytes, |change| change.used_bytes);
    let named: u64 = all_holders(device, holders, now).iter().filter_map(|running| running.bytes).sum();
    let ghosts = holders.iter().filter(|holder| holder.device == device.uuid && holder.died_unix_ms.is_some());
    let ghosts: u64 = ghosts.map(|holder| holder.bytes_at(now)).sum();
    let instances: u64 = device.mig.iter().map(|instance| memory(instance, holders, now).used).sum();
    let usable = device.total_bytes.saturating_sub(device.reserved_bytes);
    let used = (nameless + named + ghosts + instances).min(usable);
    ScriptedMemory { total: device.total_bytes, reserved: device.reserved_bytes, used, free: usable - used }
}

/// As a process list tells it; `None`: not supported.
pub fn running(device: &ScriptedDevice, holders: &[MemoryHolder], now: u64) -> Option<Vec<RunningProcess>> {
    let all = all_holders(device, holders, now).into_iter();
    match device.process_list {
        ProcessList::Pids => Some(all.collect()),
        ProcessList::HostPids => {
            Some(all.map(|running| RunningProcess { pid: running.pid + OTHER_NAMESPACE, ..running }).collect())
        }
        ProcessList::WithoutMemory => Some(all.map(|running| RunningProcess { bytes: None, ..running }).collect()),
        ProcessList::NotSupported => None,
    }
}
