//! The scores that a search chooses from: all logits of each row, or the likeliest tokens, which the device found.

use std::ops::Range;

use super::{TokenRules, sampling};

/// The scores that a [`super::Search`] needs for each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeededScores {
    Logits,
    /// So many of the likeliest tokens, with their probabilities.
    Likeliest(usize),
}

/// The scores of several rows, in any order.
pub struct Scores<'a> {
    numbers: ScoreNumbers<'a>,
    /// SampledRow `i` of the search is the `row_order[i]`th row of the numbers.
    row_order: &'a [usize],
}

enum ScoreNumbers<'a> {
    Logits { all: &'a mut [f32], vocabulary: usize },
    Choice { all: &'a [f32], layout: ChoiceLayout },
}

impl<'a> Scores<'a> {
    /// `all`: `vocabulary` logits for each row.
    pub fn logits(all: &'a mut [f32], vocabulary: usize, row_order: &'a [usize]) -> Self {
        Self { numbers: ScoreNumbers::Logits { all, vocabulary }, row_order }
    }

    /// `all`: the rows of the decoder's output `choice`, computed with the ranges of [`TokenRules::ranges`].
    pub fn choice(all: &'a [f32], layout: ChoiceLayout, row_order: &'a [usize]) -> Self {
        Self { numbers: ScoreNumbers::Choice { all, layout }, row_order }
    }

    pub fn row(&mut self, row: usize) -> RowScores<'_> {
        let index = self.row_order[row];
        match &mut self.numbers {
            ScoreNumbers::Logits { all, vocabulary } => {
                RowScores::Logits(&mut all[index * *vocabulary..][..*vocabulary])
            }
            ScoreNumbers::Choice { all, layout } => {
                let width = layout.width();
                RowScores::Choice(RowChoice { numbers: &all[index * width..][..width], layout: *layout })
            }
        }
    }
}

/// The scores of one row.
pub enum RowScores<'a> {
    Logits(&'a mut [f32]),
    Choice(RowChoice<'a>),
}

/// A token that may come next, and its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredToken {
    pub token: u32,
    /// The natural logarithm of its probability among the tokens that may come next.
    pub logprob: f64,
}

impl RowScores<'_> {
    /// The `count` likeliest tokens that `rules` allow after `sampled`, the likeliest first; equals keep the order of
    /// their tokens.
    pub fn likeliest(self, rules: &TokenRules, sampled: &[u32], count: usize) -> Vec<ScoredToken> {
        match self {
            Self::Logits(logits) => {
                rules.apply(logits, sampled);
                let chosen =
                    if count == 1 { vec![sampling::arg_max(logits)] } else { sampling::largest(logits, count) };
                let largest = chosen.first().and_then(|token| logits.get(*token)).copied();
                let total = sampling::log_sum_exp_below(logits, largest.unwrap_or(f32::NEG_INFINITY));
                let scored = chosen.into_iter().map(|token| {
                    let logit = logits.get(token).map_or(f64::NEG_INFINITY, |logit| f64::from(*logit));
                    ScoredToken { token: token as u32, logprob: logit - total }
                });
                scored.collect()
            }
            Self::Choice(choice) => choice.likeliest(rules, sampled, count),
        }
    }
}

/// The layout of the decoder's output `choice`; see [`crate::graph::choice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChoiceLayout {
    /// Tokens that are named for each part of the vocabulary.
    pub likeliest: usize,
    /// The token `<|0.00|>`, with which the second part begins.
    pub timestamps: u32,
}

impl ChoiceLayout {
    /// Values of a row.
    pub const fn width(self) -> usize {
        crate::graph::choice::width(self.likeliest)
    }
}

/// One row of the decoder's output `choice`.
pub struct RowChoice<'a> {
    numbers: &'a [f32],
    layout: ChoiceLayout,
}

/// One part of the vocabulary: words or timestamps.
struct VocabularyPart {
    /// `(token, logit)`, the likeliest first.
    tokens: Vec<(u32, f64)>,
    /// The logarithm of the sum of the exponentials of the allowed logits.
    log_sum_exp: f64,
}

impl RowChoice<'_> {
    fn part(&self, index: usize, first_token: u32) -> VocabularyPart {
        let likeliest = self.layout.likeliest;
        let numbers = &self.numbers[index * (1 + 2 * likeliest)..][..1 + 2 * likeliest];
        let (best_logit, rest) = (f64::from(numbers[0]), &numbers[1..]);
        let (logprobs, tokens) = rest.split_at(likeliest);

        let log_sum_exp = best_logit - logprobs.first().copied().map_or(0.0, f64::from);
        let scored = tokens.iter().zip(logprobs).filter(|(_, logprob)| !logprob.is_nan());
        let tokens = scored.map(|(token, logprob)| (first_token + *token as u32, f64::from(*logprob) + log_sum_exp));

        VocabularyPart { tokens: tokens.collect(), log_sum_exp }
    }

    fn likeliest(&self, rules: &TokenRules, sampled: &[u32], count: usize) -> Vec<ScoredToken> {
        let ranges = rules.ranges(sampled);
        let words = (!ranges.words.is_empty()).then(|| self.part(0, 0));
        let times = (!ranges.times.is_empty()).then(|| self.part(1, self.layout.timestamps));

        let allowed_words = words.filter(|words| {
            let best_word = words.tokens.first().map_or(f64::NEG_INFINITY, |(_, logit)| *logit);

            // Like `TokenRules::apply`: timestamps are forced if together they are likelier than the best word.
            let is_forced =
                rules.timestamps.is_some() && times.as_ref().is_some_and(|times| times.log_sum_exp > best_word);
            !is_forced
        });

        let parts: Vec<VocabularyPart> = allowed_words.into_iter().chain(times).collect();
        let largest = parts.iter().map(|part| part.log_sum_exp).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = parts.iter().map(|part| (part.log_sum_exp - largest).exp()).sum();
        let total = largest + sum.ln();
        let mut tokens: Vec<(u32, f64)> = parts.into_iter().flat_map(|part| part.tokens).collect();

        tokens.sort_by(|(a, a_logit), (b, b_logit)| b_logit.total_cmp(a_logit).then(a.cmp(b)));
        tokens.truncate(count);

        tokens.into_iter().map(|(token, logit)| ScoredToken { token, logprob: logit - total }).collect()
    }
}

/// The tokens that may follow, ignoring those that are always suppressed. Ends may be beyond the vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRanges {
    pub words: Range<u32>,
    pub times: Range<u32>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::TimestampRules;
    use super::*;

    const END: u32 = 10;
    const BEGIN: u32 = 16;
    const SIZE: usize = 36;

    fn rules(timestamps: bool) -> TokenRules {
        let times = TimestampRules { end_of_text: END, no_timestamps: BEGIN - 1, begin: BEGIN, max_initial: Some(5) };
        TokenRules { blank: vec![0, END], suppressed: vec![3, 11, 12, 13, 14], timestamps: timestamps.then_some(times) }
    }

    /// The values that the graph computes, see `graph::choice`.
    fn choice(logits: &[f32], rules: &TokenRules, sampled: &[u32], layout: ChoiceLayout) -> Vec<f32> {
        let ranges = rules.ranges(sampled);
        let mut all = Vec::new();

        for (part, range) in [(0..BEGIN, ranges.words), (BEGIN..SIZE as u32, ranges.times)] {
            let masked: Vec<f32> = part
                .clone()
                .map(|token| {
                    let permitted = range.contains(&token) && !rules.suppressed.contains(&token);
                    if permitted { logits[token as usize] } else { f32::NEG_INFINITY }
                })
                .collect();

            let total = sampling::log_sum_exp(&masked);
            let best = sampling::largest(&masked, layout.likeliest);

            all.push(masked[best[0]]);
            all.extend(best.iter().map(|token| (f64::from(masked[*token]) - total) as f32));
            all.extend(best.iter().map(|token| *token as f32));
        }

        all
    }

    proptest! {
        #[test]
        fn the_choice_of_the_device_is_the_choice_of_the_host(
            values in prop::collection::vec(-9.0_f32..9.0, SIZE),
            sampled in prop::collection::vec(0_u32..SIZE as u32 - 1, 1..8),
            timestamps: bool,
            count in 1_usize..4,
        ) {
            let (rules, layout) = (rules(timestamps), ChoiceLayout { likeliest: 4, timestamps: BEGIN });
            let numbers = choice(&values, &rules, &sampled, layout);
            let found = Scores::choice(&numbers, layout, &[0]).row(0).likeliest(&rules, &sampled, count);
            let mut logits = values.clone();
            let expected = Scores::logits(&mut logits, SIZE, &[0]).row(0).likeliest(&rules, &sampled, count);
            let finite = |scored: &&ScoredToken| scored.logprob.is_finite();
            let (found, expected): (Vec<_>, Vec<_>) =
                (found.iter().filter(finite).collect(), expected.iter().filter(finite).collect());

            prop_assert_eq!(found.len(), expected.len());

            for (found, expected) in found.into_iter().zip(expected) {
                prop_assert_eq!(found.token, expected.token);
                prop_assert!((found.logprob - expected.logprob).abs() < 1e-4, "{:?} {:?}", found, expected);
            }
        }
    }
}
