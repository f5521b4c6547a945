//! Chances and choices on top of a random number generator that gives the same numbers on every machine.

use hush_controller::simulate::trace::SplitMix64;

pub trait DiceExt {
    /// `true` in `percent` of 100 cases.
    fn chance(&mut self, percent: u64) -> bool;
    /// A number between both bounds, which are inclusive.
    fn between(&mut self, least: u64, most: u64) -> u64;
    /// One of the values, each with the same probability.
    fn pick<T: Copy>(&mut self, from: &[T]) -> T;
    /// `None` in `none_percent` of 100 cases, otherwise one of the values.
    fn perhaps<T: Copy>(&mut self, none_percent: u64, from: &[T]) -> Option<T>;
    /// An exponentially distributed time with this mean, at least 1 ms.
    fn around_ms(&mut self, mean_ms: u64) -> u64;
}

impl DiceExt for SplitMix64 {
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    fn perhaps<T: Copy>(&mut self, none_percent: u64, from: &[T]) -> Option<T> {
        (!self.chance(none_percent)).then(|| self.pick(from))
    }

    fn around_ms(&mut self, mean_ms: u64) -> u64 {
        self.exponential(mean_ms as f64) as u64 + 1
    }
}
