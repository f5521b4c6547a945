//! Which models are served and how: the settings, the models folder and the devices come to one spec for each model.

use std::num::NonZeroUsize;
use std::time::UNIX_EPOCH;

use hush_whisper::vad::SOURCE;
use hush_whisper::{ModelDir, TranscribeOptions};

use super::device_environment::{DeviceAssignment, DeviceEnvironment};
use super::device_placement::find_model_for_device;
use super::model_install::{InstallCommandError, MissingModel, ModelInstaller, ProgressDisplay};
use super::model_store::{ModelStore, ModelStoreError, StoredModel, check_ids};
use crate::api::ModelCard;
use crate::cli::env::Env;
use crate::cli::settings::{ModelOverrides, ServeSettings, SettingError};
use crate::cli::values::ResidencyChoice;
use crate::gpu::{AccountSettings, estimate_bytes};
use crate::hub::{Repo, folder_of};
use crate::residency::{self, LifecycleSettings, SpeechModelSettings};
use crate::runner::wire::LoadSpec;

/// One model and how it is to be served.
pub struct ServedModelSpec {
    pub settings: SpeechModelSettings,
    pub device: DeviceAssignment,
    pub card: ModelCard,
    /// Other names that requests may use.
    pub aliases: Vec<String>,
    /// The options of requests that do not give them.
    pub defaults: TranscribeOptions,
}

impl ServedModelSpec {
    fn new(settings: &ServeSettings, overrides: ModelOverrides, found: &StoredModel, device: DeviceAssignment) -> Self {
        let load_spec = LoadSpec {
            model_dir: found.dir.clone(),
            device: device.device.clone(),
            threads: overrides.threads.or(settings.engine.threads),
            prepack: false,
            max_batch: settings.max_batch,
            memory_limit_bytes: None,
        };
        let model_settings = SpeechModelSettings {
            name: found.id.clone(),
            spec: load_spec,
            precision: Some(found.precision.to_string()),
            lifecycle: lifecycle_settings(settings, &overrides),
            account: account_settings(settings, found, &device),
        };

        Self {
            settings: model_settings,
            device,
            card: model_card(found),
            aliases: overrides.aliases,
            defaults: settings.engine.apply(overrides.defaults),
        }
    }

    pub fn name(&self) -> &str {
        &self.settings.name
    }
}

/// How the device memory of a model is counted; `None`: the model uses none.
fn account_settings(
    settings: &ServeSettings,
    found: &StoredModel,
    device: &DeviceAssignment,
) -> Option<AccountSettings> {
    let gpu = device.gpu?;
    // The load reports the problem of a directory that cannot be read.
    let model = ModelDir::open(&found.dir).ok();
    Some(AccountSettings {
        gpu,
        precision: found.precision.to_string(),
        weights_bytes: model.as_ref().map_or(0, ModelDir::bytes),
        estimate_bytes: model.as_ref().map_or(0, |model| estimate_bytes(model, settings.max_batch)),
    })
}

fn lifecycle_settings(settings: &ServeSettings, overrides: &ModelOverrides) -> LifecycleSettings {
    let idle_timeout = match overrides.idle_timeout {
        Some(timeout) => (!timeout.is_zero()).then_some(timeout),
        None => settings.idle_timeout,
    };
    let residency = match overrides.residency.unwrap_or(settings.residency) {
        ResidencyChoice::Resident => residency::ResidencyRule::Resident,
        ResidencyChoice::Idle => residency::ResidencyRule::Idle(idle_timeout),
        ResidencyChoice::OnDemand => residency::ResidencyRule::OnDemand,
    };
    let queue_limit = overrides.max_queue.unwrap_or(settings.max_queue);

    LifecycleSettings {
        residency,
        queue_limit: NonZeroUsize::new(queue_limit).unwrap_or(NonZeroUsize::MIN),
        concurrency: NonZeroUsize::new(settings.max_batch).unwrap_or(NonZeroUsize::MIN),
        drain: settings.drain_timeout,
        ..LifecycleSettings::default()
    }
}

fn model_card(found: &StoredModel) -> ModelCard {
    let installed_at = std::fs::metadata(found.dir.join("model.json")).and_then(|file| file.modified()).ok();
    let since_epoch = installed_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let repo = Repo::of(&found.id);
    let owner = repo.as_ref().and_then(|repo| repo.as_str().split_once('/')).map_or("hush", |(owner, _)| owner);

    ModelCard {
        id: found.id.clone(),
        created_seconds: since_epoch.map_or(0, |since| since.as_secs()),
        owned_by: owner.to_owned(),
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ModelSpecError {
    #[error(transparent)]
    Model(#[from] InstallCommandError),
    #[error(transparent)]
    Store(#[from] ModelStoreError),
    #[error(transparent)]
    Device(#[from] SettingError),
    #[error(
        "model `{0}` detects voice activity by default, and the model for that is not here: fetch {SOURCE} and put it \
         beside ONNX Runtime's library, or give its path with --vad-model"
    )]
    NoVad(String),
}

/// The specs of the models that the settings name, the default model first. Missing models are installed if the settings
/// allow it; `--check-config` installs nothing.
///
/// # Errors
/// If a model is not there, cannot be installed, or cannot run on its device.
pub fn model_specs(
    settings: &ServeSettings,
    env: &Env,
    devices: &DeviceEnvironment,
    progress: &dyn ProgressDisplay,
) -> Result<Vec<ServedModelSpec>, ModelSpecError> {
    let store = ModelStore::new(&settings.store.models_dir);
    let installer = ModelInstaller { store: &store, env, progress };
    let missing = match (settings.install_missing, settings.check_config) {
        (false, _) => MissingModel::Refuse,
        (true, false) => MissingModel::Install,
        (true, true) => MissingModel::AssumeInstalled,
    };

    let mut names = settings.models.clone();
    if names.is_empty() {
        names.push(store.default_model()?);
    }

    let mut found_models = Vec::new();
    for name in &names {
        let overrides = settings.overrides_of(name);
        let precision = overrides.precision.unwrap_or(settings.engine.precision);
        let choice = overrides.device.unwrap_or(settings.engine.device);
        let (mut found, placement) = find_model_for_device(
            choice,
            || devices.place(choice),
            precision,
            |device| installer.find_or_install(name, precision, device, missing),
            |device| store.find(name, precision, device),
        )?;
        let assignment = devices.assign(choice, placement)?;

        if let Some(name) = &overrides.name {
            found.id.clone_from(name);
        }
        found_models.push((found, overrides, assignment));
    }

    check_ids(found_models.iter().map(|(found, ..)| found.id.as_str()))?;
    let needs_vad = |overrides: &ModelOverrides| overrides.defaults.vad.is_some() && !devices.has_vad;
    if let Some((found, ..)) = found_models.iter().find(|(_, overrides, _)| needs_vad(overrides)) {
        return Err(ModelSpecError::NoVad(found.id.clone()));
    }

    let specs = found_models.into_iter();
    Ok(specs.map(|(found, overrides, device)| ServedModelSpec::new(settings, overrides, &found, device)).collect())
}

/// The spec of an installed model that the settings do not name. `None`: the model is not installed, or not in a precision
/// that the device runs.
pub fn installed_model_spec(
    settings: &ServeSettings,
    name: &str,
    devices: &DeviceEnvironment,
) -> Option<ServedModelSpec> {
    let store = ModelStore::new(&settings.store.models_dir);
    let choice = settings.engine.device;
    let precision = settings.engine.precision;

    let find_installed = |device| store.find(name, precision, device);
    let find = |device| find_installed(device).map_err(Into::into);
    let place = || devices.place(choice);
    let (mut found, placement) = find_model_for_device(choice, place, precision, find, find_installed).ok()?;
    let assignment = devices.assign(choice, placement).ok()?;

    // The model has one name on this server, whichever of its names the request has used.
    found.id = folder_of(name);
    let overrides = settings.overrides_of(&found.id);
    Some(ServedModelSpec::new(settings, overrides, &found, assignment))
}
