//! The memory of a card or of a MIG instance, and the others who use it.

use hush_controller::simulate::trace::Dice;
use hush_core::GpuId;

use crate::dice::Throw;

#[derive(Clone, Debug)]
pub struct Device {
    pub uuid: GpuId,
    pub node: String,
    pub total_bytes: u64,
    /// Held by the models.
    pub guests_bytes: u64,
    /// What a process that is gone has left, and until when.
    pub residue: Vec<(u64, u64)>,
    pub apps: Vec<App>,
}

/// Another program that takes and gives memory.
#[derive(Clone, Debug)]
pub struct App {
    pub habit: Habit,
    pub bytes: u64,
    pub changes_at: u64,
}

#[derive(Clone, Copy, Debug)]
pub enum Habit {
    /// Takes all at once and gives it back.
    Batch { bytes: u64, rests_ms: u64, works_ms: u64 },
    /// Grows until it is started again.
    Leaks { by: u64, most: u64, every_ms: u64 },
    /// Never quite the same.
    Flickers { most: u64, every_ms: u64 },
}

impl Device {
    pub fn used_bytes(&self) -> u64 {
        let left: u64 = self.residue.iter().map(|(_, bytes)| bytes).sum();
        self.guests_bytes + left + self.apps.iter().map(|app| app.bytes).sum::<u64>()
    }

    pub fn available_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.used_bytes())
    }

    /// What is due by now happens; nobody gets more than there is.
    pub fn advance(&mut self, now: u64, dice: &mut Dice) {
        self.residue.retain(|(until, _)| now < *until);
        for at in 0..self.apps.len() {
            if now < self.apps[at].changes_at {
                continue;
            }
            let room = self.available_bytes() + self.apps[at].bytes;
            let app = &mut self.apps[at];
            let (wanted, next) = match app.habit {
                Habit::Batch { bytes, works_ms, .. } if app.bytes == 0 => (bytes, works_ms),
                Habit::Batch { rests_ms, .. } => (0, rests_ms),
                Habit::Leaks { most, every_ms, .. } if app.bytes >= most.min(room) => (0, every_ms),
                Habit::Leaks { by, every_ms, .. } => (app.bytes + by, every_ms),
                Habit::Flickers { most, every_ms } => (dice.below(most + 1), every_ms),
            };
            app.bytes = wanted.min(room);
            app.changes_at = now + dice.around_ms(next);
        }
    }

    /// The others end.
    pub fn calm(&mut self) {
        self.apps.clear();
    }
}
