//! Where the windows lie in the decoder's memory. Those that take steps lie first and side by side, so that a call sees
//! exactly them; when one begins or ends, at most two windows change places.

use super::{
    kv_cache::{Backend, Decoder, KvCache},
    window::WindowId,
};

pub struct Seats {
    cache: KvCache,
    /// The windows in the order of their places.
    windows: Vec<WindowId>,
    /// So many of them take steps.
    stepping: usize,
}

/// Tokens of a window's row that a copy must take along.
pub type Lengths<'a> = &'a dyn Fn(WindowId) -> usize;

impl Seats {
    /// `most` is how many windows there will ever be. A device's memory is taken for all of them at once: what a model
    /// needs is then known when it is loaded, and a captured graph stays valid.
    pub fn new(decoder: &Decoder, most: usize) -> Result<Self, ort::Error> {
        let places = match decoder.backend {
            Backend::Host => 1,
            Backend::Device { .. } => places_for(most, most),
        };
        Ok(Self { cache: KvCache::new(decoder, 1, places)?, windows: Vec::new(), stepping: 0 })
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

    pub fn place(&self, window: WindowId) -> Result<usize, ort::Error> {
        let place = self.windows.iter().position(|known| *known == window);
        place.ok_or_else(|| ort::Error::new("no such window"))
    }

    /// A place for a window that takes no steps yet. `most` is how many there will ever be.
    pub fn add(&mut self, decoder: &Decoder, window: WindowId, most: usize) -> Result<usize, ort::Error> {
        let used = self.windows.len();
        let wanted = places_for(used + 1, most);
        if self.cache.places() < wanted {
            self.cache.grow(decoder, wanted, used)?;
        }
        self.windows.push(window);
        Ok(used)
    }

    pub fn begin(&mut self, window: WindowId, lengths: Lengths<'_>) -> Result<(), ort::Error> {
        let place = self.place(window)?;
        if place >= self.stepping {
            self.exchange(place, self.stepping, lengths)?;
            self.stepping += 1;
        }
        Ok(())
    }

    pub fn end(&mut self, window: WindowId, lengths: Lengths<'_>) -> Result<(), ort::Error> {
        let place = self.place(window)?;
        if place < self.stepping {
            self.exchange(place, self.stepping - 1, lengths)?;
            self.stepping -= 1;
        }
        Ok(())
    }

    pub fn end_all(&mut self) {
        self.stepping = 0;
    }

    /// Frees a place; a window without one has been removed already.
    pub fn remove(&mut self, window: WindowId, lengths: Lengths<'_>) -> Result<(), ort::Error> {
        let Ok(mut hole) = self.place(window) else { return Ok(()) };
        let mut result = Ok(());
        if hole < self.stepping {
            self.stepping -= 1;
            result = self.fill(hole, self.stepping, lengths);
            hole = self.stepping;
        }

        let last = self.windows.len() - 1;
        result = result.and(self.fill(hole, last, lengths));
        self.windows.pop();

        result
    }

    /// Moves a window into a place whose own window is gone.
    fn fill(&mut self, hole: usize, from: usize, lengths: Lengths<'_>) -> Result<(), ort::Error> {
        if hole == from {
            return Ok(());
        }
        self.windows[hole] = self.windows[from];
        self.cache.copy_window(from, hole, lengths(self.windows[from]))
    }

    fn exchange(&mut self, a: usize, b: usize, lengths: Lengths<'_>) -> Result<(), ort::Error> {
        if a == b {
            return Ok(());
        }

        let spare = self.cache.places() - 1;
        let (first, second) = (lengths(self.windows[a]), lengths(self.windows[b]));
        self.cache.copy_window(a, spare, first)?;
        self.cache.copy_window(b, a, second)?;
        self.cache.copy_window(spare, b, first)?;
        self.windows.swap(a, b);

        Ok(())
    }
}

/// Places for `windows` of them: few sizes, so that memory grows seldom, and one to spare where two may change places.
fn places_for(windows: usize, most: usize) -> usize {
    let places = windows.next_power_of_two().min(most.max(windows));
    if places > 1 { places + 1 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_in_few_steps() {
        let sizes: Vec<usize> = (1..=6).map(|windows| places_for(windows, 6)).collect();
        assert_eq!(sizes, [1, 3, 5, 5, 7, 7]);
        assert_eq!(places_for(1, 1), 1);
    }
}
