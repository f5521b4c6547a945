//! What a search sees behind the last token of each row: all logits, or the likeliest tokens that the device found.

use std::ops::Range;

use super::{Rules, sampling};

/// What a [`super::Search`] needs to see of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Logits,
    /// So many of the likeliest tokens, and their probabilities.
    Likeliest(usize),
}

/// Numbers of several rows, which need not lie in order.
pub struct Scores<'a> {
    numbers: Numbers<'a>,
    /// Row `i` of the search is the `places[i]`th row of the numbers.
    places: &'a [usize],
}

enum Numbers<'a> {
    Logits { all: &'a mut [f32], vocabulary: usize },
    Choice { all: &'a [f32], layout: ChoiceLayout },
}

impl<'a> Scores<'a> {
    /// `all`: `vocabulary` logits for each row.
    pub fn logits(all: &'a mut [f32], vocabulary: usize, places: &'a [usize]) -> Self {
        Self { numbers: Numbers::Logits { all, vocabulary }, places }
    }

    /// `all`: the rows of the decoder's output `choice`, under the ranges of [`Rules::ranges`].
    pub fn choice(all: &'a [f32], layout: ChoiceLayout, places: &'a [usize]) -> Self {
        Self { numbers: Numbers::Choice { all, layout }, places }
    }

    pub fn row(&mut self, row: usize) -> RowScores<'_> {
        let place = self.places[row];
        match &mut self.numbers {
            Numbers::Logits { all, vocabulary } => RowScores::Logits(&mut all[place * *vocabulary..][..*vocabulary]),
            Numbers::Choice { all, layout } => {
                let width = layout.width();
                RowScores::Choice(RowChoice { numbers: &all[place * width..][..width], layout: *layout })
            }
        }
    }
}

/// The numbers of one row.
pub enum RowScores<'a> {
    Logits(&'a mut [f32]),
    Choice(RowChoice<'a>),
}

/// A token that may come next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredToken {
    pub token: u32,
    /// The natural logarithm of its probability among the tokens that may come next.
    pub logprob: f64,
}

impl RowScores<'_> {
    /// The `count` likeliest tokens that `rules` permit behind `sampled`, the likeliest first, the first of equals first.
    pub fn likeliest(self, rules: &Rules, sampled: &[u32], count: usize) -> Vec<ScoredToken> {
        match self {
            Self::Logits(logits) => {
                rules.apply(logits, sampled);
                let chosen =
                    if count == 1 { vec![sampling::arg_max(logits)] } else { sampling::largest(logits, count) };
                let total = sampling::log_sum_exp(logits);
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

/// How the decoder's output `choice` is laid out; see [`crate::graph::choice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChoiceLayout {
    /// Tokens named for each part.
    pub likeliest: usize,
    /// The token `<|0.00|>`, with which the second part begins.
    pub timestamps: u32,
}

impl ChoiceLayout {
    /// Numbers of a row.
    pub const fn width(self) -> usize {
        crate::graph::choice::width(self.likeliest)
    }
}

pub struct RowChoice<'a> {
    numbers: &'a [f32],
    layout: ChoiceLayout,
}

/// One part of the vocabulary: words or timestamps.
struct Part {
    /// `(token, logit)`, the likeliest first.
    tokens: Vec<(u32, f64)>,
    /// The logarithm of the sum of the exponentials of the permitted logits.
    log_sum_exp: f64,
}

impl RowChoice<'_> {
    fn part(&self, index: usize, first_token: u32) -> Part {
        let likeliest = self.layout.likeliest;
        let numbers = &self.numbers[index * (1 + 2 * likeliest)..][..1 + 2 * likeliest];
        let (best_logit, rest) = (f64::from(numbers[0]), &numbers[1..]);
        let (logprobs, tokens) = rest.split_at(likeliest);
        let log_sum_exp = best_logit - logprobs.first().copied().map_or(0.0, f64::from);
        let scored = tokens.iter().zip(logprobs).filter(|(_, logprob)| !logprob.is_nan());
        let tokens = scored.map(|(token, logprob)| (first_token + *token as u32, f64::from(*logprob) + log_sum_exp));

        Part { tokens: tokens.collect(), log_sum_exp }
    }

    fn likeliest(&self, rules: &Rules, sampled: &[u32], count: usize) -> Vec<ScoredToken> {
        let ranges = rules.ranges(sampled);
        let words = (!ranges.words.is_empty()).then(|| self.part(0, 0));
        let times = (!ranges.times.is_empty()).then(|| self.part(1, self.layout.timestamps));
        let words = words.filter(|words| {
            let best_word = words.tokens.first().map_or(f64::NEG_INFINITY, |(_, logit)| *logit);

            // As `Rules::apply`: timestamps together against the best word.
            let forced =
                rules.timestamps.is_some() && times.as_ref().is_some_and(|times| times.log_sum_exp > best_word);
            !forced
        });

        let parts: Vec<Part> = words.into_iter().chain(times).collect();
        let largest = parts.iter().map(|part| part.log_sum_exp).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = parts.iter().map(|part| (part.log_sum_exp - largest).exp()).sum();
        let total = largest + sum.ln();
        let mut tokens: Vec<(u32, f64)> = parts.into_iter().flat_map(|part| part.tokens).collect();

        tokens.sort_by(|(a, a_logit), (b, b_logit)| b_logit.total_cmp(a_logit).then(a.cmp(b)));
        tokens.truncate(count);

        tokens.into_iter().map(|(token, logit)| ScoredToken { token, logprob: logit - total }).collect()
    }
}

/// The tokens that may follow, apart from those that are suppressed always. Ends may lie beyond the vocabulary.
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

    fn rules(timestamps: bool) -> Rules {
        let times = TimestampRules { end_of_text: END, no_timestamps: BEGIN - 1, begin: BEGIN, max_initial: Some(5) };
        Rules { blank: vec![0, END], suppressed: vec![3, 11, 12, 13, 14], timestamps: timestamps.then_some(times) }
    }

    /// What the graph computes, see `graph::choice`.
    fn choice(logits: &[f32], rules: &Rules, sampled: &[u32], layout: ChoiceLayout) -> Vec<f32> {
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
