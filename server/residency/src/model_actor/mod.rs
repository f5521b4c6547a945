//! The task that owns the state of a model: it passes events to the machine and carries out the effects.

mod perform;
mod runner_events;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hush_contract::{ModelState, UnloadRefusal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use crate::gpu::{Accounts, GpuReading, ModelAccount, RoomMeasurement};
use crate::load_slots::{LoadSlot, LoadSlots};
use crate::machine::{
    CommandId, LeaseId, LifecycleSettings, LoadCommand, MachineEvent, MachineTime, ModelMachine, ModelRefusal,
    ReclaimReport, UnloadCommand, UnloadReport,
};
use crate::metrics::ResidencyMetrics;
use crate::models::ModelSettings;
use crate::runner::{RunnerEvent, RunnerFactory, RunnerSpec};
use crate::snapshot::{ModelFacts, SnapshotCell};

/// Instead of an instant that lies too far away to be expressed: a hold may be given as `forever` in seconds.
const FAR_AWAY: Duration = Duration::from_secs(365 * 86400);

pub(crate) type ActorInbox<F> = mpsc::UnboundedReceiver<ActorMessage<F>>;
pub(crate) type LeaseReply<F> = Result<<F as RunnerFactory>::Runner, ModelRefusal>;
pub(crate) type LoadReply = Result<u64, ModelRefusal>;
pub(crate) type UnloadReply = Result<UnloadReport, UnloadRefusal>;

pub(crate) enum ActorMessage<F: RunnerFactory> {
    /// A request wants the model. `again`: it has lost its runner and has waited its turn already.
    Arrive {
        lease: LeaseId,
        again: bool,
        max_cold_wait: Option<Duration>,
        reply: oneshot::Sender<LeaseReply<F>>,
    },
    /// Work that goes on already, if the model is in memory.
    Occupy {
        lease: LeaseId,
        reply: oneshot::Sender<LeaseReply<F>>,
    },
    /// A request that must find the model in memory, and is no activity.
    Visit {
        lease: LeaseId,
        reply: oneshot::Sender<LeaseReply<F>>,
    },
    End {
        lease: LeaseId,
    },
    /// The model is in memory although nothing loaded it from here.
    Appeared,
    /// `judged` is sent once the command is accepted or refused, `reply` when the model is loaded or will not be.
    Load {
        load: LoadCommand,
        judged: oneshot::Sender<()>,
        reply: oneshot::Sender<LoadReply>,
    },
    Unload {
        unload: UnloadCommand,
        reply: oneshot::Sender<UnloadReply>,
    },
    /// Other settings: the lifecycle settings hold at once, the others from the next load on.
    Update(ModelSettings<F::Spec>),
    Runner {
        generation: u64,
        event: RunnerEvent,
    },
    /// This generation may be loaded.
    SlotTaken {
        generation: u64,
        slot: Option<LoadSlot>,
    },
    Measured(RoomMeasurement),
    Reclaimed {
        generation: u64,
        memory: Option<ReclaimReport>,
    },
    Shutdown {
        deadline: Instant,
        reply: oneshot::Sender<()>,
    },
}

pub(crate) struct ModelActor<F: RunnerFactory> {
    model: String,
    spec: F::Spec,
    precision: Option<String>,
    /// Settings that wait until nothing is loaded with the old ones.
    next_settings: Option<ModelSettings<F::Spec>>,
    runners: F,
    metrics: ResidencyMetrics,
    cell: SnapshotCell,
    /// `None`: no device is measured.
    accounts: Option<Accounts>,
    /// `None`: the model's device is not measured.
    account: Option<ModelAccount>,
    /// For messages of runners and devices. The sender is weak, so that the actor ends with the last handle of its model.
    own_inbox: mpsc::WeakUnboundedSender<ActorMessage<F>>,
    machine: ModelMachine,
    /// The start of the machine's clock.
    start: Instant,
    slots: LoadSlots,
    /// The task that waits for a slot for the current generation.
    slot_wait: Option<AbortOnDropHandle<()>>,
    /// The slot of the current generation, until its runner is reaped.
    slot: Option<LoadSlot>,
    /// The runner of the current generation, until it is reaped.
    runner: Option<F::Runner>,
    /// The processes of the runner.
    pids: Vec<u32>,
    loaded_since: Option<Instant>,
    /// How long the last load took.
    last_load: Option<Duration>,
    waiting_leases: HashMap<LeaseId, oneshot::Sender<LeaseReply<F>>>,
    next_command: u64,
    loads: HashMap<CommandId, oneshot::Sender<LoadReply>>,
    unloads: HashMap<CommandId, oneshot::Sender<UnloadReply>>,
    shutdowns: Vec<oneshot::Sender<()>>,
    is_stopped: bool,
}

/// What all models of a server share, as an actor needs it.
pub(crate) struct ActorEnvironment<F: RunnerFactory> {
    pub(crate) runners: F,
    pub(crate) accounts: Option<Accounts>,
    pub(crate) slots: LoadSlots,
    pub(crate) metrics: ResidencyMetrics,
}

impl<F: RunnerFactory> ModelActor<F> {
    pub(crate) fn new(
        settings: ModelSettings<F::Spec>,
        environment: ActorEnvironment<F>,
        cell: SnapshotCell,
        own_inbox: mpsc::WeakUnboundedSender<ActorMessage<F>>,
    ) -> Self {
        let ActorEnvironment { runners, accounts, slots, metrics } = environment;
        let ModelSettings { name: model, spec, precision, lifecycle, account } = settings;

        let account = accounts.as_ref().zip(account).map(|(accounts, account)| accounts.open(&model, account));
        let lifecycle = LifecycleSettings { accounted: account.is_some(), ..lifecycle };

        Self {
            model,
            spec,
            precision,
            next_settings: None,
            runners,
            metrics,
            cell,
            accounts,
            account,
            own_inbox,
            machine: ModelMachine::new(lifecycle),
            start: Instant::now(),
            slots,
            slot_wait: None,
            slot: None,
            runner: None,
            pids: Vec::new(),
            loaded_since: None,
            last_load: None,
            waiting_leases: HashMap::new(),
            next_command: 0,
            loads: HashMap::new(),
            unloads: HashMap::new(),
            shutdowns: Vec::new(),
            is_stopped: false,
        }
    }

    /// Runs until every handle of the model is dropped.
    pub(crate) async fn run(mut self, mut inbox: ActorInbox<F>) {
        let mut readings = self.accounts.as_ref().map(|accounts| accounts.sampler().follow());
        self.step(MachineEvent::Tick);

        loop {
            let is_short = self.machine.shortage().is_some();
            let deadline = self.machine.deadline().map(|deadline| self.instant(deadline));

            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.receive(message),
                    // The runner is dropped with the actor, which asks it to exit.
                    None => return,
                },
                () = sleep_until(deadline.unwrap_or(self.start)), if deadline.is_some() => self.step(MachineEvent::Tick),
                reading = next_reading(&mut readings), if is_short => {
                    if let Some(account) = &self.account {
                        let room = account.room(&reading);
                        self.room_measured(room);
                    }
                }
            }
        }
    }

    fn receive(&mut self, message: ActorMessage<F>) {
        match message {
            ActorMessage::Arrive { lease, again, max_cold_wait, reply } => {
                self.waiting_leases.insert(lease, reply);
                self.step(MachineEvent::Arrive { lease, again, patience: max_cold_wait });
            }
            ActorMessage::Occupy { lease, reply } => {
                self.waiting_leases.insert(lease, reply);
                self.step(MachineEvent::Occupy { lease });
            }
            ActorMessage::Visit { lease, reply } => {
                self.waiting_leases.insert(lease, reply);
                self.step(MachineEvent::Visit { lease });
            }
            ActorMessage::Appeared => self.step(MachineEvent::Appeared),
            ActorMessage::End { lease } => {
                self.waiting_leases.remove(&lease);
                self.step(MachineEvent::End { lease });
            }
            ActorMessage::Load { load, judged, reply } => {
                let command = self.next_command_id();
                self.loads.insert(command, reply);
                self.step(MachineEvent::Load { command, load });

                // The caller may have left.
                let _ = judged.send(());
            }
            ActorMessage::Unload { unload, reply } => {
                let command = self.next_command_id();
                self.unloads.insert(command, reply);
                self.step(MachineEvent::Unload { command, unload });
            }
            ActorMessage::Update(settings) => {
                let lifecycle = LifecycleSettings { accounted: self.account.is_some(), ..settings.lifecycle };
                self.next_settings = Some(settings);
                self.step(MachineEvent::ChangeSettings { lifecycle });
            }
            ActorMessage::Runner { generation, event } => self.runner_changed(generation, event),
            ActorMessage::SlotTaken { generation, slot } => {
                // Otherwise the model is not wanted any more, and the slot is given back by its drop.
                if generation == self.machine.generation() && self.slot_wait.take().is_some() {
                    self.slot = slot;
                    self.start_runner(generation);
                }
            }
            ActorMessage::Measured(room) => self.room_measured(room),
            ActorMessage::Reclaimed { generation, memory } => {
                // The next load may be a part of this step.
                if generation == self.machine.generation() {
                    self.adopt_settings();
                }
                self.step(MachineEvent::Reclaimed { generation, memory });
            }
            ActorMessage::Shutdown { deadline, reply } => self.begin_shutdown(deadline, reply),
        }
    }

    fn begin_shutdown(&mut self, deadline: Instant, reply: oneshot::Sender<()>) {
        if self.is_stopped {
            let _ = reply.send(());
            return;
        }

        self.shutdowns.push(reply);
        let deadline = self.machine_time(deadline);
        self.step(MachineEvent::Shutdown { deadline });
    }

    fn room_measured(&mut self, room: RoomMeasurement) {
        self.step(match room {
            RoomMeasurement::Room(memory) => MachineEvent::Memory { memory },
            RoomMeasurement::NeverFits(cause) => MachineEvent::NeverFits { cause },
        });

        // The request that wanted the model may have left meanwhile.
        if self.machine.state() != ModelState::Loading {
            self.with_account(ModelAccount::release_claim);
        }
    }

    fn step(&mut self, event: MachineEvent) {
        let before = self.machine.state();
        let now = self.machine_time(Instant::now());

        let effects = self.machine.step(now, event);

        let after = self.machine.state();
        if after != before {
            let generation = self.machine.generation();
            tracing::info!(model = self.model, generation, from = before.as_str(), to = after.as_str(), "state");
        }

        // The snapshot comes first: an effect may wake a task that reads it.
        self.publish();
        for effect in effects {
            self.perform(effect);
        }

        if !after.holds_memory() {
            self.adopt_settings();
        }
    }

    /// Takes over the settings that wait, now that nothing is loaded with the old ones.
    fn adopt_settings(&mut self) {
        let Some(settings) = self.next_settings.take() else { return };
        let ModelSettings { spec, precision, lifecycle, account, .. } = settings;

        (self.spec, self.precision) = (spec, precision);
        if let Some(accounts) = &self.accounts {
            self.account = accounts.reopen(&self.model, account);
        }

        let lifecycle = LifecycleSettings { accounted: self.account.is_some(), ..lifecycle };
        self.step(MachineEvent::ChangeSettings { lifecycle });
    }

    fn publish(&self) {
        let machine = &self.machine;

        self.cell.write(ModelFacts {
            device: self.spec.device().to_owned(),
            precision: self.precision.clone(),
            account: self.account.clone(),
            state: machine.state(),
            generation: machine.generation(),
            inflight: machine.inflight(),
            queued: machine.queued(),
            idle_since: machine.idle_since().map(|since| self.instant(since)),
            loaded_since: self.loaded_since.filter(|_| machine.state().is_loaded()),
            residency: machine.residency(),
            hold_until: machine.hold_until().map(|until| self.instant(until)),
            last_load: self.last_load,
            runner_pid: self.pids.first().copied(),
            failure: machine.failure().map(|(cause, until)| (cause.to_owned(), self.instant(until))),
            demand_bytes: machine.shortage().map(|memory| memory.demand_bytes),
        });

        self.slots.notify_state_change();
    }

    fn with_account(&self, change: impl FnOnce(&ModelAccount)) {
        if let Some(account) = &self.account {
            change(account);
        }
    }

    fn next_command_id(&mut self) -> CommandId {
        self.next_command += 1;

        CommandId(self.next_command)
    }

    fn machine_time(&self, at: Instant) -> MachineTime {
        MachineTime::START + at.saturating_duration_since(self.start)
    }

    fn instant(&self, time: MachineTime) -> Instant {
        let since_start = time.since(MachineTime::START);

        self.start.checked_add(since_start).unwrap_or_else(|| Instant::now() + FAR_AWAY)
    }
}

/// The next reading of the GPUs; never, where there are none.
async fn next_reading(readings: &mut Option<watch::Receiver<Arc<GpuReading>>>) -> Arc<GpuReading> {
    if let Some(readings) = readings
        && readings.changed().await.is_ok()
    {
        return readings.borrow_and_update().clone();
    }

    std::future::pending().await
}
