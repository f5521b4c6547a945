//! One piece of work for a model: what the API asks of `residency`, and what comes back.

use std::io;
use std::time::Duration;

use hush_whisper::{LanguageProbability, Segment, TranscribeOptions, Transcript};
use serde::{Deserialize, Serialize};

use crate::audio::AudioError;

/// What to do with the audio.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    Transcribe(TranscribeOptions),
    /// From the first 30 s.
    DetectLanguage,
}

/// What a finished job gave. Segments went out one by one while it ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Transcribed(Transcript),
    /// Most probable first.
    Languages(Vec<LanguageProbability>),
}

/// A whole transcription, gathered for the formats that need the end before the beginning.
#[derive(Clone, Debug, PartialEq)]
pub struct Transcription {
    pub transcript: Transcript,
    pub segments: Vec<Segment>,
}

/// Why a job gave nothing. The API turns each into the status and the shape that its clients expect.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("the queue of model `{model}` is full ({limit} requests); try again in {retry_after_seconds} s")]
    QueueFull { model: String, limit: usize, retry_after_seconds: u64 },
    /// Loading failed and backs off.
    #[error("model `{model}` could not be loaded: {cause}; next try in {retry_after_seconds} s")]
    LoadFailed { model: String, cause: String, retry_after_seconds: u64 },
    /// The runner died, hung or was killed under this job, twice or after a part of the answer was given.
    #[error("the process that runs model `{model}` was lost under this request: {cause}")]
    RunnerLost { model: String, cause: String },
    /// The model was not in memory, and the request was not to wait any longer for it.
    #[error(
        "model `{model}` is not in memory: {cause}; waited {waited_seconds} s, try again in {retry_after_seconds} s"
    )]
    ColdHold { model: String, cause: String, waited_seconds: u64, retry_after_seconds: u64 },
    #[error("the request held the model for longer than {after:?} (--busy-timeout) and was ended")]
    Overdue { after: Duration },
    /// The engine refused the request: an option it does not have, an unknown language, a prompt that is too long.
    #[error("{0}")]
    Invalid(String),
    /// The engine failed on this input; the runner lives on.
    #[error("transcription failed: {0}")]
    Failed(String),
    /// The audio could not be decoded when it was the request's turn.
    #[error(transparent)]
    Audio(#[from] AudioError),
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("handing the audio to the model's process failed: {0}")]
    Spool(#[from] io::Error),
}
