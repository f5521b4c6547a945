//! How many connections a listener serves at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Further connections that are told so and answered where they are probes.
const OVERFLOW_MAX: usize = 64;
const OVERFLOW_MIN: usize = 4;
/// Of the served ones, by default.
const OVERFLOW_SHARE: usize = 8;

/// The places of one listener. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    served: Arc<Semaphore>,
    overflow: Arc<Semaphore>,
    max: usize,
    is_full: Arc<AtomicBool>,
}

/// The place of one connection; its drop frees the place.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// What becomes of a connection that was accepted.
#[derive(Debug)]
pub enum Admission {
    Served(Place),
    /// Every place is taken: one request is read, and refused unless it is a probe.
    Overflow(Place),
    /// Not even that: the connection is closed.
    Closed,
}

impl ConnectionLimit {
    pub fn new(max: usize) -> Self {
        let overflow = (max / OVERFLOW_SHARE).clamp(OVERFLOW_MIN, OVERFLOW_MAX);
        Self {
            served: Arc::new(Semaphore::new(max)),
            overflow: Arc::new(Semaphore::new(overflow)),
            max,
            is_full: Arc::default(),
        }
    }

    /// Decides about a connection; never waits.
    pub fn admit(&self) -> Admission {
        if let Ok(permit) = Arc::clone(&self.served).try_acquire_owned() {
            if self.is_full.swap(false, Ordering::Relaxed) {
                tracing::info!("connections are accepted again");
            }
            return Admission::Served(Place { _permit: permit });
        }
        if !self.is_full.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                max_connections = self.max,
                "every connection is in use: further ones are answered with 503"
            );
        }
        match Arc::clone(&self.overflow).try_acquire_owned() {
            Ok(permit) => Admission::Overflow(Place { _permit: permit }),
            Err(_) => Admission::Closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back() {
        let limit = ConnectionLimit::new(2);
        let (one, two) = (limit.admit(), limit.admit());
        assert!(matches!((&one, &two), (Admission::Served(_), Admission::Served(_))));
        let over: Vec<Admission> = (0..OVERFLOW_MIN).map(|_| limit.admit()).collect();
        assert!(over.iter().all(|admission| matches!(admission, Admission::Overflow(_))));
        assert!(matches!(limit.admit(), Admission::Closed));
        drop(over);
        assert!(matches!(limit.admit(), Admission::Overflow(_)));
        drop(one);
        assert!(matches!(limit.admit(), Admission::Served(_)));
    }
}
