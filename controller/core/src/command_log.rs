//! Which commands are under way, and what samples must be newer than before they are acted on.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::plan::{Action, Decision};
use crate::time::elapsed;
use crate::world::{GpuId, ModelKey};

/// An unload that has not been reported as ended this long after its drain counts as lost.
const UNLOAD_DEADLINE: Duration = Duration::from_secs(60);
/// A load that has not been reported as ended after this time counts as lost.
const LOAD_DEADLINE: Duration = Duration::from_secs(600);

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    Unloaded {
        completed_at: Timestamp,
    },
    Loaded,
    /// The command was refused, failed, or did not reach the server: nothing changed.
    Nothing,
}

/// The commands of the last steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CommandLog {
    last_unload: BTreeMap<GpuId, Timestamp>,
    // Looked up for each model in each step, and never iterated in an order that matters.
    pending: HashMap<ModelKey, PendingCommand>,
    // A sample of the model must be newer than this.
    decided: HashMap<ModelKey, Timestamp>,
    gpu_decided: BTreeMap<GpuId, Timestamp>,
}

#[derive(Clone, Debug, PartialEq)]
struct PendingCommand {
    gpu: Option<GpuId>,
    action: Action,
    since: Timestamp,
    /// After this long the command counts as lost.
    deadline: Duration,
}

impl CommandLog {
    /// Continues what another log knew of the last unload on each GPU.
    pub fn restore(&mut self, last_unload: &[(GpuId, Timestamp)]) {
        self.last_unload.extend(last_unload.iter().cloned());
    }

    /// Forgets times that are older than any fresh sample, and commands that were lost. A time in the future (the clock
    /// was set back) becomes now: the wait for a newer sample starts again, instead of lasting until the clock has caught
    /// up.
    pub fn advance(&mut self, now: Timestamp, stale_after: Duration) {
        for at in self.last_unload.values_mut().chain(self.gpu_decided.values_mut()).chain(self.decided.values_mut()) {
            *at = now.min(*at);
        }

        for pending in self.pending.values_mut() {
            pending.since = now.min(pending.since);
        }

        let is_recent = |at: &Timestamp| elapsed(*at, now) <= stale_after;
        self.last_unload.retain(|_, at| is_recent(at));
        self.gpu_decided.retain(|_, at| is_recent(at));
        self.decided.retain(|_, at| is_recent(at));
        self.pending.retain(|_, pending| elapsed(pending.since, now) <= pending.deadline);
    }

    /// Records the commands that are carried out; those of dry runs are not.
    pub fn record(&mut self, now: Timestamp, decisions: &[Decision]) {
        for decision in decisions.iter().filter(|decision| !decision.dry_run) {
            let deadline = match decision.action {
                Action::Unload => UNLOAD_DEADLINE + Duration::from_secs(decision.drain_seconds.unwrap_or(0)),
                Action::Load => LOAD_DEADLINE,
            };

            let command = PendingCommand { gpu: decision.gpu.clone(), action: decision.action, since: now, deadline };

            self.pending.insert(decision.key(), command);
            self.decided.insert(decision.key(), now);
            if let (Action::Unload, Some(gpu)) = (decision.action, &decision.gpu) {
                self.gpu_decided.insert(gpu.clone(), now);
            }
        }
    }

    /// Ends the command for a model. After an unload only samples that are newer than its end count, of the model as of its
    /// GPU: an older sample may show the model as it was before.
    pub fn settle(&mut self, key: &ModelKey, outcome: CommandOutcome) {
        let gpu = self.pending.remove(key).and_then(|command| command.gpu);
        let CommandOutcome::Unloaded { completed_at } = outcome else { return };

        let decided = self.decided.entry(key.clone()).or_insert(completed_at);
        *decided = completed_at.max(*decided);
        if let Some(gpu) = gpu {
            let last = self.last_unload.entry(gpu).or_insert(completed_at);
            *last = completed_at.max(*last);
        }
    }

    pub fn is_pending(&self, key: &ModelKey) -> bool {
        self.pending.contains_key(key)
    }

    /// Whether a decision that rested on this sample, or on a newer one, named the model, or the sample is older than the end
    /// of the model's last unload.
    pub fn is_used(&self, key: &ModelKey, sampled_at: Timestamp) -> bool {
        self.decided.get(key).is_some_and(|at| sampled_at <= *at)
    }

    /// The GPUs on which an unload is under way.
    pub fn unloading_gpus(&self) -> HashSet<&GpuId> {
        let unloads = self.pending.values().filter(|command| command.action == Action::Unload);
        unloads.filter_map(|command| command.gpu.as_ref()).collect()
    }

    /// Whether the sample of a GPU is older than the end of its last unload, or was acted on already.
    pub fn is_gpu_used(&self, gpu: &GpuId, sampled_at: Timestamp) -> bool {
        [&self.last_unload, &self.gpu_decided].iter().filter_map(|map| map.get(gpu)).any(|at| sampled_at <= *at)
    }
}
