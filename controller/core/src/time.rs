//! Arithmetic on times and durations that every rule shares.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// The time from `earlier` to `now`; zero when `earlier` is later.
pub fn elapsed(earlier: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(earlier)).unwrap_or(Duration::ZERO)
}

/// When a sample of this age was taken.
pub fn sampled_at(now: Timestamp, age: Duration) -> Timestamp {
    SignedDuration::try_from(age).ok().and_then(|age| now.checked_sub(age).ok()).unwrap_or(Timestamp::MIN)
}

/// Rounded up, so that a condition is never weaker than the rule.
pub const fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(if duration.subsec_nanos() > 0 { 1 } else { 0 })
}

/// Rounded down, as plans and explanations are written.
pub fn whole_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
