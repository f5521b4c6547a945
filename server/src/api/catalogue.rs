//! The models that a request may name.

use std::sync::Arc;

use super::speech::SpeechModel;
use crate::hub::folder_of;

/// A model as `GET /v1/models` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCard {
    pub id: String,
    /// Unix time of its installation.
    pub created_seconds: u64,
    pub owned_by: String,
}

/// The models that a server offers to requests.
pub trait ModelCatalogue: Send + Sync + 'static {
    /// The model for requests that name none.
    fn default_model(&self) -> Arc<dyn SpeechModel>;

    /// Finds a model by its own name, by an alias, or by a name that means the same model of the hub.
    fn find(&self, name: &str) -> Option<Arc<dyn SpeechModel>>;

    /// The models under their own names, the default model first.
    fn cards(&self) -> Vec<ModelCard>;

    /// The models that have been started, the default model first.
    fn served(&self) -> Vec<Arc<dyn SpeechModel>>;
}

/// Names of OpenAI's models. A client that knows only these gets the default model.
pub const DEFAULT_ALIASES: [&str; 4] = ["whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe"];

/// Whether `requested` is `name`, or `name` followed by a date (`gpt-4o-mini-transcribe-2025-12-15`).
pub fn is_alias(requested: &str, name: &str) -> bool {
    let Some(rest) = requested.strip_prefix(name) else { return false };

    rest.is_empty() || rest.strip_prefix('-').is_some_and(is_date)
}

fn is_date(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

/// Whether two names mean the same model, such as `turbo` and `openai/whisper-large-v3-turbo`.
pub fn is_same_model(one: &str, other: &str) -> bool {
    one == other || folder_of(one) == folder_of(other)
}

/// A catalogue of one model, which is found under its own name and under OpenAI's names.
pub struct SingleModelCatalogue(pub Arc<dyn SpeechModel>);

impl ModelCatalogue for SingleModelCatalogue {
    fn default_model(&self) -> Arc<dyn SpeechModel> {
        Arc::clone(&self.0)
    }

    fn find(&self, name: &str) -> Option<Arc<dyn SpeechModel>> {
        let known = is_same_model(name, self.0.model()) || DEFAULT_ALIASES.iter().any(|alias| is_alias(name, alias));

        known.then(|| self.default_model())
    }

    fn cards(&self) -> Vec<ModelCard> {
        vec![ModelCard { id: self.0.model().to_owned(), created_seconds: 0, owned_by: "hush".to_owned() }]
    }

    fn served(&self) -> Vec<Arc<dyn SpeechModel>> {
        vec![self.default_model()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_may_carry_a_date_and_nothing_else() {
        assert!(is_alias("whisper-1", "whisper-1"));
        assert!(is_alias("gpt-4o-mini-transcribe-2025-12-15", "gpt-4o-mini-transcribe"));
        for other in ["whisper-12", "whisper-1-", "whisper-1-turbo", "whisper", "whisper-1-2025-12-1x", ""] {
            assert!(!is_alias(other, "whisper-1"), "{other}");
        }
        assert!(!is_alias("gpt-4o-transcribe-diarize", "gpt-4o-transcribe"), "it would answer without speakers");
    }

    #[test]
    fn a_model_of_the_hub_has_several_names() {
        assert!(is_same_model("turbo", "openai/whisper-large-v3-turbo"));
        assert!(is_same_model("local", "local"));
        assert!(!is_same_model("base", "base.en"));
    }
}
