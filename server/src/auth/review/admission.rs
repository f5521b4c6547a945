//! Which token is reviewed now, which waits, and which is refused without a review because its sender has too many.
//!
//! ```text
//! known tokens ----- 1 slot   a good verdict within the last hour; no other limit
//! known peers ------ 2 slots  a good token came from this address; one review at a time for each address
//! all others ------- 3 slots  one review at a time for each address
//! ```
//!
//! So bad tokens, however many and from however many addresses, neither delay a token that was good a while ago, nor a new
//! one that comes from the address of the controller.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

const KNOWN_TOKENS_AT_ONCE: usize = 1;
const KNOWN_PEERS_AT_ONCE: usize = 2;
const STRANGERS_AT_ONCE: usize = 3;
/// Of one address, reviewed or waiting.
const REQUESTS_PER_PEER: usize = 4;
/// So many tokens of one address are reviewed at once, and one more after each period.
const BURST: u32 = 20;
const PERIOD: Duration = Duration::from_secs(1);
/// Addresses that are kept in mind.
const PEERS_MAX: usize = 1024;
const KNOWN_PEERS_MAX: usize = 64;
/// How long an address counts as one that good tokens come from.
const PEER_KNOWN_FOR: Duration = Duration::from_secs(3600);

/// Why a token is not reviewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TooMany {
    #[error("too many tokens from this address wait to be reviewed; try again in a second")]
    Waiting,
    #[error("too many tokens from this address were reviewed; try again in some seconds")]
    Reviewed,
    #[error("tokens from too many addresses are reviewed; try again in some seconds")]
    Peers,
}

/// An address, or the network that one host has with IPv6; `None`: it is not known.
type Peer = Option<IpAddr>;

fn peer(address: Option<IpAddr>) -> Peer {
    address.map(|address| match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    })
}

pub(super) struct Admission {
    known_tokens: Arc<Semaphore>,
    known_peers: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    peers: Arc<Mutex<Peers>>,
}

#[derive(Default)]
struct Peers {
    all: HashMap<Peer, PeerState>,
    /// When a good token came from there for the last time.
    known: HashMap<Peer, Instant>,
}

struct PeerState {
    /// One review at a time.
    slot: Arc<Semaphore>,
    /// Requests that are reviewed or wait.
    inside: usize,
    /// When it may have a whole burst again.
    full_at: Instant,
}

/// Held while a token is reviewed.
pub(super) struct Place {
    _slots: Vec<OwnedSemaphorePermit>,
    _entry: Option<Entry>,
}

/// A request of a peer, from its arrival to its end.
struct Entry {
    peers: Arc<Mutex<Peers>>,
    peer: Peer,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(state) = lock(&self.peers).all.get_mut(&self.peer) {
            state.inside = state.inside.saturating_sub(1);
        }
    }
}

fn lock(peers: &Mutex<Peers>) -> MutexGuard<'_, Peers> {
    peers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Admission {
    fn default() -> Self {
        let slots = |count| Arc::new(Semaphore::new(count));
        Self {
            known_tokens: slots(KNOWN_TOKENS_AT_ONCE),
            known_peers: slots(KNOWN_PEERS_AT_ONCE),
            strangers: slots(STRANGERS_AT_ONCE),
            peers: Arc::default(),
        }
    }
}

impl Admission {
    /// Waits for a slot. The caller bounds the wait.
    pub(super) async fn enter(&self, address: Option<IpAddr>, token_is_known: bool) -> Result<Place, TooMany> {
        if token_is_known {
            return Ok(Place { _slots: acquired([&self.known_tokens]).await, _entry: None });
        }

        let peer = peer(address);
        let (own_slot, is_known) = lock(&self.peers).enter(Instant::now(), peer)?;
        let entry = Entry { peers: Arc::clone(&self.peers), peer };
        let shared = if is_known { &self.known_peers } else { &self.strangers };
        Ok(Place { _slots: acquired([&own_slot, shared]).await, _entry: Some(entry) })
    }

    /// A good token came from there.
    pub(super) fn welcome(&self, address: Option<IpAddr>) {
        let (peer, now) = (peer(address), Instant::now());
        let known = &mut lock(&self.peers).known;
        if known.len() >= KNOWN_PEERS_MAX && !known.contains_key(&peer) {
            let oldest = known.iter().min_by_key(|(_, at)| **at).map(|(peer, _)| *peer);
            oldest.map(|peer| known.remove(&peer));
        }
        known.insert(peer, now);
    }
}

/// One permit of each, in this order.
async fn acquired<const N: usize>(semaphores: [&Arc<Semaphore>; N]) -> Vec<OwnedSemaphorePermit> {
    let mut permits = Vec::with_capacity(N);
    for semaphore in semaphores {
        // None of them is ever closed.
        permits.extend(Arc::clone(semaphore).acquire_owned().await);
    }
    permits
}

impl Peers {
    /// Counts a request, if the peer may have one more. Gives the peer's own slot, and whether good tokens came from it.
    fn enter(&mut self, now: Instant, peer: Peer) -> Result<(Arc<Semaphore>, bool), TooMany> {
        let is_known = self.known.get(&peer).is_some_and(|at| now.saturating_duration_since(*at) < PEER_KNOWN_FOR);
        if self.all.len() >= PEERS_MAX && !self.all.contains_key(&peer) {
            self.all.retain(|_, state| state.inside > 0 || state.full_at > now);
            if self.all.len() >= PEERS_MAX && !is_known {
                return Err(TooMany::Peers);
            }
        }

        let state = self.all.entry(peer).or_insert_with(|| PeerState {
            slot: Arc::new(Semaphore::new(1)),
            inside: 0,
            full_at: now,
        });
        if state.inside >= REQUESTS_PER_PEER {
            return Err(TooMany::Waiting);
        }
        let full_at = state.full_at.max(now) + PERIOD;
        if full_at.saturating_duration_since(now) > PERIOD * BURST {
            return Err(TooMany::Reviewed);
        }

        state.full_at = full_at;
        state.inside += 1;
        Ok((Arc::clone(&state.slot), is_known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, n]))
    }

    /// Whether it gets a slot without waiting.
    async fn gets_in(admission: &Admission, address: Option<IpAddr>, token_is_known: bool) -> Option<Place> {
        let waited = tokio::time::timeout(Duration::from_millis(50), admission.enter(address, token_is_known)).await;
        waited.ok().and_then(Result::ok)
    }

    #[tokio::test]
    async fn strangers_leave_the_slots_of_known_tokens_and_peers_alone() {
        let admission = Admission::default();
        admission.welcome(address(200));
        let mut held = Vec::new();
        for n in 0..10 {
            held.extend(gets_in(&admission, address(n), false).await);
        }
        assert_eq!(held.len(), STRANGERS_AT_ONCE);
        assert!(gets_in(&admission, address(250), false).await.is_none());
        assert!(gets_in(&admission, address(200), false).await.is_some(), "a peer that good tokens come from");
        assert!(gets_in(&admission, address(250), true).await.is_some(), "a token that was good, from anywhere");
    }

    #[tokio::test]
    async fn the_peer_of_the_controller_does_not_stop_its_known_token() {
        let admission = Admission::default();
        admission.welcome(address(1));
        let one = gets_in(&admission, address(1), false).await;
        assert!(one.is_some());
        assert!(gets_in(&admission, address(1), false).await.is_none(), "one at a time for each address");
        assert!(gets_in(&admission, address(1), true).await.is_some());
    }

    #[test]
    fn a_peer_has_a_burst_and_then_one_after_each_period() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        let mut enter = |now: Instant, n: u8| {
            let entered = peers.enter(now, address(n)).map(drop);
            if entered.is_ok() {
                peers.all.get_mut(&address(n)).unwrap().inside -= 1;
            }
            entered
        };
        let reviewed = (0..1000).filter(|_| enter(now, 1).is_ok()).count();
        assert_eq!(reviewed, BURST as usize);
        assert_eq!(enter(now, 1), Err(TooMany::Reviewed));
        assert_eq!(enter(now, 2), Ok(()));
        let later = now + PERIOD;
        assert_eq!(enter(later, 1), Ok(()));
        assert_eq!(enter(later, 1), Err(TooMany::Reviewed));
    }

    #[tokio::test]
    async fn requests_that_wait_are_bounded_and_counted_to_their_end() {
        let admission = Arc::new(Admission::default());
        let place = admission.enter(address(1), false).await.unwrap();
        let waiting: Vec<_> = (1..REQUESTS_PER_PEER)
            .map(|_| {
                let admission = Arc::clone(&admission);
                tokio::spawn(async move { admission.enter(address(1), false).await.map(drop) })
            })
            .collect();
        // The test has one thread: each task runs until it waits.
        tokio::task::yield_now().await;
        assert_eq!(admission.enter(address(1), false).await.err(), Some(TooMany::Waiting));

        // One goes away while it waits, the others get the slot in turn.
        waiting[0].abort();
        drop(place);
        for (n, task) in waiting.into_iter().enumerate() {
            assert_eq!(task.await.is_ok(), n > 0);
        }
        assert!(admission.enter(address(1), false).await.is_ok());
        assert!(lock(&admission.peers).all.values().all(|state| state.inside == 0));
    }

    #[tokio::test]
    async fn addresses_are_bounded_and_those_of_one_host_are_one() {
        let admission = Admission::default();
        for n in 0..2 * PEERS_MAX as u32 {
            drop(admission.enter(Some(IpAddr::from(n.to_be_bytes())), false).await);
        }
        assert!(lock(&admission.peers).all.len() <= PEERS_MAX);
        assert_eq!(admission.enter(address(1), false).await.err(), Some(TooMany::Peers));
        let v6 = |text: &str| peer(Some(text.parse().unwrap()));
        assert_eq!(v6("fd00::1"), v6("fd00::ffff:1"));
        assert_ne!(v6("fd00::1"), v6("fd00:0:0:1::1"));
        assert_eq!(v6("::ffff:10.0.0.1"), address(1));
    }
}
