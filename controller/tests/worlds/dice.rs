//! Chances and choices on top of the numbers that every machine draws alike.

use hush_controller::simulate::trace::Dice;

pub trait Throw {
    fn chance(&mut self, percent: u64) -> bool;
    /// Both inclusive.
    fn between(&mut self, least: u64, most: u64) -> u64;
    fn pick<T: Copy>(&mut self, from: &[T]) -> T;
    /// `None` in so many of a hundred cases.
    fn perhaps<T: Copy>(&mut self, none_percent: u64, from: &[T]) -> Option<T>;
    /// With this mean, at least 1.
    fn around_ms(&mut self, mean_ms: u64) -> u64;
}

impl Throw for Dice {
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
