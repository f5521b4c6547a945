//! Work on a model, as far as the life of the model is concerned.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::machine::{LeaseId, ModelRefusal, RunnerLoss};
use crate::model_actor::ActorMessage;
use crate::runner::RunnerFactory;

/// One piece of work for a model. [`ModelHandle::perform`](crate::ModelHandle::perform) gets it a runner, and another one
/// when the first is lost under it.
pub trait ModelJob<F: RunnerFactory>: Send {
    type Output: Send;
    type Error: Send;

    /// Waits for the lease. What can be prepared meanwhile may be prepared here; an error ends the wait.
    fn wait_for_lease(
        &mut self,
        lease: impl Future<Output = Result<ModelLease<F>, AcquireError>> + Send,
    ) -> impl Future<Output = Result<ModelLease<F>, Self::Error>> + Send;

    /// Does the work on this runner.
    fn attempt(
        &mut self,
        runner: &F::Runner,
    ) -> impl Future<Output = Result<Self::Output, AttemptError<Self::Error>>> + Send;

    /// An attempt was lost with its runner, whether another one follows or not.
    fn attempt_lost(&mut self) {}

    /// Prepares another attempt; `false` when the client has received a part of the result already.
    fn restart(&mut self) -> bool;

    /// The error of a job whose runner was lost for good.
    fn runner_lost(&self, cause: String) -> Self::Error;
}

/// Why an attempt gave nothing.
#[derive(Debug)]
pub enum AttemptError<E> {
    /// The runner answered, or the job cannot go on: another attempt would end the same way.
    Failed(E),
    /// The runner was lost before it answered.
    RunnerLost(RunnerLoss),
    /// The runner was ended by an unload before it answered.
    RunnerStopped,
    /// The device has too little memory: the model is unloaded, and loaded again into more room.
    OutOfMemory(String),
}

/// Why a request does not get the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    #[error("the queue is full ({limit} requests); try again in {retry_after_seconds} s")]
    QueueFull { limit: usize, retry_after_seconds: u64 },
    /// The last load failed, and the next is not due yet.
    #[error("could not be loaded: {cause}; next try in {retry_after_seconds} s")]
    LoadFailed { cause: String, retry_after_seconds: u64 },
    /// The model is not in memory, and the request was to wait no longer for it.
    #[error("not in memory: {cause}; waited {waited_seconds} s, try again in {retry_after_seconds} s")]
    ColdHold { cause: String, waited_seconds: u64, retry_after_seconds: u64 },
    #[error("the server is shutting down")]
    ShuttingDown,
}

impl From<ModelRefusal> for AcquireError {
    fn from(refusal: ModelRefusal) -> Self {
        match refusal {
            ModelRefusal::QueueFull { limit, retry_after } => {
                Self::QueueFull { limit, retry_after_seconds: whole_seconds(retry_after) }
            }
            ModelRefusal::LoadFailed { cause, retry_after } => {
                Self::LoadFailed { cause, retry_after_seconds: whole_seconds(retry_after) }
            }
            ModelRefusal::ColdHold { waited, why, retry_after } => Self::ColdHold {
                cause: why.to_string(),
                waited_seconds: waited.as_secs(),
                retry_after_seconds: whole_seconds(retry_after),
            },
            // The others are no answers to a request that waits.
            ModelRefusal::ShuttingDown
            | ModelRefusal::NotLoaded
            | ModelRefusal::GenerationChanged
            | ModelRefusal::Held { .. } => Self::ShuttingDown,
        }
    }
}

/// The right to use a runner. Its drop ends the lease.
pub struct ModelLease<F: RunnerFactory> {
    pub runner: F::Runner,
    pub generation: u64,
    /// How long the request waited for the lease.
    pub waited: Duration,
    /// The model was not ready when the request came.
    pub was_cold: bool,
    pub(crate) _ticket: QueueTicket<F>,
}

/// A request in the queue of a model, or one that holds the model. Its drop ends the request in either case.
pub(crate) struct QueueTicket<F: RunnerFactory> {
    pub(crate) id: LeaseId,
    pub(crate) inbox: mpsc::UnboundedSender<ActorMessage<F>>,
}

impl<F: RunnerFactory> Drop for QueueTicket<F> {
    fn drop(&mut self) {
        let _ = self.inbox.send(ActorMessage::End { lease: self.id });
    }
}

/// Rounded up, and never zero: the value becomes a `Retry-After`.
pub(crate) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX).max(1)
}
