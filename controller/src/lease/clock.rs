//! The local clock that a lease is judged by.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since this machine was started, its sleep included: a machine that wakes must not believe that its claim still
/// holds. It means nothing on another machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        // Neither is ever negative or out of range on this clock.
        Self(Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0)))
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

    /// Zero when that has passed.
    pub const fn until(self, later: Self) -> Duration {
        later.0.saturating_sub(self.0)
    }
}
