//! The models of one server as its settings say them: found by name, grown on demand, changed by a reload.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::UNIX_EPOCH;

use hush_whisper::TranscribeOptions;
use tokio_util::sync::CancellationToken;

use super::env::Env;
use super::install::{InstallCommandError, find_or_install};
use super::ort_lib;
use super::resolve::{self, Resolved, Store};
use super::settings::{ModelOverrides, ServeSettings};
use super::values::Residency;
use crate::api::{Catalogue, ModelCard, ServedModel, Speech, is_alias, is_same_model};
use crate::hub::{Repo, folder_of};
use crate::metrics::Metrics;
use crate::residency::{self, ModelHandle, ModelSettings, Models, Policy, StartError};
use crate::runner::{self, wire::LoadSpec};

/// One model and how it is to be served.
pub struct Plan {
    pub settings: ModelSettings,
    pub card: ModelCard,
    /// Other names that requests may use.
    pub aliases: Vec<String>,
    pub defaults: TranscribeOptions,
}

impl Plan {
    fn new(settings: &ServeSettings, found: &Resolved, library: &Path) -> Self {
        let own = settings.overrides_of(&found.id);
        Self {
            settings: ModelSettings {
                name: found.id.clone(),
                spec: spec(settings, &own, found, library),
                precision: Some(found.precision.to_string()),
                policy: policy(settings, &own),
            },
            card: card(found),
            aliases: own.aliases,
            defaults: TranscribeOptions {
                language: own.language,
                initial_prompt: own.prompt,
                ..TranscribeOptions::default()
            },
        }
    }
}

fn spec(settings: &ServeSettings, own: &ModelOverrides, found: &Resolved, library: &Path) -> LoadSpec {
    let device = ort_lib::device(own.device.unwrap_or(settings.engine.device), Some(library));
    let threads = own.threads.or(settings.engine.threads);
    let (model_dir, device, max_batch) = (found.dir.clone(), device.to_string(), settings.max_batch);
    LoadSpec { model_dir, device, threads, prepack: false, max_batch }
}

fn policy(settings: &ServeSettings, own: &ModelOverrides) -> Policy {
    let idle_timeout = match own.idle_timeout {
        Some(timeout) => (!timeout.is_zero()).then_some(timeout),
        None => settings.idle_timeout,
    };
    Policy {
        residency: match own.residency.unwrap_or(settings.residency) {
            Residency::Resident => residency::Residency::Resident,
            Residency::Idle => residency::Residency::Idle(idle_timeout),
            Residency::OnDemand => residency::Residency::OnDemand,
        },
        queue_limit: NonZeroUsize::new(own.max_queue.unwrap_or(settings.max_queue)).unwrap_or(NonZeroUsize::MIN),
        concurrency: NonZeroUsize::new(settings.max_batch).unwrap_or(NonZeroUsize::MIN),
        drain: settings.drain_timeout,
        ..Policy::default()
    }
}

fn card(found: &Resolved) -> ModelCard {
    let installed = std::fs::metadata(found.dir.join("model.json")).and_then(|file| file.modified()).ok();
    let created = installed.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs());
    let repo = Repo::of(&found.id);
    let owner = repo.as_ref().and_then(|repo| repo.as_str().split_once('/')).map_or("hush", |(owner, _)| owner);
    ModelCard { id: found.id.clone(), created_seconds: created, owned_by: owner.to_owned() }
}

/// The models that the settings name, the default first; what is missing is installed where that is allowed.
pub fn plan(settings: &ServeSettings, env: &Env, library: &Path) -> Result<Vec<Plan>, InstallCommandError> {
    let store = Store::new(&settings.models_dir);
    let mut names = settings.models.clone();
    if names.is_empty() {
        names.push(store.default_model()?);
    }
    let mut found = Vec::new();
    for name in &names {
        let own = settings.overrides_of(name);
        let device = ort_lib::device(own.device.unwrap_or(settings.engine.device), Some(library));
        let precision = own.precision.unwrap_or(settings.engine.precision);
        let mut resolved = find_or_install(&store, name, precision, device, settings.install_missing, env)?;
        if let Some(name) = own.name {
            resolved.id = name;
        }
        found.push(resolved);
    }
    resolve::check_ids(&found)?;
    Ok(found.iter().map(|found| Plan::new(settings, found, library)).collect())
}

struct Entry {
    plan: Plan,
    speech: Arc<ServedModel>,
    /// Came with a request, not with the settings.
    on_demand: bool,
}

impl Entry {
    fn card(&self) -> &ModelCard {
        &self.plan.card
    }
}

struct Table {
    settings: ServeSettings,
    /// The default first; never empty.
    entries: Vec<Entry>,
}

/// The models of a running server. Requests find them by name; a reload changes which they are and how they live.
pub struct Fleet {
    models: Arc<Models>,
    library: PathBuf,
    stop: CancellationToken,
    table: RwLock<Table>,
    default: RwLock<Arc<ServedModel>>,
}

/// What a reload changed, for the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub kept: Vec<String>,
}

impl Fleet {
    /// Starts what was planned. Must be called inside a tokio runtime.
    pub fn start(
        settings: &ServeSettings,
        plans: Vec<Plan>,
        runners: runner::Settings,
        library: PathBuf,
        metrics: &Arc<Metrics>,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let started = plans.iter().map(|plan| plan.settings.clone()).collect();
        let models = Arc::new(Models::start_limited(started, settings.max_loaded, runners, metrics)?);
        let mut entries = Vec::new();
        for plan in plans {
            let handle = models.get(&plan.settings.name).ok_or(StartError::NoModel)?;
            let speech = served(&plan, handle, &library, &stop);
            entries.push(Entry { plan, speech, on_demand: false });
        }
        let default = RwLock::new(Arc::clone(&entries.first().ok_or(StartError::NoModel)?.speech));
        let table = RwLock::new(Table { settings: settings.clone(), entries });
        Ok(Self { models, library, stop, table, default })
    }

    pub const fn models(&self) -> &Arc<Models> {
        &self.models
    }

    /// Serves what is planned now. Models that are not planned any more finish what has arrived and leave.
    /// Must be called inside a tokio runtime.
    pub fn apply(&self, settings: ServeSettings, plans: Vec<Plan>) -> Result<Changes, StartError> {
        let mut table = self.write();
        let mut before = std::mem::take(&mut table.entries);
        let mut changes = Changes::default();
        for plan in plans {
            let name = plan.settings.name.clone();
            let handle = match before.iter().position(|entry| entry.plan.settings.name == name) {
                Some(at) => {
                    before.remove(at);
                    self.models.get(&name)
                }
                None => None,
            };
            let handle = match handle {
                Some(handle) => {
                    handle.update(plan.settings.spec.clone(), plan.settings.policy);
                    changes.kept.push(name);
                    handle
                }
                None => {
                    changes.added.push(name);
                    self.models.add(plan.settings.clone())?
                }
            };
            let speech = served(&plan, handle, &self.library, &self.stop);
            table.entries.push(Entry { plan, speech, on_demand: false });
        }
        if let Some(first) = table.entries.first() {
            *self.default.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&first.speech);
        }
        let patience = settings.drain_timeout;
        for entry in before {
            if entry.on_demand && settings.serve_installed {
                table.entries.push(entry);
                continue;
            }
            let (models, name) = (Arc::clone(&self.models), entry.plan.settings.name);
            changes.removed.push(name.clone());
            tokio::spawn(async move { models.remove(&name, patience).await });
        }
        table.settings = settings;
        Ok(changes)
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// An installed model that the settings do not name.
    fn find_installed(&self, name: &str) -> Option<Arc<ServedModel>> {
        let mut table = self.write();
        // A request must never name a path.
        let is_model = resolve::as_folder(name).is_none() && (resolve::is_name(name) || Repo::of(name).is_some());
        if !table.settings.serve_installed || !is_model {
            return None;
        }
        if let Some(entry) = table.entries.iter().find(|entry| is_same_model(&entry.plan.card.id, name)) {
            return Some(Arc::clone(&entry.speech));
        }
        let plan = plan_installed(&table.settings, name, &self.library)?;
        let handle = self.models.add(plan.settings.clone()).ok()?;
        tracing::info!(model = plan.card.id, "serving an installed model that was asked for");
        let speech = served(&plan, handle, &self.library, &self.stop);
        table.entries.push(Entry { plan, speech: Arc::clone(&speech), on_demand: true });
        Some(speech)
    }
}

/// `None`: it is not installed, or not in a form that this device runs.
fn plan_installed(settings: &ServeSettings, name: &str, library: &Path) -> Option<Plan> {
    let device = ort_lib::device(settings.engine.device, Some(library));
    let mut found = Store::new(&settings.models_dir).find(name, settings.engine.precision, device).ok()?;
    // One model has one name here, whatever it was asked as.
    found.id = folder_of(name);
    Some(Plan::new(settings, &found, library))
}

fn served(plan: &Plan, handle: ModelHandle, library: &Path, stop: &CancellationToken) -> Arc<ServedModel> {
    let dir = plan.settings.spec.model_dir.clone();
    Arc::new(ServedModel::new(handle, dir, library.to_owned(), stop.clone()).with_defaults(plan.defaults.clone()))
}

impl Catalogue for Fleet {
    fn default_model(&self) -> Arc<dyn Speech> {
        Arc::clone(&*self.default.read().unwrap_or_else(PoisonError::into_inner)) as Arc<dyn Speech>
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Speech>> {
        let table = self.read();
        let entries = || table.entries.iter();
        let own = entries()
            .find(|entry| entry.card().id == name)
            .or_else(|| entries().find(|entry| entry.plan.aliases.iter().any(|alias| alias == name)))
            .or_else(|| entries().find(|entry| is_same_model(&entry.card().id, name)))
            .map(|entry| Arc::clone(&entry.speech));
        if let Some(speech) = own {
            return Some(speech);
        }
        if table.settings.default_aliases.iter().any(|alias| is_alias(name, alias)) {
            return Some(self.default_model());
        }
        drop(table);
        self.find_installed(name).map(|speech| speech as Arc<dyn Speech>)
    }

    fn cards(&self) -> Vec<ModelCard> {
        let table = self.read();
        let mut cards: Vec<ModelCard> = table.entries.iter().map(|entry| entry.card().clone()).collect();
        if table.settings.serve_installed {
            for (name, _) in Store::new(&table.settings.models_dir).installed() {
                if !cards.iter().any(|card| is_same_model(&card.id, &name))
                    && let Some(plan) = plan_installed(&table.settings, &name, &self.library)
                {
                    cards.push(plan.card);
                }
            }
        }
        cards
    }

    fn served(&self) -> Vec<Arc<dyn Speech>> {
        self.read().entries.iter().map(|entry| Arc::clone(&entry.speech) as Arc<dyn Speech>).collect()
    }
}
