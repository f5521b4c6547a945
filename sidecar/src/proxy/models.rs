//! The models as the proxy uses them, whatever runner they have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hush_contract::ModelState;
use hush_residency::{AcquireError, ModelHandle, Models, RunnerFactory};

use super::routes::RequestRoutes;

/// The right of one request to use its model. Its drop ends the lease.
pub struct HeldLease {
    pub generation: u64,
    /// How long the request waited for the lease.
    pub waited: Duration,
    /// The model was not ready when the request came.
    pub was_cold: bool,
    _lease: Box<dyn Send + Sync>,
}

/// One model.
pub trait LeasedModel: Send + Sync {
    fn name(&self) -> &str;

    fn is_ready(&self) -> bool;

    /// Until the model may be there, as far as its state tells.
    fn retry_after(&self) -> Duration;

    /// Waits for the right to use the model. `max_cold_wait`: how long for a model that is not in memory; `None`: as long
    /// as it takes.
    fn acquire(&self, max_cold_wait: Option<Duration>) -> BoxFuture<'_, Result<HeldLease, AcquireError>>;

    /// Keeps a model that is in memory there, without being activity; `None`: it is not in memory, or about to leave.
    fn visit(&self) -> BoxFuture<'_, Option<HeldLease>>;
}

impl<F: RunnerFactory> LeasedModel for ModelHandle<F> {
    fn name(&self) -> &str {
        Self::name(self)
    }

    fn is_ready(&self) -> bool {
        self.snapshot().state == ModelState::Ready
    }

    fn retry_after(&self) -> Duration {
        let snapshot = self.snapshot();

        let failed = snapshot.failure.map(|failure| failure.retry_after);
        snapshot.hold.or(failed).or(snapshot.last_load).unwrap_or(Duration::ZERO)
    }

    fn acquire(&self, max_cold_wait: Option<Duration>) -> BoxFuture<'_, Result<HeldLease, AcquireError>> {
        Box::pin(async move {
            let lease = Self::acquire(self, false, max_cold_wait).await?;

            let (generation, waited, was_cold) = (lease.generation, lease.waited, lease.was_cold);
            Ok(HeldLease { generation, waited, was_cold, _lease: Box::new(lease) })
        })
    }

    fn visit(&self) -> BoxFuture<'_, Option<HeldLease>> {
        Box::pin(async move {
            let lease = Self::visit(self).await?;

            let (generation, waited, was_cold) = (lease.generation, lease.waited, lease.was_cold);
            Some(HeldLease { generation, waited, was_cold, _lease: Box::new(lease) })
        })
    }
}

/// All models.
pub trait ModelDirectory: Send + Sync {
    fn get(&self, name: &str) -> Option<Arc<dyn LeasedModel>>;

    fn default_model(&self) -> Arc<dyn LeasedModel>;

    /// In their order.
    fn names(&self) -> Vec<String>;
}

impl<F: RunnerFactory> ModelDirectory for Models<F> {
    fn get(&self, name: &str) -> Option<Arc<dyn LeasedModel>> {
        Some(Arc::new(Self::get(self, name)?))
    }

    fn default_model(&self) -> Arc<dyn LeasedModel> {
        Arc::new(Self::default_model(self).clone())
    }

    fn names(&self) -> Vec<String> {
        self.iter().map(|model| model.name().to_owned()).collect()
    }
}

/// Finds the model that a request means.
pub struct ModelNames {
    models: Arc<dyn ModelDirectory>,
    /// Other names that the app gives its models.
    aliases: BTreeMap<String, String>,
    default_model: Option<String>,
}

/// No model has the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownModel {
    pub name: String,
    pub known: Vec<String>,
}

impl ModelNames {
    pub fn new(
        models: Arc<dyn ModelDirectory>,
        aliases: BTreeMap<String, String>,
        default_model: Option<String>,
    ) -> Self {
        Self { models, aliases, default_model }
    }

    /// The model of that name, of that alias, or of the same canonical name; the default one without a name.
    ///
    /// # Errors
    /// If there is none; then the known names are listed.
    pub fn find(&self, name: Option<&str>, routes: &dyn RequestRoutes) -> Result<Arc<dyn LeasedModel>, UnknownModel> {
        let Some(name) = name.or(self.default_model.as_deref()) else { return Ok(self.models.default_model()) };
        let unknown = || UnknownModel { name: name.to_owned(), known: self.models.names() };

        let exact = |name: &str| {
            let target = self.aliases.get(name).map_or(name, String::as_str);
            self.models.get(name).or_else(|| self.models.get(target))
        };
        if let Some(model) = exact(name) {
            return Ok(model);
        }

        let canonical = routes.canonical_name(name);
        let is_same = |known: &&String| routes.canonical_name(known) == canonical;
        let names = self.models.names();
        let same_alias = || self.aliases.keys().find(is_same);
        let same = names.iter().find(is_same).or_else(same_alias);
        same.and_then(|known| exact(known)).ok_or_else(unknown)
    }
}
