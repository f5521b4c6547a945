//! Options and results of a transcription. Names and defaults are those of openai/whisper (`whisper/transcribe.py`,
//! `whisper/decoding.py`).

use std::io;

use serde::{Deserialize, Serialize};

use crate::{
    encoder_context::{EncoderContext, WindowCounts},
    timing::{APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS},
    vad::VadOptions,
};

/// The reference's `task`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpeechTask {
    /// Writes the speech in its own language.
    #[default]
    Transcribe,
    /// Writes the speech in English.
    Translate,
}

/// Options of one transcription; the defaults are the reference's, apart from the budget of the fallback.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TranscribeOptions {
    pub task: SpeechTask,
    /// Whisper language code (`en`, `yue`, ...); `None` detects it from the first window with sound.
    pub language: Option<String>,
    pub initial_prompt: Option<String>,
    pub condition_on_previous_text: bool,
    /// Tried in order until a window passes the thresholds below.
    pub temperatures: Vec<f32>,
    /// Candidates sampled at each temperature above zero.
    pub best_of: usize,
    /// Beams at temperature zero; `None`: the likeliest token each time.
    #[serde(default)]
    pub beam_size: Option<usize>,
    /// How many ended sequences a beam search collects, as a multiple of the beam size; `None`: 1.
    #[serde(default)]
    pub patience: Option<f32>,
    /// Exponent that weighs long candidates against short ones, from 0 to 1; `None`: the mean per token.
    #[serde(default)]
    pub length_penalty: Option<f32>,
    pub compression_ratio_threshold: Option<f32>,
    pub logprob_threshold: Option<f32>,
    pub no_speech_threshold: Option<f32>,
    /// Tokens of all candidates together that the temperatures after the first may cost for each window of 30 s; fewer in
    /// proportion for audio so short that it can hold little text. `None`: no limit.
    #[serde(default = "fallback_tokens")]
    pub fallback_tokens: Option<usize>,
    /// Seconds that these temperatures may take; `None`: no limit.
    #[serde(default = "fallback_seconds")]
    pub fallback_seconds: Option<f32>,
    pub without_timestamps: bool,
    /// Whether segments contain their words, and have times that agree with them.
    #[serde(default)]
    pub word_timestamps: bool,
    /// Marks that belong to the word after them.
    #[serde(default = "prepend_punctuations")]
    pub prepend_punctuations: String,
    /// Marks that belong to the word before them.
    #[serde(default = "append_punctuations")]
    pub append_punctuations: String,
    /// With word timestamps: text that seems hallucinated is left out if it is next to more silence than this, in seconds.
    #[serde(default)]
    pub hallucination_silence_threshold: Option<f32>,
    /// Transcribes only the parts with speech.
    #[serde(default)]
    pub vad: Option<VadOptions>,
    /// Which windows the encoder hears up to some seconds after their end, before it hears 30 s of them.
    #[serde(default)]
    pub encoder_context: EncoderContext,
    /// Seed for temperatures above zero: the same request gives the same text.
    pub seed: u64,
}

impl Default for TranscribeOptions {
    fn default() -> Self {
        Self {
            task: SpeechTask::Transcribe,
            language: None,
            initial_prompt: None,
            condition_on_previous_text: true,
            temperatures: vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
            best_of: 5,
            beam_size: None,
            patience: None,
            length_penalty: None,
            compression_ratio_threshold: Some(2.4),
            logprob_threshold: Some(-1.0),
            no_speech_threshold: Some(0.6),
            fallback_tokens: fallback_tokens(),
            fallback_seconds: fallback_seconds(),
            without_timestamps: false,
            word_timestamps: false,
            prepend_punctuations: prepend_punctuations(),
            append_punctuations: append_punctuations(),
            hallucination_silence_threshold: None,
            vad: None,
            encoder_context: EncoderContext::Auto,
            seed: 0,
        }
    }
}

/// Default of [`TranscribeOptions::fallback_tokens`]: two attempts of five candidates at maximum length, or more shorter ones.
pub const FALLBACK_TOKENS: usize = 2_400;
/// Default of [`TranscribeOptions::fallback_seconds`].
pub const FALLBACK_SECONDS: f32 = 20.0;

fn fallback_tokens() -> Option<usize> {
    Some(FALLBACK_TOKENS)
}

fn fallback_seconds() -> Option<f32> {
    Some(FALLBACK_SECONDS)
}

fn prepend_punctuations() -> String {
    PREPEND_PUNCTUATIONS.to_owned()
}

fn append_punctuations() -> String {
    APPEND_PUNCTUATIONS.to_owned()
}

/// One segment of the transcript, like the entries of the reference's `segments`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Position in the transcript, from 0.
    pub id: usize,
    /// First mel frame (10 ms each) of the window that this segment was decoded from.
    pub seek: usize,
    pub start_seconds: f64,
    pub end_seconds: f64,
    pub text: String,
    pub tokens: Vec<u32>,
    /// The natural logarithm of the probability that each of `tokens` was chosen with.
    #[serde(default)]
    pub token_logprobs: Vec<f32>,
    pub temperature: f32,
    pub avg_logprob: f64,
    pub compression_ratio: f64,
    pub no_speech_prob: f64,
    /// Empty without `word_timestamps`.
    #[serde(default)]
    pub words: Vec<Word>,
}

/// A word and its times, like the entries of the reference's `words`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Word {
    /// With the space before it and the punctuation around it.
    pub text: String,
    pub start_seconds: f64,
    pub end_seconds: f64,
    /// Mean probability of its tokens.
    pub probability: f32,
}

/// The result for the whole audio, after the last segment was sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// The Whisper language code of the transcript.
    pub language: String,
    /// Set if the language was detected and not given.
    pub language_probability: Option<f32>,
    pub duration_seconds: f64,
    /// How the encoder heard the windows.
    #[serde(default)]
    pub windows: WindowCounts,
}

/// A language, and the probability that the audio is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LanguageProbability {
    /// Whisper language code.
    pub code: String,
    pub probability: f32,
}

/// Mono 16 kHz samples in -1..1 with random access: the engine holds one window, not the file.
pub trait PcmSource: Send {
    /// Length in samples.
    fn len(&self) -> u64;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `out` with the samples from `offset`; `offset + out.len()` is at most `len()`.
    fn read(&mut self, offset: u64, out: &mut [f32]) -> io::Result<()>;
}

impl PcmSource for Vec<f32> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read(&mut self, offset: u64, out: &mut [f32]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let samples = self.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(samples);
        Ok(())
    }
}

/// The parts of the time until the first token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FirstToken {
    pub mel_seconds: f64,
    /// Includes a separate pass for language detection, if there was one.
    pub encode_seconds: f64,
    pub prefill_seconds: f64,
}

/// Receives the results while the engine works. Every method is called on the thread that called the engine.
pub trait TranscriptSink {
    /// A finished segment, in order; final.
    fn segment(&mut self, segment: Segment);

    /// The first token of the first window is about to be chosen.
    fn first_token(&mut self, _timings: FirstToken) {}

    /// How much audio is done; called after each window.
    fn progress(&mut self, _done_seconds: f64, _total_seconds: f64) {}

    /// Reports that the work makes progress, and decides whether it continues: called before each window, and some 50
    /// times a second while tokens are decoded. `false` ends the work with `TranscribeError::Cancelled`.
    fn keep_going(&mut self) -> bool {
        true
    }
}
