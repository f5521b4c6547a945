//! Which KV slot each window has. Windows with a search over a single row come first, side by side, so that one call of
//! the decoder sees exactly these; when a search begins or ends, at most two windows exchange their slots.

use super::{
    kv_cache::{DecoderMemory, DecoderSession, KvCache},
    worker_handle::WindowId,
};

pub struct KvSlots {
    cache: KvCache,
    /// The windows in the order of their slots.
    windows: Vec<WindowId>,
    /// The first so many windows take steps.
    stepping: usize,
}

/// How many tokens of a window's row a copy must include.
pub type RowLengths<'a> = &'a dyn Fn(WindowId) -> usize;

impl KvSlots {
    /// `max_windows` is the most windows at the same time. On a device the memory for all of them is allocated at once:
    /// the memory that a model needs is then known when it is loaded, and a captured graph stays valid.
    pub fn new(decoder: &DecoderSession, max_windows: usize) -> Result<Self, ort::Error> {
        let slots = match decoder.memory {
            DecoderMemory::Host => 1,
            DecoderMemory::Device { .. } => slots_for(max_windows, max_windows),
        };
        Ok(Self { cache: KvCache::new(decoder, 1, slots)?, windows: Vec::new(), stepping: 0 })
    }

    pub fn cache(&mut self) -> &mut KvCache {
        &mut self.cache
    }

    pub fn len(&self) -> usize {
        self.windows.len()
    }

    pub fn stepping(&self) -> usize {
        self.stepping
    }

    pub fn stepping_windows(&self) -> &[WindowId] {
        &self.windows[..self.stepping]
    }

    pub fn slot_of(&self, window: WindowId) -> Result<usize, ort::Error> {
        let slot = self.windows.iter().position(|known| *known == window);
        slot.ok_or_else(|| ort::Error::new("no such window"))
    }

    /// Gives a slot to a window that takes no steps yet. `max_windows` is the most windows at the same time.
    pub fn allocate(
        &mut self,
        decoder: &DecoderSession,
        window: WindowId,
        max_windows: usize,
    ) -> Result<usize, ort::Error> {
        let used = self.windows.len();
        let needed = slots_for(used + 1, max_windows);
        if self.cache.slots() < needed {
            self.cache.grow(decoder, needed, used)?;
        }

        self.windows.push(window);
        Ok(used)
    }

    /// Moves a window to those that take steps.
    pub fn begin_stepping(&mut self, window: WindowId, lengths: RowLengths<'_>) -> Result<(), ort::Error> {
        let slot = self.slot_of(window)?;
        if slot >= self.stepping {
            self.exchange(slot, self.stepping, lengths)?;
            self.stepping += 1;
        }
        Ok(())
    }

    pub fn end_stepping(&mut self, window: WindowId, lengths: RowLengths<'_>) -> Result<(), ort::Error> {
        let slot = self.slot_of(window)?;
        if slot < self.stepping {
            self.exchange(slot, self.stepping - 1, lengths)?;
            self.stepping -= 1;
        }
        Ok(())
    }

    pub fn end_all_stepping(&mut self) {
        self.stepping = 0;
    }

    /// Frees the window's slot; does nothing for a window that has none.
    pub fn release(&mut self, window: WindowId, lengths: RowLengths<'_>) -> Result<(), ort::Error> {
        let Ok(mut free_slot) = self.slot_of(window) else { return Ok(()) };
        let mut result = Ok(());

        if free_slot < self.stepping {
            self.stepping -= 1;
            result = self.move_window(self.stepping, free_slot, lengths);
            free_slot = self.stepping;
        }

        let last = self.windows.len() - 1;
        result = result.and(self.move_window(last, free_slot, lengths));
        self.windows.pop();

        result
    }

    /// Moves a window into a slot whose own window has ended.
    fn move_window(&mut self, from: usize, to: usize, lengths: RowLengths<'_>) -> Result<(), ort::Error> {
        if to == from {
            return Ok(());
        }
        self.windows[to] = self.windows[from];
        self.cache.copy_window(from, to, lengths(self.windows[from]))
    }

    fn exchange(&mut self, a: usize, b: usize, lengths: RowLengths<'_>) -> Result<(), ort::Error> {
        if a == b {
            return Ok(());
        }

        let spare = self.cache.slots() - 1;
        let (a_length, b_length) = (lengths(self.windows[a]), lengths(self.windows[b]));
        self.cache.copy_window(a, spare, a_length)?;
        self.cache.copy_window(b, a, b_length)?;
        self.cache.copy_window(spare, b, a_length)?;
        self.windows.swap(a, b);

        Ok(())
    }
}

/// Slots for so many windows. There are few sizes, so that memory grows seldom, and a spare slot where two windows may
/// be exchanged.
fn slots_for(windows: usize, max_windows: usize) -> usize {
    let slots = windows.next_power_of_two().min(max_windows.max(windows));
    if slots > 1 { slots + 1 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_in_few_steps() {
        let sizes: Vec<usize> = (1..=6).map(|windows| slots_for(windows, 6)).collect();
        assert_eq!(sizes, [1, 3, 5, 5, 7, 7]);
        assert_eq!(slots_for(1, 1), 1);
    }
}
