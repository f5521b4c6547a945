//! The device before and after an unload: how much memory came back, how much did not, how much other processes took.
//! Pure.

use std::collections::BTreeMap;

use super::reading::GpuDevice;
use crate::machine::{ReclaimReport, ReclaimVerdict};

/// Drivers round allocations up, and keep small amounts for themselves.
const ROUNDING_BYTES: u64 = 16 << 20;

/// Compares the device with what it was when the unload began.
#[derive(Clone, Debug)]
pub struct ReclaimTracker {
    /// What the model held.
    held_bytes: u64,
    /// The processes of the model, as NVML numbers them.
    pids: Vec<u32>,
    used_before: u64,
    /// What other processes held; `None`: no list says which process holds what, or which of them are the model's.
    others_before: Option<BTreeMap<u32, u64>>,
    /// The least that was in use since.
    used_least: u64,
    last: Option<ReclaimSample>,
}

#[derive(Clone, Copy, Debug)]
struct ReclaimSample {
    remaining: u64,
    taken: u64,
    is_attributed: bool,
}

impl ReclaimTracker {
    /// `held_bytes`: what the model holds. `pids`: its processes as NVML numbers them; empty: not known.
    pub fn begin(device: &GpuDevice, held_bytes: u64, pids: &[u32]) -> Self {
        let without_own = |list: &BTreeMap<u32, u64>| {
            let others = list.iter().filter(|(pid, _)| !pids.contains(pid));
            others.map(|(pid, bytes)| (*pid, *bytes)).collect()
        };
        let others_before = device.processes.as_ref().filter(|_| !pids.is_empty()).map(without_own);

        let used_before = device.memory.used_bytes;
        Self { held_bytes, pids: pids.to_vec(), used_before, others_before, used_least: used_before, last: None }
    }

    /// Takes a reading of the device after the process is gone. `Some` once all of the memory is back.
    pub fn sample(&mut self, device: &GpuDevice) -> Option<ReclaimReport> {
        let used = device.memory.used_bytes;
        self.used_least = self.used_least.min(used);
        let change = i128::from(used) - i128::from(self.used_before);

        let sample = match (&self.others_before, &device.processes) {
            (Some(before), Some(now)) => {
                let others_now = || now.iter().filter(|(pid, _)| !self.pids.contains(pid));
                let others_grew = sum(others_now()) - sum(before.iter());
                let taken = others_now().map(|(pid, bytes)| {
                    let had = before.get(pid).copied().unwrap_or(0);
                    bytes.saturating_sub(had)
                });
                ReclaimSample {
                    remaining: self.remaining_after(change - others_grew),
                    taken: taken.sum(),
                    is_attributed: true,
                }
            }
            _ => {
                // The memory was free for a moment: what holds it now is not this model.
                let least = i128::from(self.used_least) - i128::from(self.used_before);
                ReclaimSample {
                    remaining: self.remaining_after(least),
                    taken: used - self.used_least,
                    is_attributed: false,
                }
            }
        };

        self.last = Some(sample);
        (sample.remaining <= self.tolerance()).then(|| self.report())
    }

    /// The result so far.
    pub fn report(&self) -> ReclaimReport {
        let nothing_back = ReclaimSample { remaining: self.held_bytes, taken: 0, is_attributed: false };
        let sample = self.last.unwrap_or(nothing_back);
        let is_back = sample.remaining <= self.tolerance();

        let residual_bytes = if is_back { 0 } else { sample.remaining };
        let verdict = match (is_back, sample.is_attributed) {
            (true, _) if sample.taken > ROUNDING_BYTES => ReclaimVerdict::Taken,
            (true, _) => ReclaimVerdict::Returned,
            (false, true) => ReclaimVerdict::Residual,
            (false, false) => ReclaimVerdict::Unattributed,
        };

        ReclaimReport {
            vram_before_bytes: self.held_bytes,
            reclaimed_bytes: self.held_bytes - residual_bytes,
            residual_bytes,
            taken_bytes: sample.taken,
            verdict,
        }
    }

    /// How much of the model's memory is left when the device's use has changed by `change`.
    fn remaining_after(&self, change: i128) -> u64 {
        let held = i128::from(self.held_bytes);
        let remaining = (held + change).clamp(0, held);

        u64::try_from(remaining).unwrap_or(self.held_bytes)
    }

    /// How much may be left when the memory counts as returned.
    fn tolerance(&self) -> u64 {
        ROUNDING_BYTES.max(self.held_bytes / 50).min(self.held_bytes / 2)
    }
}

fn sum<'a>(processes: impl Iterator<Item = (&'a u32, &'a u64)>) -> i128 {
    processes.map(|(_, bytes)| i128::from(*bytes)).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::gpu::reading::GpuMemory;

    const GIB: u64 = 1 << 30;
    const OURS: u32 = 7;

    fn device(used_bytes: u64, processes: Option<&[(u32, u64)]>) -> GpuDevice {
        GpuDevice {
            uuid: "GPU-1".to_owned(),
            index: 0,
            name: String::new(),
            memory: GpuMemory { total_bytes: 16 * GIB, used_bytes, free_bytes: 16 * GIB - used_bytes },
            processes: processes.map(|list| list.iter().copied().collect()),
            taken: Instant::now(),
            fault: None,
        }
    }

    /// 1 GiB of others, 3 GiB of ours.
    fn begin(has_list: bool) -> ReclaimTracker {
        let list = [(1, GIB), (OURS, 3 * GIB)];
        ReclaimTracker::begin(
            &device(4 * GIB, has_list.then_some(&list)),
            3 * GIB,
            if has_list { &[OURS] } else { &[] },
        )
    }

    fn expect(reclaimed: ReclaimReport, back: u64, residual: u64, taken: u64, verdict: ReclaimVerdict) {
        let before = 3 * GIB;
        let expected = ReclaimReport {
            vram_before_bytes: before,
            reclaimed_bytes: back,
            residual_bytes: residual,
            taken_bytes: taken,
            verdict,
        };
        assert_eq!(reclaimed, expected);
    }

    #[test]
    fn all_of_it_at_once_or_late() {
        for has_list in [true, false] {
            let mut reclaim = begin(has_list);
            let others = [(1, GIB)];
            let others = has_list.then_some(&others[..]);
            assert_eq!(reclaim.sample(&device(4 * GIB, others)), None, "gone from the list, not from the memory");
            assert_eq!(reclaim.sample(&device(2 * GIB, others)), None);
            let done = reclaim.sample(&device(GIB + ROUNDING_BYTES / 2, others)).unwrap();
            expect(done, 3 * GIB, 0, 0, ReclaimVerdict::Returned);
        }
    }

    #[test]
    fn what_stays_is_residual_and_may_still_come_back() {
        let mut reclaim = begin(true);
        assert_eq!(reclaim.sample(&device(2 * GIB, Some(&[(1, GIB)]))), None);
        expect(reclaim.report(), 2 * GIB, GIB, 0, ReclaimVerdict::Residual);
        expect(reclaim.sample(&device(GIB, Some(&[(1, GIB)]))).unwrap(), 3 * GIB, 0, 0, ReclaimVerdict::Returned);
    }

    #[test]
    fn what_others_take_is_not_residual() {
        let mut reclaim = begin(true);
        let newcomer = [(1, GIB), (9, 2 * GIB)];
        expect(reclaim.sample(&device(3 * GIB, Some(&newcomer))).unwrap(), 3 * GIB, 0, 2 * GIB, ReclaimVerdict::Taken);
        // And another that leaves hides nothing of ours.
        let mut reclaim = begin(true);
        assert_eq!(reclaim.sample(&device(3 * GIB, Some(&[]))), None);
        expect(reclaim.report(), 0, 3 * GIB, 0, ReclaimVerdict::Residual);
    }

    #[test]
    fn without_a_list_only_a_moment_of_freedom_tells() {
        let mut reclaim = begin(false);
        assert_eq!(reclaim.sample(&device(3 * GIB, None)), None);
        expect(reclaim.report(), GIB, 2 * GIB, 0, ReclaimVerdict::Unattributed);
        let mut reclaim = begin(false);
        assert!(reclaim.sample(&device(GIB, None)).is_some());
        expect(reclaim.sample(&device(3 * GIB, None)).unwrap(), 3 * GIB, 0, 2 * GIB, ReclaimVerdict::Taken);
    }

    #[test]
    fn a_model_that_held_nothing_gave_nothing_back() {
        let mut reclaim = ReclaimTracker::begin(&device(GIB, Some(&[])), 0, &[OURS]);
        let done = reclaim.sample(&device(GIB, Some(&[]))).unwrap();
        assert_eq!((done.vram_before_bytes, done.reclaimed_bytes, done.verdict), (0, 0, ReclaimVerdict::Returned));
    }
}
