//! What the core remembers from step to step. Losing it lengthens a grace period and never shortens one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::adaptive::Learners;
use crate::plan::{Action, Decision};
use crate::policy::PolicyName;
use crate::signal::Timers;
use crate::world::{GpuId, ModelKey};

/// A command that has not reported back this long after its drain is taken for lost.
const UNLOAD_PATIENCE: Duration = Duration::from_secs(60);
const LOAD_PATIENCE: Duration = Duration::from_secs(600);

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    pub(crate) timers: Timers,
    /// Of each dry-run policy: the timers as they would be if it were enforced.
    pub(crate) dry_run: BTreeMap<PolicyName, Timers>,
    pub(crate) work: Work,
    pub(crate) learners: Learners,
}

/// Pressure on a card as it was written down somewhere else; it holds for every threshold on that card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PressureMemory {
    pub gpu: GpuId,
    pub soft_since: Option<Timestamp>,
    pub hard_since: Option<Timestamp>,
    /// Since when the threshold has not been crossed.
    pub clear_since: Option<Timestamp>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    Unloaded {
        completed_at: Timestamp,
    },
    Loaded,
    /// Refused, failed or unreachable: nothing changed.
    Nothing,
}

impl Memory {
    /// A memory that continues what another wrote down.
    pub fn restore(now: Timestamp, pressure: &[PressureMemory], last_unload: &[(GpuId, Timestamp)]) -> Self {
        let mut memory = Self::default();
        for entry in pressure {
            memory.timers.restore(now, entry);
        }
        memory.work.last_unload.extend(last_unload.iter().cloned());
        memory
    }

    /// Tells of a command that somebody gave beside the plan, as if the plan had.
    pub fn commanded(&mut self, now: Timestamp, decision: &Decision) {
        self.work.record(now, std::slice::from_ref(decision));
    }

    /// Tells how the command for a model ended. Until then the model is not named again and its card is left alone.
    pub fn settle(&mut self, key: &ModelKey, how: Settled) {
        let pending = self.work.pending.remove(key);
        if let (Settled::Unloaded { completed_at }, Some(gpu)) = (how, pending.and_then(|pending| pending.gpu)) {
            let last = self.work.last_unload.entry(gpu).or_insert(completed_at);
            *last = completed_at.max(*last);
        }
    }
}

/// Commands under way, and what the samples must be newer than.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Work {
    last_unload: BTreeMap<GpuId, Timestamp>,
    // Asked for each model in each step, and never walked in an order that matters.
    pending: HashMap<ModelKey, Pending>,
    decided: HashMap<ModelKey, Timestamp>,
    gpu_decided: BTreeMap<GpuId, Timestamp>,
}

#[derive(Clone, Debug, PartialEq)]
struct Pending {
    gpu: Option<GpuId>,
    action: Action,
    since: Timestamp,
    patience: Duration,
}

impl Work {
    /// Forgets what no fresh sample can be older than, and commands that were lost. A time in the future (the clock was
    /// set back) becomes now: the wait for a newer sample starts again, and does not last until the clock catches up.
    pub fn advance(&mut self, now: Timestamp, stale_after: Duration) {
        for at in self.last_unload.values_mut().chain(self.gpu_decided.values_mut()).chain(self.decided.values_mut()) {
            *at = now.min(*at);
        }
        for pending in self.pending.values_mut() {
            pending.since = now.min(pending.since);
        }
        let recent = |at: &Timestamp| elapsed(*at, now) <= stale_after;
        self.last_unload.retain(|_, at| recent(at));
        self.gpu_decided.retain(|_, at| recent(at));
        self.decided.retain(|_, at| recent(at));
        self.pending.retain(|_, pending| elapsed(pending.since, now) <= pending.patience);
    }

    pub fn record(&mut self, now: Timestamp, decisions: &[Decision]) {
        for decision in decisions.iter().filter(|decision| !decision.dry_run) {
            let patience = match decision.action {
                Action::Unload => UNLOAD_PATIENCE + Duration::from_secs(decision.drain_seconds.unwrap_or(0)),
                Action::Load => LOAD_PATIENCE,
            };
            let pending = Pending { gpu: decision.gpu.clone(), action: decision.action, since: now, patience };
            self.pending.insert(decision.key(), pending);
            self.decided.insert(decision.key(), now);
            if let (Action::Unload, Some(gpu)) = (decision.action, &decision.gpu) {
                self.gpu_decided.insert(gpu.clone(), now);
            }
        }
    }

    pub fn pending(&self, key: &ModelKey) -> bool {
        self.pending.contains_key(key)
    }

    /// The model was named by a decision that rested on this sample or a newer one.
    pub fn used(&self, key: &ModelKey, sampled_at: Timestamp) -> bool {
        self.decided.get(key).is_some_and(|at| sampled_at <= *at)
    }

    /// Cards with an unload under way.
    pub fn unloading(&self) -> HashSet<&GpuId> {
        self.pending.values().filter(|p| p.action == Action::Unload).filter_map(|p| p.gpu.as_ref()).collect()
    }

    /// The sample tells nothing of the card after its last unload, or was acted on already.
    pub fn gpu_used(&self, gpu: &GpuId, sampled_at: Timestamp) -> bool {
        [&self.last_unload, &self.gpu_decided].iter().filter_map(|map| map.get(gpu)).any(|at| sampled_at <= *at)
    }
}

/// Zero when `earlier` is later.
pub(crate) fn elapsed(earlier: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(earlier)).unwrap_or(Duration::ZERO)
}

/// When a sample of this age was taken.
pub(crate) fn sampled_at(now: Timestamp, age: Duration) -> Timestamp {
    jiff::SignedDuration::try_from(age).ok().and_then(|age| now.checked_sub(age).ok()).unwrap_or(Timestamp::MIN)
}
