//! What a model was trained for, and so what may be asked of it.

use crate::{
    checkpoint::{Config, SpecialTokens},
    language,
    task::{Task, TranscribeOptions},
    transcribe::TranscribeError,
};

/// A decoder of so many times fewer layers than the encoder was pruned and trained anew, and that on transcription alone:
/// large-v3-turbo (32 and 4), distil-large-v3 (32 and 2). Models of one piece have as many in both.
const PRUNED: usize = 4;

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
            has_pruned_decoder: config.encoder_layers >= PRUNED * config.decoder_layers,
        }
    }

    /// Refuses what the model cannot do: it would write English that was never said.
    pub fn check(&self, options: &TranscribeOptions) -> Result<(), TranscribeError> {
        if self.is_multilingual {
            return Ok(());
        }

        if options.task == Task::Translate {
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

    /// What is likely to go wrong although it is done.
    pub fn warning(&self, options: &TranscribeOptions) -> Option<&'static str> {
        (options.task == Task::Translate && self.has_pruned_decoder).then_some(
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

    fn options(task: Task, language: Option<&str>) -> TranscribeOptions {
        TranscribeOptions { task, language: language.map(str::to_owned), ..TranscribeOptions::default() }
    }

    #[test]
    fn a_model_of_one_language_refuses_others() {
        for language in [None, Some("en"), Some("English")] {
            assert!(ENGLISH.check(&options(Task::Transcribe, language)).is_ok(), "{language:?}");
        }

        let refused = |task, language| ENGLISH.check(&options(task, language)).unwrap_err().to_string();
        assert!(refused(Task::Transcribe, Some("es")).contains("only English"));
        assert!(refused(Task::Transcribe, Some("Spanish")).contains("`es` (spanish)"));
        assert!(refused(Task::Translate, None).contains("translate"));
        assert!(ALL.check(&options(Task::Translate, Some("es"))).is_ok());
    }

    #[test]
    fn a_model_with_a_pruned_decoder_warns_of_translations() {
        assert!(TURBO.warning(&options(Task::Translate, None)).is_some());
        assert_eq!(TURBO.warning(&options(Task::Transcribe, None)), None);
        assert_eq!(ALL.warning(&options(Task::Translate, None)), None);
        assert!(TURBO.check(&options(Task::Translate, None)).is_ok());
    }
}
