//! What a look at the GPUs has shown: plain data.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::uuid::GpuUuid;

/// The GPUs at one moment; where MIG is on, its instances instead of the GPU.
#[derive(Clone, Debug)]
pub struct View {
    /// Grows with each look.
    pub sequence: u64,
    /// When the look began: whatever happened before is in it.
    pub begun: Instant,
    /// Why NVML itself did not answer.
    pub fault: Option<String>,
    pub driver: Option<String>,
    /// Also those that answer no more, with their last figures.
    pub devices: Vec<Device>,
}

#[derive(Clone, Debug)]
pub struct Device {
    pub uuid: String,
    /// Of the GPU, as NVML counts.
    pub index: u32,
    pub name: String,
    pub memory: Memory,
    /// Bytes by process, as NVML numbers them; `None`: the driver does not tell.
    pub processes: Option<BTreeMap<u32, u64>>,
    /// When these figures were read.
    pub taken: Instant,
    /// Why they are not read any more.
    pub fault: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What processes can have: without what the driver keeps for itself, which is neither used nor free.
    pub total_bytes: u64,
    /// By processes.
    pub used_bytes: u64,
    pub free_bytes: u64,
}

/// How a setting names a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuRef {
    /// As NVML counts.
    Index(u32),
    Uuid(GpuUuid),
}

impl View {
    pub fn nothing() -> Self {
        Self { sequence: 0, begun: Instant::now(), fault: None, driver: None, devices: Vec::new() }
    }

    pub fn find(&self, gpu: GpuRef) -> Option<&Device> {
        let mut found = self.devices.iter().filter(|device| match gpu {
            GpuRef::Index(index) => device.index == index,
            GpuRef::Uuid(uuid) => uuid.is_of(&device.uuid),
        });
        let first = found.next();
        match gpu {
            // The instances of a GPU share its number.
            GpuRef::Index(_) => first,
            // An abbreviation that several begin with names none of them: CUDA takes none either.
            GpuRef::Uuid(_) => first.filter(|_| found.next().is_none()),
        }
    }

    /// A device whose figures are good enough to decide by.
    pub fn current(&self, gpu: GpuRef, age_max: Duration) -> Option<&Device> {
        self.find(gpu).filter(|device| device.fault.is_none() && device.taken.elapsed() <= age_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abbreviated_uuid_names_the_only_device_that_begins_so() {
        let device = |index, uuid: &str| Device {
            uuid: uuid.to_owned(),
            index,
            name: String::new(),
            memory: Memory::default(),
            processes: None,
            taken: Instant::now(),
            fault: None,
        };
        let devices = vec![
            device(0, "GPU-8d1e1c0b-0123-4567-89ab-0123456789ab"),
            device(1, "GPU-8d1e1c0b-0123-4567-89ab-0123456789ac"),
            device(2, "GPU-1d1e1c0b-0123-4567-89ab-0123456789ab"),
        ];
        let view = View { devices, ..View::nothing() };
        let find = |uuid: &str| view.find(GpuRef::Uuid(uuid.parse().unwrap())).map(|device| device.index);
        assert_eq!(find("GPU-1d"), Some(2));
        assert_eq!(find("GPU-8d1e1c0b-0123-4567-89ab-0123456789ac"), Some(1));
        assert_eq!(find("GPU-8d1e1c0b-0123"), None, "two begin so");
        assert_eq!(find("GPU-7"), None);
    }
}
