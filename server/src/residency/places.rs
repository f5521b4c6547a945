//! The places that models take in memory when a server may hold only so many (`--max-loaded`).

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hush_contract::{ModelState, UnloadReason};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::lru::{self, Decision, Use};
use super::machine::{Moment, Unload};
use super::owner::Message;
use super::snapshot::Board;

/// For what a busy model has begun: no work is thrown away so that another model may come.
const DRAIN: Duration = Duration::from_secs(3600);

/// A model as others see it who want its place.
#[derive(Clone)]
pub(super) struct Guest {
    pub(super) model: String,
    /// Weak: a model that nobody can ask for ends.
    pub(super) inbox: mpsc::WeakUnboundedSender<Message>,
    pub(super) board: Board,
}

/// Cheap to clone; without a limit it is always open.
#[derive(Clone)]
pub(super) struct Places(Option<Arc<Inner>>);

struct Inner {
    limit: NonZeroUsize,
    start: Instant,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    next: u64,
    taken: BTreeMap<u64, Taken>,
    /// Who waits, in the order of arrival.
    queue: VecDeque<u64>,
}

struct Taken {
    guest: Guest,
    entered: Moment,
}

/// The right to be in memory. Its drop gives the place back.
pub(super) struct Place {
    inner: Arc<Inner>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.lock().taken.remove(&self.id);
        self.inner.changed.notify_waiters();
    }
}

/// A turn in the queue; its drop gives it up.
struct Turn {
    inner: Arc<Inner>,
    id: u64,
    since: Moment,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.inner.lock().queue.retain(|id| *id != self.id);
        self.inner.changed.notify_waiters();
    }
}

enum Next {
    Entered(Place),
    /// What to ask of whom.
    Ask(Guest, Unload),
    Wait(Option<Moment>),
}

impl Places {
    pub(super) fn new(limit: Option<NonZeroUsize>) -> Self {
        let inner = |limit| {
            let (start, state) = (Instant::now(), Mutex::default());
            Arc::new(Inner { limit, start, state, changed: Notify::new() })
        };
        Self(limit.map(inner))
    }

    pub(super) const fn unlimited() -> Self {
        Self(None)
    }

    pub(super) const fn is_limited(&self) -> bool {
        self.0.is_some()
    }

    /// The state of a model has changed: somebody may get its place.
    pub(super) fn poke(&self) {
        if let Some(inner) = &self.0 {
            inner.changed.notify_waiters();
        }
    }

    /// Waits for a place and makes room where it may; `None` without a limit.
    pub(super) async fn take(&self, guest: Guest) -> Option<Place> {
        let inner = self.0.clone()?;
        let turn = Turn::new(&inner);
        loop {
            // Before looking, so that no change is missed.
            let changed = inner.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            match turn.next(&guest) {
                Next::Entered(place) => return Some(place),
                Next::Ask(other, unload) => {
                    let asked = other.unload(unload);
                    tokio::select! {
                        () = asked => {}
                        () = changed => {}
                    }
                }
                Next::Wait(Some(until)) => {
                    let until = inner.start + until.since(Moment::START);
                    tokio::select! {
                        () = tokio::time::sleep_until(until) => {}
                        () = changed => {}
                    }
                }
                Next::Wait(None) => changed.await,
            }
        }
    }
}

impl Turn {
    fn new(inner: &Arc<Inner>) -> Self {
        let since = inner.now();
        let mut state = inner.lock();
        state.next += 1;
        let id = state.next;
        state.queue.push_back(id);
        drop(state);
        Self { inner: Arc::clone(inner), id, since }
    }

    fn next(&self, guest: &Guest) -> Next {
        let now = self.inner.now();
        let mut state = self.inner.lock();
        if state.queue.front() != Some(&self.id) {
            return Next::Wait(None);
        }
        let (others, taken): (Vec<&Taken>, Vec<Use>) =
            state.taken.values().map(|taken| (taken, self.inner.used(taken))).unzip();
        match lru::decide(self.inner.limit, &taken, now, self.since) {
            Decision::Enter => {
                let taken = Taken { guest: guest.clone(), entered: now };
                state.taken.insert(self.id, taken);
                Next::Entered(Place { inner: Arc::clone(&self.inner), id: self.id })
            }
            Decision::UnloadIdle(at) => {
                let other = others[at].guest.clone();
                let unload = Unload { if_idle: Some(Duration::ZERO), drain: Some(Duration::ZERO), ..other.leave() };
                Next::Ask(other, unload)
            }
            Decision::Drain(at) => {
                let other = others[at].guest.clone();
                tracing::info!(
                    model = other.model,
                    for_model = guest.model,
                    "leaves when its work is done: others wait"
                );
                let unload = Unload { drain: Some(DRAIN), ..other.leave() };
                Next::Ask(other, unload)
            }
            Decision::Wait(until) => Next::Wait(until),
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Moment {
        Moment::START + self.start.elapsed()
    }

    /// A guess that may be old: what follows from it is a conditional order to the owner.
    fn used(&self, taken: &Taken) -> Use {
        let now = self.now();
        let seen = taken.guest.board.read();
        match seen.state {
            ModelState::Ready if seen.inflight == 0 => {
                let millis = now.as_millis().saturating_sub(u64::try_from(seen.idle.as_millis()).unwrap_or(u64::MAX));
                Use::Idle { since: Moment::from_millis(millis) }
            }
            ModelState::Ready => Use::Busy { entered: taken.entered },
            ModelState::Draining | ModelState::Unloading => Use::Leaving,
            // It has its place and is about to load, or has just been reaped.
            ModelState::Loading | ModelState::Unloaded | ModelState::WaitingForMemory | ModelState::Failed => {
                Use::Loading
            }
        }
    }
}

impl Guest {
    fn leave(&self) -> Unload {
        let generation = self.board.read().generation;
        Unload { if_generation: Some(generation), ..Unload::now(UnloadReason::MaxLoaded) }
    }

    /// Ends when it is gone or has refused; the order stands also when nobody waits.
    async fn unload(&self, unload: Unload) {
        let (reply, answer) = oneshot::channel();
        let sent = self.inbox.upgrade().is_some_and(|inbox| inbox.send(Message::Unload { unload, reply }).is_ok());
        if sent {
            let _ = answer.await;
        }
    }
}
