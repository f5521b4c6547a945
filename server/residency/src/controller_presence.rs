//! Whether a controller decides about the memory of this server: a controller uses the admin API all the time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A controller reads its servers more often than this.
const ABSENT_AFTER: Duration = Duration::from_secs(120);

/// When controllers have used the admin API. Cheap to clone; clones are the same record.
#[derive(Clone, Default)]
pub struct ControllerPresence {
    record: Arc<Mutex<ControllerRequests>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct ControllerRequests {
    last_request: Option<Instant>,
    /// Streams of events that are open.
    streams: usize,
}

impl ControllerRequests {
    fn is_present(self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < ABSENT_AFTER;

        self.streams > 0 || self.last_request.is_some_and(is_recent)
    }
}

impl ControllerPresence {
    /// An authorised client has used the admin API.
    pub fn note(&self, now: Instant) {
        self.change(|record| record.last_request = Some(now));
    }

    /// An authorised client follows the events, until the guard is dropped.
    pub fn follow(&self) -> EventStreamGuard {
        self.change(|record| record.streams += 1);

        EventStreamGuard { presence: self.clone() }
    }

    pub fn is_present(&self, now: Instant) -> bool {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).is_present(now)
    }

    fn change(&self, change: impl FnOnce(&mut ControllerRequests)) {
        change(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A stream of events that is open.
pub struct EventStreamGuard {
    presence: ControllerPresence,
}

impl Drop for EventStreamGuard {
    fn drop(&mut self) {
        self.presence.change(|record| {
            record.streams -= 1;
            record.last_request = Some(Instant::now());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_present_for_a_while_after_its_last_request() {
        let (presence, start) = (ControllerPresence::default(), Instant::now());
        assert!(!presence.is_present(start));

        presence.note(start);
        assert!(presence.is_present(start + ABSENT_AFTER / 2));
        assert!(!presence.is_present(start + ABSENT_AFTER));
    }

    #[test]
    fn a_client_that_follows_the_events_is_present() {
        let (presence, much_later) = (ControllerPresence::default(), Instant::now() + 100 * ABSENT_AFTER);

        let (one, other) = (presence.follow(), presence.follow());
        drop(one);
        assert!(presence.is_present(much_later));

        drop(other);
        assert!(presence.is_present(Instant::now()) && !presence.is_present(much_later));
    }
}
