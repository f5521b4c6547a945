//! Voice activity detection: finds the parts of a recording with speech, so that only these are transcribed. Silero's model
//! and the rules of faster-whisper's `vad_filter` (`faster_whisper/vad.py`).
//!
//! ```text
//! PcmSource -> model (a probability for each 32 ms) -> speech (hysteresis, padding) -> SpeechChunks
//! PcmSource + SpeechChunks -> SpokenSource (the joined chunks) -> transcription -> RestoringSink (original times) -> TranscriptSink
//! ```

mod chunks;
mod model;
mod speech;

use serde::{Deserialize, Serialize};

pub use chunks::{ChunkMap, RestoringSink, SpeechChunk, SpokenSource, pack_chunks, speech_chunks};
pub use model::{FILE, PATH_VARIABLE, SOURCE, SpeechModel, VadError};
pub use speech::SpeechDetector;

use crate::transcribe::TranscribeError;

/// Samples for each probability: 32 ms.
pub const WINDOW_SAMPLES: usize = 512;

/// Twice this is less than a window of Whisper.
const MOST_PAD_MS: u32 = 10_000;

/// Names and defaults are those of faster-whisper's `VadOptions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VadOptions {
    /// Speech begins at this probability.
    pub threshold: f32,
    /// Speech ends below this probability; `None`: 0.15 less than `threshold`, at least 0.01.
    pub neg_threshold: Option<f32>,
    /// Shorter speech is left out.
    pub min_speech_duration_ms: u32,
    /// Longer speech is cut at its last pause of more than 98 ms, or where it reaches this length.
    pub max_speech_duration_seconds: Option<f32>,
    /// Speech ends with a pause of this length.
    pub min_silence_duration_ms: u32,
    /// Audio before and after speech that is transcribed too.
    pub speech_pad_ms: u32,
    /// Parts of up to 30 s are transcribed in parallel, each without the text before it, instead of in sequence: faster if
    /// the engine can process several windows at once.
    pub parallel: bool,
}

impl Default for VadOptions {
    fn default() -> Self {
        Self {
            threshold: 0.5,
            neg_threshold: None,
            min_speech_duration_ms: 0,
            max_speech_duration_seconds: None,
            min_silence_duration_ms: 2000,
            speech_pad_ms: 400,
            parallel: false,
        }
    }
}

impl VadOptions {
    /// Rejects values that contradict each other.
    pub fn validate(&self) -> Result<(), TranscribeError> {
        let refuse = |option, problem: String| Err(TranscribeError::InvalidOption { option, problem });
        if !(0.0..=1.0).contains(&self.threshold) {
            return refuse("vad.threshold", format!("must lie between 0 and 1, got {}", self.threshold));
        }

        if let Some(wrong) = self.neg_threshold.filter(|threshold| !(0.0..=self.threshold).contains(threshold)) {
            return refuse("vad.neg_threshold", format!("must lie between 0 and `threshold`, got {wrong}"));
        }

        if self.speech_pad_ms > MOST_PAD_MS {
            return refuse("vad.speech_pad_ms", format!("must be at most {MOST_PAD_MS}, got {}", self.speech_pad_ms));
        }

        // The padding and a window are part of the duration.
        let least = 1.0 + 2.0 * self.speech_pad_ms as f32 / 1000.0;
        if let Some(wrong) = self.max_speech_duration_seconds.filter(|longest| longest.is_nan() || *longest < least) {
            return refuse("vad.max_speech_duration_seconds", format!("must be at least {least} here, got {wrong}"));
        }

        Ok(())
    }
}
