//! What the app said about its models at one moment.

use tokio::time::Instant;

use super::app_runs::RunNumber;
use crate::app::{ListedModel, ModelPresence};

/// What the app said when it was last asked.
#[derive(Clone, Debug, PartialEq)]
pub struct AppObservation {
    /// When the question was sent: the answer contains everything that happened before.
    pub asked: Instant,
    /// The run of the app that has answered.
    pub run: RunNumber,
    pub content: ObservedContent,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ObservedContent {
    /// The app does not list its models, or gave no answer that can be read: nothing is known.
    Unknown,
    /// Nothing listens at the app's address: none of its models is in memory.
    Down,
    Listed(Vec<ListedModel>),
    /// The app has no list, and its figures show that these models are in memory. Nothing is known of the others.
    Held(Vec<String>),
}

impl AppObservation {
    pub fn unknown() -> Self {
        Self { asked: Instant::now(), run: RunNumber::default(), content: ObservedContent::Unknown }
    }

    /// Whether this is the only model that the app has in memory.
    pub fn is_alone(&self, name: &str) -> bool {
        let models = match &self.content {
            ObservedContent::Unknown | ObservedContent::Down => return false,
            ObservedContent::Held(names) => return names.iter().all(|held| held == name),
            ObservedContent::Listed(models) => models,
        };
        let mut held = models.iter().filter(|model| model.presence != ModelPresence::Away);

        held.all(|model| model.name == name)
    }

    /// All that was in memory is gone: the app's process has ended. `run`: the next one.
    pub fn down(run: RunNumber) -> Self {
        Self { asked: Instant::now(), run, content: ObservedContent::Down }
    }

    /// The entry of a model. `None`: nothing is known. A model that is not listed is away.
    pub fn find(&self, name: &str) -> Option<ListedModel> {
        let models = match &self.content {
            ObservedContent::Unknown | ObservedContent::Down => return None,
            ObservedContent::Held(names) => return names.iter().find(|held| *held == name).map(|_| loaded(name)),
            ObservedContent::Listed(models) => models,
        };

        Some(find_listed(models, name))
    }
}

/// The entry of a model in the app's list. A model that is not listed is away.
pub(super) fn find_listed(models: &[ListedModel], name: &str) -> ListedModel {
    let away = || ListedModel { name: name.to_owned(), presence: ModelPresence::Away, instance: None };

    models.iter().find(|model| model.name == name).cloned().unwrap_or_else(away)
}

fn loaded(name: &str) -> ListedModel {
    ListedModel { name: name.to_owned(), presence: ModelPresence::Loaded, instance: None }
}
