//! One attempt at a job on one runner.

use std::collections::VecDeque;

use hush_whisper::{FirstToken, Segment};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::audio::Pcm;
use crate::job::{JobError, Outcome, Work};
use crate::request;
use crate::runner::wire::FailureKind;
use crate::runner::{Ending, JobEvent, Runner};

/// Where segments go.
pub(super) enum Output {
    /// Kept until the end: an attempt that fails leaves nothing behind.
    Gather(Vec<Segment>),
    Stream {
        to: mpsc::Sender<Segment>,
        /// Not taken yet by a reader that is slower than the engine.
        pending: VecDeque<Segment>,
        begun: bool,
    },
}

impl Output {
    pub(super) const fn gather() -> Self {
        Self::Gather(Vec::new())
    }

    pub(super) fn stream(to: mpsc::Sender<Segment>) -> Self {
        Self::Stream { to, pending: VecDeque::new(), begun: false }
    }

    /// What was gathered.
    pub(super) fn into_segments(self) -> Vec<Segment> {
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

    /// Hands on one pending segment; loses none when the future is dropped.
    async fn flush_one(&mut self) {
        let Self::Stream { to, pending, begun } = self else { return };
        match to.reserve().await {
            Ok(place) => {
                if let Some(segment) = pending.pop_front() {
                    *begun = true;
                    place.send(segment);
                }
            }
            // Nobody reads; the caller still wants the outcome.
            Err(_) => pending.clear(),
        }
    }

    pub(super) async fn flush(&mut self) {
        while self.has_pending() {
            self.flush_one().await;
        }
    }

    /// Forgets what an attempt gave; `false` when somebody has seen it already.
    pub(super) fn restart(&mut self) -> bool {
        match self {
            Self::Gather(segments) => {
                segments.clear();
                true
            }
            Self::Stream { pending, begun, .. } => {
                pending.clear();
                !*begun
            }
        }
    }
}

pub(super) enum Attempt {
    /// The runner answered, or we cannot go on; another attempt would end the same way.
    Answered(JobError),
    /// The runner ended before it answered.
    Ended(Ending),
    /// The device has too little memory; the model leaves and comes back with more room.
    OutOfMemory(String),
}

/// `arrived`: when the request came, for the log's first token.
pub(super) async fn attempt(
    runner: &Runner,
    audio: &Pcm,
    work: &Work,
    arrived: Instant,
    output: &mut Output,
) -> Result<Outcome, Attempt> {
    let audio = audio.to_file().map_err(|error| Attempt::Answered(JobError::Spool(error)))?;
    let mut job = runner.work(work.clone(), audio);
    let mut first_token_at = None;
    loop {
        let pending = output.has_pending();
        let event = tokio::select! {
            event = job.next() => event.map_err(Attempt::Ended)?,
            () = output.flush_one(), if pending => continue,
        };
        match event {
            JobEvent::Segment(segment) => output.push(segment),
            JobEvent::Progress { done_seconds, total_seconds } => {
                tracing::debug!(done_seconds, total_seconds, "progress");
            }
            JobEvent::FirstToken { timings } => {
                first_token_at = Some(Instant::now());
                let first_token_seconds = arrived.elapsed().as_secs_f64();
                let FirstToken { mel_seconds, encode_seconds, prefill_seconds } = timings;
                request::note(|facts| {
                    facts.first_token_seconds = Some(first_token_seconds);
                    facts.mel_seconds = Some(mel_seconds);
                    facts.encode_seconds = Some(encode_seconds);
                    facts.prefill_seconds = Some(prefill_seconds);
                    facts.ended("first window", mel_seconds + encode_seconds + prefill_seconds);
                });
                // The line of the request says it too, but only at the end.
                tracing::debug!(first_token_seconds, mel_seconds, encode_seconds, prefill_seconds, "first token");
            }
            JobEvent::Done(outcome) => {
                let decode_seconds = first_token_at.map(|at| at.elapsed().as_secs_f64());
                request::note(|facts| {
                    facts.decode_seconds = decode_seconds;
                    decode_seconds.into_iter().for_each(|seconds| facts.ended("decode", seconds));
                });
                return Ok(outcome);
            }
            JobEvent::Overdue { after } => {
                return Err(Attempt::Answered(JobError::Overdue { after }));
            }
            JobEvent::Failed { kind, message } => {
                return Err(match kind {
                    FailureKind::Invalid => Attempt::Answered(JobError::Invalid(message)),
                    FailureKind::Engine | FailureKind::Cancelled | FailureKind::DeviceLost => {
                        Attempt::Answered(JobError::Failed(message))
                    }
                    FailureKind::OutOfMemory => Attempt::OutOfMemory(message),
                });
            }
        }
    }
}
