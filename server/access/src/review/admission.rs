//! Decides which token is reviewed now, which one waits, and which one is refused because its sender has too many.
//!
//! ```text
//! known tokens ----- 1 slot   a good verdict within the last hour; no other limit
//! known peers ------ 2 slots  a good token came from this address; one review at a time for each address
//! all others ------- 3 slots  one review at a time for each address
//! ```
//!
//! So bad tokens, however many and from however many addresses, delay neither a token that was good within the last hour nor a
//! new token from the address of the controller.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

const KNOWN_TOKENS_AT_ONCE: usize = 1;
const KNOWN_PEERS_AT_ONCE: usize = 2;
const OTHER_PEERS_AT_ONCE: usize = 3;
/// Requests of one address that are reviewed or wait.
const REQUESTS_PER_PEER: usize = 4;
/// An address may have this many reviews at once, and one more after each period.
const BURST: u32 = 20;
const PERIOD: Duration = Duration::from_secs(1);
/// Number of addresses that are tracked.
const PEERS_MAX: usize = 1024;
const KNOWN_PEERS_MAX: usize = 64;
/// How long an address counts as one that good tokens come from.
const PEER_KNOWN_FOR: Duration = Duration::from_secs(3600);

/// Why a token is not reviewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TooManyReviews {
    #[error("too many tokens from this address wait to be reviewed; try again in a second")]
    Waiting,
    #[error("too many tokens from this address were reviewed; try again in some seconds")]
    Reviewed,
    #[error("tokens from too many addresses are reviewed; try again in some seconds")]
    Peers,
}

/// An address, or with IPv6 the /64 network of one host; `None`: the address is not known.
type PeerKey = Option<IpAddr>;

fn peer_key(address: Option<IpAddr>) -> PeerKey {
    address.map(|address| match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    })
}

pub(super) struct ReviewAdmission {
    known_tokens: Arc<Semaphore>,
    known_peers: Arc<Semaphore>,
    other_peers: Arc<Semaphore>,
    peers: Arc<Mutex<PeerTable>>,
}

#[derive(Default)]
struct PeerTable {
    all: HashMap<PeerKey, PeerState>,
    /// When a good token last came from the address.
    known: HashMap<PeerKey, Instant>,
}

struct PeerState {
    /// Admits one review at a time.
    slot: Arc<Semaphore>,
    /// Number of requests that are reviewed or wait.
    requests: usize,
    /// When the peer may have a whole burst again.
    full_at: Instant,
}

/// A slot for one review, which is held while the token is reviewed.
pub(super) struct ReviewSlot {
    _slots: Vec<OwnedSemaphorePermit>,
    _entry: Option<PeerRequest>,
}

/// A request of a peer, which counts from its arrival to its end.
struct PeerRequest {
    peers: Arc<Mutex<PeerTable>>,
    peer: PeerKey,
}

impl Drop for PeerRequest {
    fn drop(&mut self) {
        if let Some(state) = lock(&self.peers).all.get_mut(&self.peer) {
            state.requests = state.requests.saturating_sub(1);
        }
    }
}

fn lock(peers: &Mutex<PeerTable>) -> MutexGuard<'_, PeerTable> {
    peers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for ReviewAdmission {
    fn default() -> Self {
        let slots = |count| Arc::new(Semaphore::new(count));
        Self {
            known_tokens: slots(KNOWN_TOKENS_AT_ONCE),
            known_peers: slots(KNOWN_PEERS_AT_ONCE),
            other_peers: slots(OTHER_PEERS_AT_ONCE),
            peers: Arc::default(),
        }
    }
}

impl ReviewAdmission {
    /// Waits for a slot. The caller limits the wait.
    pub(super) async fn enter(
        &self,
        address: Option<IpAddr>,
        token_is_known: bool,
    ) -> Result<ReviewSlot, TooManyReviews> {
        if token_is_known {
            return Ok(ReviewSlot { _slots: acquired([&self.known_tokens]).await, _entry: None });
        }

        let peer = peer_key(address);
        let (own_slot, is_known) = lock(&self.peers).enter(Instant::now(), peer)?;
        let entry = PeerRequest { peers: Arc::clone(&self.peers), peer };
        let shared = if is_known { &self.known_peers } else { &self.other_peers };
        Ok(ReviewSlot { _slots: acquired([&own_slot, shared]).await, _entry: Some(entry) })
    }

    /// Notes that a good token came from the address.
    pub(super) fn remember_peer(&self, address: Option<IpAddr>) {
        let (peer, now) = (peer_key(address), Instant::now());

        let known = &mut lock(&self.peers).known;
        if known.len() >= KNOWN_PEERS_MAX && !known.contains_key(&peer) {
            let oldest = known.iter().min_by_key(|(_, at)| **at).map(|(peer, _)| *peer);
            oldest.map(|peer| known.remove(&peer));
        }

        known.insert(peer, now);
    }
}

/// Acquires one permit of each semaphore, in this order.
async fn acquired<const N: usize>(semaphores: [&Arc<Semaphore>; N]) -> Vec<OwnedSemaphorePermit> {
    let mut permits = Vec::with_capacity(N);
    for semaphore in semaphores {
        // The semaphores are never closed.
        permits.extend(Arc::clone(semaphore).acquire_owned().await);
    }

    permits
}

impl PeerTable {
    /// Counts a request, if the peer may have one more. Returns the peer's own slot, and whether good tokens came from
    /// the peer.
    fn enter(&mut self, now: Instant, peer: PeerKey) -> Result<(Arc<Semaphore>, bool), TooManyReviews> {
        let is_known = self.known.get(&peer).is_some_and(|at| now.saturating_duration_since(*at) < PEER_KNOWN_FOR);
        if self.all.len() >= PEERS_MAX && !self.all.contains_key(&peer) {
            self.all.retain(|_, state| state.requests > 0 || state.full_at > now);
            if self.all.len() >= PEERS_MAX && !is_known {
                return Err(TooManyReviews::Peers);
            }
        }

        let state = self.all.entry(peer).or_insert_with(|| PeerState {
            slot: Arc::new(Semaphore::new(1)),
            requests: 0,
            full_at: now,
        });
        if state.requests >= REQUESTS_PER_PEER {
            return Err(TooManyReviews::Waiting);
        }

        let full_at = state.full_at.max(now) + PERIOD;
        if full_at.saturating_duration_since(now) > PERIOD * BURST {
            return Err(TooManyReviews::Reviewed);
        }

        state.full_at = full_at;
        state.requests += 1;
        Ok((Arc::clone(&state.slot), is_known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, n]))
    }

    /// The slot that a request gets without waiting.
    async fn slot_at_once(
        admission: &ReviewAdmission,
        address: Option<IpAddr>,
        token_is_known: bool,
    ) -> Option<ReviewSlot> {
        let waited = tokio::time::timeout(Duration::from_millis(50), admission.enter(address, token_is_known)).await;
        waited.ok().and_then(Result::ok)
    }

    #[tokio::test]
    async fn unknown_peers_leave_the_slots_of_known_tokens_and_peers_free() {
        let admission = ReviewAdmission::default();
        admission.remember_peer(address(200));
        let mut held = Vec::new();
        for n in 0..10 {
            held.extend(slot_at_once(&admission, address(n), false).await);
        }

        assert_eq!(held.len(), OTHER_PEERS_AT_ONCE);
        assert!(slot_at_once(&admission, address(250), false).await.is_none());
        assert!(slot_at_once(&admission, address(200), false).await.is_some(), "a peer that good tokens come from");
        assert!(slot_at_once(&admission, address(250), true).await.is_some(), "a token that was good, from anywhere");
    }

    #[tokio::test]
    async fn the_peer_of_the_controller_does_not_delay_its_known_token() {
        let admission = ReviewAdmission::default();
        admission.remember_peer(address(1));

        let one = slot_at_once(&admission, address(1), false).await;
        assert!(one.is_some());
        assert!(slot_at_once(&admission, address(1), false).await.is_none(), "one at a time for each address");
        assert!(slot_at_once(&admission, address(1), true).await.is_some());
    }

    #[test]
    fn a_peer_has_a_burst_and_then_one_after_each_period() {
        let (mut peers, now) = (PeerTable::default(), Instant::now());
        let mut enter = |now: Instant, n: u8| {
            let entered = peers.enter(now, address(n)).map(drop);
            if entered.is_ok() {
                peers.all.get_mut(&address(n)).unwrap().requests -= 1;
            }

            entered
        };

        let reviewed = (0..1000).filter(|_| enter(now, 1).is_ok()).count();
        assert_eq!(reviewed, BURST as usize);
        assert_eq!(enter(now, 1), Err(TooManyReviews::Reviewed));

        assert_eq!(enter(now, 2), Ok(()));
        let later = now + PERIOD;
        assert_eq!(enter(later, 1), Ok(()));
        assert_eq!(enter(later, 1), Err(TooManyReviews::Reviewed));
    }

    #[tokio::test]
    async fn requests_that_wait_are_bounded_and_counted_to_their_end() {
        let admission = Arc::new(ReviewAdmission::default());
        let slot = admission.enter(address(1), false).await.unwrap();
        let waiting: Vec<_> = (1..REQUESTS_PER_PEER)
            .map(|_| {
                let admission = Arc::clone(&admission);
                tokio::spawn(async move { admission.enter(address(1), false).await.map(drop) })
            })
            .collect();
        // The test has one thread, so each task runs until it waits.
        tokio::task::yield_now().await;
        assert_eq!(admission.enter(address(1), false).await.err(), Some(TooManyReviews::Waiting));

        // One request ends while it waits; the others get the slot in turn.
        waiting[0].abort();
        drop(slot);
        for (n, task) in waiting.into_iter().enumerate() {
            assert_eq!(task.await.is_ok(), n > 0);
        }

        assert!(admission.enter(address(1), false).await.is_ok());
        assert!(lock(&admission.peers).all.values().all(|state| state.requests == 0));
    }

    #[tokio::test]
    async fn addresses_are_bounded_and_those_of_one_host_count_as_one() {
        let admission = ReviewAdmission::default();
        for n in 0..2 * PEERS_MAX as u32 {
            drop(admission.enter(Some(IpAddr::from(n.to_be_bytes())), false).await);
        }

        assert!(lock(&admission.peers).all.len() <= PEERS_MAX);

        assert_eq!(admission.enter(address(1), false).await.err(), Some(TooManyReviews::Peers));
        let v6 = |text: &str| peer_key(Some(text.parse().unwrap()));
        assert_eq!(v6("fd00::1"), v6("fd00::ffff:1"));
        assert_ne!(v6("fd00::1"), v6("fd00:0:0:1::1"));
        assert_eq!(v6("::ffff:10.0.0.1"), address(1));
    }
}
