//! How everything else uses a model.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hush_contract::{ModelState, UnloadRefusal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::job::{AcquireError, AttemptError, ModelJob, ModelLease, QueueTicket, whole_seconds};
use crate::machine::{LeaseId, LoadCommand, ModelRefusal, UnloadCommand, UnloadReport};
use crate::model_actor::{ActorMessage, LeaseReply, LoadReply};
use crate::models::ModelSettings;
use crate::runner::RunnerFactory;
use crate::snapshot::{ModelSnapshot, SnapshotCell};

/// A job that has lost so many runners fails: its input may be what ends them.
const LOSSES_MAX: u32 = 2;

/// Why a load command does not load the model.
#[derive(Debug, thiserror::Error)]
pub enum LoadCommandError {
    #[error("could not be loaded: {cause}; next try in {retry_after_seconds} s")]
    Failed { cause: String, retry_after_seconds: u64 },
    #[error("loaded again since the command was decided")]
    GenerationChanged,
    #[error("held after an unload for another {retry_after_seconds} s")]
    Held { retry_after_seconds: u64 },
    #[error("the server is shutting down")]
    ShuttingDown,
}

impl From<ModelRefusal> for LoadCommandError {
    fn from(refusal: ModelRefusal) -> Self {
        match refusal {
            ModelRefusal::LoadFailed { cause, retry_after } => {
                Self::Failed { cause, retry_after_seconds: whole_seconds(retry_after) }
            }
            ModelRefusal::GenerationChanged => Self::GenerationChanged,
            ModelRefusal::Held { retry_after } => Self::Held { retry_after_seconds: whole_seconds(retry_after) },
            ModelRefusal::QueueFull { .. }
            | ModelRefusal::ColdHold { .. }
            | ModelRefusal::NotLoaded
            | ModelRefusal::ShuttingDown => Self::ShuttingDown,
        }
    }
}

/// A load command that was accepted. It is carried out even when its sender does not wait for the end.
pub enum LoadProgress {
    /// The model is in memory already: its generation.
    Ready(u64),
    Pending(PendingLoad),
}

pub struct PendingLoad(oneshot::Receiver<LoadReply>);

impl PendingLoad {
    /// The generation that is in memory.
    pub async fn wait(self) -> Result<u64, LoadCommandError> {
        let reply = self.0.await.map_err(|_| LoadCommandError::ShuttingDown)?;

        reply.map_err(LoadCommandError::from)
    }
}

/// One model. Cheap to clone.
pub struct ModelHandle<F: RunnerFactory> {
    inner: Arc<HandleInner<F>>,
}

impl<F: RunnerFactory> Clone for ModelHandle<F> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct HandleInner<F: RunnerFactory> {
    model: String,
    inbox: mpsc::UnboundedSender<ActorMessage<F>>,
    cell: SnapshotCell,
    next_lease: AtomicU64,
}

impl<F: RunnerFactory> ModelHandle<F> {
    pub(crate) fn new(model: String, inbox: mpsc::UnboundedSender<ActorMessage<F>>, cell: SnapshotCell) -> Self {
        Self { inner: Arc::new(HandleInner { model, inbox, cell, next_lease: AtomicU64::new(1) }) }
    }

    pub fn name(&self) -> &str {
        &self.inner.model
    }

    pub fn snapshot(&self) -> ModelSnapshot {
        self.inner.cell.read()
    }

    /// Does `job`, and loads the model first if need be. Dropping the future ends the work. A runner that is lost is
    /// replaced and the work done again, once, where [`ModelJob::restart`] allows it.
    ///
    /// `max_cold_wait`: how long the job waits for a model that is not in memory; `None`: as long as it takes.
    pub async fn perform<J: ModelJob<F>>(
        &self,
        job: &mut J,
        max_cold_wait: Option<Duration>,
    ) -> Result<J::Output, J::Error> {
        let mut losses = 0;
        let mut again = false;

        loop {
            let lease = job.wait_for_lease(self.acquire(again, max_cold_wait)).await?;
            let failed = match job.attempt(&lease.runner).await {
                Ok(output) => return Ok(output),
                Err(failed) => failed,
            };
            drop(lease);

            let cause = match failed {
                AttemptError::Failed(error) => return Err(error),
                AttemptError::OutOfMemory(message) => {
                    losses += 1;
                    format!("the device ran out of memory: {message}")
                }
                AttemptError::RunnerLost(loss) => {
                    losses += 1;
                    loss.to_string()
                }
                AttemptError::RunnerStopped => "an unload could not wait for it".to_owned(),
            };

            job.attempt_lost();
            if losses >= LOSSES_MAX || !job.restart() {
                return Err(job.runner_lost(cause));
            }
            again = true;
        }
    }

    /// Waits for the right to use the model, and has it loaded if need be. `again`: the request had a lease already and
    /// lost its runner; it goes before the requests that wait.
    pub async fn acquire(&self, again: bool, max_cold_wait: Option<Duration>) -> Result<ModelLease<F>, AcquireError> {
        let inbox = &self.inner.inbox;
        let id = LeaseId(self.inner.next_lease.fetch_add(1, Ordering::Relaxed));
        let ticket = QueueTicket { id, inbox: inbox.clone() };

        let arrived = Instant::now();
        let was_cold = self.snapshot().state != ModelState::Ready;
        let (reply, answer) = oneshot::channel::<LeaseReply<F>>();
        let arrive = ActorMessage::Arrive { lease: id, again, max_cold_wait, reply };
        inbox.send(arrive).map_err(|_| AcquireError::ShuttingDown)?;

        let runner = answer.await.map_err(|_| AcquireError::ShuttingDown)??;

        let generation = self.snapshot().generation;
        Ok(ModelLease { runner, generation, waited: arrived.elapsed(), was_cold, _ticket: ticket })
    }

    /// A lease for work that goes on already and did not pass through here; `None`: the model is not in memory. Waits for
    /// nothing and loads nothing.
    pub async fn occupy(&self) -> Option<ModelLease<F>> {
        self.join(|lease, reply| ActorMessage::Occupy { lease, reply }).await
    }

    /// A lease for a request that uses nothing of the model, but must find it in memory; `None`: it is not there, or is
    /// about to leave. Waits for nothing, loads nothing, and is no activity: the model stays as idle as it was. An unload
    /// waits for its end.
    pub async fn visit(&self) -> Option<ModelLease<F>> {
        self.join(|lease, reply| ActorMessage::Visit { lease, reply }).await
    }

    async fn join(
        &self,
        message: impl FnOnce(LeaseId, oneshot::Sender<LeaseReply<F>>) -> ActorMessage<F>,
    ) -> Option<ModelLease<F>> {
        let inbox = &self.inner.inbox;
        let id = LeaseId(self.inner.next_lease.fetch_add(1, Ordering::Relaxed));
        let ticket = QueueTicket { id, inbox: inbox.clone() };

        let (reply, answer) = oneshot::channel::<LeaseReply<F>>();
        inbox.send(message(id, reply)).ok()?;
        let runner = answer.await.ok()?.ok()?;

        let generation = self.snapshot().generation;
        Some(ModelLease { runner, generation, waited: Duration::ZERO, was_cold: false, _ticket: ticket })
    }

    /// The model is in memory although nothing loaded it from here: it becomes a new generation, unless it is known.
    pub fn appeared(&self) {
        // Without an actor there is nothing to know.
        let _ = self.inner.inbox.send(ActorMessage::Appeared);
    }

    /// Has the model in memory, for no request in particular, and returns its generation. Ends a hold.
    pub async fn load(&self) -> Result<u64, LoadCommandError> {
        match self.order_load(LoadCommand::now()).await? {
            LoadProgress::Ready(generation) => Ok(generation),
            LoadProgress::Pending(load) => load.wait().await,
        }
    }

    /// Returns when the command is accepted or refused, long before the load ends.
    pub async fn order_load(&self, load: LoadCommand) -> Result<LoadProgress, LoadCommandError> {
        let (reply, mut answer) = oneshot::channel();
        let judged = self.request(|judged| ActorMessage::Load { load, judged, reply }).await;
        judged.ok_or(LoadCommandError::ShuttingDown)?;

        match answer.try_recv() {
            Ok(Ok(generation)) => Ok(LoadProgress::Ready(generation)),
            Ok(Err(refusal)) => Err(refusal.into()),
            Err(oneshot::error::TryRecvError::Empty) => Ok(LoadProgress::Pending(PendingLoad(answer))),
            Err(oneshot::error::TryRecvError::Closed) => Err(LoadCommandError::ShuttingDown),
        }
    }

    /// Returns when the runner is reaped and its memory is seen to be back, or at once when a condition does not hold.
    pub async fn unload(&self, unload: UnloadCommand) -> Result<UnloadReport, UnloadRefusal> {
        let reply = self.request(|reply| ActorMessage::Unload { unload, reply }).await;

        reply.unwrap_or(Err(UnloadRefusal::NotLoaded))
    }

    /// Changes the settings: the lifecycle settings hold at once, the others from the next load on. The name of the
    /// model stays what it is.
    pub fn update(&self, settings: ModelSettings<F::Spec>) {
        // Without an actor there is nothing left to change.
        let _ = self.inner.inbox.send(ActorMessage::Update(settings));
    }

    /// Serves the requests that have arrived, refuses new ones, and ends the runner; at `deadline` without waiting
    /// further.
    pub async fn shutdown(&self, deadline: Instant) {
        self.request(|reply| ActorMessage::Shutdown { deadline, reply }).await;
    }

    /// `None`: the actor has ended with the runtime.
    async fn request<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> ActorMessage<F>) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.inner.inbox.send(message(reply)).ok()?;

        answer.await.ok()
    }
}
