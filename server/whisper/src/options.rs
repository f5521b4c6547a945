//! Validation of the options, and the searches that they select.

use crate::{
    decoding::{BeamSearch, SamplingSearch, Search, SearchConstraints, max_finished, sampling::Random},
    language,
    task::TranscribeOptions,
    transcribe::TranscribeError,
};

/// Most candidates or beams: more would only fill memory.
pub const MAX_CANDIDATES: usize = 32;
/// With more patience than this the search waits for sequences that never end.
const MOST_PATIENCE: f32 = 100.0;

impl TranscribeOptions {
    /// Rejects options that no model supports.
    pub fn validate(&self) -> Result<(), TranscribeError> {
        let refuse = |option, problem: String| Err(TranscribeError::InvalidOption { option, problem });
        if self.temperatures.is_empty() {
            return refuse("temperatures", "must hold at least one temperature".into());
        }

        if let Some(wrong) = self.temperatures.iter().find(|t| !(0.0..=2.0).contains(*t)) {
            return refuse("temperatures", format!("must lie between 0 and 2, got {wrong}"));
        }

        if !(1..=MAX_CANDIDATES).contains(&self.best_of) {
            return refuse("best_of", format!("must lie between 1 and {MAX_CANDIDATES}, got {}", self.best_of));
        }

        self.validate_beams()?;

        for (option, threshold) in [
            ("compression_ratio_threshold", self.compression_ratio_threshold),
            ("logprob_threshold", self.logprob_threshold),
            ("no_speech_threshold", self.no_speech_threshold),
        ] {
            if threshold.is_some_and(f32::is_nan) {
                return refuse(option, "must be a number".into());
            }
        }

        if let Some(wrong) = self.fallback_seconds.filter(|seconds| seconds.is_nan() || *seconds < 0.0) {
            return refuse("fallback_seconds", format!("must be 0 or more, got {wrong}"));
        }

        self.validate_words()?;
        if let Some(vad) = &self.vad {
            vad.validate()?;
        }

        match &self.language {
            Some(given) if language::code(given).is_none() => Err(TranscribeError::UnknownLanguage {
                given: given.clone(),
                hint: "give a code such as `en` or an English name such as `german`".into(),
            }),
            _ => Ok(()),
        }
    }

    fn validate_words(&self) -> Result<(), TranscribeError> {
        let option = "hallucination_silence_threshold";
        let problem = match self.hallucination_silence_threshold {
            Some(_) if !self.word_timestamps => "needs `word_timestamps`".into(),
            Some(wrong) if wrong.is_nan() || wrong < 0.0 => format!("must be 0 or more seconds, got {wrong}"),
            _ => return Ok(()),
        };
        Err(TranscribeError::InvalidOption { option, problem })
    }

    fn validate_beams(&self) -> Result<(), TranscribeError> {
        let refuse = |option, problem: String| Err(TranscribeError::InvalidOption { option, problem });
        if let Some(wrong) = self.beam_size.filter(|size| !(1..=MAX_CANDIDATES).contains(size)) {
            return refuse("beam_size", format!("must lie between 1 and {MAX_CANDIDATES}, got {wrong}"));
        }

        if let Some(patience) = self.patience {
            let Some(beam_size) = self.beam_size else { return refuse("patience", "needs `beam_size`".into()) };
            if !(0.0..=MOST_PATIENCE).contains(&patience) || max_finished(beam_size, Some(patience)) == 0 {
                let problem = format!(
                    "must lie between 0 and {MOST_PATIENCE} and wait for at least one of {beam_size} beams, got {patience}"
                );
                return refuse("patience", problem);
            }
        }

        match self.length_penalty.filter(|penalty| !(0.0..=1.0).contains(penalty)) {
            Some(wrong) => refuse("length_penalty", format!("must lie between 0 and 1, got {wrong}")),
            None => Ok(()),
        }
    }

    /// Rows of the search that [`Self::search`] creates.
    pub(crate) fn rows(&self, temperature: f32) -> usize {
        if temperature > 0.0 { self.best_of } else { self.beam_size.unwrap_or(1) }
    }

    /// The search for one temperature: like the reference, beams only at zero and several candidates only above.
    pub(crate) fn search(
        &self,
        constraints: &SearchConstraints,
        temperature: f32,
        seek: u64,
        attempt: usize,
    ) -> Box<dyn Search> {
        let constraints = constraints.clone();
        if temperature > 0.0 {
            let seed = Random::new(self.seed, &[seek, attempt as u64]).seed();
            return Box::new(SamplingSearch::random(constraints, temperature, self.best_of, seed));
        }

        match self.beam_size {
            Some(size) => Box::new(BeamSearch::new(constraints, size, self.patience)),
            None => Box::new(SamplingSearch::greedy(constraints)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_validated() {
        let wrong = |change: fn(&mut TranscribeOptions)| {
            let mut options = TranscribeOptions::default();
            change(&mut options);
            options.validate().unwrap_err().to_string()
        };

        assert!(TranscribeOptions::default().validate().is_ok());
        assert!(wrong(|o| o.temperatures.clear()).contains("temperatures"));
        assert!(wrong(|o| o.temperatures = vec![0.0, f32::NAN]).contains("NaN"));
        assert!(wrong(|o| o.temperatures = vec![-0.1]).contains("-0.1"));
        assert!(wrong(|o| o.best_of = 0).contains("best_of"));
        assert!(wrong(|o| o.best_of = 1000).contains("best_of"));
        assert!(wrong(|o| o.beam_size = Some(0)).contains("beam_size"));
        assert!(wrong(|o| o.beam_size = Some(33)).contains("beam_size"));
        assert!(wrong(|o| o.patience = Some(1.0)).contains("beam_size"));
        assert!(wrong(|o| (o.beam_size, o.patience) = (Some(5), Some(0.05))).contains("patience"));
        assert!(wrong(|o| (o.beam_size, o.patience) = (Some(5), Some(f32::NAN))).contains("patience"));
        assert!(wrong(|o| o.length_penalty = Some(1.5)).contains("length_penalty"));
        assert!(wrong(|o| o.length_penalty = Some(f32::NAN)).contains("length_penalty"));

        let beams = TranscribeOptions {
            beam_size: Some(5),
            patience: Some(2.0),
            length_penalty: Some(0.6),
            ..TranscribeOptions::default()
        };

        assert!(beams.validate().is_ok());
        assert!(wrong(|o| o.no_speech_threshold = Some(f32::NAN)).contains("no_speech_threshold"));
        assert!(wrong(|o| o.fallback_seconds = Some(-1.0)).contains("fallback_seconds"));
        assert!(wrong(|o| o.language = Some("klingon".into())).contains("klingon"));
    }
}
