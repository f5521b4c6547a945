//! Every model of a server, by name.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::change_feed::ChangeFeed;
use crate::collector::ResidencyCollector;
use crate::gpu::{AccountSettings, Accounts};
use crate::load_slots::LoadSlots;
use crate::machine::LifecycleSettings;
use crate::metrics::ResidencyMetrics;
use crate::model_actor::{ActorEnvironment, ModelActor};
use crate::model_handle::ModelHandle;
use crate::runner::RunnerFactory;
use crate::snapshot::SnapshotCell;

/// One model, with the `spec` of its kind of runner.
#[derive(Clone, Debug)]
pub struct ModelSettings<S> {
    /// The name in requests and metrics.
    pub name: String,
    pub spec: S,
    /// How the weights are stored, for display; `None`: not known.
    pub precision: Option<String>,
    pub lifecycle: LifecycleSettings,
    /// Where the model's device memory is counted; `None`: nowhere.
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

/// The handles of all models, by name. Cheap to clone; clones are the same map.
pub(crate) struct HandleMap<F: RunnerFactory>(Arc<RwLock<BTreeMap<String, ModelHandle<F>>>>);

impl<F: RunnerFactory> Clone for HandleMap<F> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<F: RunnerFactory> HandleMap<F> {
    fn new() -> Self {
        Self(Arc::default())
    }

    /// In the order of their names.
    pub(crate) fn all(&self) -> Vec<ModelHandle<F>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn get(&self, name: &str) -> Option<ModelHandle<F>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, ModelHandle<F>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All models of a server, and which of them is the default.
pub struct Models<F: RunnerFactory> {
    default: ModelHandle<F>,
    handles: HandleMap<F>,
    slots: LoadSlots,
    runners: F,
    /// `None`: no device is measured.
    accounts: Option<Accounts>,
    metrics: ResidencyMetrics,
    feed: ChangeFeed,
}

impl<F: RunnerFactory> Models<F> {
    /// Starts an actor for each model; the first model is the default. Must be called inside a tokio runtime.
    pub fn start(
        models: Vec<ModelSettings<F::Spec>>,
        runners: F::Settings,
        accounts: Option<&Accounts>,
        metrics: &ResidencyMetrics,
    ) -> Result<Self, StartError> {
        Self::start_limited(models, None, runners, accounts, metrics)
    }

    /// As [`Self::start`], with at most `max_loaded` models in memory at the same time.
    pub fn start_limited(
        models: Vec<ModelSettings<F::Spec>>,
        max_loaded: Option<NonZeroUsize>,
        runners: F::Settings,
        accounts: Option<&Accounts>,
        metrics: &ResidencyMetrics,
    ) -> Result<Self, StartError> {
        let handles = HandleMap::new();
        let slots = LoadSlots::new(max_loaded);
        let runners = F::new(runners).map_err(StartError::Runners)?;
        let feed = ChangeFeed::new();

        let mut default = None;
        for settings in models {
            let environment = ActorEnvironment {
                runners: runners.clone(),
                accounts: accounts.cloned(),
                slots: slots.clone(),
                metrics: metrics.clone(),
            };
            let handle = spawn_actor(&handles, settings, environment, feed.clone())?;
            default.get_or_insert(handle);
        }

        let default = default.ok_or(StartError::NoModel)?;
        metrics.register_collector(Box::new(ResidencyCollector::new(handles.clone())?))?;

        let (accounts, metrics) = (accounts.cloned(), metrics.clone());
        Ok(Self { default, handles, slots, runners, accounts, metrics, feed })
    }

    /// The first model that was given at the start.
    pub fn default_model(&self) -> &ModelHandle<F> {
        &self.default
    }

    pub fn get(&self, name: &str) -> Option<ModelHandle<F>> {
        self.handles.get(name)
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = ModelHandle<F>> + use<F> {
        self.handles.all().into_iter()
    }

    /// Adds a model. Must be called inside a tokio runtime.
    pub fn add(&self, settings: ModelSettings<F::Spec>) -> Result<ModelHandle<F>, StartError> {
        let environment = ActorEnvironment {
            runners: self.runners.clone(),
            accounts: self.accounts.clone(),
            slots: self.slots.clone(),
            metrics: self.metrics.clone(),
        };

        spawn_actor(&self.handles, settings, environment, self.feed.clone())
    }

    /// Removes a model: the requests that have arrived are served, for `max_wait` at most; then its runner is ended.
    pub async fn remove(&self, name: &str, max_wait: Duration) {
        let removed = self.handles.write().remove(name);

        if let Some(model) = removed {
            model.shutdown(Instant::now() + max_wait).await;
        }
    }

    /// The changes of all models.
    pub fn feed(&self) -> &ChangeFeed {
        &self.feed
    }

    /// Serves the requests that have arrived, for `max_wait` at most; then no runner is left.
    pub async fn shutdown(&self, max_wait: Duration) {
        let deadline = Instant::now() + max_wait;

        join_all(self.handles.all().iter().map(|model| model.shutdown(deadline))).await;
        self.runners.shutdown().await;
    }
}

fn spawn_actor<F: RunnerFactory>(
    handles: &HandleMap<F>,
    settings: ModelSettings<F::Spec>,
    environment: ActorEnvironment<F>,
    feed: ChangeFeed,
) -> Result<ModelHandle<F>, StartError> {
    let name = settings.name.clone();
    let mut handles = handles.write();
    if handles.contains_key(&name) {
        return Err(StartError::Twice(name));
    }

    let (inbox, messages) = mpsc::unbounded_channel();
    let cell = SnapshotCell::new(&settings, feed);
    let actor = ModelActor::new(settings, environment, cell.clone(), inbox.downgrade());
    tokio::spawn(actor.run(messages));

    let handle = ModelHandle::new(name.clone(), inbox, cell);
    handles.insert(name, handle.clone());
    Ok(handle)
}
