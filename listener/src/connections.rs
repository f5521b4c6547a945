//! How many connections a listener serves at a time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::service::RequestPhase;

/// Further connections that are told so and answered where they are probes.
const OVERFLOW_MAX: usize = 64;
const OVERFLOW_MIN: usize = 4;
/// Of the served ones, by default.
const OVERFLOW_SHARE: usize = 8;

/// A connection without a request for so long makes room for another one where there is none.
const IDLE_AT_LEAST: Duration = Duration::from_secs(1);

/// The places of one listener. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    max: usize,
    served: Arc<Semaphore>,
    overflow: Arc<Semaphore>,
    next: AtomicU64,
    /// Those that are served.
    places: Mutex<HashMap<u64, Held>>,
    is_full: AtomicBool,
}

#[derive(Debug)]
struct Held {
    phase: RequestPhase,
    permit: OwnedSemaphorePermit,
}

/// The place of one connection; its drop frees the place.
#[derive(Debug)]
pub struct Place {
    /// How far the connection has come; for its service and its stream.
    pub phase: RequestPhase,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Served { shared: Arc<Shared>, number: u64 },
    Overflow { _permit: OwnedSemaphorePermit },
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Kind::Served { shared, number } = &self.kind {
            // Another connection may have it.
            drop(shared.places.lock().unwrap_or_else(PoisonError::into_inner).remove(number));
        }
    }
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
        let shared = Shared {
            max,
            served: Arc::new(Semaphore::new(max)),
            overflow: Arc::new(Semaphore::new(overflow)),
            next: AtomicU64::new(0),
            places: Mutex::default(),
            is_full: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Decides about a connection; never waits. Where every place is taken, the connection that has been without a request
    /// for longest loses its own, whether it is kept alive between two requests or has never sent one.
    pub fn admit(&self) -> Admission {
        self.admit_after(IDLE_AT_LEAST)
    }

    fn admit_after(&self, idle_at_least: Duration) -> Admission {
        let shared = &self.shared;
        if let Ok(permit) = Arc::clone(&shared.served).try_acquire_owned() {
            if shared.is_full.swap(false, Ordering::Relaxed) {
                tracing::info!("there is a place for further connections again");
            }
            return Admission::Served(self.place(permit));
        }
        if !shared.is_full.swap(true, Ordering::Relaxed) {
            let max_connections = shared.max;
            tracing::warn!(
                max_connections,
                "every connection is in use: idle ones are closed, further ones answered with 503"
            );
        }
        if let Some(permit) = self.take_from_idle(idle_at_least) {
            return Admission::Served(self.place(permit));
        }
        match Arc::clone(&shared.overflow).try_acquire_owned() {
            Ok(permit) => {
                let kind = Kind::Overflow { _permit: permit };
                Admission::Overflow(Place { phase: RequestPhase::default(), kind })
            }
            Err(_) => Admission::Closed,
        }
    }

    fn place(&self, permit: OwnedSemaphorePermit) -> Place {
        let shared = Arc::clone(&self.shared);
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let phase = RequestPhase::default();
        let held = Held { phase: phase.clone(), permit };
        shared.places.lock().unwrap_or_else(PoisonError::into_inner).insert(number, held);
        Place { phase, kind: Kind::Served { shared, number } }
    }

    fn take_from_idle(&self, idle_at_least: Duration) -> Option<OwnedSemaphorePermit> {
        let mut places = self.shared.places.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = places.iter().filter_map(|(number, held)| Some((held.phase.idle_for()?, *number)));
        let (_, number) = idle.filter(|(idle, _)| *idle >= idle_at_least).max()?;
        let Held { phase, permit } = places.remove(&number)?;
        phase.evict();
        Some(permit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::MAX;

    fn served(admission: Admission) -> Place {
        match admission {
            Admission::Served(place) => place,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn places_come_back() {
        let limit = ConnectionLimit::new(2);
        let (one, _two) = (served(limit.admit()), served(limit.admit()));
        let over: Vec<Admission> = (0..OVERFLOW_MIN).map(|_| limit.admit_after(NEVER)).collect();
        assert!(over.iter().all(|admission| matches!(admission, Admission::Overflow(_))));
        assert!(matches!(limit.admit_after(NEVER), Admission::Closed));
        drop(over);
        assert!(matches!(limit.admit_after(NEVER), Admission::Overflow(_)));
        drop(one);
        assert!(matches!(limit.admit_after(NEVER), Admission::Served(_)));
    }

    #[test]
    fn the_longest_idle_makes_room_and_requests_stay() {
        let limit = ConnectionLimit::new(3);
        let places = [(); 3].map(|()| served(limit.admit()));
        let in_request = places[0].phase.begin();
        // The second has just had a request, the third never.
        drop(places[1].phase.begin());
        std::thread::sleep(Duration::from_millis(5));
        drop(places[1].phase.begin());
        let new = served(limit.admit_after(Duration::ZERO));
        let evicted = |place: &Place| place.phase.is_evicted();
        assert_eq!(places.each_ref().map(evicted), [false, false, true]);
        let _busy = new.phase.begin();
        let newer = served(limit.admit_after(Duration::ZERO));
        assert_eq!(places.each_ref().map(evicted), [false, true, true]);
        let _busy_too = newer.phase.begin();
        assert!(matches!(limit.admit_after(Duration::ZERO), Admission::Overflow(_)), "three requests are served");
        // The place of an evicted connection is another's.
        drop(places);
        drop(in_request);
        served(limit.admit_after(NEVER));
    }
}
