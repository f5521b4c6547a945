//! What a model was trained for, and so which requests it can serve.

use crate::{
    checkpoint::{Config, SpecialTokens},
    language,
    task::{SpeechTask, TranscribeOptions},
    transcribe::TranscribeError,
};

/// A decoder with so many times fewer layers than the encoder was pruned and trained again on transcription alone:
/// large-v3-turbo (32 and 4), distil-large-v3 (32 and 2). Other models have as many layers in both.
const PRUNED_RATIO: usize = 4;

/// The abilities of a model that requests depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// `false` for the `.en` models.
    pub is_multilingual: bool,
    pub has_pruned_decoder: bool,
}

impl Abilities {
    pub fn new(config: &Config, tokens: &SpecialTokens) -> Self {
        Self {
            is_multilingual: tokens.multilingual,
            has_pruned_decoder: config.encoder_layers >= PRUNED_RATIO * config.decoder_layers,
        }
    }

    /// Rejects what the model cannot do: it would write English that was never said.
    pub fn check(&self, options: &TranscribeOptions) -> Result<(), TranscribeError> {
        if self.is_multilingual {
            return Ok(());
        }

        if options.task == SpeechTask::Translate {
            return Err(TranscribeError::CannotTranslate);
        }

        match options.language.as_deref().and_then(language::code) {
            None | Some("en") => Ok(()),
            Some(code) => {
                let name = language::name(code).unwrap_or(code);
                Err(TranscribeError::EnglishOnlyLanguage { name: name.to_owned(), code: code.to_owned() })
            }
        }
    }

    /// A problem that is likely although the request is accepted.
    pub fn warning(&self, options: &TranscribeOptions) -> Option<&'static str> {
        (options.task == SpeechTask::Translate && self.has_pruned_decoder).then_some(
            "this model was not trained to translate: it may write the language that is spoken; a model with a whole \
             decoder, such as large-v3 or medium, translates",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Abilities = Abilities { is_multilingual: true, has_pruned_decoder: false };
    const ENGLISH: Abilities = Abilities { is_multilingual: false, ..ALL };
    const TURBO: Abilities = Abilities { has_pruned_decoder: true, ..ALL };

    fn options(task: SpeechTask, language: Option<&str>) -> TranscribeOptions {
        TranscribeOptions { task, language: language.map(str::to_owned), ..TranscribeOptions::default() }
    }

    #[test]
    fn a_model_of_one_language_refuses_others() {
        for language in [None, Some("en"), Some("English")] {
            assert!(ENGLISH.check(&options(SpeechTask::Transcribe, language)).is_ok(), "{language:?}");
        }

        let refused = |task, language| ENGLISH.check(&options(task, language)).unwrap_err().to_string();
        assert!(refused(SpeechTask::Transcribe, Some("es")).contains("only English"));
        assert!(refused(SpeechTask::Transcribe, Some("Spanish")).contains("`es` (spanish)"));
        assert!(refused(SpeechTask::Translate, None).contains("translate"));
        assert!(ALL.check(&options(SpeechTask::Translate, Some("es"))).is_ok());
    }

    #[test]
    fn a_model_with_a_pruned_decoder_warns_of_translations() {
        assert!(TURBO.warning(&options(SpeechTask::Translate, None)).is_some());
        assert_eq!(TURBO.warning(&options(SpeechTask::Transcribe, None)), None);
        assert_eq!(ALL.warning(&options(SpeechTask::Translate, None)), None);
        assert!(TURBO.check(&options(SpeechTask::Translate, None)).is_ok());
    }
}
