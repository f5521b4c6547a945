//! The times of words: `timing.py` of openai/whisper, on the weights that the `align` graph computes.
//!
//! ```text
//! weights [heads, tokens, frames] -> attention (one cost for each token and frame) -> dtw (a time for each token)
//! tokens -> split (words) -> words (durations, punctuation, segments) -> hallucination (discarded text)
//! ```
//! This module does not depend on ONNX Runtime.

mod attention;
mod dtw;
mod hallucination;
mod punctuation;
mod split;
mod words;

pub use attention::AlignmentAttention;
pub use hallucination::{JudgedWindow, WindowVerdict, judge};
pub use punctuation::{APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS};
pub use words::{AlignedRow, WordTiming, add_words, align, last_end};

/// Encoder frames per second.
const FRAMES_PER_SECOND: f64 = 50.0;

/// Python's `round(value, 2)`.
pub(crate) fn hundredths(value: f64) -> f64 {
    // Rust formats the exact value, like Python.
    format!("{value:.2}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::hundredths;

    #[test]
    fn rounds_as_python_does() {
        // python3 -c 'print([round(v, 2) for v in (...)])'
        for (value, expected) in
            [(2.675, 2.67), (1.005, 1.0), (0.125, 0.12), (0.375, 0.38), (59.999, 60.0), (-0.125, -0.12)]
        {
            assert_eq!(hundredths(value), expected, "{value}");
        }
    }
}
