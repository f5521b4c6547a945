//! Determines the parts with speech from probabilities: `get_speech_timestamps` of faster-whisper.

use super::{SpeechChunk, VadOptions, WINDOW_SAMPLES};

const SAMPLES_PER_MS: u64 = crate::SAMPLE_RATE as u64 / 1000;
const WINDOW: u64 = WINDOW_SAMPLES as u64;
/// A pause of at least this length is preferred to split speech that is too long.
const GOOD_PAUSE_SAMPLES: u64 = 98 * SAMPLES_PER_MS;

/// Receives one probability after the other, and holds only the chunks found so far.
pub struct SpeechDetector {
    threshold: f32,
    neg_threshold: f32,
    min_speech: u64,
    /// `None`: no limit.
    max_speech: Option<f64>,
    min_silence: u64,
    pad: u64,
    /// Start of the next window.
    at: u64,
    triggered: bool,
    start: Option<u64>,
    /// The start of a pause that may end the speech.
    maybe_end: Option<u64>,
    /// End of speech before the last good pause, and start of speech after it; 0 if there is none.
    cut_end: u64,
    cut_next: u64,
    found: Vec<SpeechChunk>,
}

impl SpeechDetector {
    pub fn new(options: &VadOptions) -> Self {
        let samples = |milliseconds: u32| u64::from(milliseconds) * SAMPLES_PER_MS;
        let pad = samples(options.speech_pad_ms);
        let longest = options.max_speech_duration_seconds.filter(|longest| longest.is_finite());

        Self {
            threshold: options.threshold,
            neg_threshold: options.neg_threshold.unwrap_or((options.threshold - 0.15).max(0.01)),
            min_speech: samples(options.min_speech_duration_ms),
            max_speech: longest
                .map(|longest| f64::from(longest) * f64::from(crate::SAMPLE_RATE) - (WINDOW + 2 * pad) as f64),
            min_silence: samples(options.min_silence_duration_ms),
            pad,
            at: 0,
            triggered: false,
            start: None,
            maybe_end: None,
            cut_end: 0,
            cut_next: 0,
            found: Vec::new(),
        }
    }

    /// Processes the probability of the next window.
    pub fn push(&mut self, probability: f32) {
        let now = self.at;
        self.at += WINDOW;

        let is_speech = probability >= self.threshold;
        if is_speech && self.maybe_end.take().is_some() && self.cut_next < self.cut_end {
            self.cut_next = now;
        }

        if is_speech && !self.triggered {
            self.triggered = true;
            self.start = Some(now);
            return;
        }

        if self.triggered && self.is_too_long(now) && !self.cut(now) {
            return;
        }

        if probability < self.neg_threshold && self.triggered {
            let end = *self.maybe_end.get_or_insert(now);
            let pause = now - end;
            if pause > GOOD_PAUSE_SAMPLES {
                self.cut_end = end;
            }

            if pause >= self.min_silence {
                if let Some(start) = self.start.take()
                    && end.saturating_sub(start) > self.min_speech
                {
                    self.found.push(SpeechChunk { start, end });
                }
                self.reset_pauses();
                self.triggered = false;
            }
        }
    }

    fn is_too_long(&self, now: u64) -> bool {
        let longest = self.max_speech.unwrap_or(f64::INFINITY);
        self.start.is_some_and(|start| (now - start) as f64 > longest)
    }

    /// Splits speech that is too long: at its last good pause, after which it continues, or else at this window, which is
    /// then done. Returns whether it was split at a pause.
    fn cut(&mut self, now: u64) -> bool {
        let at_pause = self.cut_end > 0;
        let end = if at_pause { self.cut_end } else { now };

        if let Some(start) = self.start.take() {
            self.found.push(SpeechChunk { start, end });
        }

        let continues = at_pause && self.cut_next >= self.cut_end;
        self.start = continues.then_some(self.cut_next);
        self.triggered = continues;
        self.reset_pauses();

        at_pause
    }

    fn reset_pauses(&mut self) {
        self.maybe_end = None;
        (self.cut_end, self.cut_next) = (0, 0);
    }

    /// The chunks with speech in a recording of `length` samples, including the padding.
    pub fn finish(mut self, length: u64) -> Vec<SpeechChunk> {
        if let Some(start) = self.start
            && length.saturating_sub(start) > self.min_speech
        {
            self.found.push(SpeechChunk { start, end: length });
        }

        if let Some(first) = self.found.first_mut() {
            first.start = first.start.saturating_sub(self.pad);
        }

        for at in 0..self.found.len() {
            let end = self.found[at].end;
            let padded = length.min(end + self.pad);
            let Some(next) = self.found.get_mut(at + 1) else {
                self.found[at].end = padded;
                break;
            };

            let silence = next.start.saturating_sub(end);

            if silence < 2 * self.pad {
                next.start -= silence / 2;
                self.found[at].end = end + silence / 2;
            } else {
                next.start -= self.pad;
                self.found[at].end = padded;
            }
        }

        self.found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(options: &VadOptions, probabilities: &[f32]) -> Vec<(u64, u64)> {
        let mut detector = SpeechDetector::new(options);
        probabilities.iter().for_each(|probability| detector.push(*probability));
        let chunks = detector.finish(probabilities.len() as u64 * WINDOW);
        chunks.into_iter().map(|chunk| (chunk.start, chunk.end)).collect()
    }

    fn exact() -> VadOptions {
        VadOptions { speech_pad_ms: 0, min_silence_duration_ms: 64, ..VadOptions::default() }
    }

    #[test]
    fn a_short_dip_does_not_end_speech() {
        let probabilities = [0.1, 0.9, 0.9, 0.2, 0.9, 0.4, 0.4, 0.4, 0.9, 0.1, 0.1, 0.1, 0.1];
        assert_eq!(found(&exact(), &probabilities), [(512, 9 * 512)]);
    }

    #[test]
    fn padding_meets_in_the_middle() {
        let probabilities = [[0.9; 4].as_slice(), &[0.0; 8], &[0.9; 4], &[0.0; 60]].concat();
        let options = VadOptions { speech_pad_ms: 400, ..exact() };
        // The pause of 8 windows is shorter than twice the padding.
        assert_eq!(found(&options, &probabilities), [(0, 8 * 512), (8 * 512, 16 * 512 + 6400)]);
    }

    #[test]
    fn silence_holds_no_speech() {
        assert!(found(&exact(), &[0.1; 50]).is_empty());
        assert!(found(&exact(), &[]).is_empty());
        assert!(found(&exact(), &[f32::NAN; 50]).is_empty());
    }

    #[test]
    fn short_speech_may_be_left_out() {
        let options = VadOptions { min_speech_duration_ms: 100, ..exact() };
        let probabilities = [[0.9; 2].as_slice(), &[0.0; 5], &[0.9; 6], &[0.0; 5]].concat();
        assert_eq!(found(&options, &probabilities), [(7 * 512, 13 * 512)]);
    }

    proptest! {
        #[test]
        fn chunks_are_in_order_and_inside(
            probabilities in prop::collection::vec(0.0_f32..1.0, 0..400),
            pad in 0_u32..600,
            silence in 0_u32..500,
            longest in prop::option::of(3.0_f32..8.0),
        ) {
            let options = VadOptions {
                speech_pad_ms: pad,
                min_silence_duration_ms: silence,
                max_speech_duration_seconds: longest,
                ..VadOptions::default()
            };

            let chunks = found(&options, &probabilities);
            let mut before = 0;

            for (start, end) in chunks {
                prop_assert!(before <= start && start < end, "{} {} {}", before, start, end);
                prop_assert!(end <= probabilities.len() as u64 * WINDOW);
                before = end;
                if let Some(longest) = longest {
                    prop_assert!((end - start) as f32 <= longest * 16_000.0 + 512.0);
                }
            }
        }
    }
}
