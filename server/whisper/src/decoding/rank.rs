//! Scores of decoded text.

use std::io::Write;

use flate2::{Compression, write::ZlibEncoder};

/// The index of the candidate with the highest score (`MaximumLikelihoodRanker`); the first of equals. A candidate is its
/// sum of log-probabilities and its length; its score is the mean per token, or with a penalty the one of Google's NMT
/// paper (Wu et al. 2016), where 0 favours short text and 1 is close to the mean.
pub fn most_likely(candidates: impl Iterator<Item = (f64, usize)>, length_penalty: Option<f32>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (index, (sum_logprob, length)) in candidates.enumerate() {
        let weight = match length_penalty {
            None => length.max(1) as f64,
            Some(penalty) => ((5 + length) as f64 / 6.0).powf(f64::from(penalty)),
        };
        let score = sum_logprob / weight;
        if score > best.1 {
            best = (index, score);
        }
    }

    best.0
}

/// Length of the text divided by the length of its zlib compression: high if the text repeats itself.
pub fn compression_ratio(text: &str) -> f64 {
    let mut encoder = ZlibEncoder::new(ByteCounter(0), Compression::new(6));
    // Writing to the counter cannot fail.
    let compressed = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish()).map_or(0, |counter| counter.0);
    text.len() as f64 / compressed.max(1) as f64
}

struct ByteCounter(usize);

impl Write for ByteCounter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_normalised_and_the_first_of_equals_wins() {
        assert_eq!(most_likely([(-4.0, 2), (-6.0, 6), (-1.0, 1)].into_iter(), None), 1);
        assert_eq!(most_likely([(f64::NEG_INFINITY, 1), (f64::NEG_INFINITY, 2)].into_iter(), None), 0);
    }

    #[test]
    fn a_penalty_of_zero_leaves_the_sum_and_of_one_nearly_the_mean() {
        let candidates = [(-2.0, 1), (-3.0, 7), (-2.5, 2)];
        assert_eq!(most_likely(candidates.into_iter(), Some(0.0)), 0);
        // -2, -1.5 and -2.14.
        assert_eq!(most_likely(candidates.into_iter(), Some(1.0)), 1);
    }

    #[test]
    fn ratios_are_those_of_zlib() {
        // Python: len(t.encode()) / len(zlib.compress(t.encode()))
        assert_eq!(compression_ratio(""), 0.0);
        assert!((compression_ratio(&"ha ".repeat(50)) - 150.0 / 14.0).abs() < 1e-9);
        assert!((compression_ratio("Größe") - 7.0 / 15.0).abs() < 1e-9);
    }
}
