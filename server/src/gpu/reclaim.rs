//! Before and after an unload: what came back, what did not, what others took. Pure.

use std::collections::BTreeMap;

use super::view::Device;
use crate::residency::machine::{Reclaimed, Verdict};

/// Drivers round allocations up and keep small change.
const SMALL_CHANGE: u64 = 16 << 20;

/// The device as it was when its model was told to leave.
#[derive(Clone, Debug)]
pub struct Reclaim {
    ours: u64,
    used_before: u64,
    /// `None`: nobody tells who holds what, or which of them is ours.
    others_before: Option<BTreeMap<u32, u64>>,
    our_pid: Option<u32>,
    used_least: u64,
    last: Option<Look>,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    remaining: u64,
    taken: u64,
    is_attributed: bool,
}

impl Reclaim {
    /// `ours`: what the model holds. `our_pid`: its process, as NVML numbers it.
    pub fn begin(device: &Device, ours: u64, our_pid: Option<u32>) -> Self {
        let mut others_before = device.processes.clone();
        match our_pid {
            Some(pid) => {
                others_before.as_mut().map(|others| others.remove(&pid));
            }
            None => others_before = None,
        }
        let used_before = device.memory.used_bytes;
        Self { ours, used_before, others_before, our_pid, used_least: used_before, last: None }
    }

    /// Looks at the device after the process is gone. `Some` once everything is back.
    pub fn look(&mut self, device: &Device) -> Option<Reclaimed> {
        let used = device.memory.used_bytes;
        self.used_least = self.used_least.min(used);
        let change = i128::from(used) - i128::from(self.used_before);
        let look = match (&self.others_before, &device.processes) {
            (Some(before), Some(now)) => {
                let of_others = |pid: &u32| Some(*pid) != self.our_pid;
                let grown: i128 = sum(now.iter().filter(|(pid, _)| of_others(pid))) - sum(before.iter());
                let taken = now.iter().filter(|(pid, _)| of_others(pid)).map(|(pid, bytes)| {
                    let had = before.get(pid).copied().unwrap_or(0);
                    bytes.saturating_sub(had)
                });
                Look { remaining: self.within(change - grown), taken: taken.sum(), is_attributed: true }
            }
            _ => {
                // It was free for a moment: whoever holds it now is not ours.
                let least = i128::from(self.used_least) - i128::from(self.used_before);
                Look { remaining: self.within(least), taken: used - self.used_least, is_attributed: false }
            }
        };
        self.last = Some(look);
        (look.remaining <= self.small()).then(|| self.result())
    }

    /// How it stands.
    pub fn result(&self) -> Reclaimed {
        let look = self.last.unwrap_or(Look { remaining: self.ours, taken: 0, is_attributed: false });
        let is_back = look.remaining <= self.small();
        let residual_bytes = if is_back { 0 } else { look.remaining };
        let verdict = match (is_back, look.is_attributed) {
            (true, _) if look.taken > SMALL_CHANGE => Verdict::Taken,
            (true, _) => Verdict::Returned,
            (false, true) => Verdict::Residual,
            (false, false) => Verdict::Unattributed,
        };
        Reclaimed {
            vram_before_bytes: self.ours,
            reclaimed_bytes: self.ours - residual_bytes,
            residual_bytes,
            taken_bytes: look.taken,
            verdict,
        }
    }

    /// What is left of ours when the device's use has changed by this much.
    fn within(&self, change: i128) -> u64 {
        let remaining = (i128::from(self.ours) + change).clamp(0, i128::from(self.ours));
        u64::try_from(remaining).unwrap_or(self.ours)
    }

    fn small(&self) -> u64 {
        SMALL_CHANGE.max(self.ours / 50).min(self.ours / 2)
    }
}

fn sum<'a>(processes: impl Iterator<Item = (&'a u32, &'a u64)>) -> i128 {
    processes.map(|(_, bytes)| i128::from(*bytes)).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::gpu::view::Memory;

    const GIB: u64 = 1 << 30;
    const OURS: u32 = 7;

    fn device(used_bytes: u64, processes: Option<&[(u32, u64)]>) -> Device {
        Device {
            uuid: "GPU-1".to_owned(),
            index: 0,
            name: String::new(),
            memory: Memory { total_bytes: 16 * GIB, used_bytes, free_bytes: 16 * GIB - used_bytes },
            processes: processes.map(|list| list.iter().copied().collect()),
            taken: Instant::now(),
            fault: None,
        }
    }

    /// 1 GiB of others, 3 GiB of ours.
    fn begin(has_list: bool) -> Reclaim {
        let list = [(1, GIB), (OURS, 3 * GIB)];
        Reclaim::begin(&device(4 * GIB, has_list.then_some(&list)), 3 * GIB, has_list.then_some(OURS))
    }

    fn expect(reclaimed: Reclaimed, back: u64, residual: u64, taken: u64, verdict: Verdict) {
        let before = 3 * GIB;
        let expected = Reclaimed {
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
            assert_eq!(reclaim.look(&device(4 * GIB, others)), None, "gone from the list, not from the memory");
            assert_eq!(reclaim.look(&device(2 * GIB, others)), None);
            let done = reclaim.look(&device(GIB + SMALL_CHANGE / 2, others)).unwrap();
            expect(done, 3 * GIB, 0, 0, Verdict::Returned);
        }
    }

    #[test]
    fn what_stays_is_residual_and_may_still_come_back() {
        let mut reclaim = begin(true);
        assert_eq!(reclaim.look(&device(2 * GIB, Some(&[(1, GIB)]))), None);
        expect(reclaim.result(), 2 * GIB, GIB, 0, Verdict::Residual);
        expect(reclaim.look(&device(GIB, Some(&[(1, GIB)]))).unwrap(), 3 * GIB, 0, 0, Verdict::Returned);
    }

    #[test]
    fn what_others_take_is_not_residual() {
        let mut reclaim = begin(true);
        let newcomer = [(1, GIB), (9, 2 * GIB)];
        expect(reclaim.look(&device(3 * GIB, Some(&newcomer))).unwrap(), 3 * GIB, 0, 2 * GIB, Verdict::Taken);
        // And another that leaves hides nothing of ours.
        let mut reclaim = begin(true);
        assert_eq!(reclaim.look(&device(3 * GIB, Some(&[]))), None);
        expect(reclaim.result(), 0, 3 * GIB, 0, Verdict::Residual);
    }

    #[test]
    fn without_a_list_only_a_moment_of_freedom_tells() {
        let mut reclaim = begin(false);
        assert_eq!(reclaim.look(&device(3 * GIB, None)), None);
        expect(reclaim.result(), GIB, 2 * GIB, 0, Verdict::Unattributed);
        let mut reclaim = begin(false);
        assert!(reclaim.look(&device(GIB, None)).is_some());
        expect(reclaim.look(&device(3 * GIB, None)).unwrap(), 3 * GIB, 0, 2 * GIB, Verdict::Taken);
    }

    #[test]
    fn a_model_that_held_nothing_gave_nothing_back() {
        let mut reclaim = Reclaim::begin(&device(GIB, Some(&[])), 0, Some(OURS));
        let done = reclaim.look(&device(GIB, Some(&[]))).unwrap();
        assert_eq!((done.vram_before_bytes, done.reclaimed_bytes, done.verdict), (0, 0, Verdict::Returned));
    }
}
