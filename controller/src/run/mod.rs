//! The loop: observe, step, act, tell. Level-triggered: each step looks at the whole world as it is now.

pub mod others;
mod readiness;
mod request;
mod snapshot;
mod timeline;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hush_core::{Decision, GpuId, Labels, Memory, ModelKey, Plan, Policy, PolicyName, Reason, Settled, World, step};
use jiff::Timestamp;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use others::Others;
pub use readiness::Readiness;
pub use request::{ClaimedName, Pause, PauseChange, Paused, Request};
pub use snapshot::Snapshot;
use timeline::{Timeline, same};

use crate::act::{
    Audit, Backoff, CommandLimits, Executor, LimitReached, Outcome, Recipient, Record, UnprovenUnloads, Verdict,
};
use crate::metrics::{Metrics, QueueLengths};
use crate::observe::{Assembled, Disputes, Frame, OddReport, Store, Target, Targets, Trust, assemble};

/// Samples that arrive together are looked at together.
const COALESCE: Duration = Duration::from_millis(10);
/// After a step the loop waits for so many times as long as it took.
const STEP_SHARE: u32 = 10;

/// A server that has shown nothing for so long after a report is judged by what it shows then.
const REPORT_PATIENCE: Duration = Duration::from_secs(300);

/// How long the loop waits before its next step, after one that took so long. Never longer than the interval: a step
/// takes seconds only on a machine that stood still or that has no processor time left, and a controller that then waited
/// for a multiple of it would do nothing for minutes.
pub fn pause_after(took: Duration, interval: Duration) -> Duration {
    took.saturating_mul(STEP_SHARE).min(interval).max(COALESCE)
}

/// What comes in.
pub struct Inputs {
    pub targets: watch::Receiver<Arc<Targets>>,
    pub policies: watch::Receiver<Arc<Vec<Policy>>>,
    /// Labels by namespace.
    pub namespaces: watch::Receiver<Arc<BTreeMap<String, Labels>>>,
    pub store: Store,
    /// What people ask for.
    pub requests: mpsc::Receiver<Request>,
}

/// What people are told by Events.
#[derive(Clone, Debug)]
pub enum Told {
    /// A command that was sent, when it has ended.
    Command(Box<Record>),
    /// A server whose report of a card does not agree with those of others.
    Odd(OddReport),
    /// A person has stopped a policy or set it going again, or its time is over.
    Pause(PolicyName, PauseChange),
}

/// What goes out.
pub struct Outputs {
    pub executor: Executor,
    /// The ends of the executor's commands.
    pub ends: mpsc::UnboundedReceiver<Record>,
    pub audit: Audit,
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    /// Each command that was sent, when it has ended.
    pub records: Option<mpsc::Sender<Told>>,
}

#[derive(Clone, Copy, Debug)]
pub struct LoopSettings {
    /// Without news the loop steps so often all the same: timers run out.
    pub interval: Duration,
    pub stale_after: Duration,
    pub trust: Trust,
}

pub struct Loop {
    settings: LoopSettings,
    inputs: Inputs,
    outputs: Outputs,
    memory: Memory,
    others: Others,
    backoff: Backoff,
    disputes: Disputes,
    /// As they were told last.
    odd: Vec<OddReport>,
    unproven: UnprovenUnloads,
    limits: CommandLimits,
    /// Of the cards in the last step.
    card_totals: HashMap<GpuId, u64>,
    paused: BTreeMap<PolicyName, Paused>,
    timeline: Timeline,
    last_plan: Plan,
    last_problems: Vec<String>,
}

impl Loop {
    pub fn new(settings: LoopSettings, inputs: Inputs, outputs: Outputs) -> Self {
        outputs.readiness.set("targets", Some("no server has answered yet".to_owned()));
        Self {
            settings,
            inputs,
            outputs,
            memory: Memory::default(),
            others: Others::default(),
            backoff: Backoff::default(),
            disputes: Disputes::default(),
            odd: Vec::new(),
            unproven: UnprovenUnloads::default(),
            limits: CommandLimits::default(),
            card_totals: HashMap::new(),
            paused: BTreeMap::new(),
            timeline: Timeline::default(),
            last_plan: Plan::default(),
            last_problems: Vec::new(),
        }
    }

    /// Until `stop` is true; then commands under way get `patience` to end.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>, patience: Duration) {
        let mut changes = self.inputs.store.changes();
        let mut took = Duration::ZERO;
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                Some(record) = self.outputs.ends.recv() => self.settle(record),
                Some(request) = self.inputs.requests.recv() => self.answer(request),
                Ok(()) = changes.changed() => {}
                Ok(()) = self.inputs.policies.changed() => {}
                Ok(()) = self.inputs.targets.changed() => {}
                Ok(()) = self.inputs.namespaces.changed() => {}
                () = tokio::time::sleep(self.settings.interval) => {}
            }
            tokio::time::sleep(pause_after(took, self.settings.interval)).await;
            while let Ok(record) = self.outputs.ends.try_recv() {
                self.settle(record);
            }
            changes.mark_unchanged();
            let begun = Instant::now();
            self.step();
            took = begun.elapsed();
        }
        self.outputs.executor.finish(patience).await;
        while let Ok(record) = self.outputs.ends.try_recv() {
            self.settle(record);
        }
    }

    fn step(&mut self) {
        // The ages of samples are counted from `begun`. Where the process is interrupted between the two clocks, a sample
        // counts as older than it is, and never as newer than a command that it does not show.
        let now = Timestamp::now();
        let begun = Instant::now();
        let targets = self.inputs.targets.borrow_and_update().clone();
        let policies = self.inputs.policies.borrow_and_update().clone();
        let namespaces = self.inputs.namespaces.borrow_and_update().clone();
        let seen = self.inputs.store.all();
        self.backoff.retain(|server| targets.contains_key(server));
        self.limits.retain(|server| targets.contains_key(server));
        let LoopSettings { stale_after, trust, .. } = self.settings;
        let frame = Frame { now: begun, stale_after, namespaces: &namespaces, trust };
        let Assembled { mut world, problems, outdated, odd } = assemble(&frame, &targets, &seen, &mut self.disputes);
        self.tell_odd(odd);
        self.card_totals = world.gpus.iter().map(|gpu| (gpu.uuid.clone(), gpu.total_bytes)).collect();
        self.compare_reports(begun, &world);
        let in_force = self.in_force(now, &policies);
        for key in self.others.observe(now, &world, &mut self.memory) {
            tracing::warn!(server = %key.server, model = key.model, "its own controller does not act: others stand in for it");
            self.backoff.absent(begun, &key);
        }

        // After everything in this step that makes the controller leave a server alone: a model whose sample has just
        // shown that a command had no effect gets no other command in the same step.
        for model in &mut world.models {
            model.back_off = self.backoff.holds(begun, &model.key);
        }

        let plan = step(&mut self.memory, now, &world, &in_force);
        for decision in plan.decisions.iter().filter(|decision| !decision.dry_run) {
            if self.outputs.executor.is_for_another(decision) {
                self.others.expect(now, decision);
            } else if let Err(limit) = self.limits.take(begun, &decision.server) {
                self.withhold(begun, decision, limit);
            } else if let Some(target) = targets.get(&decision.server) {
                // Every model in the world came from a target.
                self.others.sent(decision.key());
                let recipient = self.recipient(decision, target);
                self.outputs.executor.submit(now, decision.clone(), recipient, None);
            }
        }
        plan.decisions.iter().filter(|decision| decision.dry_run).for_each(|d| self.timeline.would(now, d));
        for server in outdated {
            self.inputs.store.nudge(&server);
        }
        let ages = world.gpus.iter().map(|gpu| (gpu.uuid.as_str(), gpu.sample_age));
        let news = plan.decisions.iter().filter(|decision| !self.last_plan.decisions.iter().any(|l| same(l, decision)));
        self.outputs.metrics.stepped(&plan, news, ages, begun.elapsed());
        self.outputs.metrics.policies_paused.set(i64::try_from(self.paused.len()).unwrap_or(i64::MAX));
        self.outputs.metrics.policies.set(i64::try_from(policies.len()).unwrap_or(i64::MAX));
        let events = self.outputs.records.as_ref();
        self.outputs.metrics.queued(QueueLengths {
            commands: self.outputs.executor.pending(),
            requests: self.inputs.requests.len(),
            events: events.map_or(0, |events| events.max_capacity() - events.capacity()),
        });
        self.say(&problems);
        let snapshot = Snapshot {
            at: now,
            world,
            plan,
            policies,
            targets,
            seen,
            problems,
            paused: self.paused.clone(),
            records: self.timeline.records(),
        };
        self.tell(&snapshot);
        self.last_plan.clone_from(&snapshot.plan);
        self.outputs.snapshots.send_replace(Arc::new(snapshot));
    }

    fn tell(&self, snapshot: &Snapshot) {
        let (mut answering, mut failing, mut unknown) = (0, 0, 0);
        for server in snapshot.targets.keys() {
            match snapshot.seen.get(server) {
                Some(seen) if seen.failure.is_some() => failing += 1,
                Some(_) => answering += 1,
                None => unknown += 1,
            }
        }
        for (state, count) in [("answering", answering), ("failing", failing), ("unknown", unknown)] {
            self.outputs.metrics.targets.with_label_values(&[state]).set(count);
        }
        let known = snapshot.targets.is_empty() || snapshot.seen.values().any(|seen| seen.last.is_some());
        self.outputs.readiness.set("targets", (!known).then(|| "no server has answered yet".to_owned()));
        self.outputs.readiness.beat();
    }

    /// Whoever asked may be gone when the answer comes.
    fn answer(&mut self, request: Request) {
        let now = Timestamp::now();
        match request {
            Request::Memory(to) => drop(to.send(self.memory.clone())),
            Request::Command(decision, to) => self.command(now, *decision, to),
            Request::Pause(policy, Pause { span, claimed_by }, to) => {
                // So long that it has no end in this calendar.
                let end = |span| now.checked_add(jiff::SignedDuration::try_from(span).ok()?).ok();
                let until = span.map(|span| end(span).unwrap_or(Timestamp::MAX));
                let paused = Paused { since: now, until, claimed_by };
                self.tell_pause(now, &policy, PauseChange::Paused(paused.clone()));
                self.paused.insert(policy, paused.clone());
                let _ = to.send(paused);
            }
            Request::Resume(policy, claimed_by, to) => {
                let was = self.paused.remove(&policy).is_some();
                if was {
                    self.tell_pause(now, &policy, PauseChange::Resumed(claimed_by));
                }
                let _ = to.send(was);
            }
        }
    }

    fn tell_pause(&self, now: Timestamp, policy: &PolicyName, change: PauseChange) {
        self.outputs.audit.paused(now, policy, &change);
        self.tell_person(Told::Pause(policy.clone(), change));
    }

    /// By an Event, where there are any. Where they cannot be written as fast as things happen, the audit log has them all.
    fn tell_person(&self, told: Told) {
        let Some(records) = &self.outputs.records else { return };
        if let Err(TrySendError::Full(_)) = records.try_send(told) {
            self.outputs.metrics.events_dropped_total.inc();
        }
    }

    fn command(&mut self, now: Timestamp, decision: Decision, to: oneshot::Sender<Record>) {
        let targets = self.inputs.targets.borrow().clone();
        let Some(target) = targets.get(&decision.server) else { return };
        self.memory.commanded(now, &decision);
        self.others.sent(decision.key());
        let recipient = self.recipient(&decision, target);
        self.outputs.executor.submit(now, decision, recipient, Some(to));
    }

    fn recipient(&self, decision: &Decision, target: &Target) -> Recipient {
        let card_total_bytes = decision.gpu.as_ref().and_then(|gpu| self.card_totals.get(gpu)).copied();
        Recipient { url: target.url.clone(), audience: target.audience.clone(), card_total_bytes }
    }

    /// Each server once, while it stays odd on that card.
    fn tell_odd(&mut self, odd: Vec<OddReport>) {
        let servers = |odd: &[OddReport]| odd.iter().map(|odd| odd.server.clone()).collect::<BTreeSet<_>>();
        let before = servers(&self.odd);
        for report in odd.iter().filter(|report| !before.contains(&report.server)) {
            self.tell_person(Told::Odd(report.clone()));
        }
        self.odd = odd;
    }

    /// Servers that said that they have unloaded a model, and their samples.
    fn compare_reports(&mut self, begun: Instant, world: &World) {
        for (key, verdict) in self.unproven.compare(begun, world) {
            if verdict == Verdict::NoEffect {
                let ModelKey { server, model } = &key;
                tracing::warn!(%server, model, "the server said that it unloaded the model, and shows it as before");
                self.outputs.metrics.commands_without_effect_total.inc();
            }
            self.backoff.note(begun, &key, verdict);
        }
        self.unproven.forget_before(begun, REPORT_PATIENCE);
    }

    /// A server for which there are too many commands is no candidate for a while: others leave in its stead.
    fn withhold(&mut self, begun: Instant, decision: &Decision, limit: LimitReached) {
        self.outputs.metrics.commands_limited_total.with_label_values(&[limit.label()]).inc();
        self.memory.settle(&decision.key(), Settled::Nothing);
        if limit == LimitReached::OneServer {
            self.backoff.note(begun, &decision.key(), Verdict::Failed);
        }
    }

    /// The policies, those that are paused in dry run.
    fn in_force(&mut self, now: Timestamp, policies: &Arc<Vec<Policy>>) -> Arc<Vec<Policy>> {
        self.paused.retain(|name, _| policies.iter().any(|policy| policy.name == *name));
        let is_over = |paused: &Paused| paused.until.is_some_and(|until| until <= now);
        let over: Vec<PolicyName> =
            self.paused.iter().filter(|(_, paused)| is_over(paused)).map(|(name, _)| name.clone()).collect();
        for name in over {
            self.paused.remove(&name);
            self.tell_pause(now, &name, PauseChange::Over);
        }
        if self.paused.is_empty() {
            return Arc::clone(policies);
        }
        Arc::new(snapshot::in_force(policies, &self.paused))
    }

    /// Each problem once.
    fn say(&mut self, problems: &[String]) {
        for problem in problems.iter().filter(|problem| !self.last_problems.contains(problem)) {
            tracing::warn!("{problem}");
        }
        self.last_problems = problems.to_vec();
    }

    fn settle(&mut self, record: Record) {
        let key = record.decision.key();
        let how = match record.outcome {
            Outcome::Unloaded { .. } => Settled::Unloaded { completed_at: Timestamp::now() },
            Outcome::Loading => Settled::Loaded,
            _ => Settled::Nothing,
        };
        self.memory.settle(&key, how);
        self.others.ended(Timestamp::now(), &key);
        // What a person asked for says nothing of whom the rules may choose.
        let by_rule = record.decision.reason != Reason::Manual;
        if let Some(verdict) = record.outcome.verdict().filter(|_| by_rule) {
            self.backoff.note(Instant::now(), &key, verdict);
        }
        if let (Outcome::Unloaded { .. }, Some(generation)) = (&record.outcome, record.decision.if_generation) {
            self.unproven.reported(key.clone(), generation, Instant::now());
        }
        if let (Settled::Unloaded { .. }, Some(gpu)) = (how, &record.decision.gpu) {
            self.look_again(gpu);
        }
        self.outputs.audit.write(&record);
        self.timeline.push(record.clone());
        if matches!(record.outcome, Outcome::Withheld { .. }) {
            return;
        }
        self.tell_person(Told::Command(Box::new(record)));
    }

    /// Nothing more is decided on a card until its figures are newer than its last unload.
    fn look_again(&self, gpu: &GpuId) {
        for (server, seen) in self.inputs.store.all() {
            if seen.last.is_some_and(|(_, sample)| sample.gpus.contains_key(gpu)) {
                self.inputs.store.nudge(&server);
            }
        }
    }
}
