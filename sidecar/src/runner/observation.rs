//! What the app said about its models at one moment.

use tokio::time::Instant;

use crate::app::{ListedModel, ModelPresence};

/// What the app said when it was last asked.
#[derive(Clone, Debug, PartialEq)]
pub struct AppObservation {
    /// When the question was sent: the answer contains everything that happened before.
    pub asked: Instant,
    pub content: ObservedContent,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ObservedContent {
    /// The app does not list its models, or gave no answer that can be read: nothing is known.
    Unknown,
    /// Nothing listens at the app's address: none of its models is in memory.
    Down,
    Listed(Vec<ListedModel>),
}

impl AppObservation {
    pub fn unknown() -> Self {
        Self { asked: Instant::now(), content: ObservedContent::Unknown }
    }

    /// Whether this is the only model that the app has in memory.
    pub fn is_alone(&self, name: &str) -> bool {
        let ObservedContent::Listed(models) = &self.content else { return false };
        let mut held = models.iter().filter(|model| model.presence != ModelPresence::Away);

        held.all(|model| model.name == name)
    }

    /// The entry of a model. `None`: nothing is known. A model that is not listed is away.
    pub fn find(&self, name: &str) -> Option<ListedModel> {
        let ObservedContent::Listed(models) = &self.content else { return None };

        let away = || ListedModel { name: name.to_owned(), presence: ModelPresence::Away, instance: None };
        Some(models.iter().find(|model| model.name == name).cloned().unwrap_or_else(away))
    }
}
