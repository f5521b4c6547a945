//! How everybody else asks for a model.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hush_contract::{ModelState, UnloadRefusal};
use hush_whisper::Segment;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::job::{self, Attempt, Output};
use super::machine::{LeaseId, Load, Refusal, Unload, UnloadReport};
use super::models::ModelSettings;
use super::owner::{Grant, Message};
use super::snapshot::{Board, Snapshot};
use crate::audio::AudioError;
use crate::job::{JobError, Outcome, Work};
use crate::recording::Recording;
use crate::request;
use crate::runner::{Ending, Runner};
use crate::spool::SpoolError;

/// Of one job: after that its input is suspect.
const LOSSES_MAX: u32 = 2;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("could not be loaded: {cause}; next try in {retry_after_seconds} s")]
    Failed { cause: String, retry_after_seconds: u64 },
    #[error("loaded again since the command was decided")]
    GenerationChanged,
    #[error("held after an unload for another {retry_after_seconds} s")]
    Held { retry_after_seconds: u64 },
    #[error("the server is shutting down")]
    ShuttingDown,
}

impl From<Refusal> for LoadError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::LoadFailed { cause, retry_after } => {
                Self::Failed { cause, retry_after_seconds: whole_seconds(retry_after) }
            }
            Refusal::GenerationChanged => Self::GenerationChanged,
            Refusal::Held { retry_after } => Self::Held { retry_after_seconds: whole_seconds(retry_after) },
            Refusal::QueueFull { .. } | Refusal::ColdHold { .. } | Refusal::ShuttingDown => Self::ShuttingDown,
        }
    }
}

/// An order to load that was accepted. It is carried out whether anybody waits or not.
pub enum Loading {
    /// It is in memory already: its generation.
    Ready(u64),
    Pending(PendingLoad),
}

pub struct PendingLoad(oneshot::Receiver<Result<u64, Refusal>>);

impl PendingLoad {
    /// The generation that is in memory.
    pub async fn wait(self) -> Result<u64, LoadError> {
        self.0.await.map_err(|_| LoadError::ShuttingDown)?.map_err(LoadError::from)
    }
}

/// One model. Cheap to clone.
#[derive(Clone)]
pub struct ModelHandle {
    shared: Arc<Shared>,
}

struct Shared {
    model: String,
    inbox: mpsc::UnboundedSender<Message>,
    board: Board,
    next_lease: AtomicU64,
}

impl ModelHandle {
    pub(super) fn new(model: String, inbox: mpsc::UnboundedSender<Message>, board: Board) -> Self {
        Self { shared: Arc::new(Shared { model, inbox, board, next_lease: AtomicU64::new(1) }) }
    }

    pub fn name(&self) -> &str {
        &self.shared.model
    }

    pub fn snapshot(&self) -> Snapshot {
        self.shared.board.read()
    }

    /// Does `work`, loading the model first if need be, and sends segments as they come. Dropping the future ends the
    /// work at the next token. A lost runner is replaced and the work done again, once, unless `segments` has been
    /// given something already. A slow reader of `segments` holds back the answer, not the model.
    ///
    /// `patience`: how long it waits for a model that is not in memory; `None`: as long as it takes.
    pub async fn run(
        &self,
        audio: impl Into<Recording>,
        work: Work,
        segments: mpsc::Sender<Segment>,
        patience: Option<Duration>,
    ) -> Result<Outcome, JobError> {
        let mut output = Output::stream(segments);
        let outcome = self.attempts(audio.into(), &work, &mut output, patience).await?;
        output.flush().await;
        Ok(outcome)
    }

    /// As [`Self::run`], for whoever needs the end before the beginning: a lost runner is never seen in it.
    pub async fn gather(
        &self,
        audio: impl Into<Recording>,
        work: Work,
        patience: Option<Duration>,
    ) -> Result<(Outcome, Vec<Segment>), JobError> {
        let mut output = Output::gather();
        let outcome = self.attempts(audio.into(), &work, &mut output, patience).await?;
        Ok((outcome, output.into_segments()))
    }

    /// Has the model in memory, for no request in particular; the generation that is. Ends a hold.
    pub async fn load(&self) -> Result<u64, LoadError> {
        match self.order_load(Load::now()).await? {
            Loading::Ready(generation) => Ok(generation),
            Loading::Pending(load) => load.wait().await,
        }
    }

    /// Returns when the order is judged, long before the load ends.
    pub async fn order_load(&self, load: Load) -> Result<Loading, LoadError> {
        let (reply, mut answer) = oneshot::channel();
        self.ask(|judged| Message::Load { load, judged, reply }).await.ok_or(LoadError::ShuttingDown)?;
        match answer.try_recv() {
            Ok(Ok(generation)) => Ok(Loading::Ready(generation)),
            Ok(Err(refusal)) => Err(refusal.into()),
            Err(oneshot::error::TryRecvError::Empty) => Ok(Loading::Pending(PendingLoad(answer))),
            Err(oneshot::error::TryRecvError::Closed) => Err(LoadError::ShuttingDown),
        }
    }

    /// Returns when the runner is reaped, or at once when the condition does not hold.
    pub async fn unload(&self, unload: Unload) -> Result<UnloadReport, UnloadRefusal> {
        self.ask(|reply| Message::Unload { unload, reply }).await.unwrap_or(Err(UnloadRefusal::NotLoaded))
    }

    /// Another policy from now on, another way to load from the next load on. The name stays what it is.
    pub fn update(&self, settings: ModelSettings) {
        // Without an owner there is nothing left to change.
        let _ = self.shared.inbox.send(Message::Update(settings));
    }

    /// Serves what has arrived, refuses what comes, ends the runner; waits for nobody after `deadline`.
    pub async fn shutdown(&self, deadline: Instant) {
        self.ask(|reply| Message::Shutdown { deadline, reply }).await;
    }

    /// `None`: the owner is gone, with the runtime.
    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.shared.inbox.send(message(reply)).ok()?;
        answer.await.ok()
    }

    async fn attempts(
        &self,
        mut audio: Recording,
        work: &Work,
        output: &mut Output,
        patience: Option<Duration>,
    ) -> Result<Outcome, JobError> {
        let mut losses = 0;
        let mut again = false;
        let arrived = Instant::now();
        loop {
            let lease = self.acquire_with_audio(&mut audio, again, patience).await?;
            let samples = audio.decode().await?;
            let ended = match job::attempt(&lease.runner, &samples, work, arrived, output).await {
                Ok(outcome) => return Ok(outcome),
                Err(ended) => ended,
            };
            drop(lease);
            let cause = match ended {
                Attempt::Answered(error) => return Err(error),
                Attempt::OutOfMemory(message) => {
                    losses += 1;
                    format!("the device ran out of memory: {message}")
                }
                Attempt::Ended(Ending::Lost(loss)) => {
                    losses += 1;
                    loss.to_string()
                }
                Attempt::Ended(Ending::Stopped) => "an unload could not wait for it".to_owned(),
            };
            request::note(|facts| *facts.retries.get_or_insert(0) += 1);
            if losses >= LOSSES_MAX || !output.restart() {
                return Err(JobError::RunnerLost { model: self.name().to_owned(), cause });
            }
            again = true;
        }
    }

    /// As [`Self::acquire`]; meanwhile the audio is decoded, if it is one of the next.
    async fn acquire_with_audio(
        &self,
        audio: &mut Recording,
        again: bool,
        patience: Option<Duration>,
    ) -> Result<Lease, JobError> {
        if audio.is_decoded() {
            return self.acquire(again, patience).await;
        }
        let mut acquire = std::pin::pin!(self.acquire(again, patience));
        let _place = tokio::select! {
            biased;
            lease = &mut acquire => return lease,
            place = audio.slot_ahead() => place,
        };
        let decode = async {
            match audio.decode().await {
                // There may be room when the model is there.
                Ok(_) | Err(AudioError::Spool(SpoolError::Spent(_))) => Ok(()),
                Err(error) => Err(JobError::Audio(error)),
            }
        };
        let (lease, ()) = tokio::try_join!(acquire, decode)?;
        Ok(lease)
    }

    async fn acquire(&self, again: bool, patience: Option<Duration>) -> Result<Lease, JobError> {
        let (reply, answer) = oneshot::channel::<Grant>();
        let id = LeaseId(self.shared.next_lease.fetch_add(1, Ordering::Relaxed));
        let ticket = Ticket { id, inbox: self.shared.inbox.clone() };
        let (since, cold) = (Instant::now(), self.snapshot().state != ModelState::Ready);
        let arrive = Message::Arrive { lease: id, again, patience, reply };
        self.shared.inbox.send(arrive).map_err(|_| JobError::ShuttingDown)?;
        match answer.await {
            Ok(Ok(runner)) => {
                self.note_wait(since.elapsed(), cold);
                Ok(Lease { runner, _ticket: ticket })
            }
            Ok(Err(refusal)) => Err(self.explain(refusal)),
            Err(_) => Err(JobError::ShuttingDown),
        }
    }

    /// For the log alone.
    fn note_wait(&self, waited: Duration, cold: bool) {
        request::note(|facts| {
            let wait = if cold { &mut facts.cold_start_seconds } else { &mut facts.queue_seconds };
            *wait.get_or_insert(0.0) += waited.as_secs_f64();
            facts.ended(if cold { "cold start" } else { "queue" }, waited.as_secs_f64());
            facts.model = Some(self.name().to_owned());
            facts.generation = Some(self.snapshot().generation);
        });
    }

    fn explain(&self, refusal: Refusal) -> JobError {
        let model = self.name().to_owned();
        match refusal {
            Refusal::QueueFull { limit, retry_after } => {
                JobError::QueueFull { model, limit, retry_after_seconds: whole_seconds(retry_after) }
            }
            Refusal::LoadFailed { cause, retry_after } => {
                JobError::LoadFailed { model, cause, retry_after_seconds: whole_seconds(retry_after) }
            }
            Refusal::ColdHold { waited, why, retry_after } => JobError::ColdHold {
                model,
                cause: why.to_string(),
                waited_seconds: waited.as_secs(),
                retry_after_seconds: whole_seconds(retry_after),
            },
            // The other two are answers to commands.
            Refusal::ShuttingDown | Refusal::GenerationChanged | Refusal::Held { .. } => JobError::ShuttingDown,
        }
    }
}

/// Rounded up, and never zero: it becomes a `Retry-After`.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX).max(1)
}

/// A place in the queue, or the model itself. Its drop gives it back, whatever the reason.
struct Ticket {
    id: LeaseId,
    inbox: mpsc::UnboundedSender<Message>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = self.inbox.send(Message::End { lease: self.id });
    }
}

struct Lease {
    runner: Runner,
    _ticket: Ticket,
}
