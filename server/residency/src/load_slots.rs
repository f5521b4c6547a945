//! The slots that models take in memory when a server may hold only so many (`--max-loaded`).

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hush_contract::{ModelState, UnloadReason};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::lru::{self, SlotDecision, SlotUse};
use crate::machine::{MachineTime, UnloadCommand};
use crate::model_actor::UnloadReply;
use crate::snapshot::SnapshotCell;

/// How long a busy model may finish what it has begun: no work is thrown away so that another model may be loaded.
const BUSY_DRAIN: Duration = Duration::from_secs(3600);

/// Sends an unload command to a model; `None`: the model is gone.
pub(crate) type UnloadSender = Arc<dyn Fn(UnloadCommand) -> Option<oneshot::Receiver<UnloadReply>> + Send + Sync>;

/// A model that wants a slot or has one, as the models see it that want the same slot.
#[derive(Clone)]
pub(crate) struct SlotHolder {
    pub(crate) model: String,
    pub(crate) cell: SnapshotCell,
    pub(crate) unload: UnloadSender,
}

impl SlotHolder {
    /// An unload that is refused when the model has been loaded again meanwhile.
    fn unload_command(&self) -> UnloadCommand {
        let generation = self.cell.read().generation;

        UnloadCommand { if_generation: Some(generation), ..UnloadCommand::now(UnloadReason::MaxLoaded) }
    }

    /// Returns when the model is unloaded or has refused. The command stands also when the future is dropped.
    async fn send_unload(&self, unload: UnloadCommand) {
        if let Some(answer) = (self.unload)(unload) {
            let _ = answer.await;
        }
    }
}

/// The slots of one server. Cheap to clone; clones are the same slots. Without a limit there is always one.
#[derive(Clone)]
pub(crate) struct LoadSlots(Option<Arc<LimitedSlots>>);

struct LimitedSlots {
    limit: NonZeroUsize,
    /// The start of the clock of the slots.
    start: Instant,
    state: Mutex<SlotsState>,
    changed: Notify,
}

#[derive(Default)]
struct SlotsState {
    last_id: u64,
    taken: BTreeMap<u64, TakenSlot>,
    /// The models that wait, in the order of their arrival.
    queue: VecDeque<u64>,
}

struct TakenSlot {
    holder: SlotHolder,
    taken_at: MachineTime,
}

/// The right to be in memory. Its drop gives the slot back.
pub(crate) struct LoadSlot {
    slots: Arc<LimitedSlots>,
    id: u64,
}

impl Drop for LoadSlot {
    fn drop(&mut self) {
        self.slots.lock().taken.remove(&self.id);
        self.slots.changed.notify_waiters();
    }
}

/// A position in the queue. Its drop gives it up.
struct SlotQueuePosition {
    slots: Arc<LimitedSlots>,
    id: u64,
    since: MachineTime,
}

impl Drop for SlotQueuePosition {
    fn drop(&mut self) {
        self.slots.lock().queue.retain(|id| *id != self.id);
        self.slots.changed.notify_waiters();
    }
}

/// What a model that waits for a slot is to do next.
enum SlotStep {
    Taken(LoadSlot),
    /// Ask this model to leave.
    AskToUnload(SlotHolder, UnloadCommand),
    /// Wait for a change, or until this time.
    Wait(Option<MachineTime>),
}

impl LoadSlots {
    /// `limit`: how many models may be in memory; `None`: any number.
    pub(crate) fn new(limit: Option<NonZeroUsize>) -> Self {
        Self(limit.map(|limit| {
            let (start, state) = (Instant::now(), Mutex::default());
            Arc::new(LimitedSlots { limit, start, state, changed: Notify::new() })
        }))
    }

    pub(crate) const fn is_limited(&self) -> bool {
        self.0.is_some()
    }

    /// The state of a model has changed: a model that waits may be able to take its slot.
    pub(crate) fn notify_state_change(&self) {
        if let Some(slots) = &self.0 {
            slots.changed.notify_waiters();
        }
    }

    /// Waits for a slot, and has another model unloaded where that is allowed. `None`: there is no limit.
    pub(crate) async fn take(&self, holder: SlotHolder) -> Option<LoadSlot> {
        let slots = self.0.clone()?;
        let position = SlotQueuePosition::last_in_queue(&slots);

        loop {
            // Enabled before the state is read, so that no change is missed.
            let changed = slots.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();

            match position.next_step(&holder) {
                SlotStep::Taken(slot) => return Some(slot),
                SlotStep::AskToUnload(other, unload) => {
                    let unloaded = other.send_unload(unload);
                    tokio::select! {
                        () = unloaded => {}
                        () = changed => {}
                    }
                }
                SlotStep::Wait(Some(until)) => {
                    let until = slots.start + until.since(MachineTime::START);
                    tokio::select! {
                        () = tokio::time::sleep_until(until) => {}
                        () = changed => {}
                    }
                }
                SlotStep::Wait(None) => changed.await,
            }
        }
    }
}

impl SlotQueuePosition {
    fn last_in_queue(slots: &Arc<LimitedSlots>) -> Self {
        let since = slots.now();

        let mut state = slots.lock();
        state.last_id += 1;
        let id = state.last_id;
        state.queue.push_back(id);
        drop(state);

        Self { slots: Arc::clone(slots), id, since }
    }

    fn next_step(&self, holder: &SlotHolder) -> SlotStep {
        let now = self.slots.now();
        let mut state = self.slots.lock();
        if state.queue.front() != Some(&self.id) {
            return SlotStep::Wait(None);
        }

        let (others, uses): (Vec<&TakenSlot>, Vec<SlotUse>) =
            state.taken.values().map(|taken| (taken, self.slots.use_of(taken))).unzip();

        match lru::decide(self.slots.limit, &uses, now, self.since) {
            SlotDecision::Enter => {
                state.taken.insert(self.id, TakenSlot { holder: holder.clone(), taken_at: now });
                SlotStep::Taken(LoadSlot { slots: Arc::clone(&self.slots), id: self.id })
            }
            SlotDecision::UnloadIdle(at) => {
                let other = others[at].holder.clone();
                let unload = UnloadCommand {
                    if_idle: Some(Duration::ZERO),
                    drain: Some(Duration::ZERO),
                    ..other.unload_command()
                };
                SlotStep::AskToUnload(other, unload)
            }
            SlotDecision::Drain(at) => {
                let other = others[at].holder.clone();
                tracing::info!(
                    model = other.model,
                    for_model = holder.model,
                    "leaves when its work is done: others wait"
                );
                let unload = UnloadCommand { drain: Some(BUSY_DRAIN), ..other.unload_command() };
                SlotStep::AskToUnload(other, unload)
            }
            SlotDecision::Wait(until) => SlotStep::Wait(until),
        }
    }
}

impl LimitedSlots {
    fn lock(&self) -> MutexGuard<'_, SlotsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> MachineTime {
        MachineTime::START + self.start.elapsed()
    }

    /// What the holder of a slot was doing when its actor last published its state. That may be old: what follows from it
    /// is a conditional command.
    fn use_of(&self, taken: &TakenSlot) -> SlotUse {
        let snapshot = taken.holder.cell.read();

        match snapshot.state {
            ModelState::Ready if snapshot.inflight == 0 => {
                let idle_millis = u64::try_from(snapshot.idle.as_millis()).unwrap_or(u64::MAX);
                let since_millis = self.now().as_millis().saturating_sub(idle_millis);
                SlotUse::Idle { since: MachineTime::from_millis(since_millis) }
            }
            ModelState::Ready => SlotUse::Busy { entered: taken.taken_at },
            state if state.is_leaving() => SlotUse::Leaving,
            // The model has its slot and is about to load, or its runner has just been reaped.
            _ => SlotUse::Loading,
        }
    }
}
