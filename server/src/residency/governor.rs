//! Whether somebody else decides about memory: a controller uses the admin API all the time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A controller looks at its servers more often than this.
const ABSENT_AFTER: Duration = Duration::from_secs(120);

/// What was seen of controllers. Cheap to clone.
#[derive(Clone, Default)]
pub struct Governor {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    last: Option<Instant>,
    /// Streams of events that are open.
    streams: usize,
}

impl Seen {
    fn is_present(self, now: Instant) -> bool {
        self.streams > 0 || self.last.is_some_and(|at| now.saturating_duration_since(at) < ABSENT_AFTER)
    }
}

impl Governor {
    /// Somebody who may has used the admin API.
    pub fn note(&self, now: Instant) {
        self.change(|seen| seen.last = Some(now));
    }

    /// Somebody who may follows the events, until the guard is dropped.
    pub fn follow(&self) -> Following {
        self.change(|seen| seen.streams += 1);
        Following { governor: self.clone() }
    }

    pub fn is_present(&self, now: Instant) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).is_present(now)
    }

    fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A stream of events that is open.
pub struct Following {
    governor: Governor,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.governor.change(|seen| {
            seen.streams -= 1;
            seen.last = Some(Instant::now());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_present_for_a_while_after_its_last_request() {
        let (governor, start) = (Governor::default(), Instant::now());
        assert!(!governor.is_present(start));
        governor.note(start);
        assert!(governor.is_present(start + ABSENT_AFTER / 2));
        assert!(!governor.is_present(start + ABSENT_AFTER));
    }

    #[test]
    fn who_follows_the_events_is_present() {
        let (governor, much_later) = (Governor::default(), Instant::now() + 100 * ABSENT_AFTER);
        let (one, other) = (governor.follow(), governor.follow());
        drop(one);
        assert!(governor.is_present(much_later));
        drop(other);
        assert!(governor.is_present(Instant::now()) && !governor.is_present(much_later));
    }
}
