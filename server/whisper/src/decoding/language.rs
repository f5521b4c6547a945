//! Language detection: `detect_language` of openai/whisper.

use super::sampling::log_sum_exp;
use crate::{checkpoint::SpecialTokens, language::LANGUAGES, task::LanguageProbability};

/// Probabilities of the languages from the logits after `<|startoftranscript|>`, the most probable first; equals keep the
/// order of their tokens.
pub fn language_probabilities(special: &SpecialTokens, logits: &[f32]) -> Vec<LanguageProbability> {
    let mut known: Vec<(&str, u32, f32)> = special
        .languages
        .iter()
        .filter(|(code, _)| LANGUAGES.iter().any(|(known, _)| known == code))
        .filter_map(|(code, token)| Some((code.as_str(), *token, *logits.get(*token as usize)?)))
        .collect();

    known.sort_by_key(|(_, token, _)| *token);
    let total = log_sum_exp(&known.iter().map(|(.., logit)| *logit).collect::<Vec<_>>());
    let mut languages: Vec<_> = known
        .into_iter()
        .map(|(code, _, logit)| LanguageProbability {
            code: code.to_owned(),
            probability: (f64::from(logit) - total).exp() as f32,
        })
        .collect();

    languages.sort_by(|a, b| b.probability.total_cmp(&a.probability));

    languages
}
