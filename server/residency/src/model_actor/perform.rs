//! What the machine wants done.

use std::future::Future;
use std::sync::Arc;

use hush_contract::admin::UnloadMethod;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{ActorMessage, ModelActor};
use crate::gpu::ModelAccount;
use crate::load_slots::{SlotHolder, UnloadSender};
use crate::machine::{LeaseId, LeaseLossCause, MachineEffect, ModelRefusal, UnloadCommand};
use crate::record_metrics::record_event;
use crate::runner::{ModelRunner, OnRunnerEvent, RunnerEvent, RunnerFactory, RunnerSpec};

impl<F: RunnerFactory> ModelActor<F> {
    pub(super) fn perform(&mut self, effect: MachineEffect) {
        match effect {
            MachineEffect::Measure => {
                self.spawn_on_account(|account| async move { account.measure().await }, ActorMessage::Measured);
            }
            MachineEffect::Reclaim { generation } => {
                let message = move |memory| ActorMessage::Reclaimed { generation, memory };
                self.spawn_on_account(|account| async move { account.reclaim().await }, message);
            }
            MachineEffect::StartRunner { generation } if self.slots.is_limited() => self.wait_for_slot(generation),
            MachineEffect::StartRunner { generation } => self.start_runner(generation),
            MachineEffect::AdoptRunner { generation } => self.adopt_runner(generation),
            MachineEffect::StopRunner { generation, method } => self.stop_runner(generation, method),
            MachineEffect::EndUnusedProcess => self.runners.end_unused_process(),
            MachineEffect::KillRunner { generation } => {
                self.with_account(ModelAccount::begin_unload);
                self.end_runner(generation, F::Runner::kill);
            }
            MachineEffect::Grant { lease, .. } => self.grant(lease),
            MachineEffect::Refuse { lease, refusal } => self.refuse(lease, refusal),
            MachineEffect::Lost { lease, why } => self.log_lost_lease(lease, &why),
            MachineEffect::ReplyLoad { command, result } => {
                if let Some(reply) = self.loads.remove(&command) {
                    let _ = reply.send(result);
                }
            }
            MachineEffect::ReplyUnload { command, result } => {
                if let Err(refusal) = result
                    && let Some(reply) = self.unloads.remove(&command)
                {
                    let _ = reply.send(Err(refusal));
                }
            }
            MachineEffect::UnloadGivenUp { command, refusal } => {
                if let Some(reply) = self.unloads.remove(&command) {
                    let _ = reply.send(Err(refusal));
                }
            }
            MachineEffect::Unloaded { command, report } => {
                if let Some(reply) = self.unloads.remove(&command) {
                    let _ = reply.send(Ok(report));
                }
            }
            MachineEffect::Count(event) => record_event(&self.metrics, &self.model, event),
            MachineEffect::Stopped => {
                self.is_stopped = true;
                for reply in self.shutdowns.drain(..) {
                    let _ = reply.send(());
                }
            }
        }
    }

    fn stop_runner(&mut self, generation: u64, method: UnloadMethod) {
        self.with_account(ModelAccount::begin_unload);

        let stop = match method {
            UnloadMethod::App => F::Runner::stop,
            UnloadMethod::Process => F::Runner::stop_with_process,
        };
        self.end_runner(generation, stop);
    }

    fn grant(&mut self, lease: LeaseId) {
        if let (Some(reply), Some(runner)) = (self.waiting_leases.remove(&lease), &self.runner) {
            // A request that has left has sent the end of its lease too.
            let _ = reply.send(Ok(runner.clone()));
        }
    }

    fn refuse(&mut self, lease: LeaseId, refusal: ModelRefusal) {
        if let Some(reply) = self.waiting_leases.remove(&lease) {
            let _ = reply.send(Err(refusal));
        }
    }

    /// The job itself learns of the loss from its runner.
    fn log_lost_lease(&self, lease: LeaseId, why: &LeaseLossCause) {
        match why {
            LeaseLossCause::Runner(loss) => {
                tracing::warn!(model = self.model, lease = lease.0, "lost its runner: {loss}");
            }
            LeaseLossCause::Displaced => {
                tracing::info!(model = self.model, lease = lease.0, "displaced by an unload");
            }
        }
    }

    /// Runs something that takes time on the account; its result comes back as a message to this actor.
    fn spawn_on_account<W>(
        &self,
        work: impl FnOnce(ModelAccount) -> W,
        message: impl FnOnce(W::Output) -> ActorMessage<F> + Send + 'static,
    ) where
        W: Future<Output: Send> + Send + 'static,
    {
        let Some(account) = self.account.clone() else { return };
        let (work, inbox) = (work(account), self.own_inbox.clone());

        tokio::spawn(async move {
            let result = work.await;
            if let Some(inbox) = inbox.upgrade() {
                let _ = inbox.send(message(result));
            }
        });
    }

    fn wait_for_slot(&mut self, generation: u64) {
        let holder = SlotHolder { model: self.model.clone(), cell: self.cell.clone(), unload: self.unload_sender() };
        let (slots, inbox) = (self.slots.clone(), self.own_inbox.clone());

        self.slot_wait = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let slot = slots.take(holder).await;
            if let Some(inbox) = inbox.upgrade() {
                let _ = inbox.send(ActorMessage::SlotTaken { generation, slot });
            }
        })));
    }

    /// How other models that want the slot ask this one to leave.
    fn unload_sender(&self) -> UnloadSender {
        let inbox = self.own_inbox.clone();

        Arc::new(move |unload: UnloadCommand| {
            let (reply, answer) = oneshot::channel();
            inbox.upgrade()?.send(ActorMessage::Unload { unload, reply }).ok()?;

            Some(answer)
        })
    }

    /// Passes what becomes of a runner to this actor.
    fn runner_listener(&self, generation: u64) -> OnRunnerEvent {
        let inbox = self.own_inbox.clone();

        Box::new(move |event| {
            if let Some(inbox) = inbox.upgrade() {
                let _ = inbox.send(ActorMessage::Runner { generation, event });
            }
        })
    }

    fn adopt_runner(&mut self, generation: u64) {
        tracing::info!(model = self.model, generation, "the model is in memory already");

        self.loaded_since = Some(Instant::now());
        self.runner = Some(self.runners.adopt(self.spec.clone(), self.runner_listener(generation)));
    }

    pub(super) fn start_runner(&mut self, generation: u64) {
        let on_event = self.runner_listener(generation);

        // The model may take what was free when its room was measured: what is freed later belongs to other loads.
        let memory_limit_bytes = self.account.as_ref().and_then(ModelAccount::limit_bytes);
        let spec = self.spec.clone().with_memory_limit(memory_limit_bytes);

        self.runner = Some(self.runners.start(spec, on_event));
    }

    fn end_runner(&mut self, generation: u64, end: impl FnOnce(&F::Runner)) {
        if let Some(runner) = &self.runner {
            end(runner);
        } else if self.slot_wait.take().is_some()
            && let Some(inbox) = self.own_inbox.upgrade()
        {
            // The model was waiting for its slot: there is no runner to reap.
            let _ = inbox.send(ActorMessage::Runner { generation, event: RunnerEvent::Exited });
        }
    }
}
