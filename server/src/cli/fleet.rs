//! The models of one server as its settings say them: found by name, grown on demand, changed by a reload.

use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::UNIX_EPOCH;

use hush_whisper::TranscribeOptions;
use hush_whisper::vad::SOURCE;
use tokio_util::sync::CancellationToken;

use super::env::Env;
use super::ground::{Ground, Site};
use super::install::{InstallCommandError, Missing, find_or_install};
use super::model_placement::find_model;
use super::resolve::{self, Resolved, Store};
use super::settings::{ModelOverrides, ServeSettings, SettingError};
use super::values::Residency;
use crate::api::{Catalogue, ModelCard, ServedModel, Speech, is_alias, is_same_model};
use crate::gpu::{AccountSettings, Accounts, estimate_bytes};
use crate::hub::{Repo, folder_of};
use crate::metrics::Metrics;
use crate::residency::{self, ModelHandle, ModelSettings, Models, Policy, StartError};
use crate::runner::{self, wire::LoadSpec};

/// One model and how it is to be served.
pub struct Plan {
    pub settings: ModelSettings,
    pub site: Site,
    pub card: ModelCard,
    /// Other names that requests may use.
    pub aliases: Vec<String>,
    pub defaults: TranscribeOptions,
}

impl Plan {
    fn new(settings: &ServeSettings, own: ModelOverrides, found: &Resolved, site: Site) -> Self {
        Self {
            settings: ModelSettings {
                name: found.id.clone(),
                spec: LoadSpec {
                    model_dir: found.dir.clone(),
                    device: site.device.clone(),
                    threads: own.threads.or(settings.engine.threads),
                    prepack: false,
                    max_batch: settings.max_batch,
                    memory_limit_bytes: None,
                },
                precision: Some(found.precision.to_string()),
                policy: policy(settings, &own),
                account: account(settings, found, &site),
            },
            site,
            card: card(found),
            aliases: own.aliases,
            defaults: settings.engine.fallback.apply(own.defaults),
        }
    }
}

/// Where its device memory is counted; `None`: it uses none.
fn account(settings: &ServeSettings, found: &Resolved, site: &Site) -> Option<AccountSettings> {
    let gpu = site.gpu?;
    // A directory that cannot be read is the load's to explain.
    let files = hush_whisper::ModelDir::open(&found.dir).ok();
    Some(AccountSettings {
        gpu,
        precision: found.precision.to_string(),
        weights_bytes: files.as_ref().map_or(0, hush_whisper::ModelDir::bytes),
        estimate_bytes: files.as_ref().map_or(0, |files| estimate_bytes(files, settings.max_batch)),
    })
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

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Model(#[from] InstallCommandError),
    #[error(transparent)]
    Resolve(#[from] resolve::ResolveError),
    #[error(transparent)]
    Device(#[from] SettingError),
    #[error(
        "model `{0}` detects voice activity by default, and the model for that is not here: fetch {SOURCE} and put it \
         beside ONNX Runtime's library, or give its path with --vad-model"
    )]
    NoVad(String),
}

/// The models that the settings name, the default first; what is missing is installed where that is allowed, and not by
/// who only looks at the settings.
pub fn plan(settings: &ServeSettings, env: &Env, ground: &Ground) -> Result<Vec<Plan>, PlanError> {
    let store = Store::new(&settings.store.models_dir);
    let mut names = settings.models.clone();
    if names.is_empty() {
        names.push(store.default_model()?);
    }
    let missing = match (settings.install_missing, settings.check_config) {
        (false, _) => Missing::Refuse,
        (true, false) => Missing::Install,
        (true, true) => Missing::Foresee,
    };
    let mut planned = Vec::new();
    for name in &names {
        let own = settings.overrides_of(name);
        let precision = own.precision.unwrap_or(settings.engine.precision);
        let asked = own.device.unwrap_or(settings.engine.device);
        let (mut resolved, placement) = find_model(
            asked,
            || ground.placement(asked),
            precision,
            |device| find_or_install(&store, name, precision, device, missing, env),
            |device| store.find(name, precision, device),
        )?;
        let site = ground.site(asked, placement)?;
        if let Some(name) = &own.name {
            resolved.id.clone_from(name);
        }
        planned.push((resolved, own, site));
    }
    resolve::check_ids(planned.iter().map(|(found, ..)| found.id.as_str()))?;
    if let Some((found, ..)) = planned.iter().find(|(_, own, _)| own.defaults.vad.is_some() && !ground.has_vad) {
        return Err(PlanError::NoVad(found.id.clone()));
    }
    Ok(planned.into_iter().map(|(found, own, site)| Plan::new(settings, own, &found, site)).collect())
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
    ground: Ground,
    metrics: Arc<Metrics>,
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
        ground: Ground,
        accounts: &Accounts,
        metrics: &Arc<Metrics>,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let started = plans.iter().map(|plan| plan.settings.clone()).collect();
        let models = Arc::new(Models::start_limited(
            started,
            NonZeroUsize::new(settings.max_loaded),
            runners,
            Some(accounts),
            metrics,
        )?);
        let mut entries = Vec::new();
        for plan in plans {
            let handle = models.get(&plan.settings.name).ok_or(StartError::NoModel)?;
            let speech = served(&plan, handle, &ground, &stop);
            announce(&plan, metrics);
            entries.push(Entry { plan, speech, on_demand: false });
        }
        let default = RwLock::new(Arc::clone(&entries.first().ok_or(StartError::NoModel)?.speech));
        let table = RwLock::new(Table { settings: settings.clone(), entries });
        Ok(Self { models, ground, metrics: Arc::clone(metrics), stop, table, default })
    }

    pub const fn models(&self) -> &Arc<Models> {
        &self.models
    }

    /// Serves what is planned now. Models that are not planned any more finish what has arrived and leave.
    /// Must be called inside a tokio runtime.
    pub fn apply(&self, settings: ServeSettings, plans: Vec<Plan>) -> Result<Changes, StartError> {
        let mut table = self.write();
        let is_kept = |name: &str| table.entries.iter().any(|entry| entry.plan.settings.name == name);
        // Before anything is changed: a model of that name may still be on its way out.
        let leaving = plans.iter().map(|plan| plan.settings.name.as_str());
        if let Some(name) = leaving.filter(|name| !is_kept(name)).find(|name| self.models.get(name).is_some()) {
            return Err(StartError::Twice(name.to_owned()));
        }
        let mut before = std::mem::take(&mut table.entries);
        let mut changes = Changes::default();
        for plan in plans {
            let name = plan.settings.name.clone();
            let handle = match before.iter().position(|entry| entry.plan.settings.name == name) {
                Some(at) => {
                    retract(&before.remove(at).plan, &self.metrics);
                    self.models.get(&name)
                }
                None => None,
            };
            let handle = match handle {
                Some(handle) => {
                    handle.update(plan.settings.clone());
                    changes.kept.push(name);
                    handle
                }
                None => {
                    changes.added.push(name);
                    self.models.add(plan.settings.clone())?
                }
            };
            let speech = served(&plan, handle, &self.ground, &self.stop);
            announce(&plan, &self.metrics);
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
            retract(&entry.plan, &self.metrics);
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
        let plan = plan_installed(&table.settings, name, &self.ground)?;
        let handle = self.models.add(plan.settings.clone()).ok()?;
        tracing::info!(model = plan.card.id, "serving an installed model that was asked for");
        let speech = served(&plan, handle, &self.ground, &self.stop);
        announce(&plan, &self.metrics);
        table.entries.push(Entry { plan, speech: Arc::clone(&speech), on_demand: true });
        Some(speech)
    }
}

/// `None`: it is not installed, or not in a form that this device runs.
fn plan_installed(settings: &ServeSettings, name: &str, ground: &Ground) -> Option<Plan> {
    let store = Store::new(&settings.store.models_dir);
    let (asked, precision) = (settings.engine.device, settings.engine.precision);
    let find = |device| store.find(name, precision, device);
    let place = || ground.placement(asked);
    let found = find_model(asked, place, precision, |device| find(device).map_err(Into::into), find);
    let (mut found, placement) = found.ok()?;
    let site = ground.site(asked, placement).ok()?;
    // One model has one name here, whatever it was asked as.
    found.id = folder_of(name);
    let own = settings.overrides_of(&found.id);
    Some(Plan::new(settings, own, &found, site))
}

/// Where the model runs, for the metrics.
fn announce(plan: &Plan, metrics: &Metrics) {
    let labels = device_labels(plan);
    metrics.device_info.with_label_values(&labels.each_ref().map(String::as_str)).set(1.0);
}

/// Takes back what [`announce`] has said.
fn retract(plan: &Plan, metrics: &Metrics) {
    let labels = device_labels(plan);
    // Fails only where it was never said.
    let _ = metrics.device_info.remove_label_values(&labels.each_ref().map(String::as_str));
}

fn device_labels(plan: &Plan) -> [String; 4] {
    let Site { asked, placement, device, .. } = &plan.site;
    [plan.settings.name.clone(), asked.to_string(), device.clone(), placement.reason.clone().unwrap_or_default()]
}

fn served(plan: &Plan, handle: ModelHandle, ground: &Ground, stop: &CancellationToken) -> Arc<ServedModel> {
    let dir = plan.settings.spec.model_dir.clone();
    Arc::new(ServedModel::new(handle, dir, ground.library.clone(), stop.clone()).with_defaults(plan.defaults.clone()))
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
            for (name, _) in Store::new(&table.settings.store.models_dir).installed() {
                if !cards.iter().any(|card| is_same_model(&card.id, &name))
                    && let Some(plan) = plan_installed(&table.settings, &name, &self.ground)
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
