//! The local clock by which a lease is judged.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A time since the boot of this machine. Suspended time counts: a machine that wakes must not believe that its claim still
/// holds. Values of different machines cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootInstant(Duration);

impl BootInstant {
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        // Neither part is ever negative or out of range on this clock.
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
        Self(Duration::new(seconds, nanoseconds))
    }

    pub const fn after_boot(time: Duration) -> Self {
        Self(time)
    }

    pub const fn since_boot(self) -> Duration {
        self.0
    }

    #[must_use]
    pub const fn plus(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }

    /// The time from this instant to `later`; zero when `later` has passed.
    pub const fn until(self, later: Self) -> Duration {
        later.0.saturating_sub(self.0)
    }
}
