//! From logits to the text of one window: `DecodingTask` of openai/whisper (`whisper/decoding.py`).
//!
//! Nothing here knows ONNX Runtime: a [`Forward`] gives logits, [`Rules`] forbid, [`sampling`] chooses.

mod language;
mod rank;
mod rules;
pub mod sampling;

pub use language::language_probabilities;
pub use rank::{compression_ratio, most_likely};
pub use rules::{Rules, TimestampRules};

use sampling::Random;

use crate::{
    checkpoint::SpecialTokens,
    task::Task,
    tokenizer::{Tokenizer, strip},
};

/// The decoder's forward pass over the rows of one window.
pub trait Forward {
    type Error;

    /// Goes back to one row with nothing in it.
    fn restart(&mut self) -> Result<(), Self::Error>;

    /// Feeds tokens to the one row there is; gives the logits after the last.
    fn feed(&mut self, tokens: &[u32]) -> Result<&mut [f32], Self::Error>;

    /// Goes on with `rows` copies of what was fed, and forgets all steps.
    fn fork(&mut self, rows: usize) -> Result<(), Self::Error>;

    /// Feeds one token to each row; gives the logits row after row.
    fn step(&mut self, tokens: &[u32]) -> Result<&mut [f32], Self::Error>;
}

/// What stands before the first sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    tokens: Vec<u32>,
    /// Where `<|startoftranscript|>` stands: the probability of silence is read there.
    sot: usize,
}

impl Prompt {
    /// `previous` is the text before this window, of which the last half context is kept. `language` is the token of
    /// the language; models that know only English have neither language nor task.
    pub fn new(
        special: &SpecialTokens,
        context: usize,
        previous: &[u32],
        language: Option<u32>,
        task: Task,
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
                Task::Transcribe => special.transcribe,
                Task::Translate => special.translate,
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
}

impl Rules {
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

/// How one attempt at a window chooses its tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Search {
    /// The likeliest token each time.
    Greedy,
    /// The best of some candidates drawn at a temperature.
    Sample { temperature: f32, candidates: usize, seed: u64 },
}

impl Search {
    fn rows(self) -> usize {
        match self {
            Self::Greedy => 1,
            Self::Sample { candidates, .. } => candidates.max(1),
        }
    }

    fn temperature(self) -> f32 {
        match self {
            Self::Greedy => 0.0,
            Self::Sample { temperature, .. } => temperature,
        }
    }
}

/// What came out of one attempt at a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
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

/// One window whose prompt was fed; each attempt starts from there.
pub struct Window<'a, F: Forward> {
    forward: &'a mut F,
    special: &'a SpecialTokens,
    rules: &'a Rules,
    /// Most tokens in a row, prompt included.
    context: usize,
    prompt_length: usize,
    first_logits: Vec<f32>,
    no_speech_prob: f64,
}

impl<'a, F: Forward> Window<'a, F> {
    pub fn start(
        forward: &'a mut F,
        special: &'a SpecialTokens,
        rules: &'a Rules,
        context: usize,
        prompt: &Prompt,
    ) -> Result<Self, F::Error> {
        let (before, after) = prompt.tokens.split_at(prompt.sot + 1);
        forward.restart()?;
        let at_sot = forward.feed(before)?;
        let no_speech_prob = sampling::log_probability(at_sot, special.no_speech as usize).exp();
        let first_logits = if after.is_empty() { at_sot.to_vec() } else { forward.feed(after)?.to_vec() };
        let prompt_length = prompt.tokens.len();
        Ok(Self { forward, special, rules, context, prompt_length, first_logits, no_speech_prob })
    }

    /// Decodes the window once. `keep_going` is asked before each step.
    pub fn attempt(
        &mut self,
        search: Search,
        tokenizer: &Tokenizer,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Decoded, DecodeError<F::Error>> {
        let mut rows = self.sample(search, keep_going)?;
        let chosen = most_likely(rows.iter().map(|row| (row.sum_logprob, row.tokens.len())));
        let Row { tokens, token_logprobs, sum_logprob, .. } = rows.swap_remove(chosen);
        let end = self.special.timestamp_begin;
        let text = tokenizer.decode(tokens.iter().copied().filter(|token| *token < end));
        let text = strip(&text).to_owned();
        Ok(Decoded {
            avg_logprob: sum_logprob / (tokens.len() + 1) as f64,
            no_speech_prob: self.no_speech_prob,
            temperature: search.temperature(),
            compression_ratio: compression_ratio(&text),
            tokens,
            token_logprobs,
            text,
        })
    }

    fn sample(
        &mut self,
        search: Search,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Row>, DecodeError<F::Error>> {
        let count = search.rows();
        let vocabulary = self.first_logits.len();
        self.forward.fork(count)?;
        let mut rows: Vec<Row> = (0..count).map(|index| Row::new(search, index)).collect();
        let mut first = self.first_logits.repeat(count);
        let mut logits = first.as_mut_slice();
        let mut next = vec![self.special.eot; count];
        for sampled in 1..=self.context / 2 {
            for ((row, logits), next) in rows.iter_mut().zip(logits.chunks_exact_mut(vocabulary)).zip(&mut next) {
                *next = row.choose(self.rules, self.special.eot, search, logits);
            }
            let length = self.prompt_length + sampled;
            if rows.iter().all(|row| row.ended) || length > self.context || sampled == self.context / 2 {
                break;
            }
            if !keep_going() {
                return Err(DecodeError::Cancelled);
            }
            logits = self.forward.step(&next)?;
        }
        Ok(rows)
    }
}

/// One candidate while it is decoded.
struct Row {
    tokens: Vec<u32>,
    token_logprobs: Vec<f32>,
    sum_logprob: f64,
    ended: bool,
    random: Random,
}

impl Row {
    fn new(search: Search, index: usize) -> Self {
        let random = match search {
            Search::Greedy => Random::new(0, &[]),
            Search::Sample { seed, .. } => Random::new(seed, &[index as u64]),
        };
        Self { tokens: Vec::new(), token_logprobs: Vec::new(), sum_logprob: 0.0, ended: false, random }
    }

    /// A row that has ended goes on with ends, as the reference's rows do.
    fn choose(&mut self, rules: &Rules, eot: u32, search: Search, logits: &mut [f32]) -> u32 {
        if self.ended {
            return eot;
        }
        rules.apply(logits, &self.tokens);
        let token = match search {
            Search::Greedy => sampling::arg_max(logits),
            Search::Sample { temperature, .. } => sampling::draw(logits, temperature, &mut self.random),
        };
        let logprob = sampling::log_probability(logits, token);
        self.sum_logprob += logprob;
        let token = token as u32;
        if token == eot {
            self.ended = true;
        } else {
            self.tokens.push(token);
            self.token_logprobs.push(logprob as f32);
        }
        token
    }
}
