//! The device memory that a loaded model holds, and how that is found out.

use hush_contract::metrics as names;

use super::reading::GpuDevice;

/// The device memory of one loaded model.
pub(super) struct MemoryHolding {
    /// One of the `METHOD_` constants of the contract.
    pub(super) method: &'static str,
    /// The processes of the model as NVML numbers them; empty where they are not known.
    pub(super) pids: Vec<u32>,
    /// The processes of the runner, which may appear in the list of the device later.
    runner_pids: Vec<u32>,
    pub(super) bytes: u64,
    pub(super) peak_bytes: u64,
    /// The device when `bytes` was read.
    pub(super) device: GpuDevice,
}

impl MemoryHolding {
    fn new(method: &'static str, pids: Vec<u32>, bytes: u64, device: &GpuDevice) -> Self {
        Self { method, pids, runner_pids: Vec::new(), bytes, peak_bytes: bytes, device: device.clone() }
    }

    /// What a load took: the sum of its processes where NVML lists them, else what the device's use grew by. `pids`: the
    /// processes of the runner as this server numbers them. `None`: there is nothing to compare with.
    pub(super) fn of_load(before: Option<&GpuDevice>, after: &GpuDevice, pids: &[u32]) -> Option<Self> {
        if let Some(bytes) = listed_bytes(after, pids) {
            return Some(Self::new(names::METHOD_PROCESS, pids.to_vec(), bytes, after));
        }

        let before = before?;
        let mut grown = after.memory.used_bytes.saturating_sub(before.memory.used_bytes);
        let mut newcomer = None;
        if let (Some(old), Some(new)) = (&before.processes, &after.processes) {
            let others_grew = new.iter().filter_map(|(pid, bytes)| Some(bytes.saturating_sub(*old.get(pid)?)));
            grown = grown.saturating_sub(others_grew.sum());

            // In a container NVML numbers processes as the host does: the runner is the new one, if there is only one.
            let newcomers: Vec<_> = new.iter().filter(|(pid, _)| !old.contains_key(pid)).collect();
            if let [(pid, bytes)] = newcomers[..] {
                newcomer = Some((*pid, *bytes)).filter(|(_, bytes)| bytes.abs_diff(grown) <= grown / 4);
            }
        }

        let holding = match newcomer {
            Some((pid, bytes)) => Self::new(names::METHOD_DEVICE_DELTA, vec![pid], bytes, after),
            None => Self::new(names::METHOD_DEVICE_DELTA, Vec::new(), grown, after),
        };
        Some(Self { runner_pids: pids.to_vec(), ..holding })
    }

    /// Takes over a newer reading of the device.
    pub(super) fn update(&mut self, device: &GpuDevice) {
        if device.taken < self.device.taken {
            return;
        }

        if self.pids.is_empty() && listed_bytes(device, &self.runner_pids).is_some() {
            self.pids = std::mem::take(&mut self.runner_pids);
            self.method = names::METHOD_PROCESS;
        }
        if let Some(bytes) = listed_bytes(device, &self.pids) {
            self.bytes = bytes;
            self.peak_bytes = self.peak_bytes.max(bytes);
        }
        self.device = device.clone();
    }
}

/// What the device's list of processes says of these; `None`: none of them is in it, or there is no list.
fn listed_bytes(device: &GpuDevice, pids: &[u32]) -> Option<u64> {
    let list = device.processes.as_ref()?;
    let listed: Vec<u64> = pids.iter().filter_map(|pid| list.get(pid).copied()).collect();

    (!listed.is_empty()).then(|| listed.iter().sum())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::gpu::reading::GpuMemory;

    const GIB: u64 = 1 << 30;

    fn device(used: u64, processes: Option<&[(u32, u64)]>) -> GpuDevice {
        GpuDevice {
            uuid: "GPU-1".to_owned(),
            index: 0,
            name: String::new(),
            memory: GpuMemory { total_bytes: 16 * GIB, used_bytes: used, free_bytes: 16 * GIB - used },
            processes: processes.map(|list| list.iter().copied().collect()),
            taken: Instant::now(),
            fault: None,
        }
    }

    fn found_with(pids: &[u32], before: Option<GpuDevice>, after: GpuDevice) -> Option<(&'static str, Vec<u32>, u64)> {
        let holding = MemoryHolding::of_load(before.as_ref(), &after, pids)?;

        Some((holding.method, holding.pids, holding.bytes))
    }

    fn found(before: Option<GpuDevice>, after: GpuDevice) -> Option<(&'static str, Vec<u32>, u64)> {
        found_with(&[7], before, after)
    }

    #[test]
    fn a_listed_process_is_counted_by_itself() {
        let after = device(5 * GIB, Some(&[(1, GIB), (7, 3 * GIB)]));
        assert_eq!(found(None, after), Some(("process", vec![7], 3 * GIB)));
    }

    #[test]
    fn the_processes_of_a_runner_are_counted_together() {
        let after = device(6 * GIB, Some(&[(1, GIB), (7, 3 * GIB), (8, GIB)]));
        assert_eq!(found_with(&[6, 7, 8], None, after), Some(("process", vec![6, 7, 8], 4 * GIB)));
    }

    #[test]
    fn in_a_container_the_newcomer_is_ours_and_others_growth_is_not() {
        let before = || Some(device(GIB, Some(&[(1, GIB)])));
        let after = device(5 * GIB, Some(&[(1, 2 * GIB), (900_000, 3 * GIB)]));
        assert_eq!(found(before(), after), Some(("device_delta", vec![900_000], 3 * GIB)));

        let two = device(5 * GIB, Some(&[(1, GIB), (900_000, 3 * GIB), (900_001, GIB)]));
        assert_eq!(found(before(), two), Some(("device_delta", vec![], 4 * GIB)), "which of the two is not known");
    }

    #[test]
    fn without_a_list_the_device_tells() {
        let grown = found(Some(device(GIB, None)), device(4 * GIB, None));
        assert_eq!(grown, Some(("device_delta", vec![], 3 * GIB)));

        let shrunk = found(Some(device(4 * GIB, None)), device(GIB, None));
        assert_eq!(shrunk, Some(("device_delta", vec![], 0)));

        assert_eq!(found(None, device(4 * GIB, None)), None, "nothing to compare with");
    }
}
