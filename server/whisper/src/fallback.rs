//! The budget of a window beyond its first attempt. Audio that is not speech, or not speech that the model knows, fails at
//! every temperature, and each attempt costs several rows of text up to the maximum length.

use std::time::{Duration, Instant};

use crate::decoding::DecodedWindow;

/// Speech has fewer tokens per second than this in any script; a short window may have somewhat more.
const TOKENS_PER_SECOND: f64 = 50.0;
const MIN_TOKENS: usize = 32;

/// The most tokens that a window with so many seconds of audio can have, at most `most`.
pub(crate) fn max_tokens(seconds: f64, most: usize) -> usize {
    most.min(MIN_TOKENS + (seconds * TOKENS_PER_SECOND).ceil() as usize)
}

/// The remaining budget for further attempts at a window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FallbackBudget {
    /// Tokens of all rows together.
    tokens: Option<usize>,
    deadline: Option<Instant>,
}

impl FallbackBudget {
    /// The time starts now; `None` means no limit.
    pub(crate) fn new(tokens: Option<usize>, seconds: Option<f32>) -> Self {
        let time = seconds.and_then(|seconds| Duration::try_from_secs_f32(seconds).ok());
        Self { tokens, deadline: time.and_then(|time| Instant::now().checked_add(time)) }
    }

    pub(crate) fn is_out_of_time(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// The most tokens of each of `rows`, at most `most`; `None` if the budget does not allow another attempt.
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

/// The best of several attempts that all need a fallback: one without repetitions if there is one, and of those the
/// likeliest.
pub(crate) fn best_of(attempts: Vec<DecodedWindow>, compression_ratio_threshold: Option<f32>) -> Option<DecodedWindow> {
    let is_repetitive = |decoded: &DecodedWindow| {
        compression_ratio_threshold.is_some_and(|threshold| decoded.compression_ratio > f64::from(threshold))
    };
    let rank = |decoded: &DecodedWindow| (!is_repetitive(decoded), decoded.avg_logprob);
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
        assert_eq!(max_tokens(0.0, 224), 32);
        assert_eq!(max_tokens(1.0, 224), 82);
        assert_eq!(max_tokens(30.0, 224), 224);
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
        for unlimited in [FallbackBudget::new(None, None), FallbackBudget::new(None, Some(f32::MAX))] {
            assert_eq!(unlimited.tokens_for(5, 150), Some(150));
        }
    }

    #[test]
    fn the_best_attempt_repeats_nothing_and_is_likely() {
        let attempt = |temperature, compression_ratio, avg_logprob| DecodedWindow {
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
