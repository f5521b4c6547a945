//! Every model of the server, by name.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::collector::ResidencyCollector;
use super::feed::Feed;
use super::handle::ModelHandle;
use super::machine::Policy;
use super::owner::Owner;
use super::places::Places;
use super::snapshot::Board;
use crate::gpu::{AccountSettings, Accounts};
use crate::metrics::Metrics;
use crate::runner::wire::LoadSpec;
use crate::runner::{self, Runners};

#[derive(Clone, Debug)]
pub struct ModelSettings {
    /// As requests and metrics name it.
    pub name: String,
    pub spec: LoadSpec,
    /// How its weights are stored, for people; `None`: not known.
    pub precision: Option<String>,
    pub policy: Policy,
    /// Where its device memory is counted; `None`: nowhere.
    pub account: Option<AccountSettings>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("no model is given")]
    NoModel,
    #[error("model `{0}` is given twice")]
    Twice(String),
    #[error("the thread that starts runners could not be started")]
    Runners(#[source] io::Error),
    #[error("the models' metrics could not be registered")]
    Metrics(#[from] prometheus::Error),
}

/// Every model that is served, and which of them is the default. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Registry(Arc<RwLock<BTreeMap<String, ModelHandle>>>);

impl Registry {
    /// In the order of their names.
    pub(super) fn all(&self) -> Vec<ModelHandle> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn get(&self, name: &str) -> Option<ModelHandle> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, ModelHandle>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Models {
    default: ModelHandle,
    shared: Shared,
}

/// What all models have in common.
struct Shared {
    registry: Registry,
    places: Places,
    runners: Runners,
    /// `None`: nothing measures devices.
    accounts: Option<Accounts>,
    metrics: Arc<Metrics>,
    feed: Feed,
}

impl Models {
    /// Starts an owner for each model; the first is the default. Must be called inside a tokio runtime.
    pub fn start(
        models: Vec<ModelSettings>,
        runners: runner::Settings,
        accounts: Option<&Accounts>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StartError> {
        Self::start_limited(models, None, runners, accounts, metrics)
    }

    /// As [`Self::start`], with at most `max_loaded` models in memory at the same time.
    pub fn start_limited(
        models: Vec<ModelSettings>,
        max_loaded: Option<NonZeroUsize>,
        runners: runner::Settings,
        accounts: Option<&Accounts>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let runners = Runners::new(runners).map_err(StartError::Runners)?;
        let (places, feed) = (Places::new(max_loaded), Feed::new());
        let (registry, accounts) = (Registry::default(), accounts.cloned());
        let shared = Shared { registry, places, runners, accounts, metrics: Arc::clone(metrics), feed };
        let mut default = None;
        for settings in models {
            let handle = shared.begin(settings)?;
            default.get_or_insert(handle);
        }
        let default = default.ok_or(StartError::NoModel)?;
        metrics.register(Box::new(ResidencyCollector::new(shared.registry.clone())?))?;
        Ok(Self { default, shared })
    }

    /// The first that was given at the start.
    pub fn default_model(&self) -> &ModelHandle {
        &self.default
    }

    pub fn get(&self, name: &str) -> Option<ModelHandle> {
        self.shared.registry.get(name)
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = ModelHandle> {
        self.shared.registry.all().into_iter()
    }

    /// One more model. Must be called inside a tokio runtime.
    pub fn add(&self, settings: ModelSettings) -> Result<ModelHandle, StartError> {
        self.shared.begin(settings)
    }

    /// Takes a model away: what has arrived is served, for `patience` at most; then its runner is gone.
    pub async fn remove(&self, name: &str, patience: Duration) {
        let removed = self.shared.registry.write().remove(name);
        if let Some(model) = removed {
            model.shutdown(Instant::now() + patience).await;
        }
    }

    /// Changes of all of them.
    pub fn feed(&self) -> &Feed {
        &self.shared.feed
    }

    /// Serves what has arrived, for `patience` at most; then no runner is left.
    pub async fn shutdown(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        join_all(self.shared.registry.all().iter().map(|model| model.shutdown(deadline))).await;
        self.shared.runners.shutdown().await;
    }
}

impl Shared {
    fn begin(&self, settings: ModelSettings) -> Result<ModelHandle, StartError> {
        let name = settings.name.clone();
        let mut models = self.registry.write();
        if models.contains_key(&name) {
            return Err(StartError::Twice(name));
        }
        let (inbox, messages) = mpsc::unbounded_channel();
        let board = Board::new(&settings, self.feed.clone());
        let (weak, metrics) = (inbox.downgrade(), Arc::clone(&self.metrics));
        let owner = Owner::new(settings, self.accounts.clone(), self.runners.clone(), metrics, board.clone(), weak);
        tokio::spawn(owner.among(self.places.clone()).run(messages));
        let handle = ModelHandle::new(name.clone(), inbox, board);
        models.insert(name, handle.clone());
        Ok(handle)
    }
}
