//! Every model of the server, by name.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::collector::ResidencyCollector;
use super::feed::Feed;
use super::handle::ModelHandle;
use super::machine::Policy;
use super::owner::Owner;
use super::snapshot::{About, Board};
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

pub struct Models {
    default: ModelHandle,
    by_name: BTreeMap<String, ModelHandle>,
    runners: Runners,
    feed: Feed,
}

impl Models {
    /// Starts an owner for each model; the first is the default. Must be called inside a tokio runtime.
    pub fn start(
        models: Vec<ModelSettings>,
        runners: runner::Settings,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let runners = Runners::new(runners).map_err(StartError::Runners)?;
        let feed = Feed::new();
        let mut default = None;
        let mut by_name = BTreeMap::new();
        for ModelSettings { name, spec, precision, policy } in models {
            if by_name.contains_key(&name) {
                return Err(StartError::Twice(name));
            }
            let (inbox, messages) = mpsc::unbounded_channel();
            let about = About { model: name.clone(), device: spec.device.clone(), precision };
            let board = Board::new(about, policy.residency, feed.clone());
            let (weak, metrics) = (inbox.downgrade(), metrics.clone());
            let owner = Owner::new(name.clone(), spec, policy, runners.clone(), metrics, board.clone(), weak);
            tokio::spawn(owner.run(messages));
            let handle = ModelHandle::new(name.clone(), inbox, board);
            default.get_or_insert_with(|| handle.clone());
            by_name.insert(name, handle);
        }
        let default = default.ok_or(StartError::NoModel)?;
        metrics.register(Box::new(ResidencyCollector::new(by_name.values().cloned().collect())?))?;
        Ok(Self { default, by_name, runners, feed })
    }

    pub fn default_model(&self) -> &ModelHandle {
        &self.default
    }

    pub fn get(&self, name: &str) -> Option<&ModelHandle> {
        self.by_name.get(name)
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &ModelHandle> {
        self.by_name.values()
    }

    /// Changes of all of them.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Serves what has arrived, for `patience` at most; then no runner is left.
    pub async fn shutdown(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        join_all(self.by_name.values().map(|model| model.shutdown(deadline))).await;
        self.runners.shutdown().await;
    }
}
