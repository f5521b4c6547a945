//! Speech for a model: the job that a runner does, and how requests give it to a model.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use hush_residency::{AcquireError, AttemptError, ModelJob, ModelLease};
use hush_whisper::{FirstToken, Segment};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::SpeechModelHandle;
use crate::audio::AudioError;
use crate::job::{JobError, JobOutcome, JobTask};
use crate::recording::Recording;
use crate::request;
use crate::runner::wire::FailureKind;
use crate::runner::{JobEvent, RunnerEnding, RunnerHandle, Runners};
use hush_listener::spool::SpoolError;

/// The jobs that this server gives to its models.
pub trait SpeechJobs {
    /// Does `work`, and loads the model first if need be. Segments are sent as they come. Dropping the future ends the
    /// work at the next token. A lost runner is replaced and the work done again, once, unless a segment has been sent
    /// already. A slow reader of `segments` delays the result, not the model.
    ///
    /// `max_cold_wait`: how long the job waits for a model that is not in memory; `None`: as long as it takes.
    fn run(
        &self,
        audio: impl Into<Recording> + Send,
        work: JobTask,
        segments: mpsc::Sender<Segment>,
        max_cold_wait: Option<Duration>,
    ) -> impl Future<Output = Result<JobOutcome, JobError>> + Send;

    /// As [`Self::run`], for formats that need the end before the beginning: an attempt that was lost leaves no segments.
    fn gather(
        &self,
        audio: impl Into<Recording> + Send,
        work: JobTask,
        max_cold_wait: Option<Duration>,
    ) -> impl Future<Output = Result<(JobOutcome, Vec<Segment>), JobError>> + Send;
}

impl SpeechJobs for SpeechModelHandle {
    async fn run(
        &self,
        audio: impl Into<Recording> + Send,
        work: JobTask,
        segments: mpsc::Sender<Segment>,
        max_cold_wait: Option<Duration>,
    ) -> Result<JobOutcome, JobError> {
        let mut job = SpeechJob::new(self.name(), audio.into(), work, SegmentOutput::stream(segments));

        let outcome = self.perform(&mut job, max_cold_wait).await?;
        job.output.flush().await;

        Ok(outcome)
    }

    async fn gather(
        &self,
        audio: impl Into<Recording> + Send,
        work: JobTask,
        max_cold_wait: Option<Duration>,
    ) -> Result<(JobOutcome, Vec<Segment>), JobError> {
        let mut job = SpeechJob::new(self.name(), audio.into(), work, SegmentOutput::gather());

        let outcome = self.perform(&mut job, max_cold_wait).await?;

        Ok((outcome, job.output.into_segments()))
    }
}

struct SpeechJob {
    model: String,
    audio: Recording,
    work: JobTask,
    output: SegmentOutput,
    /// When the request came, for the log's first token.
    arrived: Instant,
}

impl SpeechJob {
    fn new(model: &str, audio: Recording, work: JobTask, output: SegmentOutput) -> Self {
        Self { model: model.to_owned(), audio, work, output, arrived: Instant::now() }
    }

    fn refused(&self, error: AcquireError) -> JobError {
        let model = self.model.clone();

        match error {
            AcquireError::QueueFull { limit, retry_after_seconds } => {
                JobError::QueueFull { model, limit, retry_after_seconds }
            }
            AcquireError::LoadFailed { cause, retry_after_seconds } => {
                JobError::LoadFailed { model, cause, retry_after_seconds }
            }
            AcquireError::ColdHold { cause, waited_seconds, retry_after_seconds } => {
                JobError::ColdHold { model, cause, waited_seconds, retry_after_seconds }
            }
            AcquireError::ShuttingDown => JobError::ShuttingDown,
        }
    }
}

impl ModelJob<Runners> for SpeechJob {
    type Output = JobOutcome;
    type Error = JobError;

    /// Meanwhile the audio is decoded, if the request is one of the next.
    async fn wait_for_lease(
        &mut self,
        lease: impl Future<Output = Result<ModelLease<Runners>, AcquireError>> + Send,
    ) -> Result<ModelLease<Runners>, JobError> {
        let model = self.model.clone();
        let noted_lease = async {
            let lease = lease.await?;
            note_wait(&model, &lease);
            Ok::<_, AcquireError>(lease)
        };
        if self.audio.is_decoded() {
            return noted_lease.await.map_err(|error| self.refused(error));
        }

        let mut noted_lease = std::pin::pin!(noted_lease);
        let _place = tokio::select! {
            biased;
            lease = &mut noted_lease => return lease.map_err(|error| self.refused(error)),
            place = self.audio.slot_ahead() => place,
        };

        let decode = async {
            match self.audio.decode().await {
                // There may be room for the samples when the model is there.
                Ok(_) | Err(AudioError::Spool(SpoolError::Spent(_))) => Ok(()),
                Err(error) => Err(WaitError::Audio(error)),
            }
        };
        let lease = async { noted_lease.await.map_err(WaitError::Refused) };
        match tokio::try_join!(lease, decode) {
            Ok((lease, ())) => Ok(lease),
            Err(WaitError::Refused(error)) => Err(self.refused(error)),
            Err(WaitError::Audio(error)) => Err(JobError::Audio(error)),
        }
    }

    async fn attempt(&mut self, runner: &RunnerHandle) -> Result<JobOutcome, AttemptError<JobError>> {
        let samples = self.audio.decode().await.map_err(|error| AttemptError::Failed(error.into()))?;
        let file = samples.to_file().map_err(|error| AttemptError::Failed(JobError::Spool(error)))?;
        let mut job = runner.work(self.work.clone(), file);

        let mut first_token_at = None;
        loop {
            let has_pending = self.output.has_pending();
            let event = tokio::select! {
                event = job.next() => event.map_err(runner_ended)?,
                () = self.output.flush_one(), if has_pending => continue,
            };

            match event {
                JobEvent::Segment(segment) => self.output.push(segment),
                JobEvent::Progress { done_seconds, total_seconds } => {
                    tracing::debug!(done_seconds, total_seconds, "progress");
                }
                JobEvent::FirstToken { timings } => {
                    first_token_at = Some(Instant::now());
                    note_first_token(self.arrived.elapsed(), timings);
                }
                JobEvent::Done(outcome) => {
                    note_end(first_token_at);
                    return Ok(outcome);
                }
                JobEvent::Overdue { after } => return Err(AttemptError::Failed(JobError::Overdue { after })),
                JobEvent::Failed { kind, message } => return Err(engine_failed(kind, message)),
            }
        }
    }

    fn attempt_lost(&mut self) {
        request::note(|facts| *facts.retries.get_or_insert(0) += 1);
    }

    fn restart(&mut self) -> bool {
        self.output.restart()
    }

    fn runner_lost(&self, cause: String) -> JobError {
        JobError::RunnerLost { model: self.model.clone(), cause }
    }
}

/// Why a job stops to wait for its lease.
enum WaitError {
    Refused(AcquireError),
    Audio(AudioError),
}

fn runner_ended(ending: RunnerEnding) -> AttemptError<JobError> {
    match ending {
        RunnerEnding::Stopped => AttemptError::RunnerStopped,
        RunnerEnding::Lost(loss) => AttemptError::RunnerLost(loss),
    }
}

fn engine_failed(kind: FailureKind, message: String) -> AttemptError<JobError> {
    match kind {
        FailureKind::Invalid => AttemptError::Failed(JobError::Invalid(message)),
        FailureKind::Engine | FailureKind::Cancelled | FailureKind::DeviceLost => {
            AttemptError::Failed(JobError::Failed(message))
        }
        FailureKind::OutOfMemory => AttemptError::OutOfMemory(message),
    }
}

/// For the log line of the request.
fn note_wait(model: &str, lease: &ModelLease<Runners>) {
    let seconds = lease.waited.as_secs_f64();

    request::note(|facts| {
        let wait = if lease.was_cold { &mut facts.cold_start_seconds } else { &mut facts.queue_seconds };
        *wait.get_or_insert(0.0) += seconds;
        facts.ended(if lease.was_cold { "cold start" } else { "queue" }, seconds);
        facts.model = Some(model.to_owned());
        facts.generation = Some(lease.generation);
    });
}

/// `since_arrival`: from the arrival of the request to the first token.
fn note_first_token(since_arrival: Duration, timings: FirstToken) {
    let first_token_seconds = since_arrival.as_secs_f64();
    let FirstToken { mel_seconds, encode_seconds, prefill_seconds } = timings;

    request::note(|facts| {
        facts.first_token_seconds = Some(first_token_seconds);
        facts.mel_seconds = Some(mel_seconds);
        facts.encode_seconds = Some(encode_seconds);
        facts.prefill_seconds = Some(prefill_seconds);
        facts.ended("first window", mel_seconds + encode_seconds + prefill_seconds);
    });

    // The line of the request contains it too, but is written only at the end.
    tracing::debug!(first_token_seconds, mel_seconds, encode_seconds, prefill_seconds, "first token");
}

fn note_end(first_token_at: Option<Instant>) {
    let decode_seconds = first_token_at.map(|at| at.elapsed().as_secs_f64());

    request::note(|facts| {
        facts.decode_seconds = decode_seconds;
        decode_seconds.into_iter().for_each(|seconds| facts.ended("decode", seconds));
    });
}

/// Where segments go.
enum SegmentOutput {
    /// Kept until the end: an attempt that is lost leaves nothing behind.
    Gather(Vec<Segment>),
    Stream {
        to: mpsc::Sender<Segment>,
        /// Not taken yet by a reader that is slower than the engine.
        pending: VecDeque<Segment>,
        /// A segment has been sent.
        has_begun: bool,
    },
}

impl SegmentOutput {
    const fn gather() -> Self {
        Self::Gather(Vec::new())
    }

    fn stream(to: mpsc::Sender<Segment>) -> Self {
        Self::Stream { to, pending: VecDeque::new(), has_begun: false }
    }

    /// What was gathered.
    fn into_segments(self) -> Vec<Segment> {
        match self {
            Self::Gather(segments) => segments,
            Self::Stream { .. } => Vec::new(),
        }
    }

    fn push(&mut self, segment: Segment) {
        match self {
            Self::Gather(segments) => segments.push(segment),
            Self::Stream { pending, .. } => pending.push_back(segment),
        }
    }

    fn has_pending(&self) -> bool {
        matches!(self, Self::Stream { pending, .. } if !pending.is_empty())
    }

    /// Sends one pending segment. None is lost when the future is dropped.
    async fn flush_one(&mut self) {
        let Self::Stream { to, pending, has_begun } = self else { return };

        match to.reserve().await {
            Ok(permit) => {
                if let Some(segment) = pending.pop_front() {
                    *has_begun = true;
                    permit.send(segment);
                }
            }
            // The receiver is gone; the caller still wants the outcome.
            Err(_) => pending.clear(),
        }
    }

    async fn flush(&mut self) {
        while self.has_pending() {
            self.flush_one().await;
        }
    }

    /// Forgets the segments of an attempt; `false` when one has been sent already.
    fn restart(&mut self) -> bool {
        match self {
            Self::Gather(segments) => {
                segments.clear();
                true
            }
            Self::Stream { pending, has_begun, .. } => {
                pending.clear();
                !*has_begun
            }
        }
    }
}
