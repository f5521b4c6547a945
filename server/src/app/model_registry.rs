//! The models of a running server: requests find them by name, a reload changes them, and an installed model is added when
//! a request first names it.

use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio_util::sync::CancellationToken;

use super::device_environment::{DeviceAssignment, DeviceEnvironment};
use super::model_store::{ModelStore, as_folder, is_name};
use super::served_model_spec::{ServedModelSpec, installed_model_spec};
use crate::api::{ModelCard, ModelCatalogue, ServedModel, TranscriptionModel, is_alias, is_same_model};
use crate::cli::settings::ServeSettings;
use crate::gpu::Accounts;
use crate::hub::Repo;
use crate::metrics::ServerMetrics;
use crate::residency::{SpeechModelHandle, SpeechModels, StartError};
use crate::runner;

struct RegisteredModel {
    spec: ServedModelSpec,
    speech: Arc<ServedModel>,
    /// A request named the model, and the settings do not.
    is_on_demand: bool,
}

impl RegisteredModel {
    fn name(&self) -> &str {
        self.spec.name()
    }

    fn card(&self) -> &ModelCard {
        &self.spec.card
    }
}

struct RegisteredModels {
    settings: ServeSettings,
    /// The default model first; never empty.
    models: Vec<RegisteredModel>,
}

impl RegisteredModels {
    /// The model with this name: by its own name, then by an alias, then by another name of the same model.
    fn find(&self, name: &str) -> Option<&RegisteredModel> {
        let has_alias = |model: &RegisteredModel| model.spec.aliases.iter().any(|alias| alias == name);
        let models = || self.models.iter();
        models()
            .find(|model| model.card().id == name)
            .or_else(|| models().find(|model| has_alias(model)))
            .or_else(|| models().find(|model| is_same_model(&model.card().id, name)))
    }
}

/// The models of a running server.
pub struct ModelRegistry {
    models: Arc<SpeechModels>,
    devices: DeviceEnvironment,
    metrics: Arc<ServerMetrics>,
    stop: CancellationToken,
    registered: RwLock<RegisteredModels>,
    default_model: RwLock<Arc<ServedModel>>,
}

/// The names of models that a reload has added, removed and kept, for the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReloadChanges {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub kept: Vec<String>,
}

impl ModelRegistry {
    /// Starts the models of `specs`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If `specs` is empty or names a model twice, or the runners cannot be started.
    pub fn start(
        settings: &ServeSettings,
        specs: Vec<ServedModelSpec>,
        runners: runner::RunnerSettings,
        devices: DeviceEnvironment,
        accounts: &Accounts,
        metrics: &Arc<ServerMetrics>,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let model_settings = specs.iter().map(|spec| spec.settings.clone()).collect();
        let max_loaded = NonZeroUsize::new(settings.max_loaded);
        let models =
            SpeechModels::start_limited(model_settings, max_loaded, runners, Some(accounts), &metrics.residency)?;
        let models = Arc::new(models);

        let mut registered = Vec::new();
        for spec in specs {
            let handle = models.get(spec.name()).ok_or(StartError::NoModel)?;
            let speech = served_model(&spec, handle, &devices, &stop);
            publish_device(&spec, metrics);
            registered.push(RegisteredModel { spec, speech, is_on_demand: false });
        }

        let default_model = Arc::clone(&registered.first().ok_or(StartError::NoModel)?.speech);
        Ok(Self {
            models,
            devices,
            metrics: Arc::clone(metrics),
            stop,
            registered: RwLock::new(RegisteredModels { settings: settings.clone(), models: registered }),
            default_model: RwLock::new(default_model),
        })
    }

    pub const fn models(&self) -> &Arc<SpeechModels> {
        &self.models
    }

    /// Serves the models of `specs` from now on. A model that is no longer among them answers the requests that have
    /// arrived, and is then removed. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If a new model has the name of one that is still being removed; then nothing is changed.
    pub fn apply(&self, settings: ServeSettings, specs: Vec<ServedModelSpec>) -> Result<ReloadChanges, StartError> {
        let mut registered = self.write();
        self.refuse_leaving_models(&registered, &specs)?;

        let mut previous = std::mem::take(&mut registered.models);
        let mut changes = ReloadChanges::default();
        for spec in specs {
            let model = self.add_or_update(spec, &mut previous, &mut changes)?;
            registered.models.push(model);
        }
        if let Some(first) = registered.models.first() {
            *self.default_model.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&first.speech);
        }

        for model in previous {
            if model.is_on_demand && settings.serve_installed {
                registered.models.push(model);
                continue;
            }

            retract_device(&model.spec, &self.metrics);
            let name = model.name().to_owned();
            changes.removed.push(name.clone());
            let models = Arc::clone(&self.models);
            let drain_timeout = settings.drain_timeout;
            tokio::spawn(async move { models.remove(&name, drain_timeout).await });
        }

        registered.settings = settings;
        Ok(changes)
    }

    /// A model that an earlier reload has removed may still answer its last requests: its name is not free yet.
    fn refuse_leaving_models(
        &self,
        registered: &RegisteredModels,
        specs: &[ServedModelSpec],
    ) -> Result<(), StartError> {
        let is_registered = |name: &str| registered.models.iter().any(|model| model.name() == name);
        let new_names = specs.iter().map(ServedModelSpec::name).filter(|name| !is_registered(name));
        match new_names.into_iter().find(|name| self.models.get(name).is_some()) {
            Some(name) => Err(StartError::Twice(name.to_owned())),
            None => Ok(()),
        }
    }

    /// Takes the model of the same name out of `previous`, if there is one, or starts a new model.
    fn add_or_update(
        &self,
        spec: ServedModelSpec,
        previous: &mut Vec<RegisteredModel>,
        changes: &mut ReloadChanges,
    ) -> Result<RegisteredModel, StartError> {
        let name = spec.name().to_owned();
        let same_name = previous.iter().position(|model| model.name() == name);
        let kept = same_name.and_then(|position| {
            retract_device(&previous.remove(position).spec, &self.metrics);
            self.models.get(&name)
        });

        let handle = match kept {
            Some(handle) => {
                handle.update(spec.settings.clone());
                changes.kept.push(name);
                handle
            }
            None => {
                changes.added.push(name);
                self.models.add(spec.settings.clone())?
            }
        };
        let speech = served_model(&spec, handle, &self.devices, &self.stop);
        publish_device(&spec, &self.metrics);
        Ok(RegisteredModel { spec, speech, is_on_demand: false })
    }

    fn read(&self) -> RwLockReadGuard<'_, RegisteredModels> {
        self.registered.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, RegisteredModels> {
        self.registered.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the installed model with this name, which the settings do not name, if the settings allow that.
    fn add_installed(&self, name: &str) -> Option<Arc<ServedModel>> {
        let mut registered = self.write();
        // The name comes from a request, which must never name a path.
        let is_model_name = as_folder(name).is_none() && (is_name(name) || Repo::of(name).is_some());
        if !registered.settings.serve_installed || !is_model_name {
            return None;
        }

        // Another request may have added it in the meantime.
        if let Some(model) = registered.models.iter().find(|model| is_same_model(&model.card().id, name)) {
            return Some(Arc::clone(&model.speech));
        }

        let spec = installed_model_spec(&registered.settings, name, &self.devices)?;
        let handle = self.models.add(spec.settings.clone()).ok()?;
        tracing::info!(model = spec.card.id, "serving an installed model that was asked for");
        let speech = served_model(&spec, handle, &self.devices, &self.stop);
        publish_device(&spec, &self.metrics);
        registered.models.push(RegisteredModel { spec, speech: Arc::clone(&speech), is_on_demand: true });
        Some(speech)
    }
}

/// Publishes on which device the model runs, and why, as a metric.
fn publish_device(spec: &ServedModelSpec, metrics: &ServerMetrics) {
    let labels = device_labels(spec);
    metrics.device_info.with_label_values(&labels.each_ref().map(String::as_str)).set(1.0);
}

fn retract_device(spec: &ServedModelSpec, metrics: &ServerMetrics) {
    let labels = device_labels(spec);
    // Fails only if the labels were never published.
    let _ = metrics.device_info.remove_label_values(&labels.each_ref().map(String::as_str));
}

fn device_labels(spec: &ServedModelSpec) -> [String; 4] {
    let DeviceAssignment { choice, placement, device, .. } = &spec.device;
    let reason = placement.reason.clone().unwrap_or_default();
    [spec.name().to_owned(), choice.to_string(), device.clone(), reason]
}

fn served_model(
    spec: &ServedModelSpec,
    handle: SpeechModelHandle,
    devices: &DeviceEnvironment,
    stop: &CancellationToken,
) -> Arc<ServedModel> {
    let dir = spec.settings.spec.model_dir.clone();
    let model = ServedModel::new(handle, dir, devices.ort_library.clone(), stop.clone());
    Arc::new(model.with_defaults(spec.defaults.clone()))
}

impl ModelCatalogue for ModelRegistry {
    fn default_model(&self) -> Arc<dyn TranscriptionModel> {
        Arc::clone(&*self.default_model.read().unwrap_or_else(PoisonError::into_inner)) as Arc<dyn TranscriptionModel>
    }

    fn find(&self, name: &str) -> Option<Arc<dyn TranscriptionModel>> {
        let registered = self.read();
        if let Some(model) = registered.find(name) {
            return Some(Arc::clone(&model.speech) as Arc<dyn TranscriptionModel>);
        }
        if registered.settings.default_aliases.iter().any(|alias| is_alias(name, alias)) {
            return Some(self.default_model());
        }

        drop(registered);
        self.add_installed(name).map(|speech| speech as Arc<dyn TranscriptionModel>)
    }

    fn cards(&self) -> Vec<ModelCard> {
        let registered = self.read();
        let mut cards: Vec<ModelCard> = registered.models.iter().map(|model| model.card().clone()).collect();
        if !registered.settings.serve_installed {
            return cards;
        }

        for (name, _) in ModelStore::new(&registered.settings.store.models_dir).installed() {
            let is_listed = cards.iter().any(|card| is_same_model(&card.id, &name));
            if !is_listed && let Some(spec) = installed_model_spec(&registered.settings, &name, &self.devices) {
                cards.push(spec.card);
            }
        }
        cards
    }

    fn served(&self) -> Vec<Arc<dyn TranscriptionModel>> {
        self.read().models.iter().map(|model| Arc::clone(&model.speech) as Arc<dyn TranscriptionModel>).collect()
    }
}
