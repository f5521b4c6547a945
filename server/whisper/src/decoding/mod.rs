//! From logits to the text of one window: `DecodingTask` of openai/whisper (`whisper/decoding.py`).
//!
//! This module does not depend on ONNX Runtime: the engine computes logits, [`TokenRules`] forbid tokens, a [`Search`] chooses
//! tokens, and [`DecodedWindow::best`] selects the best candidate.

mod beam;
mod language;
mod rank;
mod rules;
pub mod sampling;
mod scores;
mod search;

pub use beam::{BeamSearch, max_finished};
pub use language::language_probabilities;
pub use rank::{compression_ratio, most_likely};
pub use rules::{TimestampRules, TokenRules};
pub use scores::{ChoiceLayout, NeededScores, RowScores, ScoredToken, Scores, TokenRanges};
pub use search::{ForcedSearch, SamplingSearch, Search, SearchCandidate, SearchChoice, SearchConstraints};

use crate::{
    checkpoint::SpecialTokens,
    task::SpeechTask,
    tokenizer::{Tokenizer, strip},
};

/// The tokens before the first sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    tokens: Vec<u32>,
    /// The index of `<|startoftranscript|>`, after which the probability of silence is read.
    sot: usize,
}

impl Prompt {
    /// `previous` is the text before this window, whose last half context is kept. `language` is the token of the
    /// language; models that know only English have neither language nor task.
    pub fn new(
        special: &SpecialTokens,
        context: usize,
        previous: &[u32],
        language: Option<u32>,
        task: SpeechTask,
        without_timestamps: bool,
    ) -> Self {
        let mut tokens = Vec::with_capacity(context / 2 + 4);

        if !previous.is_empty() {
            tokens.push(special.sot_prev);
            tokens.extend_from_slice(&previous[previous.len().saturating_sub(context / 2 - 1)..]);
        }

        let sot = tokens.len();
        tokens.push(special.sot);
        if let Some(language) = language {
            tokens.push(language);
            tokens.push(match task {
                SpeechTask::Transcribe => special.transcribe,
                SpeechTask::Translate => special.translate,
            });
        }

        if without_timestamps {
            tokens.push(special.no_timestamps);
        }

        Self { tokens, sot }
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The tokens up to and with `<|startoftranscript|>`, after which the probability of silence is read, and the rest.
    pub fn parts(&self) -> (&[u32], &[u32]) {
        self.tokens.split_at(self.sot + 1)
    }
}

impl TokenRules {
    pub fn new(special: &SpecialTokens, without_timestamps: bool) -> Self {
        let control =
            [special.transcribe, special.translate, special.sot, special.sot_prev, special.sot_lm, special.no_speech];
        let mut suppressed: Vec<u32> = special.suppress.iter().copied().chain(control).collect();
        suppressed.sort_unstable();
        suppressed.dedup();
        let timestamps = (!without_timestamps).then_some(TimestampRules {
            end_of_text: special.eot,
            no_timestamps: special.no_timestamps,
            begin: special.timestamp_begin,
            max_initial: Some(special.max_initial_timestamp_index),
        });

        Self { blank: special.begin_suppress.clone(), suppressed, timestamps }
    }
}

/// The result of one attempt at a window.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodedWindow {
    pub tokens: Vec<u32>,
    /// Natural logarithms, one for each of `tokens`.
    pub token_logprobs: Vec<f32>,
    pub text: String,
    pub avg_logprob: f64,
    pub no_speech_prob: f64,
    pub temperature: f32,
    pub compression_ratio: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum DecodeError<E> {
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Forward(E),
}

impl<E> From<E> for DecodeError<E> {
    fn from(error: E) -> Self {
        Self::Forward(error)
    }
}

impl DecodedWindow {
    /// Selects the best of `candidates`. `length_penalty` weighs long against short candidates, see [`most_likely`].
    pub fn best(
        mut candidates: Vec<SearchCandidate>,
        length_penalty: Option<f32>,
        special: &SpecialTokens,
        tokenizer: &Tokenizer,
    ) -> Self {
        let lengths = candidates.iter().map(|candidate| (candidate.sum_logprob, candidate.tokens.len()));
        let chosen = most_likely(lengths, length_penalty);
        let best = if candidates.is_empty() { SearchCandidate::default() } else { candidates.swap_remove(chosen) };
        let SearchCandidate { tokens, token_logprobs, sum_logprob } = best;

        let text = tokenizer.decode(tokens.iter().copied().filter(|token| *token < special.timestamp_begin));
        let text = strip(&text).to_owned();
        Self {
            avg_logprob: sum_logprob / (tokens.len() + 1) as f64,
            no_speech_prob: 0.0,
            temperature: 0.0,
            compression_ratio: compression_ratio(&text),
            tokens,
            token_logprobs,
            text,
        }
    }
}
