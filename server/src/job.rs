//! A job for a model: what the API requests of `residency`, and the outcome.

use std::io;
use std::time::Duration;

use hush_whisper::{LanguageProbability, Segment, TranscribeOptions, Transcript};
use serde::{Deserialize, Serialize};

use crate::audio::AudioError;

/// The task of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobTask {
    Transcribe(TranscribeOptions),
    /// Detects the language of the first 30 seconds.
    DetectLanguage,
}

/// The outcome of a finished job. Its segments were sent one by one while it ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobOutcome {
    Transcribed(Transcript),
    /// All languages, most probable first.
    Languages(Vec<LanguageProbability>),
}

/// A complete transcription, for formats that need all segments.
#[derive(Clone, Debug, PartialEq)]
pub struct Transcription {
    pub transcript: Transcript,
    pub segments: Vec<Segment>,
}

/// Why a job failed. The API maps each error to the status and the shape that its clients expect.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("the queue of model `{model}` is full ({limit} requests); try again in {retry_after_seconds} s")]
    QueueFull { model: String, limit: usize, retry_after_seconds: u64 },
    /// Loading failed, and the next attempt waits.
    #[error("model `{model}` could not be loaded: {cause}; next try in {retry_after_seconds} s")]
    LoadFailed { model: String, cause: String, retry_after_seconds: u64 },
    /// The runner exited, hung or was killed during this job, twice or after a part of the answer was sent.
    #[error("the process that runs model `{model}` was lost under this request: {cause}")]
    RunnerLost { model: String, cause: String },
    /// The model was not in memory, and the request does not wait for it any longer.
    #[error(
        "model `{model}` is not in memory: {cause}; waited {waited_seconds} s, try again in {retry_after_seconds} s"
    )]
    ColdHold { model: String, cause: String, waited_seconds: u64, retry_after_seconds: u64 },
    #[error("the request held the model for longer than {after:?} (--busy-timeout) and was ended")]
    Overdue { after: Duration },
    /// The engine refused the request: an option that it does not have, an unknown language, or a prompt that is too
    /// long.
    #[error("{0}")]
    Invalid(String),
    /// The engine failed on this input. The runner goes on.
    #[error("transcription failed: {0}")]
    Failed(String),
    /// The audio could not be decoded when the job was about to start.
    #[error(transparent)]
    Audio(#[from] AudioError),
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("handing the audio to the model's process failed: {0}")]
    Spool(#[from] io::Error),
}
