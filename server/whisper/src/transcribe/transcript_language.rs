//! The language of a transcript: given, detected, or the one that the model knows.

use crate::{checkpoint::SpecialTokens, language, task::LanguageProbability, transcribe::TranscribeError};

/// What is known of the language.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TranscriptLanguage {
    /// To be detected in the first window with sound.
    Unknown,
    /// The model knows only English, and its prompt names no language.
    EnglishOnly,
    Given {
        code: String,
        token: u32,
    },
    Detected {
        code: String,
        token: u32,
        probability: f32,
    },
}

impl TranscriptLanguage {
    /// What a request says: a code or an English name.
    pub fn given(given: Option<&str>, special: &SpecialTokens) -> Result<Self, TranscribeError> {
        if !special.multilingual {
            return Ok(Self::EnglishOnly);
        }

        let Some(given) = given else { return Ok(Self::Unknown) };
        let known = language::code(given).and_then(|code| Some((code, *special.languages.get(code)?)));
        let (code, token) = known.ok_or_else(|| untrained(given))?;

        Ok(Self::Given { code: code.to_owned(), token })
    }

    pub fn detected(likeliest: LanguageProbability, special: &SpecialTokens) -> Result<Self, TranscribeError> {
        let LanguageProbability { code, probability } = likeliest;
        let token = special.languages.get(&code).copied().ok_or_else(|| untrained(&code))?;
        Ok(Self::Detected { code, token, probability })
    }

    /// The token of the prompt.
    pub fn token(&self) -> Option<u32> {
        match self {
            Self::Given { token, .. } | Self::Detected { token, .. } => Some(*token),
            Self::Unknown | Self::EnglishOnly => None,
        }
    }

    /// The code of the language that the prompt names, which determines how words are split.
    pub fn spoken(&self) -> Option<&str> {
        match self {
            Self::Given { code, .. } | Self::Detected { code, .. } => Some(code),
            Self::Unknown | Self::EnglishOnly => None,
        }
    }

    pub fn probability(&self) -> Option<f32> {
        match self {
            Self::Detected { probability, .. } => Some(*probability),
            Self::Unknown | Self::EnglishOnly | Self::Given { .. } => None,
        }
    }

    pub fn into_code(self) -> Option<String> {
        match self {
            Self::Given { code, .. } | Self::Detected { code, .. } => Some(code),
            Self::EnglishOnly => Some("en".to_owned()),
            Self::Unknown => None,
        }
    }
}

fn untrained(given: &str) -> TranscribeError {
    TranscribeError::UnknownLanguage { given: given.to_owned(), hint: "this model was not trained on it".to_owned() }
}
