//! How much work a window may cost beyond its first attempt. Audio that is no speech, or none that the model knows, fails at
//! every temperature, and each costs several rows of text up to the longest that there may be.

use std::time::{Duration, Instant};

use crate::decoding::Decoded;

/// Speech has no more tokens a second than this, in any writing; a short window may have some more.
const TOKENS_PER_SECOND: f64 = 50.0;
const TOKENS_AT_LEAST: usize = 32;

/// Tokens that a window with so many seconds of audio may come to, out of `most`.
pub(crate) fn most_tokens(seconds: f64, most: usize) -> usize {
    most.min(TOKENS_AT_LEAST + (seconds * TOKENS_PER_SECOND).ceil() as usize)
}

/// What is left for further attempts at a window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FallbackBudget {
    /// Of all rows together.
    tokens: Option<usize>,
    deadline: Option<Instant>,
}

impl FallbackBudget {
    /// From now on; `None` is without end.
    pub(crate) fn new(tokens: Option<usize>, seconds: Option<f32>) -> Self {
        let time = seconds.and_then(|seconds| Duration::try_from_secs_f32(seconds).ok());
        Self { tokens, deadline: time.and_then(|time| Instant::now().checked_add(time)) }
    }

    pub(crate) fn is_out_of_time(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// How long each of `rows` may become, at most `most`; `None`: it is not worth beginning.
    pub(crate) fn tokens_for(&self, rows: usize, most: usize) -> Option<usize> {
        let each = self.tokens.map_or(most, |tokens| most.min(tokens / rows.max(1)));
        (each > 0 && !self.is_out_of_time()).then_some(each)
    }

    pub(crate) fn spend(&mut self, rows: usize, longest: usize) {
        if let Some(tokens) = &mut self.tokens {
            *tokens = tokens.saturating_sub(rows * longest);
        }
    }
}

/// The best of several attempts, none of which was good enough: one that does not repeat itself, and of those the likeliest.
pub(crate) fn best_of(attempts: Vec<Decoded>, compression_ratio_threshold: Option<f32>) -> Option<Decoded> {
    let is_repetitive =
        |decoded: &Decoded| compression_ratio_threshold.is_some_and(|most| decoded.compression_ratio > f64::from(most));
    let rank = |decoded: &Decoded| (!is_repetitive(decoded), decoded.avg_logprob);
    attempts.into_iter().rev().max_by(|a, b| {
        let ((a, a_logprob), (b, b_logprob)) = (rank(a), rank(b));
        a.cmp(&b).then(a_logprob.total_cmp(&b_logprob))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_audio_has_little_text() {
        assert_eq!(most_tokens(0.0, 224), 32);
        assert_eq!(most_tokens(1.0, 224), 82);
        assert_eq!(most_tokens(30.0, 224), 224);
    }

    #[test]
    fn tokens_are_spent_by_all_rows() {
        let mut budget = FallbackBudget::new(Some(1_000), None);

        assert_eq!(budget.tokens_for(5, 150), Some(150));

        budget.spend(5, 150);

        assert_eq!(budget.tokens_for(5, 150), Some(50));

        budget.spend(5, 49);

        assert_eq!(budget.tokens_for(5, 150), Some(1));

        budget.spend(5, 1);

        assert_eq!(budget.tokens_for(5, 150), None);
        assert_eq!(FallbackBudget::new(Some(0), None).tokens_for(1, 150), None);
    }

    #[test]
    fn time_is_a_bound_of_its_own_and_none_is_no_bound() {
        assert_eq!(FallbackBudget::new(None, Some(0.0)).tokens_for(5, 150), None);
        for endless in [FallbackBudget::new(None, None), FallbackBudget::new(None, Some(f32::MAX))] {
            assert_eq!(endless.tokens_for(5, 150), Some(150));
        }
    }

    #[test]
    fn the_best_attempt_repeats_nothing_and_is_likely() {
        let attempt = |temperature, compression_ratio, avg_logprob| Decoded {
            tokens: vec![],
            token_logprobs: vec![],
            text: String::new(),
            avg_logprob,
            no_speech_prob: 0.0,
            temperature,
            compression_ratio,
        };

        let attempts =
            vec![attempt(0.0, 9.0, -0.1), attempt(0.2, 1.0, -1.2), attempt(0.4, 1.0, -1.1), attempt(0.6, 1.0, -1.1)];

        assert_eq!(best_of(attempts.clone(), Some(2.4)).unwrap().temperature, 0.4);
        assert_eq!(best_of(attempts, None).unwrap().temperature, 0.0);
        assert_eq!(best_of(vec![], None), None);
    }
}
