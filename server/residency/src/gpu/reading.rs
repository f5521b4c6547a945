//! The figures of the GPUs at one moment, as plain data.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::uuid::GpuUuid;

/// The GPUs at one moment; where MIG is on, its instances instead of the GPU.
#[derive(Clone, Debug)]
pub struct GpuReading {
    /// Grows with each reading.
    pub sequence: u64,
    /// When the reading began: it contains everything that happened before.
    pub begun: Instant,
    /// Why NVML itself did not answer.
    pub fault: Option<String>,
    pub driver: Option<String>,
    /// All devices, also those that do not answer any more, with their last figures.
    pub devices: Vec<GpuDevice>,
}

#[derive(Clone, Debug)]
pub struct GpuDevice {
    pub uuid: String,
    /// The number of the GPU in NVML's count.
    pub index: u32,
    pub name: String,
    pub memory: GpuMemory,
    /// Bytes by process, as NVML numbers processes; `None`: the driver does not list them.
    pub processes: Option<BTreeMap<u32, u64>>,
    /// When these figures were read.
    pub taken: Instant,
    /// Why they are not read any more.
    pub fault: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuMemory {
    /// What processes can have: without what the driver keeps for itself, which is neither used nor free.
    pub total_bytes: u64,
    /// What processes have.
    pub used_bytes: u64,
    pub free_bytes: u64,
}

/// How a setting names a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuRef {
    /// The number in NVML's count.
    Index(u32),
    Uuid(GpuUuid),
}

impl GpuReading {
    /// The reading before the first one.
    pub fn empty() -> Self {
        Self { sequence: 0, begun: Instant::now(), fault: None, driver: None, devices: Vec::new() }
    }

    pub fn find(&self, gpu: GpuRef) -> Option<&GpuDevice> {
        let mut found = self.devices.iter().filter(|device| match gpu {
            GpuRef::Index(index) => device.index == index,
            GpuRef::Uuid(uuid) => uuid.is_of(&device.uuid),
        });

        let first = found.next();
        match gpu {
            // The instances of a GPU share its number.
            GpuRef::Index(_) => first,
            // An abbreviation that is the beginning of several UUIDs names none of them: CUDA takes none either.
            GpuRef::Uuid(_) => first.filter(|_| found.next().is_none()),
        }
    }

    /// A device whose figures are good enough to decide by.
    pub fn current(&self, gpu: GpuRef, age_max: Duration) -> Option<&GpuDevice> {
        self.find(gpu).filter(|device| device.fault.is_none() && device.taken.elapsed() <= age_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abbreviated_uuid_names_the_only_device_that_begins_so() {
        let device = |index, uuid: &str| GpuDevice {
            uuid: uuid.to_owned(),
            index,
            name: String::new(),
            memory: GpuMemory::default(),
            processes: None,
            taken: Instant::now(),
            fault: None,
        };
        let devices = vec![
            device(0, "GPU-8d1e1c0b-0123-4567-89ab-0123456789ab"),
            device(1, "GPU-8d1e1c0b-0123-4567-89ab-0123456789ac"),
            device(2, "GPU-1d1e1c0b-0123-4567-89ab-0123456789ab"),
        ];
        let reading = GpuReading { devices, ..GpuReading::empty() };

        let find = |uuid: &str| reading.find(GpuRef::Uuid(uuid.parse().unwrap())).map(|device| device.index);
        assert_eq!(find("GPU-1d"), Some(2));
        assert_eq!(find("GPU-8d1e1c0b-0123-4567-89ab-0123456789ac"), Some(1));
        assert_eq!(find("GPU-8d1e1c0b-0123"), None, "two begin so");
        assert_eq!(find("GPU-7"), None);
    }
}
