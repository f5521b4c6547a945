//! TokenRules for the next token: the logit filters of openai/whisper (`SuppressBlank`, `SuppressTokens`,
//! `ApplyTimestampRules` in `whisper/decoding.py`).

use super::{
    sampling::{log_sum_exp, maximum},
    scores::TokenRanges,
};

/// The filters of one search, applied in the reference's order.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRules {
    /// Forbidden as the first token: a blank, and the end of the text.
    pub blank: Vec<u32>,
    pub suppressed: Vec<u32>,
    /// `None` if the prompt asks for no timestamps.
    pub timestamps: Option<TimestampRules>,
}

/// The rules for the order of timestamps and words.
#[derive(Clone, Debug, PartialEq)]
pub struct TimestampRules {
    pub end_of_text: u32,
    pub no_timestamps: u32,
    /// The token `<|0.00|>`; every token from here on is a timestamp.
    pub begin: u32,
    /// The latest timestamp that the first token may be, counted from `begin`.
    pub max_initial: Option<u32>,
}

impl TokenRules {
    /// Sets the logits of tokens that may not follow `sampled` (the tokens after the prompt) to minus infinity.
    pub fn apply(&self, logits: &mut [f32], sampled: &[u32]) {
        if sampled.is_empty() {
            forbid_each(logits, &self.blank);
        }
        forbid_each(logits, &self.suppressed);
        if let Some(timestamps) = &self.timestamps {
            timestamps.apply(logits, sampled);
        }
    }

    /// The tokens that may follow `sampled`, ignoring suppressed single tokens and the rule that timestamps are forced if
    /// together they are likelier than each word.
    pub fn ranges(&self, sampled: &[u32]) -> TokenRanges {
        match &self.timestamps {
            Some(timestamps) => timestamps.ranges(sampled),
            None => TokenRanges { words: 0..u32::MAX, times: 0..u32::MAX },
        }
    }
}

impl TimestampRules {
    /// Words end where timestamps begin; `<|notimestamps|>`, the token before, is no word either.
    fn ranges(&self, sampled: &[u32]) -> TokenRanges {
        let words_end = if self.no_timestamps + 1 == self.begin { self.no_timestamps } else { self.begin };
        let (mut words, mut times) = (0..words_end, self.begin..u32::MAX);

        let is_timestamp = |token: &u32| *token >= self.begin;
        let last = sampled.last().is_some_and(is_timestamp);

        // With a single token the reference treats the missing one before it as a timestamp.
        let before_last = sampled.len() < 2 || is_timestamp(&sampled[sampled.len() - 2]);

        if let Some(latest) = sampled.iter().rev().copied().find(is_timestamp) {
            // Timestamps do not decrease, and a segment has a length, so that seeking makes progress.
            times.start = if last && !before_last { latest } else { latest + 1 };
        }

        if last {
            if before_last {
                times = self.begin..self.begin;
            } else {
                words.start = self.end_of_text;
            }
        }

        if sampled.is_empty() {
            words = self.begin..self.begin;
            if let Some(max_initial) = self.max_initial {
                times.end = self.begin + max_initial + 1;
            }
        }

        TokenRanges { words, times }
    }

    fn apply(&self, logits: &mut [f32], sampled: &[u32]) {
        let size = logits.len();
        let begin = (self.begin as usize).min(size);
        forbid_each(logits, &[self.no_timestamps]);
        let TokenRanges { words, times } = self.ranges(sampled);
        let bounded = |token: u32, from: usize, until: usize| (token as usize).clamp(from, until);

        logits[..bounded(words.start, 0, begin)].fill(f32::NEG_INFINITY);
        logits[begin..bounded(times.start, begin, size)].fill(f32::NEG_INFINITY);
        logits[bounded(times.end, begin, size)..].fill(f32::NEG_INFINITY);

        // Timestamps are forced if together they are likelier than the best word. The reference compares
        // log-probabilities, whose common normaliser cancels.
        let (words, times) = logits.split_at_mut(begin);
        let best_word = maximum(words);

        if log_sum_exp(times) > f64::from(best_word) {
            words.fill(f32::NEG_INFINITY);
        }
    }
}

fn forbid_each(logits: &mut [f32], tokens: &[u32]) {
    for token in tokens {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A vocabulary with words 0..10, an end token 10, special tokens 11..15, "no timestamps" 15 and 20 timestamps from 16.
    const END: u32 = 10;
    const BEGIN: u32 = 16;
    const SIZE: usize = 36;

    fn rules() -> TokenRules {
        TokenRules {
            blank: vec![0, END],
            suppressed: vec![3, 11, 12, 13, 14],
            timestamps: Some(TimestampRules {
                end_of_text: END,
                no_timestamps: 15,
                begin: BEGIN,
                max_initial: Some(5),
            }),
        }
    }

    /// The tokens that may follow if no timestamp is likely.
    fn allowed(sampled: &[u32]) -> Vec<u32> {
        let mut logits = vec![0.0; SIZE];
        logits[BEGIN as usize..].fill(-50.0);
        rules().apply(&mut logits, sampled);
        (0..SIZE as u32).filter(|token| logits[*token as usize].is_finite()).collect()
    }

    #[test]
    fn the_first_token_is_an_early_timestamp() {
        assert_eq!(allowed(&[]), (BEGIN..=BEGIN + 5).collect::<Vec<_>>());
    }

    #[test]
    fn a_word_follows_the_first_timestamp() {
        assert_eq!(allowed(&[BEGIN]), [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn a_timestamp_after_a_word_is_repeated_or_ends_the_text() {
        let expected: Vec<u32> = [END].into_iter().chain(BEGIN + 7..SIZE as u32).collect();
        assert_eq!(allowed(&[BEGIN, 1, BEGIN + 7]), expected);
    }

    #[test]
    fn a_pair_is_followed_by_words() {
        assert_eq!(allowed(&[BEGIN, 1, BEGIN + 7, BEGIN + 7]), [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn timestamps_do_not_go_back() {
        let after = allowed(&[BEGIN + 4, 1]);
        assert!(!after.contains(&(BEGIN + 4)) && after.contains(&(BEGIN + 5)) && after.contains(&END));
    }

    #[test]
    fn likely_timestamps_win_over_each_single_word() {
        let mut logits = vec![0.0; SIZE];
        rules().apply(&mut logits, &[BEGIN, 1]);
        assert!(logits[..BEGIN as usize].iter().all(|logit| *logit == f32::NEG_INFINITY));
    }

    #[test]
    fn without_timestamps_only_lists_count() {
        let mut logits = vec![0.0; SIZE];
        TokenRules { timestamps: None, ..rules() }.apply(&mut logits, &[]);
        let forbidden: Vec<u32> = (0..SIZE as u32).filter(|token| logits[*token as usize].is_infinite()).collect();
        assert_eq!(forbidden, [0, 3, 10, 11, 12, 13, 14]);

        let mut later_logits = vec![0.0; SIZE];
        TokenRules { timestamps: None, ..rules() }.apply(&mut later_logits, &[1]);

        assert!(later_logits[0].is_finite() && later_logits[END as usize].is_finite());
    }

    /// The filter as the reference implements it, over plain log-probabilities.
    fn reference(logits: &mut [f64], sampled: &[u32]) {
        let minus = f64::NEG_INFINITY;
        if sampled.is_empty() {
            logits[0] = minus;
            logits[END as usize] = minus;
        }

        for token in [3, 11, 12, 13, 14, 15] {
            logits[token] = minus;
        }

        let begin = BEGIN as usize;
        let last = !sampled.is_empty() && sampled[sampled.len() - 1] >= BEGIN;
        let penultimate = sampled.len() < 2 || sampled[sampled.len() - 2] >= BEGIN;

        if last {
            if penultimate { logits[begin..].fill(minus) } else { logits[..END as usize].fill(minus) }
        }

        let times: Vec<u32> = sampled.iter().copied().filter(|token| *token >= BEGIN).collect();
        if let Some(latest) = times.last() {
            let until = if last && !penultimate { *latest } else { *latest + 1 };
            logits[begin..until as usize].fill(minus);
        }

        if sampled.is_empty() {
            logits[..begin].fill(minus);
            logits[begin + 6..].fill(minus);
        }

        let total = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        let time = logits[begin..].iter().map(|logit| (logit - total).exp()).sum::<f64>().ln();
        let word = logits[..begin].iter().map(|logit| logit - total).fold(minus, f64::max);

        if time > word {
            logits[..begin].fill(minus);
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(
            values in prop::collection::vec(-9.0_f32..9.0, SIZE),
            sampled in prop::collection::vec(0_u32..SIZE as u32 - 1, 0..8),
        ) {
            let mut ours = values.clone();
            rules().apply(&mut ours, &sampled);
            let mut theirs: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
            reference(&mut theirs, &sampled);
            for (our, other) in ours.iter().zip(&theirs) {
                prop_assert_eq!(f64::from(*our), *other);
            }
        }

        #[test]
        fn every_walk_keeps_the_grammar(seed in prop::collection::vec(0.0_f32..1.0, SIZE * 12)) {
            let mut sampled = Vec::new();
            for step in seed.chunks_exact(SIZE) {
                let mut logits: Vec<f32> = step.iter().map(|value| value * 6.0).collect();
                rules().apply(&mut logits, &sampled);
                let token = super::super::sampling::arg_max(&logits) as u32;
                prop_assert!(logits[token as usize].is_finite(), "nothing may follow {:?}", sampled);

                if token == END {
                    break;
                }

                sampled.push(token);
            }

            prop_assert!(sampled[0] >= BEGIN && sampled[0] <= BEGIN + 5);

            let times: Vec<u32> = sampled.iter().copied().filter(|token| *token >= BEGIN).collect();

            prop_assert!(times.is_sorted());
            prop_assert!(!sampled.windows(3).any(|three| three.iter().all(|token| *token >= BEGIN)));
        }
    }
}
