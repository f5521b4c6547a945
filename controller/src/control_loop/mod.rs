//! The control loop: it observes the servers, decides, sends commands and publishes what it saw and decided.
//!
//! The loop is level-triggered: each step starts from the whole world as it is now, not from single changes.

pub mod peer_actions;
mod problem_reports;
mod readiness;
mod request;
mod snapshot;
mod timeline;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hush_core::{
    CommandOutcome, Decision, DecisionReason, GpuId, Labels, ModelKey, ModelPolicy, Plan, PolicyKey, StepMemory, World,
    step,
};
use jiff::Timestamp;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use peer_actions::PeerActions;
use problem_reports::{ProblemReports, kept_processes};
pub use readiness::Readiness;
pub use request::{ClaimedName, LoopRequest, PauseChange, PauseOrder, PausedPolicy};
pub use snapshot::LoopSnapshot;
use timeline::{CommandTimeline, is_same_decision};

use crate::act::{
    Audit, Backoff, CommandLimits, CommandRecord, CommandResult, CommandTarget, CommandVerdict, Executor, LimitReached,
    UnverifiedUnloads,
};
use crate::metrics::{ControllerMetrics, QueueLengths};
use crate::observe::{
    AssembledWorld, AssemblyContext, DisagreeingReport, DisputeTracker, ObservationStore, ReportTrust, ScrapeTarget,
    ServerAppProblem, Targets, assemble,
};

/// Samples that arrive within this time are handled in one step.
const COALESCE: Duration = Duration::from_millis(10);
/// After a step the loop pauses for this multiple of the step's duration.
const PAUSE_PER_STEP: u32 = 10;

/// How long the loop waits for a sample that confirms a reported unload. After that the report is forgotten, and the
/// next sample of the server counts as it is.
const REPORT_TIMEOUT: Duration = Duration::from_secs(300);

/// The reason for which the loop is not ready before the first sample.
const NO_ANSWER_YET: &str = "no server has answered yet";

/// The pause before the next step, after a step that took `took`.
///
/// The pause is never longer than `interval`. A step takes seconds only on a machine that stood still or that has no
/// processor time left; a controller that then paused for a multiple of that time would do nothing for minutes.
pub fn pause_after(took: Duration, interval: Duration) -> Duration {
    took.saturating_mul(PAUSE_PER_STEP).min(interval).max(COALESCE)
}

/// Everything that the loop reads.
pub struct LoopInputs {
    pub targets: watch::Receiver<Arc<Targets>>,
    pub policies: watch::Receiver<Arc<Vec<ModelPolicy>>>,
    /// Labels by namespace.
    pub namespaces: watch::Receiver<Arc<BTreeMap<String, Labels>>>,
    pub store: ObservationStore,
    /// Requests of users, from the page or from a plugin.
    pub requests: mpsc::Receiver<LoopRequest>,
}

/// Something that is reported to users as a Kubernetes Event.
#[derive(Clone, Debug)]
pub enum LoopEvent {
    /// A command that was sent has ended. `app` is the kind of the model's app, such as `ollama`.
    Command { record: Box<CommandRecord>, app: String },
    /// A sidecar cannot govern its app, or clients can pass by it.
    AppProblem(ServerAppProblem),
    /// The report of a server on a GPU differs from the reports of other servers.
    ReportsDisagree(DisagreeingReport),
    /// A policy was paused or resumed by a user, or its pause has expired.
    Pause(PolicyKey, PauseChange),
}

/// Everything that the loop writes to.
pub struct LoopOutputs {
    pub executor: Executor,
    /// The commands of the executor that have ended.
    pub ended: mpsc::UnboundedReceiver<CommandRecord>,
    pub audit: Audit,
    pub metrics: Arc<ControllerMetrics>,
    pub readiness: Readiness,
    pub snapshots: watch::Sender<Arc<LoopSnapshot>>,
    /// `None`: there is no cluster to write Events to.
    pub events: Option<mpsc::Sender<LoopEvent>>,
}

#[derive(Clone, Copy, Debug)]
pub struct LoopSettings {
    /// The longest time between two steps: timers expire without a new sample.
    pub interval: Duration,
    /// The age from which a sample causes no action.
    pub stale_after: Duration,
    pub trust: ReportTrust,
}

pub struct ControlLoop {
    settings: LoopSettings,
    inputs: LoopInputs,
    outputs: LoopOutputs,
    memory: StepMemory,
    peer_actions: PeerActions,
    backoff: Backoff,
    disputes: DisputeTracker,
    problem_reports: ProblemReports,
    unverified_unloads: UnverifiedUnloads,
    limits: CommandLimits,
    /// The memory of each GPU in the last step, in bytes.
    gpu_total_bytes: HashMap<GpuId, u64>,
    paused: BTreeMap<PolicyKey, PausedPolicy>,
    timeline: CommandTimeline,
    last_plan: Plan,
    last_problems: Vec<String>,
}

impl ControlLoop {
    pub fn new(settings: LoopSettings, inputs: LoopInputs, outputs: LoopOutputs) -> Self {
        outputs.readiness.set("targets", Some(NO_ANSWER_YET.to_owned()));

        Self {
            settings,
            inputs,
            outputs,
            memory: StepMemory::default(),
            peer_actions: PeerActions::default(),
            backoff: Backoff::default(),
            disputes: DisputeTracker::default(),
            problem_reports: ProblemReports::default(),
            unverified_unloads: UnverifiedUnloads::default(),
            limits: CommandLimits::default(),
            gpu_total_bytes: HashMap::new(),
            paused: BTreeMap::new(),
            timeline: CommandTimeline::default(),
            last_plan: Plan::default(),
            last_problems: Vec::new(),
        }
    }

    /// Runs until `stop` is true. Commands that are under way then have `finish_timeout` to end.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>, finish_timeout: Duration) {
        let mut new_samples = self.inputs.store.changes();
        let mut took = Duration::ZERO;

        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                Some(record) = self.outputs.ended.recv() => self.finish_command(record),
                Some(request) = self.inputs.requests.recv() => self.handle_request(request),
                Ok(()) = new_samples.changed() => {}
                Ok(()) = self.inputs.policies.changed() => {}
                Ok(()) = self.inputs.targets.changed() => {}
                Ok(()) = self.inputs.namespaces.changed() => {}
                () = tokio::time::sleep(self.settings.interval) => {}
            }
            tokio::time::sleep(pause_after(took, self.settings.interval)).await;

            self.finish_ended_commands();
            new_samples.mark_unchanged();

            let begun = Instant::now();
            self.step();
            took = begun.elapsed();
        }

        self.outputs.executor.finish(finish_timeout).await;
        self.finish_ended_commands();
    }

    fn finish_ended_commands(&mut self) {
        while let Ok(record) = self.outputs.ended.try_recv() {
            self.finish_command(record);
        }
    }

    /// One reconciliation: from the samples as they are now to commands and a snapshot.
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
        let context = AssemblyContext { now: begun, stale_after, namespaces: &namespaces, trust };
        let assembled = assemble(&context, &targets, &seen, &mut self.disputes);
        let AssembledWorld { mut world, mut problems, outdated, disagreeing, mut app_problems } = assembled;
        self.gpu_total_bytes = world.gpus.iter().map(|gpu| (gpu.uuid.clone(), gpu.total_bytes)).collect();

        self.verify_reported_unloads(begun, &world);
        let enforced_policies = self.enforced_policies(now, &policies);
        self.observe_peers(now, begun, &world);

        // After everything in this step that makes the controller leave a server alone: a model whose sample has just
        // shown that a command had no effect gets no other command in the same step.
        for model in &mut world.models {
            model.back_off = self.backoff.holds(begun, &model.key);
        }

        let plan = step(&mut self.memory, now, &world, &enforced_policies);
        self.dispatch(now, begun, &plan, &targets);
        for server in outdated {
            self.inputs.store.nudge(&server);
        }

        let kept_processes = kept_processes(&plan, &world);
        problems.extend(kept_processes.iter().map(ToString::to_string));
        app_problems.extend(kept_processes);
        for event in self.problem_reports.due(self.outputs.executor.may_report(), &app_problems, &disagreeing) {
            self.send_event(event);
        }

        self.record_metrics(&plan, &world, policies.len(), begun);
        self.log_problems(&problems);

        let paused = self.paused.clone();
        let records = self.timeline.records();
        self.publish(LoopSnapshot {
            at: now,
            world,
            plan,
            policies,
            targets,
            seen,
            problems,
            app_problems,
            paused,
            records,
        });
    }

    /// Sends the decisions of a plan that are this controller's to carry out. The others are recorded: those of peers as
    /// expected, those of a dry run in the timeline.
    fn dispatch(&mut self, now: Timestamp, begun: Instant, plan: &Plan, targets: &Targets) {
        for decision in plan.decisions.iter().filter(|decision| !decision.dry_run) {
            if self.outputs.executor.is_for_another(decision) {
                self.peer_actions.expect(now, decision);
            } else if let Err(limit) = self.limits.take(begun, &decision.server) {
                self.withhold(begun, decision, limit);
            } else if let Some(target) = targets.get(&decision.server) {
                // Every model in the world came from a target.
                self.peer_actions.sent(decision.key());
                let target = self.command_target(decision, target);
                self.outputs.executor.submit(now, decision.clone(), target, None);
            }
        }

        for decision in plan.decisions.iter().filter(|decision| decision.dry_run) {
            self.timeline.push_dry_run(now, decision);
        }
    }

    /// Updates the memory with what other controllers have done. A model on which an expected peer did not act is left
    /// alone for a while, so that another one is chosen in its place.
    fn observe_peers(&mut self, now: Timestamp, begun: Instant, world: &World) {
        for key in self.peer_actions.observe(now, world, &mut self.memory) {
            tracing::warn!(server = %key.server, model = key.model, "its own controller does not act: others stand in for it");
            self.backoff.suspend(begun, &key);
        }
    }

    fn record_metrics(&mut self, plan: &Plan, world: &World, policies: usize, begun: Instant) {
        let metrics = &self.outputs.metrics;
        let gpu_ages = world.gpus.iter().map(|gpu| (gpu.uuid.as_str(), gpu.sample_age));
        let is_new =
            |decision: &&Decision| !self.last_plan.decisions.iter().any(|last| is_same_decision(last, decision));
        metrics.record_step(plan, plan.decisions.iter().filter(is_new), gpu_ages, begun.elapsed());

        metrics.policies_paused.set(i64::try_from(self.paused.len()).unwrap_or(i64::MAX));
        metrics.policies.set(i64::try_from(policies).unwrap_or(i64::MAX));

        let events = self.outputs.events.as_ref();
        metrics.record_queues(QueueLengths {
            commands: self.outputs.executor.pending(),
            requests: self.inputs.requests.len(),
            events: events.map_or(0, |events| events.max_capacity() - events.capacity()),
        });
    }

    /// Makes the step visible: the targets' metrics, readiness, and the snapshot for status, page and plugin.
    fn publish(&mut self, snapshot: LoopSnapshot) {
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
        self.outputs.readiness.set("targets", (!known).then(|| NO_ANSWER_YET.to_owned()));
        self.outputs.readiness.record_step();

        self.last_plan.clone_from(&snapshot.plan);
        self.outputs.snapshots.send_replace(Arc::new(snapshot));
    }

    /// Handles a request of a user. The receiver of the answer may have gone away; the answer is then dropped.
    fn handle_request(&mut self, request: LoopRequest) {
        let now = Timestamp::now();

        match request {
            LoopRequest::Memory(to) => drop(to.send(self.memory.clone())),
            LoopRequest::Command(decision, to) => self.send_manual_command(now, *decision, to),
            LoopRequest::Pause(policy, PauseOrder { span, claimed_by }, to) => {
                // A time span that leaves the calendar has no end.
                let end = |span| now.checked_add(jiff::SignedDuration::try_from(span).ok()?).ok();
                let until = span.map(|span| end(span).unwrap_or(Timestamp::MAX));
                let paused = PausedPolicy { since: now, until, claimed_by };
                self.record_pause(now, &policy, PauseChange::Paused(paused.clone()));
                self.paused.insert(policy, paused.clone());
                let _ = to.send(paused);
            }
            LoopRequest::Resume(policy, claimed_by, to) => {
                let was_paused = self.paused.remove(&policy).is_some();
                if was_paused {
                    self.record_pause(now, &policy, PauseChange::Resumed(claimed_by));
                }
                let _ = to.send(was_paused);
            }
        }
    }

    fn record_pause(&self, now: Timestamp, policy: &PolicyKey, change: PauseChange) {
        self.outputs.audit.write_pause(now, policy, &change);
        self.send_event(LoopEvent::Pause(policy.clone(), change));
    }

    /// Queues an Event, where there is a cluster. An Event that finds the queue full is dropped and counted; the audit log
    /// still has its record.
    fn send_event(&self, event: LoopEvent) {
        let Some(events) = &self.outputs.events else { return };
        if let Err(TrySendError::Full(_)) = events.try_send(event) {
            self.outputs.metrics.events_dropped_total.inc();
        }
    }

    /// Sends a command that a user asked for. Where its server is not known, `to` is dropped without an answer.
    fn send_manual_command(&mut self, now: Timestamp, decision: Decision, to: oneshot::Sender<CommandRecord>) {
        let targets = self.inputs.targets.borrow().clone();
        let Some(target) = targets.get(&decision.server) else { return };

        self.memory.commanded(now, &decision);
        self.peer_actions.sent(decision.key());

        let target = self.command_target(&decision, target);
        self.outputs.executor.submit(now, decision, target, Some(to));
    }

    fn command_target(&self, decision: &Decision, target: &ScrapeTarget) -> CommandTarget {
        let gpu_total_bytes = decision.gpu.as_ref().and_then(|gpu| self.gpu_total_bytes.get(gpu)).copied();
        CommandTarget { url: target.url.clone(), audience: target.audience.clone(), gpu_total_bytes }
    }

    /// Compares the unloads that servers have reported with their samples.
    fn verify_reported_unloads(&mut self, begun: Instant, world: &World) {
        for (key, verdict) in self.unverified_unloads.compare(begun, world) {
            if verdict == CommandVerdict::NoEffect {
                let ModelKey { server, model } = &key;
                tracing::warn!(%server, model, "the server said that it unloaded the model, and shows it as before");
                self.outputs.metrics.commands_without_effect_total.inc();
            }
            self.backoff.note(begun, &key, verdict);
        }

        self.unverified_unloads.forget_before(begun, REPORT_TIMEOUT);
    }

    /// Counts a command that is not sent because of a limit. Where the limit is that of the server, the server backs off,
    /// so that models of other servers are chosen.
    fn withhold(&mut self, begun: Instant, decision: &Decision, limit: LimitReached) {
        self.outputs.metrics.commands_limited_total.with_label_values(&[limit.label()]).inc();
        self.memory.settle(&decision.key(), CommandOutcome::Nothing);

        if limit == LimitReached::OneServer {
            self.backoff.note(begun, &decision.key(), CommandVerdict::Failed);
        }
    }

    /// The policies as they are enforced now: a paused policy counts as a dry run. Ends the pauses that have expired.
    fn enforced_policies(&mut self, now: Timestamp, policies: &Arc<Vec<ModelPolicy>>) -> Arc<Vec<ModelPolicy>> {
        self.paused.retain(|name, _| policies.iter().any(|policy| policy.name == *name));

        let is_over = |paused: &PausedPolicy| paused.until.is_some_and(|until| until <= now);
        let expired = self.paused.iter().filter(|(_, paused)| is_over(paused));
        let expired: Vec<PolicyKey> = expired.map(|(name, _)| name.clone()).collect();
        for name in expired {
            self.paused.remove(&name);
            self.record_pause(now, &name, PauseChange::Expired);
        }

        if self.paused.is_empty() {
            return Arc::clone(policies);
        }
        Arc::new(snapshot::with_pauses(policies, &self.paused))
    }

    /// Logs each problem once while it lasts.
    fn log_problems(&mut self, problems: &[String]) {
        for problem in problems.iter().filter(|problem| !self.last_problems.contains(problem)) {
            tracing::warn!("{problem}");
        }

        self.last_problems = problems.to_vec();
    }

    /// Takes the end of a command into account: memory, backoff, audit log, timeline and Event.
    fn finish_command(&mut self, record: CommandRecord) {
        // Taken before the wall clock: a sample that is new enough for another decision is then also compared with the report.
        let reported_at = Instant::now();
        let key = record.decision.key();
        let settled = match record.outcome {
            CommandResult::Unloaded { .. } => CommandOutcome::Unloaded { completed_at: Timestamp::now() },
            CommandResult::Loading => CommandOutcome::Loaded,
            _ => CommandOutcome::Nothing,
        };
        self.memory.settle(&key, settled);
        self.peer_actions.ended(Timestamp::now(), &key);

        // The end of a command that a user asked for does not change which models the rules may choose.
        let by_rule = record.decision.reason != DecisionReason::Manual;
        if let Some(verdict) = record.outcome.verdict().filter(|_| by_rule) {
            self.backoff.note(Instant::now(), &key, verdict);
        }
        if let (CommandResult::Unloaded { .. }, Some(generation)) = (&record.outcome, record.decision.if_generation) {
            self.unverified_unloads.reported(key.clone(), generation, reported_at);
        }
        if let (CommandOutcome::Unloaded { .. }, Some(gpu)) = (settled, &record.decision.gpu) {
            self.request_new_samples(gpu);
        }

        self.outputs.audit.write(&record);
        self.timeline.push(record.clone());
        if !matches!(record.outcome, CommandResult::Withheld { .. }) {
            let app = self.app_of(&record.decision.key());
            self.send_event(LoopEvent::Command { record: Box::new(record), app });
        }
    }

    /// The kind of a model's app in the last step; empty where the model is not known any more.
    fn app_of(&self, key: &ModelKey) -> String {
        let snapshot = self.outputs.snapshots.borrow();
        let model = snapshot.world.models.iter().find(|model| model.key == *key);
        model.map_or_else(String::new, |model| model.app.clone())
    }

    /// Scrapes the servers of a GPU before their turn: no further decision is made on the GPU until its figures are newer
    /// than its last unload.
    fn request_new_samples(&self, gpu: &GpuId) {
        for (server, seen) in self.inputs.store.all() {
            if seen.last.is_some_and(|(_, sample)| sample.gpus.contains_key(gpu)) {
                self.inputs.store.nudge(&server);
            }
        }
    }
}
