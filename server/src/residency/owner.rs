//! The task that owns a model: feeds the machine and does what it says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hush_contract::{ModelState, UnloadRefusal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::machine::{
    CommandId, Count, Effect, Event, LeaseId, Load, LostWhy, Machine, Moment, Policy, Refusal, Unload, UnloadReport,
};
use super::snapshot::{Board, Facts};
use crate::memory;
use crate::metrics::Metrics;
use crate::runner::wire::LoadSpec;
use crate::runner::{LoadTimings, Runner, RunnerEvent, Runners};

pub(super) type Inbox = mpsc::UnboundedReceiver<Message>;
pub(super) type Grant = Result<Runner, Refusal>;

pub(super) enum Message {
    Arrive {
        lease: LeaseId,
        again: bool,
        reply: oneshot::Sender<Grant>,
    },
    End {
        lease: LeaseId,
    },
    /// `judged` is sent once the order is accepted or refused, `reply` when the model is there or will not come.
    Load {
        load: Load,
        judged: oneshot::Sender<()>,
        reply: oneshot::Sender<Result<u64, Refusal>>,
    },
    Unload {
        unload: Unload,
        reply: oneshot::Sender<Result<UnloadReport, UnloadRefusal>>,
    },
    Runner {
        generation: u64,
        event: RunnerEvent,
    },
    Shutdown {
        deadline: Instant,
        reply: oneshot::Sender<()>,
    },
}

pub(super) struct Owner {
    model: String,
    spec: LoadSpec,
    runners: Runners,
    metrics: Arc<Metrics>,
    board: Board,
    /// For the news of runners. Weak: a model that nobody can ask for ends.
    own_inbox: mpsc::WeakUnboundedSender<Message>,
    machine: Machine,
    start: Instant,
    /// Of the current generation, until it is reaped.
    runner: Option<Runner>,
    pid: Option<u32>,
    loaded_since: Option<Instant>,
    /// What the last load took.
    last_load: Option<Duration>,
    waiting: HashMap<LeaseId, oneshot::Sender<Grant>>,
    next_command: u64,
    loads: HashMap<CommandId, oneshot::Sender<Result<u64, Refusal>>>,
    unloads: HashMap<CommandId, oneshot::Sender<Result<UnloadReport, UnloadRefusal>>>,
    shutdowns: Vec<oneshot::Sender<()>>,
    stopped: bool,
}

impl Owner {
    pub(super) fn new(
        model: String,
        spec: LoadSpec,
        policy: Policy,
        runners: Runners,
        metrics: Arc<Metrics>,
        board: Board,
        own_inbox: mpsc::WeakUnboundedSender<Message>,
    ) -> Self {
        Self {
            model,
            spec,
            runners,
            metrics,
            board,
            own_inbox,
            machine: Machine::new(policy),
            start: Instant::now(),
            runner: None,
            pid: None,
            loaded_since: None,
            last_load: None,
            waiting: HashMap::new(),
            next_command: 0,
            loads: HashMap::new(),
            unloads: HashMap::new(),
            shutdowns: Vec::new(),
            stopped: false,
        }
    }

    pub(super) async fn run(mut self, mut inbox: Inbox) {
        self.step(Event::Tick);
        loop {
            let wake = self.machine.deadline().map(|deadline| self.instant(deadline));
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.take(message),
                    // Dropping the runner asks it to exit.
                    None => return,
                },
                () = sleep_until(wake.unwrap_or(self.start)), if wake.is_some() => self.step(Event::Tick),
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Arrive { lease, again, reply } => {
                self.waiting.insert(lease, reply);
                self.step(Event::Arrive { lease, again });
            }
            Message::End { lease } => {
                self.waiting.remove(&lease);
                self.step(Event::End { lease });
            }
            Message::Load { load, judged, reply } => {
                let command = self.command();
                self.loads.insert(command, reply);
                self.step(Event::Load { command, load });
                // Whoever asked may not wait for it.
                let _ = judged.send(());
            }
            Message::Unload { unload, reply } => {
                let command = self.command();
                self.unloads.insert(command, reply);
                self.step(Event::Unload { command, unload });
            }
            Message::Runner { generation, event } => self.hear(generation, event),
            Message::Shutdown { deadline, reply } => {
                if self.stopped {
                    let _ = reply.send(());
                } else {
                    self.shutdowns.push(reply);
                    let deadline = self.moment(deadline);
                    self.step(Event::Shutdown { deadline });
                }
            }
        }
    }

    fn hear(&mut self, generation: u64, event: RunnerEvent) {
        let current = generation == self.machine.generation();
        match event {
            RunnerEvent::Started { pid } if current => {
                self.pid = Some(pid);
                self.publish();
            }
            RunnerEvent::Started { .. } => {}
            RunnerEvent::Loaded(timings) => {
                if current {
                    self.loaded_since = Some(Instant::now());
                    self.last_load = Some(timings.total);
                    self.note_load(generation, timings);
                }
                self.step(Event::Loaded { generation });
            }
            RunnerEvent::LoadFailed(cause) => {
                tracing::warn!(model = self.model, generation, "load failed: {cause}");
                self.step(Event::LoadFailed { generation, cause });
            }
            RunnerEvent::Lost(loss) => self.step(Event::RunnerLost { generation, loss }),
            RunnerEvent::Exited => {
                if current {
                    self.runner = None;
                    self.pid = None;
                    self.loaded_since = None;
                    tokio::task::spawn_blocking(memory::give_back);
                }
                self.step(Event::Exited { generation });
            }
        }
    }

    fn step(&mut self, event: Event) {
        let before = self.machine.state();
        let now = self.moment(Instant::now());
        let effects = self.machine.step(now, event);
        let after = self.machine.state();
        if after != before {
            let generation = self.machine.generation();
            tracing::info!(model = self.model, generation, from = before.as_str(), to = after.as_str(), "state");
        }
        // First what everybody may see, then what wakes somebody who may look.
        self.publish();
        for effect in effects {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::StartRunner { generation } => {
                let inbox = self.own_inbox.clone();
                let notify = Box::new(move |event| {
                    if let Some(inbox) = inbox.upgrade() {
                        let _ = inbox.send(Message::Runner { generation, event });
                    }
                });
                self.runner = Some(self.runners.start(self.spec.clone(), notify));
            }
            Effect::StopRunner { .. } => self.with_runner(Runner::stop),
            Effect::KillRunner { .. } => self.with_runner(Runner::kill),
            Effect::Grant { lease, .. } => {
                if let (Some(reply), Some(runner)) = (self.waiting.remove(&lease), &self.runner) {
                    // Whoever left has sent the end of its lease too.
                    let _ = reply.send(Ok(runner.clone()));
                }
            }
            Effect::Refuse { lease, refusal } => {
                if let Some(reply) = self.waiting.remove(&lease) {
                    let _ = reply.send(Err(refusal));
                }
            }
            // The job hears it from its runner.
            Effect::Lost { lease, why } => match why {
                LostWhy::Runner(loss) => tracing::warn!(model = self.model, lease = lease.0, "lost its runner: {loss}"),
                LostWhy::Displaced => tracing::info!(model = self.model, lease = lease.0, "displaced by an unload"),
            },
            Effect::ReplyLoad { command, result } => {
                if let Some(reply) = self.loads.remove(&command) {
                    let _ = reply.send(result);
                }
            }
            Effect::ReplyUnload { command, result } => {
                if let Err(refusal) = result
                    && let Some(reply) = self.unloads.remove(&command)
                {
                    let _ = reply.send(Err(refusal));
                }
            }
            Effect::Unloaded { command, report } => {
                if let Some(reply) = self.unloads.remove(&command) {
                    let _ = reply.send(Ok(report));
                }
            }
            Effect::Count(count) => self.count(count),
            Effect::Stopped => {
                self.stopped = true;
                for reply in self.shutdowns.drain(..) {
                    let _ = reply.send(());
                }
            }
        }
    }

    fn with_runner(&self, order: impl FnOnce(&Runner)) {
        if let Some(runner) = &self.runner {
            order(runner);
        }
    }

    fn count(&self, count: Count) {
        let (metrics, model) = (&self.metrics, self.model.as_str());
        match count {
            Count::Loaded { .. } => metrics.loads_total.with_label_values(&[model, "success"]).inc(),
            Count::LoadFailed => metrics.loads_total.with_label_values(&[model, "failure"]).inc(),
            Count::Unloaded { reason, total } => {
                metrics.unloads_total.with_label_values(&[model, reason.as_str()]).inc();
                metrics.unload_duration_seconds.with_label_values(&[model]).observe(total.as_secs_f64());
                tracing::info!(model, reason = reason.as_str(), reaped_seconds = total.as_secs_f64(), "unloaded");
            }
            Count::UnloadRefused(refusal) => {
                metrics.unload_refused_total.with_label_values(&[model, refusal.as_str()]).inc();
            }
            Count::RunnerLost(cause) => {
                metrics.runner_restarts_total.with_label_values(&[model, cause.as_str()]).inc();
            }
            Count::Interarrival(gap) => {
                metrics.interarrival_seconds.with_label_values(&[model]).observe(gap.as_secs_f64());
            }
            Count::ColdStart(wait) => {
                metrics.cold_start_wait_seconds.with_label_values(&[model]).observe(wait.as_secs_f64());
            }
        }
    }

    fn note_load(&self, generation: u64, timings: LoadTimings) {
        let LoadTimings { spawn, libraries, sessions, total } = timings;
        for (phase, took) in [("spawn", spawn), ("libraries", libraries), ("sessions", sessions), ("total", total)] {
            let histogram = self.metrics.load_duration_seconds.with_label_values(&[self.model.as_str(), phase]);
            histogram.observe(took.as_secs_f64());
        }
        tracing::info!(
            model = self.model,
            generation,
            spawn_seconds = spawn.as_secs_f64(),
            libraries_seconds = libraries.as_secs_f64(),
            sessions_seconds = sessions.as_secs_f64(),
            total_seconds = total.as_secs_f64(),
            "loaded"
        );
    }

    fn publish(&self) {
        let machine = &self.machine;
        let ready = matches!(machine.state(), ModelState::Ready | ModelState::Draining);
        self.board.write(Facts {
            state: machine.state(),
            generation: machine.generation(),
            inflight: machine.inflight(),
            queued: machine.queued(),
            idle_since: machine.idle_since().map(|since| self.instant(since)),
            loaded_since: self.loaded_since.filter(|_| ready),
            residency: machine.residency(),
            hold_until: machine.hold_until().map(|until| self.instant(until)),
            last_load: self.last_load,
            runner_pid: self.pid,
            failure: machine.failure().map(|(cause, until)| (cause.to_owned(), self.instant(until))),
        });
    }

    fn command(&mut self) -> CommandId {
        self.next_command += 1;
        CommandId(self.next_command)
    }

    fn moment(&self, at: Instant) -> Moment {
        Moment::START + at.saturating_duration_since(self.start)
    }

    fn instant(&self, moment: Moment) -> Instant {
        // A settings file may say `forever` in seconds.
        let year = Duration::from_secs(365 * 86400);
        self.start.checked_add(moment.since(Moment::START)).unwrap_or_else(|| Instant::now() + year)
    }
}
