//! Limits the number of connections that a listener serves at a time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::service::RequestPhase;

/// Limits for the connections beyond the maximum, which are answered with 503 unless they are probes.
const OVERFLOW_MAX: usize = 64;
const OVERFLOW_MIN: usize = 4;
/// By default one such connection is allowed for this many served ones.
const OVERFLOW_SHARE: usize = 8;

/// When every slot is taken, a connection that has been without a request for this long loses its slot to a new one.
const IDLE_AT_LEAST: Duration = Duration::from_secs(1);

/// The connection slots of one listener. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    state: Arc<LimitState>,
}

#[derive(Debug)]
struct LimitState {
    max: usize,
    served: Arc<Semaphore>,
    overflow: Arc<Semaphore>,
    next_number: AtomicU64,
    /// The slots of the connections that are served.
    slots: Mutex<HashMap<u64, ServedSlot>>,
    is_full: AtomicBool,
}

#[derive(Debug)]
struct ServedSlot {
    phase: RequestPhase,
    permit: OwnedSemaphorePermit,
}

/// The slot of one connection; its drop frees the slot.
#[derive(Debug)]
pub struct ConnectionSlot {
    /// The request phase of the connection, for its service and its stream.
    pub phase: RequestPhase,
    kind: SlotKind,
}

#[derive(Debug)]
enum SlotKind {
    Served { state: Arc<LimitState>, number: u64 },
    Overflow { _permit: OwnedSemaphorePermit },
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        if let SlotKind::Served { state, number } = &self.kind {
            // After an eviction the permit belongs to another connection, and nothing is removed here.
            drop(state.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(number));
        }
    }
}

/// The decision on a connection that was accepted.
#[derive(Debug)]
pub enum ConnectionAdmission {
    Served(ConnectionSlot),
    /// Every slot is taken: one request is read, and refused unless it is a probe.
    Overflow(ConnectionSlot),
    /// The overflow is full, too: the connection is closed.
    Closed,
}

impl ConnectionLimit {
    pub fn new(max: usize) -> Self {
        let overflow = (max / OVERFLOW_SHARE).clamp(OVERFLOW_MIN, OVERFLOW_MAX);

        let state = LimitState {
            max,
            served: Arc::new(Semaphore::new(max)),
            overflow: Arc::new(Semaphore::new(overflow)),
            next_number: AtomicU64::new(0),
            slots: Mutex::default(),
            is_full: AtomicBool::new(false),
        };

        Self { state: Arc::new(state) }
    }

    /// Decides on a connection without waiting. When every slot is taken, the connection that has been without a
    /// request for longest loses its slot, whether it is between two requests or has never sent one.
    pub fn admit(&self) -> ConnectionAdmission {
        self.admit_after(IDLE_AT_LEAST)
    }

    /// Closes the connection that has been without a request for longest, so that its file becomes free. Returns whether
    /// there is one.
    pub fn close_longest_idle(&self) -> bool {
        self.take_from_idle(IDLE_AT_LEAST).is_some()
    }

    fn admit_after(&self, idle_at_least: Duration) -> ConnectionAdmission {
        let state = &self.state;
        if let Ok(permit) = Arc::clone(&state.served).try_acquire_owned() {
            if state.is_full.swap(false, Ordering::Relaxed) {
                tracing::info!("there is room for further connections again");
            }

            return ConnectionAdmission::Served(self.served_slot(permit));
        }

        if !state.is_full.swap(true, Ordering::Relaxed) {
            let max_connections = state.max;
            tracing::warn!(
                max_connections,
                "every connection is in use: idle ones are closed, further ones are answered with 503"
            );
        }

        if let Some(permit) = self.take_from_idle(idle_at_least) {
            return ConnectionAdmission::Served(self.served_slot(permit));
        }

        match Arc::clone(&state.overflow).try_acquire_owned() {
            Ok(permit) => {
                let kind = SlotKind::Overflow { _permit: permit };
                ConnectionAdmission::Overflow(ConnectionSlot { phase: RequestPhase::default(), kind })
            }
            Err(_) => ConnectionAdmission::Closed,
        }
    }

    fn served_slot(&self, permit: OwnedSemaphorePermit) -> ConnectionSlot {
        let state = Arc::clone(&self.state);
        let number = state.next_number.fetch_add(1, Ordering::Relaxed);
        let phase = RequestPhase::default();
        let slot = ServedSlot { phase: phase.clone(), permit };
        state.slots.lock().unwrap_or_else(PoisonError::into_inner).insert(number, slot);

        ConnectionSlot { phase, kind: SlotKind::Served { state, number } }
    }

    fn take_from_idle(&self, idle_at_least: Duration) -> Option<OwnedSemaphorePermit> {
        let mut slots = self.state.slots.lock().unwrap_or_else(PoisonError::into_inner);

        let idle = slots.iter().filter_map(|(number, slot)| Some((slot.phase.idle_for()?, *number)));
        let (_, number) = idle.filter(|(idle, _)| *idle >= idle_at_least).max()?;
        let ServedSlot { phase, permit } = slots.remove(&number)?;
        phase.evict();
        Some(permit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::MAX;

    fn served(admission: ConnectionAdmission) -> ConnectionSlot {
        match admission {
            ConnectionAdmission::Served(slot) => slot,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn slots_are_freed() {
        let limit = ConnectionLimit::new(2);
        let (one, _two) = (served(limit.admit()), served(limit.admit()));

        let over: Vec<ConnectionAdmission> = (0..OVERFLOW_MIN).map(|_| limit.admit_after(NEVER)).collect();
        assert!(over.iter().all(|admission| matches!(admission, ConnectionAdmission::Overflow(_))));
        assert!(matches!(limit.admit_after(NEVER), ConnectionAdmission::Closed));

        drop(over);
        assert!(matches!(limit.admit_after(NEVER), ConnectionAdmission::Overflow(_)));
        drop(one);
        assert!(matches!(limit.admit_after(NEVER), ConnectionAdmission::Served(_)));
    }

    #[test]
    fn the_longest_idle_connection_is_evicted_and_requests_stay() {
        let limit = ConnectionLimit::new(3);

        let slots = [(); 3].map(|()| served(limit.admit()));
        let in_request = slots[0].phase.begin();
        // The second connection has just had a request; the third never had one.
        drop(slots[1].phase.begin());
        std::thread::sleep(Duration::from_millis(5));
        drop(slots[1].phase.begin());

        let new = served(limit.admit_after(Duration::ZERO));
        let evicted = |slot: &ConnectionSlot| slot.phase.is_evicted();
        assert_eq!(slots.each_ref().map(evicted), [false, false, true]);
        let _busy = new.phase.begin();

        let newer = served(limit.admit_after(Duration::ZERO));
        assert_eq!(slots.each_ref().map(evicted), [false, true, true]);
        let _busy_too = newer.phase.begin();
        assert!(
            matches!(limit.admit_after(Duration::ZERO), ConnectionAdmission::Overflow(_)),
            "three requests are served"
        );

        // The permit of an evicted connection belongs to another one.
        drop(slots);
        drop(in_request);
        served(limit.admit_after(NEVER));
    }
}
