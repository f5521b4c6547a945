//! Beam search: `BeamSearchDecoder` of openai/whisper (`whisper/decoding.py`).

use super::{
    scores::{Scores, TokenRanges, Wanted},
    search::{Candidate, Frame, Next, Search},
};

/// The likeliest few sequences side by side, until enough of them have ended.
pub struct Beam {
    frame: Frame,
    beams: Vec<Candidate>,
    /// Ended sequences to collect.
    wanted: usize,
    finished: Vec<Candidate>,
    sampled: usize,
}

/// One beam with one more token.
struct Extension {
    beam: usize,
    token: u32,
    logprob: f64,
    sum_logprob: f64,
}

impl Beam {
    /// `patience` is how many ended sequences to wait for, in sizes of the beam; 1 by default.
    pub fn new(frame: Frame, size: usize, patience: Option<f32>) -> Self {
        let size = size.max(1);
        Self {
            frame,
            beams: vec![Candidate::default(); size],
            wanted: most_finished(size, patience).max(1),
            finished: Vec::new(),
            sampled: 0,
        }
    }

    /// The `size + 1` likeliest continuations of each beam, likeliest first, the first of equals first.
    fn extensions(&mut self, scores: &mut Scores<'_>) -> Vec<Extension> {
        let size = self.beams.len();

        // At first all beams are the same, and the reference counts equal sequences once.
        let distinct = if self.sampled == 0 { 1 } else { size };
        let mut extensions = Vec::with_capacity(distinct * (size + 1));

        for (index, beam) in self.beams.iter().take(distinct).enumerate() {
            for scored in scores.row(index).likeliest(&self.frame.rules, &beam.tokens, size + 1) {
                let sum_logprob = beam.sum_logprob + scored.logprob;
                extensions.push(Extension { beam: index, token: scored.token, logprob: scored.logprob, sum_logprob });
            }
        }

        extensions.sort_by(|a, b| b.sum_logprob.total_cmp(&a.sum_logprob));

        extensions
    }
}

/// How many ended sequences a beam search collects; the reference rounds halves to even.
pub fn most_finished(size: usize, patience: Option<f32>) -> usize {
    // Zero is no patience of its own to the reference.
    let patience = patience.filter(|patience| *patience != 0.0).unwrap_or(1.0);
    (size as f64 * f64::from(patience)).round_ties_even() as usize
}

impl Search for Beam {
    fn rows(&self) -> usize {
        self.beams.len()
    }

    fn wants(&self) -> Wanted {
        Wanted::Likeliest(self.beams.len() + 1)
    }

    fn ranges(&self, row: usize) -> TokenRanges {
        self.frame.rules.ranges(&self.beams[row].tokens)
    }

    fn choose(&mut self, scores: &mut Scores<'_>) -> Next {
        let size = self.beams.len();
        let (mut beams, mut tokens, mut from) = (Vec::with_capacity(size), Vec::new(), Vec::new());

        for extension in self.extensions(scores) {
            let ended = extension.token == self.frame.end_of_text;
            let mut next = self.beams[extension.beam].clone();
            next.sum_logprob = extension.sum_logprob;

            if ended {
                if self.finished.len() < self.wanted {
                    self.finished.push(next);
                }
                continue;
            }

            next.tokens.push(extension.token);
            next.token_logprobs.push(extension.logprob as f32);
            beams.push(next);
            tokens.push(extension.token);

            // All beams are still the one prompt: each continues its own copy.
            from.push(if self.sampled == 0 { beams.len() - 1 } else { extension.beam });
            if beams.len() == size {
                break;
            }
        }

        self.sampled += 1;
        if beams.len() == size {
            self.beams = beams;
        }

        if self.finished.len() >= self.wanted || self.frame.is_full(self.sampled) || tokens.len() < size {
            return Next::Done;
        }

        Next::Feed { tokens, from: Some(from) }
    }

    /// The ended sequences, and where they are fewer than beams the likeliest of those that have not ended.
    fn finish(mut self: Box<Self>) -> Vec<Candidate> {
        let missing = self.beams.len().saturating_sub(self.finished.len());

        // From the back, as the reference goes through its ascending order.
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
    use crate::decoding::{Rules, sampling};

    const END: u32 = 5;
    const SIZE: usize = 6;

    fn frame(context: usize) -> Frame {
        let rules = Arc::new(Rules { blank: vec![END], suppressed: vec![], timestamps: None });
        Frame { rules, end_of_text: END, prompt_length: 1, context, most_sampled: context / 2 }
    }

    /// Logits that depend on every token before.
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
    fn run(search: &mut Beam, seed: u64) -> usize {
        let rows = search.rows();
        let places: Vec<usize> = (0..rows).collect();
        let mut prefixes = vec![Vec::new(); rows];
        let mut steps = 0;

        loop {
            let mut all: Vec<f32> = prefixes.iter().flat_map(|prefix| model(seed, prefix)).collect();
            steps += 1;
            let next = search.choose(&mut Scores::logits(&mut all, SIZE, &places));
            let Next::Feed { tokens, from } = next else { return steps };
            let from = from.unwrap();
            prefixes = from.iter().map(|parent| prefixes[*parent].clone()).collect();
            prefixes.iter_mut().zip(tokens).for_each(|(prefix, token)| prefix.push(token));
        }
    }

    fn found(size: usize, patience: Option<f32>, context: usize, seed: u64) -> Vec<Candidate> {
        let mut search = Beam::new(frame(context), size, patience);
        run(&mut search, seed);
        Box::new(search).finish()
    }

    /// The search as the reference writes it: dictionaries of whole sequences.
    fn reference(size: usize, wanted: usize, context: usize, seed: u64) -> Vec<(Vec<u32>, f64)> {
        let mut beams: Vec<(Vec<u32>, f64)> = vec![(vec![], 0.0); size];
        let mut finished: Vec<(Vec<u32>, f64)> = Vec::new();

        for sampled in 1..=context / 2 {
            let mut scores: Vec<(Vec<u32>, f64)> = Vec::new();

            for (tokens, sum) in &beams {
                let mut logits = model(seed, tokens);
                frame(context).rules.apply(&mut logits, tokens);
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
                    if finished.len() < wanted {
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
            if finished.len() >= wanted || 1 + sampled > context {
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
            prop_assume!(most_finished(size, patience) > 0);
            let ours = found(size, patience, context, seed);
            let theirs = reference(size, most_finished(size, patience), context, seed);

            prop_assert_eq!(ours.len(), theirs.len());

            for (mine, (tokens, score)) in ours.iter().zip(&theirs) {
                prop_assert_eq!(&mine.tokens, tokens);
                prop_assert!((mine.sum_logprob - score).abs() < 1e-9);
                prop_assert_eq!(mine.token_logprobs.len(), tokens.len());
            }
        }
    }

    #[test]
    fn a_beam_of_one_is_greedy() {
        for seed in 0..20 {
            let mut tokens = Vec::new();
            while tokens.len() < 10 {
                let mut logits = model(seed, &tokens);
                frame(20).rules.apply(&mut logits, &tokens);
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
        assert_eq!(most_finished(5, None), 5);
        assert_eq!(most_finished(5, Some(0.0)), 5);
        assert_eq!(most_finished(5, Some(0.5)), 2, "halves go to the even number");
        assert_eq!(most_finished(5, Some(2.0)), 10);

        let longer = (0..50).filter(|seed| {
            let steps = |patience| run(&mut Beam::new(frame(40), 3, patience), *seed);
            steps(Some(3.0)) > steps(None)
        });

        assert!(longer.count() > 10);
    }
}
