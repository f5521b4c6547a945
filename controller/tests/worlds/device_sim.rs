//! The memory of a GPU or of a MIG instance, and the other programs that use it.

use hush_controller::simulate::trace::SplitMix64;
use hush_core::GpuId;

use crate::dice_ext::DiceExt;

/// A simulated device.
#[derive(Clone, Debug)]
pub struct DeviceSim {
    pub uuid: GpuId,
    pub node: String,
    pub total_bytes: u64,
    /// What the models hold.
    pub models_bytes: u64,
    /// Memory in bytes that a process which has ended still holds, and until when.
    pub leftovers: Vec<(u64, u64)>,
    pub other_programs: Vec<OtherProgram>,
}

/// Another program that takes and frees memory.
#[derive(Clone, Debug)]
pub struct OtherProgram {
    pub pattern: MemoryPattern,
    pub bytes: u64,
    pub changes_at: u64,
}

/// How the memory of a program changes over time.
#[derive(Clone, Copy, Debug)]
pub enum MemoryPattern {
    /// The program takes all at once and frees it.
    Batch { bytes: u64, rests_ms: u64, works_ms: u64 },
    /// The program grows until it is restarted.
    Leaks { by: u64, most: u64, every_ms: u64 },
    /// The program holds a different amount each time.
    Flickers { most: u64, every_ms: u64 },
}

impl DeviceSim {
    pub fn used_bytes(&self) -> u64 {
        let leftovers: u64 = self.leftovers.iter().map(|(_, bytes)| bytes).sum();
        self.models_bytes + leftovers + self.other_programs.iter().map(|program| program.bytes).sum::<u64>()
    }

    pub fn available_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.used_bytes())
    }

    /// Applies the changes that are due by `now`; no program gets more than is available.
    pub fn advance(&mut self, now: u64, dice: &mut SplitMix64) {
        self.leftovers.retain(|(until, _)| now < *until);
        for at in 0..self.other_programs.len() {
            if now < self.other_programs[at].changes_at {
                continue;
            }

            let room = self.available_bytes() + self.other_programs[at].bytes;
            let program = &mut self.other_programs[at];
            let (wanted, next) = match program.pattern {
                MemoryPattern::Batch { bytes, works_ms, .. } if program.bytes == 0 => (bytes, works_ms),
                MemoryPattern::Batch { rests_ms, .. } => (0, rests_ms),
                MemoryPattern::Leaks { most, every_ms, .. } if program.bytes >= most.min(room) => (0, every_ms),
                MemoryPattern::Leaks { by, every_ms, .. } => (program.bytes + by, every_ms),
                MemoryPattern::Flickers { most, every_ms } => (dice.below(most + 1), every_ms),
            };

            program.bytes = wanted.min(room);
            program.changes_at = now + dice.around_ms(next);
        }
    }

    /// Ends the other programs.
    pub fn come_to_rest(&mut self) {
        self.other_programs.clear();
    }
}
