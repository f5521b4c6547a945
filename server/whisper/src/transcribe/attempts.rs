//! The attempts at one window: the prompt is prefilled once, and the window is decoded at one temperature after the other.

use std::time::Instant;

use crate::{
    decoding::{DecodeError, DecodedWindow, Prompt, Search, SearchCandidate, SearchConstraints, sampling},
    encoder_context,
    engine::EncodedWindow,
    fallback::{self, FallbackBudget, max_tokens},
    mel::WINDOW_FRAMES,
    task::{FirstToken, TranscribeOptions, TranscriptSink},
};

use super::{TranscribeError, TranscriptionRun, WindowSpan, seconds, transcript_language::TranscriptLanguage};

impl TranscriptionRun<'_> {
    /// Decodes a window, and returns the window as the encoder heard it. A window that is mostly silence is heard without most
    /// of it; if the text of that is doubtful, all of it is heard before any temperature rises.
    pub(super) fn decode(
        &mut self,
        seek: u64,
        size: usize,
        sink: &mut dyn TranscriptSink,
    ) -> Result<(DecodedWindow, WindowSpan), TranscribeError> {
        if !sink.keep_going() {
            return Err(TranscribeError::Cancelled);
        }

        let full = WindowSpan { seek, size, heard: WINDOW_FRAMES };
        let short = WindowSpan { heard: encoder_context::short_frames(size), ..full };
        if !self.hears_short_windows || short == full {
            self.counts.full += 1;
            return Ok((self.decode_full(full, sink)?, full));
        }

        let language_before = self.language.clone();
        let decoded = self.decode_short(short, sink)?;
        let Some(doubt) = encoder_context::doubt(&decoded, size, self.engine.special().timestamp_begin, self.options)
        else {
            self.counts.short += 1;
            return Ok((decoded, short));
        };

        tracing::debug!(window_seconds = seconds(seek), ?doubt, "the full window is encoded");
        self.counts.repeated += 1;
        self.language = language_before;

        Ok((self.decode_full(full, sink)?, full))
    }

    /// Decodes a window of less than 30 s at the first temperature.
    fn decode_short(
        &mut self,
        span: WindowSpan,
        sink: &mut dyn TranscriptSink,
    ) -> Result<DecodedWindow, TranscribeError> {
        let (constraints, no_speech_prob) = self.prefill(span, sink)?;
        let first = self.options.temperatures.get(..1).unwrap_or_default();
        let (mut attempts, _) = self.try_temperatures(span, first, &constraints, no_speech_prob, sink)?;
        attempts.pop().ok_or_else(no_temperatures)
    }

    /// Decodes a window of 30 s at the temperatures in turn, until an attempt needs no fallback to the next. The last attempt
    /// is accepted in any case; if the fallback is cut short, the best one is.
    fn decode_full(
        &mut self,
        span: WindowSpan,
        sink: &mut dyn TranscriptSink,
    ) -> Result<DecodedWindow, TranscribeError> {
        let options = self.options;
        let (constraints, no_speech_prob) = self.prefill(span, sink)?;
        let (mut attempts, is_cut_short) =
            self.try_temperatures(span, &options.temperatures, &constraints, no_speech_prob, sink)?;

        let tried = attempts.len();
        let chosen = if is_cut_short {
            fallback::best_of(attempts, options.compression_ratio_threshold)
        } else {
            attempts.pop()
        };

        if let Some(chosen) = chosen.as_ref().filter(|_| is_cut_short) {
            tracing::info!(
                window_seconds = seconds(span.seek),
                tried,
                of = options.temperatures.len(),
                temperature = chosen.temperature,
                "a window was hard: its fallback to higher temperatures was cut short, and the best attempt is taken"
            );
        }

        chosen.ok_or_else(no_temperatures)
    }

    /// Encodes the window, detects the language if it is unknown, and prefills the prompt; returns what its searches have in
    /// common, and the probability that the window has no speech.
    fn prefill(
        &mut self,
        span: WindowSpan,
        sink: &mut dyn TranscriptSink,
    ) -> Result<(SearchConstraints, f64), TranscribeError> {
        if matches!(self.language, TranscriptLanguage::Unknown) {
            self.detect_language(span, sink)?;
        }

        let (engine, options, rules) = (self.engine, self.options, self.rules.clone());
        let (special, context) = (engine.special(), engine.config().max_target_positions);

        let previous = &self.history.tokens[self.history.prompt_from..];
        let language = self.language.token();
        let prompt = Prompt::new(special, context, previous, language, options.task, options.without_timestamps);
        self.encoded_window(span)?;

        // Waiting for a free slot may have taken as long as encoding the window.
        if !sink.keep_going() {
            return Err(TranscribeError::Cancelled);
        }

        let started = Instant::now();
        let (up_to_sot, after_sot) = prompt.parts();

        // After the language was detected, a prompt without text before it is begun already.
        let begun = self.current.as_mut().and_then(|current| current.sot_logits.take());
        let window = self.encoded_window(span)?;
        let sot_logits = match begun.filter(|_| up_to_sot == [special.sot]) {
            Some(logits) => logits,
            None => window.prefill(up_to_sot, true)?,
        };
        let no_speech_prob = sampling::log_probability(&sot_logits, special.no_speech as usize).exp();

        if !after_sot.is_empty() {
            window.prefill(after_sot, false)?;
        }

        let prefill_seconds = started.elapsed().as_secs_f64();
        if let Some(timings) = self.timings.take() {
            sink.first_token(FirstToken { prefill_seconds, ..timings });
        }

        let constraints = SearchConstraints {
            rules,
            end_of_text: special.eot,
            prompt_length: prompt.tokens().len(),
            context,
            max_sampled: max_tokens(seconds(span.size as u64), context / 2),
        };

        Ok((constraints, no_speech_prob))
    }

    /// The attempts at a prefilled window, and whether the fallback to higher temperatures was cut short by its budget.
    fn try_temperatures(
        &mut self,
        span: WindowSpan,
        temperatures: &[f32],
        constraints: &SearchConstraints,
        no_speech_prob: f64,
        sink: &mut dyn TranscriptSink,
    ) -> Result<(Vec<DecodedWindow>, bool), TranscribeError> {
        let (engine, options) = (self.engine, self.options);
        let (max_tokens, half_context) = (constraints.max_sampled, constraints.context / 2);
        let tokenizer = engine.tokenizer()?;
        let window = self.encoded_window(span)?;

        let mut attempts = Vec::new();
        let mut budget: Option<FallbackBudget> = None;

        for (attempt, temperature) in temperatures.iter().copied().enumerate() {
            let rows = options.rows(temperature);
            let affordable = match &budget {
                None => Some(max_tokens),
                Some(budget) => budget.tokens_for(rows, max_tokens),
            };

            let Some(max_sampled) = affordable else { return Ok((attempts, true)) };

            let constraints = SearchConstraints { max_sampled, ..constraints.clone() };
            let search = options.search(&constraints, temperature, span.seek, attempt);
            let Some(candidates) = decode_within(budget.as_ref(), window, search, sink)? else {
                // The engine may still execute the cancelled search, so words are aligned with a new window.
                self.current = None;
                return Ok((attempts, true));
            };

            let longest = candidates.iter().map(|candidate| candidate.tokens.len()).max().unwrap_or(0);
            budget.get_or_insert_with(|| fallback_budget(options, max_tokens, half_context));
            if attempt > 0
                && let Some(budget) = &mut budget
            {
                budget.spend(rows, longest);
            }

            let decoded = DecodedWindow::best(candidates, options.length_penalty, engine.special(), tokenizer);

            // The budget ended this attempt in the middle of its text, where the reference would continue.
            if max_sampled < max_tokens && decoded.tokens.len() >= max_sampled {
                return Ok((attempts, true));
            }

            let decoded = DecodedWindow { no_speech_prob, temperature, ..decoded };
            let is_good_enough = !needs_fallback(&decoded, options);
            attempts.push(decoded);
            if is_good_enough {
                break;
            }
        }

        Ok((attempts, false))
    }
}

fn no_temperatures() -> TranscribeError {
    TranscribeError::InvalidOption { option: "temperatures", problem: "is empty".into() }
}

/// Runs a search; returns `None` if the time of the budget ended first.
fn decode_within(
    budget: Option<&FallbackBudget>,
    window: &mut EncodedWindow,
    search: Box<dyn Search>,
    sink: &mut dyn TranscriptSink,
) -> Result<Option<Vec<SearchCandidate>>, TranscribeError> {
    let mut is_late = false;
    let result = window.decode(search, &mut || {
        is_late = budget.is_some_and(FallbackBudget::is_out_of_time);
        !is_late && sink.keep_going()
    });

    match result {
        Err(DecodeError::Cancelled) if is_late => Ok(None),
        candidates => Ok(Some(candidates?)),
    }
}

/// The budget for further attempts at a window with so many tokens at most. The option is for a whole window, which has
/// `half_context` tokens at most; the budget of less audio is smaller in proportion.
fn fallback_budget(options: &TranscribeOptions, max_tokens: usize, half_context: usize) -> FallbackBudget {
    let tokens = options.fallback_tokens.map(|tokens| tokens.saturating_mul(max_tokens).div_ceil(half_context.max(1)));
    FallbackBudget::new(tokens, options.fallback_seconds)
}

fn above(value: f64, threshold: Option<f32>) -> bool {
    threshold.is_some_and(|threshold| value > f64::from(threshold))
}

fn below(value: f64, threshold: Option<f32>) -> bool {
    threshold.is_some_and(|threshold| value < f64::from(threshold))
}

/// Whether an attempt repeats itself or is unlikely. Silence needs no fallback.
pub(super) fn needs_fallback(decoded: &DecodedWindow, options: &TranscribeOptions) -> bool {
    let is_unlikely = below(decoded.avg_logprob, options.logprob_threshold);
    let is_silent = above(decoded.no_speech_prob, options.no_speech_threshold) && is_unlikely;
    let is_repetitive = above(decoded.compression_ratio, options.compression_ratio_threshold);
    (is_repetitive || is_unlikely) && !is_silent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(compression_ratio: f64, avg_logprob: f64, no_speech_prob: f64) -> DecodedWindow {
        DecodedWindow {
            tokens: vec![],
            token_logprobs: vec![],
            text: String::new(),
            avg_logprob,
            no_speech_prob,
            temperature: 0.0,
            compression_ratio,
        }
    }

    #[test]
    fn falls_back_as_the_reference_does() {
        let options = TranscribeOptions::default();
        assert!(!needs_fallback(&decoded(2.0, -0.5, 0.9), &options));
        assert!(needs_fallback(&decoded(2.5, -0.5, 0.9), &options));
        assert!(needs_fallback(&decoded(2.0, -1.5, 0.1), &options));
        assert!(!needs_fallback(&decoded(2.5, -1.5, 0.9), &options), "silence");

        let without_logprob = TranscribeOptions { logprob_threshold: None, ..options.clone() };
        assert!(needs_fallback(&decoded(2.5, -1.5, 0.9), &without_logprob), "silence needs both thresholds");

        let without_no_speech = TranscribeOptions { no_speech_threshold: None, ..options.clone() };
        assert!(needs_fallback(&decoded(2.0, -1.5, 0.9), &without_no_speech));

        let without_compression = TranscribeOptions { compression_ratio_threshold: None, ..options };
        assert!(!needs_fallback(&decoded(9.0, -0.5, 0.0), &without_compression));
    }
}
