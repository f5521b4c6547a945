//! BeamSearch search: `BeamSearchDecoder` of openai/whisper (`whisper/decoding.py`).

use super::{
    scores::{NeededScores, Scores, TokenRanges},
    search::{Search, SearchCandidate, SearchChoice, SearchConstraints},
};

/// Keeps the likeliest few sequences side by side, until enough of them have ended.
pub struct BeamSearch {
    constraints: SearchConstraints,
    beams: Vec<SearchCandidate>,
    /// How many ended sequences to collect.
    needed: usize,
    finished: Vec<SearchCandidate>,
    sampled: usize,
}

/// One beam with one more token.
struct BeamExtension {
    beam: usize,
    token: u32,
    logprob: f64,
    sum_logprob: f64,
}

impl BeamSearch {
    /// `patience` is the number of ended sequences to collect, as a multiple of the beam size; 1 by default.
    pub fn new(constraints: SearchConstraints, size: usize, patience: Option<f32>) -> Self {
        let size = size.max(1);
        Self {
            constraints,
            beams: vec![SearchCandidate::default(); size],
            needed: max_finished(size, patience).max(1),
            finished: Vec::new(),
            sampled: 0,
        }
    }

    /// The `size + 1` likeliest continuations of each beam, the likeliest first; equals keep the order of their tokens.
    fn extensions(&mut self, scores: &mut Scores<'_>) -> Vec<BeamExtension> {
        let size = self.beams.len();

        // At first all beams are equal, and the reference counts equal sequences once.
        let distinct = if self.sampled == 0 { 1 } else { size };
        let mut extensions = Vec::with_capacity(distinct * (size + 1));

        for (index, beam) in self.beams.iter().take(distinct).enumerate() {
            for scored in scores.row(index).likeliest(&self.constraints.rules, &beam.tokens, size + 1) {
                let sum_logprob = beam.sum_logprob + scored.logprob;
                extensions.push(BeamExtension {
                    beam: index,
                    token: scored.token,
                    logprob: scored.logprob,
                    sum_logprob,
                });
            }
        }

        extensions.sort_by(|a, b| b.sum_logprob.total_cmp(&a.sum_logprob));

        extensions
    }
}

/// How many ended sequences a beam search collects; like the reference it rounds halves to even.
pub fn max_finished(size: usize, patience: Option<f32>) -> usize {
    // The reference treats zero like no value.
    let patience = patience.filter(|patience| *patience != 0.0).unwrap_or(1.0);
    (size as f64 * f64::from(patience)).round_ties_even() as usize
}

impl Search for BeamSearch {
    fn rows(&self) -> usize {
        self.beams.len()
    }

    fn needed_scores(&self) -> NeededScores {
        NeededScores::Likeliest(self.beams.len() + 1)
    }

    fn ranges(&self, row: usize) -> TokenRanges {
        self.constraints.rules.ranges(&self.beams[row].tokens)
    }

    fn choose(&mut self, scores: &mut Scores<'_>) -> SearchChoice {
        let size = self.beams.len();
        let (mut beams, mut tokens, mut parents) = (Vec::with_capacity(size), Vec::new(), Vec::new());

        for extension in self.extensions(scores) {
            let ended = extension.token == self.constraints.end_of_text;
            let mut next = self.beams[extension.beam].clone();
            next.sum_logprob = extension.sum_logprob;

            if ended {
                if self.finished.len() < self.needed {
                    self.finished.push(next);
                }
                continue;
            }

            next.tokens.push(extension.token);
            next.token_logprobs.push(extension.logprob as f32);
            beams.push(next);
            tokens.push(extension.token);

            // While all beams are equal, each continues its own copy.
            parents.push(if self.sampled == 0 { beams.len() - 1 } else { extension.beam });

            if beams.len() == size {
                break;
            }
        }

        self.sampled += 1;
        if beams.len() == size {
            self.beams = beams;
        }

        if self.finished.len() >= self.needed || self.constraints.is_full(self.sampled) || tokens.len() < size {
            return SearchChoice::Done;
        }

        SearchChoice::Continue { tokens, parents: Some(parents) }
    }

    /// The ended sequences, and if they are fewer than beams, the likeliest of those that have not ended.
    fn finish(mut self: Box<Self>) -> Vec<SearchCandidate> {
        let missing = self.beams.len().saturating_sub(self.finished.len());

        // Reversed first, because the reference goes through its ascending order from the back.
        self.beams.reverse();
        self.beams.sort_by(|a, b| b.sum_logprob.total_cmp(&a.sum_logprob));
        self.finished.extend(self.beams.into_iter().take(missing));
        self.finished
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::decoding::{TokenRules, sampling};

    const END: u32 = 5;
    const SIZE: usize = 6;

    fn constraints(context: usize) -> SearchConstraints {
        let rules = Arc::new(TokenRules { blank: vec![END], suppressed: vec![], timestamps: None });
        SearchConstraints { rules, end_of_text: END, prompt_length: 1, context, max_sampled: context / 2 }
    }

    /// Logits that depend on all tokens before.
    fn model(seed: u64, tokens: &[u32]) -> Vec<f32> {
        let mut state = seed ^ 0x9E37_79B9_7F4A_7C15;
        for token in tokens {
            state = (state ^ u64::from(*token)).wrapping_mul(0xBF58_476D_1CE4_E5B9).rotate_left(29);
        }

        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 3e6
        };

        (0..SIZE).map(|_| next()).collect()
    }

    /// Runs a search whose rows are real prefixes, so that a wrong parent gives wrong logits.
    fn run(search: &mut BeamSearch, seed: u64) -> usize {
        let rows = search.rows();
        let row_order: Vec<usize> = (0..rows).collect();
        let mut prefixes = vec![Vec::new(); rows];
        let mut steps = 0;

        loop {
            let mut all: Vec<f32> = prefixes.iter().flat_map(|prefix| model(seed, prefix)).collect();
            steps += 1;
            let next = search.choose(&mut Scores::logits(&mut all, SIZE, &row_order));
            let SearchChoice::Continue { tokens, parents } = next else { return steps };
            let parents = parents.unwrap();
            prefixes = parents.iter().map(|parent| prefixes[*parent].clone()).collect();
            prefixes.iter_mut().zip(tokens).for_each(|(prefix, token)| prefix.push(token));
        }
    }

    fn found(size: usize, patience: Option<f32>, context: usize, seed: u64) -> Vec<SearchCandidate> {
        let mut search = BeamSearch::new(constraints(context), size, patience);
        run(&mut search, seed);
        Box::new(search).finish()
    }

    /// The search as the reference implements it: dictionaries of whole sequences.
    fn reference(size: usize, needed: usize, context: usize, seed: u64) -> Vec<(Vec<u32>, f64)> {
        let mut beams: Vec<(Vec<u32>, f64)> = vec![(vec![], 0.0); size];
        let mut finished: Vec<(Vec<u32>, f64)> = Vec::new();

        for sampled in 1..=context / 2 {
            let mut scores: Vec<(Vec<u32>, f64)> = Vec::new();

            for (tokens, sum) in &beams {
                let mut logits = model(seed, tokens);
                constraints(context).rules.apply(&mut logits, tokens);
                let mut order: Vec<usize> = (0..SIZE).collect();
                order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));

                for token in order.into_iter().take(size + 1) {
                    let sequence: Vec<u32> = tokens.iter().copied().chain([token as u32]).collect();
                    let score = sum + sampling::log_probability(&logits, token);
                    match scores.iter_mut().find(|(known, _)| *known == sequence) {
                        Some(known) => known.1 = score,
                        None => scores.push((sequence, score)),
                    }
                }
            }

            scores.sort_by(|a, b| b.1.total_cmp(&a.1));
            let mut next = Vec::new();

            for (sequence, score) in scores {
                if sequence.last() == Some(&END) {
                    if finished.len() < needed {
                        finished.push((sequence[..sequence.len() - 1].to_vec(), score));
                    }
                } else {
                    next.push((sequence, score));
                    if next.len() == size {
                        break;
                    }
                }
            }

            beams = next;
            if finished.len() >= needed || 1 + sampled > context {
                break;
            }
        }

        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|a, b| beams[*a].1.total_cmp(&beams[*b].1));

        for index in order.into_iter().rev() {
            if finished.len() >= size {
                break;
            }
            finished.push(beams[index].clone());
        }

        finished
    }

    proptest! {
        #[test]
        fn finds_what_the_reference_finds(
            size in 1_usize..5,
            patience in prop::sample::select(vec![None, Some(0.5_f32), Some(1.0), Some(2.0)]),
            context in 4_usize..40,
            seed in any::<u64>(),
        ) {
            prop_assume!(max_finished(size, patience) > 0);
            let ours = found(size, patience, context, seed);
            let theirs = reference(size, max_finished(size, patience), context, seed);

            prop_assert_eq!(ours.len(), theirs.len());

            for (our, (tokens, score)) in ours.iter().zip(&theirs) {
                prop_assert_eq!(&our.tokens, tokens);
                prop_assert!((our.sum_logprob - score).abs() < 1e-9);
                prop_assert_eq!(our.token_logprobs.len(), tokens.len());
            }
        }
    }

    #[test]
    fn a_beam_of_one_is_greedy() {
        for seed in 0..20 {
            let mut tokens = Vec::new();
            while tokens.len() < 10 {
                let mut logits = model(seed, &tokens);
                constraints(20).rules.apply(&mut logits, &tokens);
                let token = sampling::arg_max(&logits) as u32;
                if token == END {
                    break;
                }
                tokens.push(token);
            }

            assert_eq!(found(1, None, 20, seed)[0].tokens, tokens);
        }
    }

    #[test]
    fn patience_waits_for_more_sequences() {
        assert_eq!(max_finished(5, None), 5);
        assert_eq!(max_finished(5, Some(0.0)), 5);
        assert_eq!(max_finished(5, Some(0.5)), 2, "halves go to the even number");
        assert_eq!(max_finished(5, Some(2.0)), 10);

        let longer = (0..50).filter(|seed| {
            let steps = |patience| run(&mut BeamSearch::new(constraints(40), 3, patience), *seed);
            steps(Some(3.0)) > steps(None)
        });

        assert!(longer.count() > 10);
    }
}
