//! How much of a window the encoder hears. A window that is mostly silence is first encoded up to some seconds after its
//! end, and the whole 30 s only if the text is doubtful: models are trained on windows of 30 s, so that a text after a shorter
//! one must be judged before it is believed.

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::Config,
    decoding::DecodedWindow,
    graph::STEP_POSITIONS,
    mel::{FRAMES_PER_SECOND, WINDOW_FRAMES},
    task::TranscribeOptions,
};

/// Mel frames by which short windows differ, so that the encoder sees few shapes: 2 s.
const STEP_FRAMES: usize = 2 * STEP_POSITIONS;
/// The shortest window. A model that gets less repeats itself.
const SHORTEST_FRAMES: usize = 1_200;
/// Silence after the sound.
const PADDING_FRAMES: usize = 600;

/// Tokens that a short window may have beyond [`PLAUSIBLE_TOKENS_PER_SECOND`]: timestamps and the end of the text.
const PLAUSIBLE_SPARE_TOKENS: f64 = 16.0;
/// Speech has fewer tokens in most scripts; text in others is decoded again with the full window.
const PLAUSIBLE_TOKENS_PER_SECOND: f64 = 16.0;
/// A text that is less likely was often better with the full window. The limit for a higher temperature is at -1.
const DOUBTFUL_LOGPROB: f64 = -0.8;
/// Timestamps are rounded, and a last word may end a little after the sound.
const TIMESTAMP_TOLERANCE_SECONDS: f64 = 0.5;
const SECONDS_PER_TIMESTAMP: f64 = 0.02;

/// Which windows the encoder hears up to some seconds after their end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncoderContext {
    /// Those that are mostly silence, with models for which this was measured to cost no accuracy.
    #[default]
    Auto,
    /// None: each window is 30 s long.
    Full,
    /// Those that are mostly silence, with every model; for measurements.
    Short,
}

/// How many windows were encoded in which length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowCounts {
    /// Windows whose text was accepted after a short context.
    pub short: u64,
    /// Windows that were encoded again in full, because their text was doubtful.
    pub repeated: u64,
    /// Windows that were encoded in full at once.
    pub full: u64,
}

impl std::ops::AddAssign for WindowCounts {
    fn add_assign(&mut self, other: Self) {
        self.short += other.short;
        self.repeated += other.repeated;
        self.full += other.full;
    }
}

/// Why the text of a short window is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    Unlikely,
    Repetitive,
    NoSpeech,
    /// A timestamp is in the silence after the sound.
    TimeInSilence,
    /// More text than can be spoken in this time.
    TooLong,
}

/// Whether short windows were measured for models of these dimensions: tiny and base, in their multilingual and English
/// forms. Other sizes need proof first; large-v3-turbo is known to lose words.
pub(crate) fn is_proven(config: &Config) -> bool {
    let shape = (config.encoder_layers, config.decoder_layers, config.d_model, config.num_mel_bins);
    matches!(shape, (4, 4, 384, 80) | (6, 6, 512, 80)) && matches!(config.vocab_size, 51_864 | 51_865)
}

/// Mel frames that the encoder hears of a window with `size` frames of audio; [`WINDOW_FRAMES`] if that is about as much.
pub(crate) fn short_frames(size: usize) -> usize {
    let needed = (size + PADDING_FRAMES).max(SHORTEST_FRAMES);
    needed.next_multiple_of(STEP_FRAMES).min(WINDOW_FRAMES)
}

/// Whether the full window should be heard before the text of a short one is believed. `size`: mel frames of audio.
/// Thresholds that a request has switched off raise no doubt.
pub(crate) fn doubt(
    decoded: &DecodedWindow,
    size: usize,
    timestamp_begin: u32,
    options: &TranscribeOptions,
) -> Option<Doubt> {
    let seconds = size as f64 / FRAMES_PER_SECOND;
    let least_logprob = options.logprob_threshold.map(|threshold| f64::from(threshold).max(DOUBTFUL_LOGPROB));

    if least_logprob.is_some_and(|least| decoded.avg_logprob < least) {
        return Some(Doubt::Unlikely);
    }

    if options.compression_ratio_threshold.is_some_and(|most| decoded.compression_ratio > f64::from(most)) {
        return Some(Doubt::Repetitive);
    }

    if options.no_speech_threshold.is_some_and(|most| decoded.no_speech_prob > f64::from(most)) {
        return Some(Doubt::NoSpeech);
    }

    let time = |token: &u32| token.checked_sub(timestamp_begin).map(|steps| f64::from(steps) * SECONDS_PER_TIMESTAMP);
    if decoded.tokens.iter().filter_map(time).any(|time| time > seconds + TIMESTAMP_TOLERANCE_SECONDS) {
        return Some(Doubt::TimeInSilence);
    }

    let most_tokens = PLAUSIBLE_SPARE_TOKENS + seconds * PLAUSIBLE_TOKENS_PER_SECOND;
    (decoded.tokens.len() as f64 > most_tokens).then_some(Doubt::TooLong)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMES: u32 = 50_364;

    fn decoded(tokens: Vec<u32>) -> DecodedWindow {
        DecodedWindow {
            tokens,
            token_logprobs: vec![],
            text: String::new(),
            avg_logprob: -0.3,
            no_speech_prob: 0.1,
            temperature: 0.0,
            compression_ratio: 1.1,
        }
    }

    fn doubt_of(decoded: &DecodedWindow) -> Option<Doubt> {
        doubt(decoded, 300, TIMES, &TranscribeOptions::default())
    }

    #[test]
    fn the_length_is_that_of_the_sound_and_six_seconds() {
        for (size, frames) in
            [(1, 1_200), (600, 1_200), (601, 1_400), (1_000, 1_600), (2_200, 2_800), (2_201, 3_000), (3_000, 3_000)]
        {
            assert_eq!(short_frames(size), frames, "{size}");
        }
    }

    proptest! {
        #[test]
        fn every_length_holds_the_sound_and_is_one_of_ten(size in 1_usize..=3_000) {
            let frames = short_frames(size);
            prop_assert!(frames >= (size + PADDING_FRAMES).min(WINDOW_FRAMES) && frames >= SHORTEST_FRAMES);
            prop_assert!(frames <= WINDOW_FRAMES && frames.is_multiple_of(STEP_FRAMES));
        }
    }

    #[test]
    fn a_plain_text_is_believed() {
        // <|0.00|> words <|3.40|>: within the tolerance.
        assert_eq!(doubt_of(&decoded(vec![TIMES, 5, 6, 7, TIMES + 170])), None);
        assert_eq!(doubt_of(&decoded(vec![])), None);
    }

    #[test]
    fn each_kind_of_doubt_is_found() {
        let good = decoded(vec![TIMES, 5, TIMES + 100]);
        assert_eq!(doubt_of(&DecodedWindow { avg_logprob: -0.9, ..good.clone() }), Some(Doubt::Unlikely));
        assert_eq!(doubt_of(&DecodedWindow { compression_ratio: 2.5, ..good.clone() }), Some(Doubt::Repetitive));
        assert_eq!(doubt_of(&DecodedWindow { no_speech_prob: 0.7, ..good }), Some(Doubt::NoSpeech));

        assert_eq!(doubt_of(&decoded(vec![TIMES, 5, TIMES + 176])), Some(Doubt::TimeInSilence));
        assert_eq!(doubt_of(&decoded(vec![TIMES + 600, 5])), Some(Doubt::TimeInSilence));
        assert_eq!(doubt_of(&decoded(vec![5; 64])), None);
        assert_eq!(doubt_of(&decoded(vec![5; 65])), Some(Doubt::TooLong));
    }

    #[test]
    fn a_threshold_that_is_off_raises_no_doubt() {
        let bad = DecodedWindow { avg_logprob: -9.0, compression_ratio: 9.0, no_speech_prob: 1.0, ..decoded(vec![5]) };
        let off = TranscribeOptions {
            logprob_threshold: None,
            compression_ratio_threshold: None,
            no_speech_threshold: None,
            ..TranscribeOptions::default()
        };
        assert_eq!(doubt(&bad, 300, TIMES, &off), None);
        assert!(doubt(&bad, 300, TIMES, &TranscribeOptions::default()).is_some());
    }

    #[test]
    fn only_measured_models_are_proven() {
        let config = |layers: [usize; 2], d_model, bins, vocab_size| Config {
            d_model,
            encoder_layers: layers[0],
            decoder_layers: layers[1],
            encoder_attention_heads: 8,
            decoder_attention_heads: 8,
            encoder_ffn_dim: 4 * d_model,
            decoder_ffn_dim: 4 * d_model,
            num_mel_bins: bins,
            max_source_positions: 1_500,
            max_target_positions: 448,
            vocab_size,
        };

        assert!(is_proven(&config([6, 6], 512, 80, 51_865)) && is_proven(&config([4, 4], 384, 80, 51_864)));
        assert!(!is_proven(&config([32, 4], 1_280, 128, 51_866)), "large-v3-turbo");
        assert!(!is_proven(&config([12, 12], 768, 80, 51_865)), "small");
        assert!(!is_proven(&config([4, 4], 384, 80, 2_000)), "another vocabulary");
    }
}
