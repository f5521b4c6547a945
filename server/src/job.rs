//! One piece of work for a model: what the API asks of `residency`, and what comes back.

use std::io;

use hush_whisper::{LanguageProbability, PcmSource, Segment, TranscribeOptions, Transcript};
use serde::{Deserialize, Serialize};

/// Decoded audio that can be read again from the start: a job whose runner was lost is started anew.
pub trait Audio: Send + Sync {
    fn len_samples(&self) -> u64;

    /// A reader of its own position; reading may block on a disk.
    fn source(&self) -> Box<dyn PcmSource>;
}

impl Audio for Vec<f32> {
    fn len_samples(&self) -> u64 {
        PcmSource::len(self)
    }

    fn source(&self) -> Box<dyn PcmSource> {
        Box::new(self.clone())
    }
}

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
    #[error("the request held the model for longer than {seconds} s (--busy-timeout) and was ended")]
    Overdue { seconds: u64 },
    /// The engine refused the request: an option it does not have, an unknown language, a prompt that is too long.
    #[error("{0}")]
    Invalid(String),
    /// The engine failed on this input; the runner lives on.
    #[error("transcription failed: {0}")]
    Failed(String),
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("reading the spooled audio failed: {0}")]
    Spool(#[from] io::Error),
}
