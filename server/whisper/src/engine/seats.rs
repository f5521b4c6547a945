//! Where the windows lie in the decoder's memory. Those that take steps lie first and side by side, so that a call sees
//! exactly them; when one begins or ends, at most two windows change places.

use super::{
    band::{Band, Decoder},
    window::WindowId,
};

pub struct Seats {
    band: Band,
    /// The windows in the order of their places.
    windows: Vec<WindowId>,
    /// So many of them take steps.
    stepping: usize,
}

/// Tokens of a window's row that a copy must take along.
pub type Lengths<'a> = &'a dyn Fn(WindowId) -> usize;

impl Seats {
    pub fn new(decoder: &Decoder) -> Result<Self, ort::Error> {
        Ok(Self { band: Band::new(decoder, 1, 1)?, windows: Vec::new(), stepping: 0 })
    }

    pub fn band(&mut self) -> &mut Band {
        &mut self.band
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
        if self.band.places() < wanted {
            self.band.grow(decoder, wanted, used)?;
        }
        self.windows.push(window);
        Ok(used)
    }

    pub fn begin(&mut self, decoder: &Decoder, window: WindowId, lengths: Lengths<'_>) -> Result<(), ort::Error> {
        let place = self.place(window)?;
        if place >= self.stepping {
            self.exchange(decoder, place, self.stepping, lengths)?;
            self.stepping += 1;
        }
        Ok(())
    }

    pub fn end(&mut self, decoder: &Decoder, window: WindowId, lengths: Lengths<'_>) -> Result<(), ort::Error> {
        let place = self.place(window)?;
        if place < self.stepping {
            self.exchange(decoder, place, self.stepping - 1, lengths)?;
            self.stepping -= 1;
        }
        Ok(())
    }

    pub fn end_all(&mut self) {
        self.stepping = 0;
    }

    /// Frees a place; a window without one has been removed already.
    pub fn remove(&mut self, decoder: &Decoder, window: WindowId, lengths: Lengths<'_>) -> Result<(), ort::Error> {
        let Ok(mut hole) = self.place(window) else { return Ok(()) };
        let mut result = Ok(());
        if hole < self.stepping {
            self.stepping -= 1;
            result = self.fill(decoder, hole, self.stepping, lengths);
            hole = self.stepping;
        }
        let last = self.windows.len() - 1;
        result = result.and(self.fill(decoder, hole, last, lengths));
        self.windows.pop();
        result
    }

    /// Moves a window into a place whose own window is gone.
    fn fill(&mut self, decoder: &Decoder, hole: usize, from: usize, lengths: Lengths<'_>) -> Result<(), ort::Error> {
        if hole == from {
            return Ok(());
        }
        self.windows[hole] = self.windows[from];
        self.band.copy_window(decoder, from, hole, lengths(self.windows[from]))
    }

    fn exchange(&mut self, decoder: &Decoder, a: usize, b: usize, lengths: Lengths<'_>) -> Result<(), ort::Error> {
        if a == b {
            return Ok(());
        }
        let spare = self.band.places() - 1;
        let (first, second) = (lengths(self.windows[a]), lengths(self.windows[b]));
        self.band.copy_window(decoder, a, spare, first)?;
        self.band.copy_window(decoder, b, a, second)?;
        self.band.copy_window(decoder, spare, b, first)?;
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
