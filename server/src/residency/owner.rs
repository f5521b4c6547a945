//! The task that owns a model: feeds the machine and does what it says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hush_contract::{ModelState, UnloadRefusal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::machine::{
    CommandId, Effect, Event, LeaseId, Load, LostWhy, Machine, Moment, Policy, Reclaimed, Refusal, Unload, UnloadReport,
};
use super::models::ModelSettings;
use super::places::{Guest, Place, Places};
use super::snapshot::{Board, Facts};
use super::tally;
use crate::gpu::{Account, Accounts, Measured, View};
use crate::memory;
use crate::metrics::Metrics;
use crate::runner::wire::LoadSpec;
use crate::runner::{Runner, RunnerEvent, Runners};

pub(super) type Inbox = mpsc::UnboundedReceiver<Message>;
pub(super) type Grant = Result<Runner, Refusal>;

pub(super) enum Message {
    Arrive {
        lease: LeaseId,
        again: bool,
        patience: Option<Duration>,
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
    /// Other settings: the policy holds at once, the rest from the next load on.
    Update(ModelSettings),
    Runner {
        generation: u64,
        event: RunnerEvent,
    },
    /// There is a place in memory for this generation.
    Entered {
        generation: u64,
        place: Option<Place>,
    },
    Measured(Measured),
    Reclaimed {
        generation: u64,
        memory: Option<Reclaimed>,
    },
    Shutdown {
        deadline: Instant,
        reply: oneshot::Sender<()>,
    },
}

pub(super) struct Owner {
    model: String,
    spec: LoadSpec,
    precision: Option<String>,
    /// Settings that wait until nothing is loaded by the old ones.
    next: Option<ModelSettings>,
    runners: Runners,
    metrics: Arc<Metrics>,
    board: Board,
    /// `None`: no device is measured.
    accounts: Option<Accounts>,
    /// `None`: the model's device is not measured.
    account: Option<Account>,
    /// For the news of runners and devices. Weak: a model that nobody can ask for ends.
    own_inbox: mpsc::WeakUnboundedSender<Message>,
    machine: Machine,
    start: Instant,
    places: Places,
    /// Waits for a place of the current generation.
    entering: Option<AbortOnDropHandle<()>>,
    /// Of the current generation, until it is reaped.
    place: Option<Place>,
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
        settings: ModelSettings,
        accounts: Option<Accounts>,
        runners: Runners,
        metrics: Arc<Metrics>,
        board: Board,
        own_inbox: mpsc::WeakUnboundedSender<Message>,
    ) -> Self {
        let ModelSettings { name: model, spec, precision, policy, account } = settings;
        let account = accounts.as_ref().zip(account).map(|(accounts, account)| accounts.open(&model, account));
        let policy = Policy { accounted: account.is_some(), ..policy };
        Self {
            model,
            spec,
            precision,
            next: None,
            runners,
            metrics,
            board,
            accounts,
            account,
            own_inbox,
            machine: Machine::new(policy),
            start: Instant::now(),
            places: Places::unlimited(),
            entering: None,
            place: None,
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

    /// The model shares the memory with others.
    pub(super) fn among(self, places: Places) -> Self {
        Self { places, ..self }
    }

    pub(super) async fn run(mut self, mut inbox: Inbox) {
        let mut views = self.accounts.as_ref().map(|accounts| accounts.sampler().follow());
        self.step(Event::Tick);
        loop {
            let is_short = self.machine.shortage().is_some();
            let wake = self.machine.deadline().map(|deadline| self.instant(deadline));
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.take(message),
                    // Dropping the runner asks it to exit.
                    None => return,
                },
                () = sleep_until(wake.unwrap_or(self.start)), if wake.is_some() => self.step(Event::Tick),
                view = next_view(&mut views), if is_short => {
                    if let Some(account) = &self.account {
                        let measured = account.room(&view);
                        self.measured(measured);
                    }
                }
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Arrive { lease, again, patience, reply } => {
                self.waiting.insert(lease, reply);
                self.step(Event::Arrive { lease, again, patience });
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
            Message::Update(settings) => {
                let policy = Policy { accounted: self.account.is_some(), ..settings.policy };
                self.next = Some(settings);
                self.step(Event::Policy { policy });
            }
            Message::Runner { generation, event } => self.hear(generation, event),
            Message::Entered { generation, place } => {
                // Otherwise it is not wanted any more, and the place is free again.
                if generation == self.machine.generation() && self.entering.take().is_some() {
                    self.place = place;
                    self.start_runner(generation);
                }
            }
            Message::Measured(measured) => self.measured(measured),
            Message::Reclaimed { generation, memory } => {
                // The next load may be part of this step.
                if generation == self.machine.generation() {
                    self.adopt();
                }
                self.step(Event::Reclaimed { generation, memory });
            }
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
                    tally::load(&self.metrics, &self.model, generation, timings);
                    if let (Some(account), Some(pid)) = (self.account.clone(), self.pid) {
                        tokio::spawn(async move { account.loaded(pid).await });
                    }
                }
                self.step(Event::Loaded { generation });
            }
            RunnerEvent::Settled(took) => {
                tracing::debug!(model = self.model, generation, settled_seconds = took.as_secs_f64(), "settled");
                self.step(Event::Settled { generation });
            }
            RunnerEvent::LoadFailed { cause, out_of_memory } => {
                tracing::warn!(model = self.model, generation, "load failed: {cause}");
                self.with_account(|account| {
                    if out_of_memory && current {
                        account.out_of_memory();
                    }
                });
                self.step(Event::LoadFailed { generation, cause, out_of_memory });
            }
            RunnerEvent::OutOfMemory(cause) => {
                tracing::warn!(model = self.model, generation, "out of memory: {cause}");
                if current {
                    self.with_account(Account::out_of_memory);
                }
                self.step(Event::OutOfMemory { generation });
            }
            RunnerEvent::Lost(loss) => {
                if current {
                    self.with_account(Account::leaving);
                }
                self.step(Event::RunnerLost { generation, loss });
            }
            RunnerEvent::Exited => {
                if current {
                    self.runner = None;
                    self.place = None;
                    self.pid = None;
                    self.loaded_since = None;
                    self.with_account(Account::gone);
                    tokio::task::spawn_blocking(memory::give_back);
                    // Otherwise the old account still has to see its memory come back.
                    if self.account.is_none() {
                        self.adopt();
                    }
                }
                self.step(Event::Exited { generation });
            }
        }
    }

    fn measured(&mut self, measured: Measured) {
        self.step(match measured {
            Measured::Room(memory) => Event::Memory { memory },
            Measured::NeverFits(cause) => Event::NeverFits { cause },
        });
        // Whoever wanted it may have left meanwhile.
        if self.machine.state() != ModelState::Loading {
            self.with_account(Account::release_claim);
        }
    }

    /// What takes time and ends with a message to itself.
    fn ask<F>(&self, question: impl FnOnce(Account) -> F, message: impl FnOnce(F::Output) -> Message + Send + 'static)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let Some(account) = self.account.clone() else { return };
        let (answer, inbox) = (question(account), self.own_inbox.clone());
        tokio::spawn(async move {
            let answer = answer.await;
            if let Some(inbox) = inbox.upgrade() {
                let _ = inbox.send(message(answer));
            }
        });
    }

    fn with_account(&self, change: impl FnOnce(&Account)) {
        if let Some(account) = &self.account {
            change(account);
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
        let is_loaded =
            matches!(after, ModelState::Loading | ModelState::Ready | ModelState::Draining | ModelState::Unloading);
        if !is_loaded {
            self.adopt();
        }
    }

    /// Takes over the settings that wait, now that nothing is loaded by the old ones.
    fn adopt(&mut self) {
        let Some(settings) = self.next.take() else { return };
        let ModelSettings { spec, precision, policy, account, .. } = settings;
        (self.spec, self.precision) = (spec, precision);
        if let Some(accounts) = &self.accounts {
            self.account = accounts.reopen(&self.model, account);
        }
        self.step(Event::Policy { policy: Policy { accounted: self.account.is_some(), ..policy } });
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Measure => {
                self.ask(|account| async move { account.measure().await }, Message::Measured);
            }
            Effect::Reclaim { generation } => {
                let message = move |memory| Message::Reclaimed { generation, memory };
                self.ask(|account| async move { account.reclaim().await }, message);
            }
            Effect::StartRunner { generation } if self.places.is_limited() => self.enter(generation),
            Effect::StartRunner { generation } => self.start_runner(generation),
            Effect::StopRunner { generation } => {
                self.with_account(Account::leaving);
                self.with_runner(generation, Runner::stop);
            }
            Effect::KillRunner { generation } => {
                self.with_account(Account::leaving);
                self.with_runner(generation, Runner::kill);
            }
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
            Effect::Count(count) => tally::count(&self.metrics, &self.model, count),
            Effect::Stopped => {
                self.stopped = true;
                for reply in self.shutdowns.drain(..) {
                    let _ = reply.send(());
                }
            }
        }
    }

    /// Waits for a place first.
    fn enter(&mut self, generation: u64) {
        let guest = Guest { model: self.model.clone(), inbox: self.own_inbox.clone(), board: self.board.clone() };
        let (places, inbox) = (self.places.clone(), self.own_inbox.clone());
        self.entering = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let place = places.take(guest).await;
            if let Some(inbox) = inbox.upgrade() {
                let _ = inbox.send(Message::Entered { generation, place });
            }
        })));
    }

    fn start_runner(&mut self, generation: u64) {
        let inbox = self.own_inbox.clone();
        let notify = Box::new(move |event| {
            if let Some(inbox) = inbox.upgrade() {
                let _ = inbox.send(Message::Runner { generation, event });
            }
        });
        // What was free is all that it may take: the rest belongs to whoever came later.
        let memory_limit_bytes = self.account.as_ref().and_then(Account::limit_bytes);
        let spec = LoadSpec { memory_limit_bytes, ..self.spec.clone() };
        self.runner = Some(self.runners.start(spec, notify));
    }

    fn with_runner(&mut self, generation: u64, order: impl FnOnce(&Runner)) {
        if let Some(runner) = &self.runner {
            order(runner);
        } else if self.entering.take().is_some()
            && let Some(inbox) = self.own_inbox.upgrade()
        {
            // It waited for its place and has nothing to reap.
            let _ = inbox.send(Message::Runner { generation, event: RunnerEvent::Exited });
        }
    }

    fn publish(&self) {
        let machine = &self.machine;
        let ready = matches!(machine.state(), ModelState::Ready | ModelState::Draining);
        self.board.write(Facts {
            device: self.spec.device.clone(),
            precision: self.precision.clone(),
            account: self.account.clone(),
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
            demand_bytes: machine.shortage().map(|memory| memory.demand_bytes),
        });
        self.places.poke();
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

/// The next look at the GPUs; never, where there are none.
async fn next_view(views: &mut Option<watch::Receiver<Arc<View>>>) -> Arc<View> {
    if let Some(views) = views
        && views.changed().await.is_ok()
    {
        return views.borrow_and_update().clone();
    }
    std::future::pending().await
}
