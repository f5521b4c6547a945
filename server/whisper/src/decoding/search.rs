//! The search for a window's tokens, independent of how logits are computed: a [`Search`] receives the scores of each step
//! and chooses the next tokens.

use std::sync::Arc;

use super::{
    TokenRules, sampling,
    sampling::Random,
    scores::{NeededScores, RowScores, ScoredToken, Scores, TokenRanges},
};

/// Chooses the tokens of a window's rows. It runs on the decoder's thread, so that no row waits for another thread.
pub trait Search: Send {
    /// Rows that are decoded side by side from one prompt.
    fn rows(&self) -> usize;

    /// The scores that it needs for each row after the first choice; the first choice is made from all logits.
    fn needed_scores(&self) -> NeededScores;

    /// The tokens that may follow in a row.
    fn ranges(&self, row: usize) -> TokenRanges;

    /// Chooses from the scores after each row's last token. The logits may be changed.
    fn choose(&mut self, scores: &mut Scores<'_>) -> SearchChoice;

    /// The candidates that were found, the best of equals first.
    fn finish(self: Box<Self>) -> Vec<SearchCandidate>;
}

/// What a [`Search`] has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SearchChoice {
    Done,
    /// The next token of each row.
    Continue {
        tokens: Vec<u32>,
        /// The row that each row continues; `None`: each continues itself.
        parents: Option<Vec<usize>>,
    },
}

/// A possible token sequence of a window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SearchCandidate {
    /// Without the prompt and the end token.
    pub tokens: Vec<u32>,
    /// Natural logarithms, one for each of `tokens`.
    pub token_logprobs: Vec<f32>,
    /// Includes the end token, if it was reached.
    pub sum_logprob: f64,
}

/// The rules and limits that apply to each search of a window.
#[derive(Clone)]
pub struct SearchConstraints {
    pub rules: Arc<TokenRules>,
    pub end_of_text: u32,
    pub prompt_length: usize,
    /// Maximum tokens of a row, including the prompt.
    pub context: usize,
    /// Maximum sampled tokens; the reference uses half of the context.
    pub max_sampled: usize,
}

impl SearchConstraints {
    /// Whether no more than these `sampled` tokens may be sampled.
    pub(super) fn is_full(&self, sampled: usize) -> bool {
        self.prompt_length + sampled > self.context || sampled >= self.max_sampled
    }
}

/// Independent rows: the likeliest token each time, or candidates drawn at a temperature.
pub struct SamplingSearch {
    constraints: SearchConstraints,
    /// `None`: greedy.
    temperature: Option<f32>,
    rows: Vec<SampledRow>,
    sampled: usize,
}

struct SampledRow {
    candidate: SearchCandidate,
    ended: bool,
    random: Random,
}

impl SamplingSearch {
    pub fn greedy(constraints: SearchConstraints) -> Self {
        let row = SampledRow { candidate: SearchCandidate::default(), ended: false, random: Random::new(0, &[]) };
        Self { constraints, temperature: None, rows: vec![row], sampled: 0 }
    }

    pub fn random(constraints: SearchConstraints, temperature: f32, candidates: usize, seed: u64) -> Self {
        let row = |index: usize| {
            let random = Random::new(seed, &[index as u64]);
            SampledRow { candidate: SearchCandidate::default(), ended: false, random }
        };
        let rows = (0..candidates.max(1)).map(row).collect();
        Self { constraints, temperature: Some(temperature), rows, sampled: 0 }
    }
}

impl Search for SamplingSearch {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn needed_scores(&self) -> NeededScores {
        match self.temperature {
            None => NeededScores::Likeliest(1),
            // A draw needs the probabilities of all tokens.
            Some(_) => NeededScores::Logits,
        }
    }

    fn ranges(&self, row: usize) -> TokenRanges {
        self.constraints.rules.ranges(&self.rows[row].candidate.tokens)
    }

    fn choose(&mut self, scores: &mut Scores<'_>) -> SearchChoice {
        let Self { constraints, temperature, rows, .. } = self;
        let choose = |(index, row): (usize, &mut SampledRow)| row.choose(constraints, *temperature, scores.row(index));
        let tokens = rows.iter_mut().enumerate().map(choose).collect();

        self.sampled += 1;
        if self.rows.iter().all(|row| row.ended) || self.constraints.is_full(self.sampled) {
            return SearchChoice::Done;
        }

        SearchChoice::Continue { tokens, parents: None }
    }

    fn finish(self: Box<Self>) -> Vec<SearchCandidate> {
        self.rows.into_iter().map(|row| row.candidate).collect()
    }
}

impl SampledRow {
    /// A row that has ended continues with end tokens, like the reference's rows.
    fn choose(&mut self, constraints: &SearchConstraints, temperature: Option<f32>, scores: RowScores<'_>) -> u32 {
        let end = constraints.end_of_text;
        if self.ended {
            return end;
        }

        let sampled = &self.candidate.tokens;
        let chosen = match (temperature, scores) {
            (Some(temperature), RowScores::Logits(logits)) => {
                constraints.rules.apply(logits, sampled);
                let token = sampling::draw(logits, temperature, &mut self.random);
                let logprob = sampling::log_probability(logits, token);
                ScoredToken { token: token as u32, logprob }
            }
            (_, scores) => {
                let likeliest = scores.likeliest(&constraints.rules, sampled, 1);
                // If no token may follow, the row ends.
                likeliest.first().copied().unwrap_or(ScoredToken { token: end, logprob: f64::NEG_INFINITY })
            }
        };

        let ScoredToken { token, logprob } = chosen;
        self.candidate.sum_logprob += logprob;
        if token == end {
            self.ended = true;
        } else {
            self.candidate.tokens.push(token);
            self.candidate.token_logprobs.push(logprob as f32);
        }

        token
    }
}

/// Called with the number and the logits of a row.
type LogitsObserver = Box<dyn FnMut(usize, &[f32]) + Send>;

/// Continues with given tokens, for measurements and checks: every run does the same work.
pub struct ForcedSearch {
    tokens: std::vec::IntoIter<u32>,
    rows: usize,
    /// Called with the logits of each row before each token, and after the last one.
    on_logits: LogitsObserver,
}

impl ForcedSearch {
    pub fn new(tokens: Vec<u32>, rows: usize, on_logits: impl FnMut(usize, &[f32]) + Send + 'static) -> Self {
        Self { tokens: tokens.into_iter(), rows, on_logits: Box::new(on_logits) }
    }
}

impl Search for ForcedSearch {
    fn rows(&self) -> usize {
        self.rows
    }

    fn needed_scores(&self) -> NeededScores {
        NeededScores::Logits
    }

    fn ranges(&self, _row: usize) -> TokenRanges {
        TokenRanges { words: 0..u32::MAX, times: 0..u32::MAX }
    }

    fn choose(&mut self, scores: &mut Scores<'_>) -> SearchChoice {
        for row in 0..self.rows {
            if let RowScores::Logits(logits) = scores.row(row) {
                (self.on_logits)(row, logits);
            }
        }

        match self.tokens.next() {
            Some(token) => SearchChoice::Continue { tokens: vec![token; self.rows], parents: None },
            None => SearchChoice::Done,
        }
    }

    fn finish(self: Box<Self>) -> Vec<SearchCandidate> {
        Vec::new()
    }
}
