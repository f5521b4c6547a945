//! Models that come and go without a command of this controller: another one beside this was to give it, a person gave
//! it, or the server's own residency did. The core waits for them as for a command of its own, so that two who see the
//! same pressure do not both answer it.

use std::collections::HashMap;
use std::time::Duration;

use hush_core::{Action, Decision, GpuId, Memory, Model, ModelKey, Reason, Settled, State, World};
use jiff::Timestamp;

/// So long another controller may take for what this one has found to be its part. It saw the same a scrape later, its
/// command travels, and this one must look again.
pub const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub struct Others {
    /// Commands of this controller: under way, or ended at that time.
    ours: HashMap<ModelKey, Option<Timestamp>>,
    theirs: HashMap<ModelKey, Theirs>,
    /// Where each model held memory when it was last seen.
    holders: HashMap<ModelKey, GpuId>,
}

/// What is expected of others, or was seen to be done by them.
#[derive(Clone, Copy, Debug)]
struct Theirs {
    action: Action,
    since: Timestamp,
    generation: u64,
    begun: bool,
}

/// What a look at one model says of it.
enum Verdict {
    Open,
    /// As expected, or as if it had been.
    Done(Settled),
    /// Nobody did it.
    InVain,
}

impl Others {
    /// This controller sends it.
    pub fn sent(&mut self, key: ModelKey) {
        self.theirs.remove(&key);
        self.ours.insert(key, None);
    }

    /// The end of what was sent; samples from before say nothing new.
    pub fn ended(&mut self, now: Timestamp, key: &ModelKey) {
        if let Some(ended) = self.ours.get_mut(key) {
            *ended = Some(now);
        }
    }

    /// Another controller finds the same and sends it.
    pub fn expect(&mut self, now: Timestamp, decision: &Decision) {
        let (action, generation) = (decision.action, decision.if_generation.unwrap_or_default());
        self.theirs.insert(decision.key(), Theirs { action, since: now, generation, begun: false });
    }

    /// Before each step: tells the memory what others have begun and ended. Gives those of whom something was expected in
    /// vain.
    pub fn observe(&mut self, now: Timestamp, world: &World, memory: &mut Memory) -> Vec<ModelKey> {
        let mut in_vain = Vec::new();
        for model in world.models.iter().filter(|model| model.sample_age <= world.stale_after) {
            let sampled_at = sampled_at(now, model.sample_age);
            match self.ours.get(&model.key) {
                None => {}
                // Also where the clock was set back meanwhile.
                Some(Some(ended)) if sampled_at > *ended || now < *ended => drop(self.ours.remove(&model.key)),
                Some(_) => {
                    self.holders.remove(&model.key);
                    continue;
                }
            }
            self.look(now, sampled_at, model, memory, &mut in_vain);
            self.note(model);
        }
        self.forget(now, world, memory);
        in_vain
    }

    fn look(
        &mut self,
        now: Timestamp,
        sampled_at: Timestamp,
        model: &Model,
        memory: &mut Memory,
        in_vain: &mut Vec<ModelKey>,
    ) {
        let leaving = matches!(model.state, State::Draining | State::Unloading);
        let Some(theirs) = self.theirs.get_mut(&model.key) else {
            let left = !holds(model.state) && self.holders.contains_key(&model.key);
            if leaving || left {
                memory.commanded(now, &unload(model, self.holders.get(&model.key)));
            }
            if leaving {
                let theirs = Theirs { action: Action::Unload, since: now, generation: model.generation, begun: true };
                self.theirs.insert(model.key.clone(), theirs);
            } else if left {
                memory.settle(&model.key, Settled::Unloaded { completed_at: sampled_at });
            }
            return;
        };
        theirs.since = now.min(theirs.since);
        theirs.begun |= leaving;
        match theirs.verdict(now, sampled_at, model) {
            Verdict::Open => return,
            Verdict::Done(how) => memory.settle(&model.key, how),
            Verdict::InVain => {
                memory.settle(&model.key, Settled::Nothing);
                in_vain.push(model.key.clone());
            }
        }
        self.theirs.remove(&model.key);
    }

    fn note(&mut self, model: &Model) {
        match model.gpu.as_ref().filter(|_| holds(model.state)) {
            None => drop(self.holders.remove(&model.key)),
            Some(gpu) if self.holders.get(&model.key) == Some(gpu) => {}
            Some(gpu) => drop(self.holders.insert(model.key.clone(), gpu.clone())),
        }
    }

    /// What is gone, or has been silent for too long, is not waited for.
    fn forget(&mut self, now: Timestamp, world: &World, memory: &mut Memory) {
        if self.theirs.is_empty() && self.holders.len() + self.ours.len() <= world.models.len() {
            return;
        }
        let known: HashMap<&ModelKey, bool> =
            world.models.iter().map(|model| (&model.key, model.sample_age <= world.stale_after)).collect();
        self.theirs.retain(|key, theirs| {
            let silent = |theirs: &Theirs| elapsed(theirs.since, now) > PATIENCE;
            let kept = known.get(key).is_some_and(|fresh| *fresh || !silent(theirs));
            if !kept {
                memory.settle(key, Settled::Nothing);
            }
            kept
        });
        self.holders.retain(|key, _| known.contains_key(key));
        self.ours.retain(|key, ended| ended.is_none() || known.contains_key(key));
    }
}

impl Theirs {
    fn verdict(&self, now: Timestamp, sampled_at: Timestamp, model: &Model) -> Verdict {
        let late = elapsed(self.since, now) > PATIENCE && sampled_at > self.since;
        let untouched = !self.begun && model.generation == self.generation;
        let not_yet = if late { Verdict::InVain } else { Verdict::Open };
        match (self.action, model.state) {
            // How long a drain may take is its own affair; the core does not wait for ever.
            (Action::Unload, State::Draining | State::Unloading) => Verdict::Open,
            (Action::Unload, State::Ready) if untouched => not_yet,
            // Gone, or gone and back.
            (Action::Unload, _) => Verdict::Done(Settled::Unloaded { completed_at: sampled_at }),
            (Action::Load, State::Unloaded) => not_yet,
            (Action::Load, _) => Verdict::Done(Settled::Loaded),
        }
    }
}

const fn holds(state: State) -> bool {
    matches!(state, State::Ready | State::Draining | State::Unloading)
}

/// As if it had been decided here.
fn unload(model: &Model, gpu: Option<&GpuId>) -> Decision {
    Decision {
        server: model.key.server.clone(),
        model: model.key.model.clone(),
        gpu: gpu.or(model.gpu.as_ref()).cloned(),
        action: Action::Unload,
        reason: Reason::Manual,
        policy: String::new(),
        if_generation: Some(model.generation),
        if_idle_seconds: None,
        drain_seconds: None,
        hold_seconds: None,
        vram_bytes: model.vram_bytes,
        dry_run: false,
    }
}

fn elapsed(earlier: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(earlier)).unwrap_or(Duration::ZERO)
}

fn sampled_at(now: Timestamp, age: Duration) -> Timestamp {
    jiff::SignedDuration::try_from(age).ok().and_then(|age| now.checked_sub(age).ok()).unwrap_or(Timestamp::MIN)
}
