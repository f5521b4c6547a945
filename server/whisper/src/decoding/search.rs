//! One attempt at a window, whoever computes the logits: [`Search`] is told them and says what to feed next.

use std::sync::Arc;

use super::{
    Rules, sampling,
    sampling::Random,
    scores::{RowScores, ScoredToken, Scores, TokenRanges, Wanted},
};

/// Chooses the tokens of a window's rows. It runs beside the decoder, so that no row waits for another thread.
pub trait Search: Send {
    /// Rows that go on side by side from one prompt.
    fn rows(&self) -> usize;

    /// What it needs to see of each row after the first choice, for which it sees all logits.
    fn wants(&self) -> Wanted;

    /// The tokens that may follow in a row.
    fn ranges(&self, row: usize) -> TokenRanges;

    /// Looks at the scores behind each row's last token; logits may be changed by that.
    fn choose(&mut self, scores: &mut Scores<'_>) -> Next;

    /// What was found, the first of equals first.
    fn finish(self: Box<Self>) -> Vec<Candidate>;
}

/// What a [`Search`] wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Done,
    /// One token for each row.
    Feed {
        tokens: Vec<u32>,
        /// The row that each row continues; `None`: itself.
        from: Option<Vec<usize>>,
    },
}

/// Tokens that a window may turn out to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidate {
    /// Without the prompt and the end.
    pub tokens: Vec<u32>,
    /// Natural logarithms, one for each of `tokens`.
    pub token_logprobs: Vec<f32>,
    /// The end's included, where it was reached.
    pub sum_logprob: f64,
}

/// What every search of a window keeps to.
#[derive(Clone)]
pub struct Frame {
    pub rules: Arc<Rules>,
    pub end_of_text: u32,
    pub prompt_length: usize,
    /// Most tokens in a row, prompt included.
    pub context: usize,
    /// Most tokens that are sampled; the reference takes half of the context.
    pub most_sampled: usize,
}

impl Frame {
    /// Whether `sampled` tokens are all that there may be.
    pub(super) fn is_full(&self, sampled: usize) -> bool {
        self.prompt_length + sampled > self.context || sampled >= self.most_sampled
    }
}

/// Rows that do not know of each other: the likeliest token each time, or candidates drawn at a temperature.
pub struct Sampler {
    frame: Frame,
    /// `None`: greedy.
    temperature: Option<f32>,
    rows: Vec<Row>,
    sampled: usize,
}

struct Row {
    found: Candidate,
    ended: bool,
    random: Random,
}

impl Sampler {
    pub fn greedy(frame: Frame) -> Self {
        let row = Row { found: Candidate::default(), ended: false, random: Random::new(0, &[]) };
        Self { frame, temperature: None, rows: vec![row], sampled: 0 }
    }

    pub fn draws(frame: Frame, temperature: f32, candidates: usize, seed: u64) -> Self {
        let row = |index| Row { found: Candidate::default(), ended: false, random: Random::new(seed, &[index as u64]) };
        let rows = (0..candidates.max(1)).map(row).collect();
        Self { frame, temperature: Some(temperature), rows, sampled: 0 }
    }
}

impl Search for Sampler {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn wants(&self) -> Wanted {
        match self.temperature {
            None => Wanted::Likeliest(1),
            // A draw looks at all probabilities.
            Some(_) => Wanted::Logits,
        }
    }

    fn ranges(&self, row: usize) -> TokenRanges {
        self.frame.rules.ranges(&self.rows[row].found.tokens)
    }

    fn choose(&mut self, scores: &mut Scores<'_>) -> Next {
        let Self { frame, temperature, rows, .. } = self;
        let choose = |(index, row): (usize, &mut Row)| row.choose(frame, *temperature, scores.row(index));
        let tokens = rows.iter_mut().enumerate().map(choose).collect();
        self.sampled += 1;
        if self.rows.iter().all(|row| row.ended) || self.frame.is_full(self.sampled) {
            return Next::Done;
        }

        Next::Feed { tokens, from: None }
    }

    fn finish(self: Box<Self>) -> Vec<Candidate> {
        self.rows.into_iter().map(|row| row.found).collect()
    }
}

impl Row {
    /// A row that has ended goes on with ends, as the reference's rows do.
    fn choose(&mut self, frame: &Frame, temperature: Option<f32>, scores: RowScores<'_>) -> u32 {
        let end = frame.end_of_text;
        if self.ended {
            return end;
        }

        let sampled = &self.found.tokens;
        let chosen = match (temperature, scores) {
            (Some(temperature), RowScores::Logits(logits)) => {
                frame.rules.apply(logits, sampled);
                let token = sampling::draw(logits, temperature, &mut self.random);
                let logprob = sampling::log_probability(logits, token);
                ScoredToken { token: token as u32, logprob }
            }
            (_, scores) => {
                let likeliest = scores.likeliest(&frame.rules, sampled, 1);
                // Where nothing may follow, the row ends.
                likeliest.first().copied().unwrap_or(ScoredToken { token: end, logprob: f64::NEG_INFINITY })
            }
        };

        let ScoredToken { token, logprob } = chosen;

        self.found.sum_logprob += logprob;

        if token == end {
            self.ended = true;
        } else {
            self.found.tokens.push(token);
            self.found.token_logprobs.push(logprob as f32);
        }

        token
    }
}

/// Hears the logits of a row.
type Heard = Box<dyn FnMut(usize, &[f32]) + Send>;

/// Feeds given tokens, for measurements and checks: every run does the same work.
pub struct Forced {
    tokens: std::vec::IntoIter<u32>,
    rows: usize,
    /// Hears the logits of each row before each token, and behind the last.
    heard: Heard,
}

impl Forced {
    pub fn new(tokens: Vec<u32>, rows: usize, heard: impl FnMut(usize, &[f32]) + Send + 'static) -> Self {
        Self { tokens: tokens.into_iter(), rows, heard: Box::new(heard) }
    }
}

impl Search for Forced {
    fn rows(&self) -> usize {
        self.rows
    }

    fn wants(&self) -> Wanted {
        Wanted::Logits
    }

    fn ranges(&self, _row: usize) -> TokenRanges {
        TokenRanges { words: 0..u32::MAX, times: 0..u32::MAX }
    }

    fn choose(&mut self, scores: &mut Scores<'_>) -> Next {
        for row in 0..self.rows {
            if let RowScores::Logits(logits) = scores.row(row) {
                (self.heard)(row, logits);
            }
        }

        match self.tokens.next() {
            Some(token) => Next::Feed { tokens: vec![token; self.rows], from: None },
            None => Next::Done,
        }
    }

    fn finish(self: Box<Self>) -> Vec<Candidate> {
        Vec::new()
    }
}
