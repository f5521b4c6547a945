//! One attempt at a job on one runner.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use hush_whisper::{FirstToken, Segment};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::job::{Audio, JobError, Outcome, Work};
use crate::request;
use crate::runner::wire::{BYTES_PER_SAMPLE, FailureKind, MAX_SAMPLES};
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
    audio: &Arc<dyn Audio>,
    work: &Work,
    arrived: Instant,
    output: &mut Output,
) -> Result<Outcome, Attempt> {
    let len_samples = audio.len_samples();
    let mut first_token_at = None;
    let first = usize::try_from(len_samples).unwrap_or(usize::MAX).min(MAX_SAMPLES);
    let first = read_block(audio, 0, first).await.map_err(spool)?;
    let mut job = runner.work(work.clone(), len_samples, first);
    loop {
        let pending = output.has_pending();
        let event = tokio::select! {
            event = job.next() => event.map_err(Attempt::Ended)?,
            () = output.flush_one(), if pending => continue,
        };
        match event {
            JobEvent::NeedAudio { offset, samples } => {
                job.audio(offset, read_block(audio, offset, samples).await.map_err(spool)?);
            }
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
                    FailureKind::Engine | FailureKind::Cancelled => Attempt::Answered(JobError::Failed(message)),
                    FailureKind::OutOfMemory => Attempt::OutOfMemory(message),
                });
            }
        }
    }
}

fn spool(error: io::Error) -> Attempt {
    Attempt::Answered(JobError::Spool(error))
}

/// Reads where it may block: hours of audio are spooled to a disk.
async fn read_block(audio: &Arc<dyn Audio>, offset: u64, samples: usize) -> io::Result<Vec<u8>> {
    offset.checked_add(samples as u64).filter(|end| *end <= audio.len_samples()).ok_or(io::ErrorKind::UnexpectedEof)?;
    let of = audio.clone();
    let read = move || {
        let mut block = vec![0; samples * BYTES_PER_SAMPLE];
        of.read_s16le(offset, &mut block).map(|()| block)
    };
    if audio.is_in_memory() { read() } else { tokio::task::spawn_blocking(read).await.map_err(io::Error::other)? }
}
