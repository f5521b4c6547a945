//! `hush-server install`, and the install of a model that `serve` was asked for and does not have.
//!
//! Blocking: call it from a thread of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use hush_whisper::checkpoint::Checkpoint;
use hush_whisper::{InstallError, InstallOptions, install};

use super::env::Env;
use super::progress::Meter;
use super::resolve::{ResolveError, Resolved, Store, as_folder, best, is_name};
use super::settings::InstallSettings;
use super::values::{Device, Precision, PrecisionChoice};
use crate::hub::{self, HubConfig, HubError, Repo};

/// Downloads lie here below the models folder until they are installed.
const DOWNLOADS: &str = ".download";

#[derive(Debug, thiserror::Error)]
pub enum InstallCommandError {
    #[error(
        "{0:?} is neither a folder, nor a file, nor a model of the hub; expected a path such as ./my-model or ./base.pt, \
         OWNER/NAME, or one of {1}"
    )]
    UnknownSource(String, String),
    #[error("{} has no name to call the model by; give one with --name", .0.display())]
    NoName(PathBuf),
    #[error(
        "{} would be installed as `{name}`, but that model comes from {taken_by}; install it under another name: \
         hush-server install {} --name NAME",
        .path.display(), .path.display()
    )]
    NameTaken { path: PathBuf, name: String, taken_by: String },
    #[error(
        "{0:?} cannot be the name of a model; letters, digits, `.`, `_` and `-` are allowed, a letter or digit first"
    )]
    BadName(String),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error("installing {source_label}: {cause}")]
    Install {
        source_label: String,
        #[source]
        cause: InstallError,
    },
    #[error("{}: {cause}", .path.display())]
    Disk {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error(transparent)]
    Resolve(#[from] ResolveError),
}

fn disk(path: &Path) -> impl FnOnce(std::io::Error) -> InstallCommandError {
    let path = path.to_owned();
    move |cause| InstallCommandError::Disk { path, cause }
}

enum Source {
    /// A folder or file of any format of [`hush_whisper::checkpoint::CheckpointFormat`].
    Local(PathBuf),
    Hub(Repo),
}

/// One model to install.
struct Order<'a> {
    store: &'a Store,
    source: Source,
    /// Folder below the models folder.
    name: String,
    precisions: Vec<Precision>,
    /// A revision that was asked for; without one, a copy on this machine will do.
    revision: Option<&'a str>,
    force: bool,
    keep_download: bool,
}

/// Installs every source and returns the model directories, in the order of the arguments.
pub fn run(settings: &InstallSettings, env: &Env, device: Device) -> Result<Vec<PathBuf>, InstallCommandError> {
    let store = Store::new(&settings.store.models_dir);
    let mut precisions: Vec<Precision> = settings.precisions.iter().map(|choice| exact(*choice, device)).collect();
    precisions.sort_unstable();
    precisions.dedup();
    let mut installed = Vec::new();
    for source in &settings.sources {
        let source = source_of(source)?;
        let order = Order {
            store: &store,
            name: name_of(&source, settings.name.as_deref())?,
            source,
            precisions: precisions.clone(),
            revision: settings.revision.as_deref(),
            force: settings.force,
            keep_download: settings.keep_download,
        };
        installed.extend(order.carry_out(env)?);
    }
    Ok(installed)
}

/// What is done about a model that is not installed and has a repository on the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It is an error.
    Refuse,
    Install,
    /// It is taken for installed: the hub is for those who mean it.
    Foresee,
}

/// The model directory of `model`.
pub fn find_or_install(
    store: &Store,
    model: &str,
    wanted: PrecisionChoice,
    device: Device,
    missing: Missing,
    env: &Env,
) -> Result<Resolved, InstallCommandError> {
    let error = match store.find(model, wanted, device) {
        Err(error) if missing != Missing::Refuse => error,
        found => return Ok(found?),
    };
    if let ResolveError::Checkpoint(path) = &error {
        return install_checkpoint(store, path, wanted, device, missing, env);
    }
    let ResolveError::NotInstalled { repo, precision, installed, .. } = &error else { return Err(error.into()) };
    let precision = *precision;
    let source = repo.clone().map(Source::Hub).or_else(|| known_checkpoint(&store.folder(model), installed));
    let Some(source) = source else { return Err(error.into()) };
    if missing == Missing::Foresee {
        let dir = store.folder(model).join(precision.as_str());
        return Ok(Resolved { id: model.to_owned(), dir, precision });
    }
    let from = match &source {
        Source::Hub(repo) => repo.to_string(),
        Source::Local(path) => path.display().to_string(),
    };
    tracing::info!(model, from, %precision, "not installed in this precision; installing it");
    Order::of_missing(store, hub::folder_of(model), source, precision).carry_out(env)?;
    Ok(store.find(model, wanted, device)?)
}

/// The model directory of a checkpoint that is given by its path: that of an earlier install, or a new one.
fn install_checkpoint(
    store: &Store,
    path: &Path,
    wanted: PrecisionChoice,
    device: Device,
    missing: Missing,
    env: &Env,
) -> Result<Resolved, InstallCommandError> {
    let path = fs::canonicalize(path).map_err(disk(path))?;
    let source = Source::Local(path.clone());
    let name = name_of(&source, None)?;
    if let Some((_, precisions)) = store.installed().into_iter().find(|(installed, _)| *installed == name) {
        let of = precisions.first().map(|precision| store.folder(&name).join(precision.as_str()));
        let taken_by = of.and_then(|dir| Some(hush_whisper::ModelDir::open(&dir).ok()?.manifest().source.clone()));
        let taken_by = taken_by.unwrap_or_else(|| "an install that is damaged".to_owned());
        if taken_by != path.display().to_string() {
            return Err(InstallCommandError::NameTaken { path, name, taken_by });
        }
        if let Ok(found) = store.find(&name, wanted, device) {
            return Ok(found);
        }
    }

    let precision = exact(wanted, device);
    let dir = store.folder(&name).join(precision.as_str());
    if missing == Missing::Install {
        tracing::info!(model = name, from = %path.display(), %precision, "a checkpoint that is not installed; installing it");
        Order::of_missing(store, name.clone(), source, precision).carry_out(env)?;
    }
    Ok(Resolved { id: name, dir, precision })
}

/// The checkpoint that a model was installed from in another precision, where it is still there.
fn known_checkpoint(folder: &Path, installed: &[Precision]) -> Option<Source> {
    installed.iter().find_map(|precision| {
        let model = hush_whisper::ModelDir::open(&folder.join(precision.as_str())).ok()?;
        let checkpoint = PathBuf::from(&model.manifest().source);
        let readable = checkpoint.is_absolute() && Checkpoint::open(&checkpoint).is_ok();
        readable.then_some(Source::Local(checkpoint))
    })
}

fn exact(choice: PrecisionChoice, device: Device) -> Precision {
    match choice {
        PrecisionChoice::Auto => best(device),
        PrecisionChoice::Exactly(precision) => precision,
    }
}

fn source_of(text: &str) -> Result<Source, InstallCommandError> {
    if let Some(folder) = as_folder(text) {
        return Ok(Source::Local(folder));
    }
    if let Some(repo) = Repo::of(text) {
        return Ok(Source::Hub(repo));
    }
    // Unlike `--model`, this takes a folder or file by its bare name: a word that is no model can mean nothing else.
    if Path::new(text).exists() {
        return Ok(Source::Local(text.into()));
    }
    let names: Vec<_> = hub::short_names().collect();
    Err(InstallCommandError::UnknownSource(text.to_owned(), names.join(", ")))
}

fn name_of(source: &Source, given: Option<&str>) -> Result<String, InstallCommandError> {
    let name = match (given, source) {
        (Some(given), _) => hub::folder_of(given),
        (None, Source::Hub(repo)) => repo.folder(),
        (None, Source::Local(folder)) => {
            // The name of `.` is that of the folder it stands for.
            let whole = fs::canonicalize(folder).map_err(disk(folder))?;
            let name = whole.file_name().map(|name| name.to_string_lossy().into_owned());
            let name = name.ok_or_else(|| InstallCommandError::NoName(folder.clone()))?;
            if whole.is_file() { model_name(&name).to_owned() } else { name }
        }
    };
    if is_name(&name) { Ok(name) } else { Err(InstallCommandError::BadName(name)) }
}

/// The model's name in the name of a file: `base.en` of `base.en.pt` and of `ggml-base.en.bin`.
fn model_name(file_name: &str) -> &str {
    let name = file_name.strip_suffix(".pt").or_else(|| file_name.strip_suffix(".bin")).unwrap_or(file_name);
    name.strip_prefix("ggml-").unwrap_or(name)
}

impl<'a> Order<'a> {
    /// A model that `serve` or `transcribe` was asked for and that is not installed.
    fn of_missing(store: &'a Store, name: String, source: Source, precision: Precision) -> Self {
        Self { store, source, name, precisions: vec![precision], revision: None, force: false, keep_download: false }
    }

    fn carry_out(self, env: &Env) -> Result<Vec<PathBuf>, InstallCommandError> {
        let downloads = self.store.models_dir.join(DOWNLOADS);
        fs::create_dir_all(&downloads).map_err(disk(&downloads))?;
        // Two servers that start together on one models folder: the second finds the work done.
        let _lock = self.lock(&downloads)?;
        let folder = self.store.models_dir.join(&self.name);
        let (there, missing): (Vec<Precision>, Vec<Precision>) = self.precisions.iter().partition(|precision| {
            !self.force && folder.join(precision.as_str()).join(hush_whisper::model_dir::MANIFEST).is_file()
        });
        for precision in there {
            tracing::info!(model = self.name, %precision, "is installed already; --force installs it again");
        }
        if !missing.is_empty() {
            match &self.source {
                Source::Local(path) => {
                    let label = fs::canonicalize(path).map_err(disk(path))?.display().to_string();
                    self.build(path, &label, &missing)?;
                }
                Source::Hub(repo) => match self.local_copy(repo, env) {
                    Some(path) => self.build(&path, &path.display().to_string(), &missing)?,
                    None => self.build_from_hub(repo, env, &downloads, &missing)?,
                },
            }
        }
        Ok(self.precisions.iter().map(|precision| folder.join(precision.as_str())).collect())
    }

    fn lock(&self, downloads: &Path) -> Result<File, InstallCommandError> {
        let path = downloads.join(format!("{}.lock", self.name));
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(disk(&path))?;
        if file.try_lock().is_err() {
            tracing::info!(model = self.name, "another process installs this model; waiting for it");
            file.lock().map_err(disk(&path))?;
        }
        Ok(file)
    }

    /// A whole copy of the model that another program left on this machine.
    fn local_copy(&self, repo: &Repo, env: &Env) -> Option<PathBuf> {
        if self.revision.is_some() {
            return None;
        }
        let copies = hub::local_copies(repo, &self.store.models_dir, env);
        copies.into_iter().find_map(|path| {
            let path = fs::canonicalize(&path).unwrap_or(path);
            match Checkpoint::open(&path) {
                Ok(_) => {
                    tracing::info!(%repo, copy = %path.display(), "this machine has a copy of the model; nothing is downloaded");
                    Some(path)
                }
                Err(error) => {
                    tracing::warn!(%repo, copy = %path.display(), %error, "a copy of the model cannot be used");
                    None
                }
            }
        })
    }

    fn build_from_hub(
        &self,
        repo: &Repo,
        env: &Env,
        downloads: &Path,
        precisions: &[Precision],
    ) -> Result<(), InstallCommandError> {
        let config = HubConfig::from_env(env)?;
        let mut meter = Meter::new(format!("downloading {repo}"));
        let checkpoint =
            hub::download(&config, repo, self.revision.unwrap_or("main"), downloads, &mut |event| meter.hub(event))?;
        drop(meter);
        tracing::info!(%repo, commit = checkpoint.commit, "downloaded");
        let label = format!("{}@{}", checkpoint.repo, checkpoint.commit);
        self.build(&checkpoint.dir, &label, precisions)?;
        if !self.keep_download {
            fs::remove_dir_all(&checkpoint.dir).map_err(disk(&checkpoint.dir))?;
        }
        Ok(())
    }

    fn build(&self, checkpoint: &Path, label: &str, precisions: &[Precision]) -> Result<(), InstallCommandError> {
        for precision in precisions {
            let options = InstallOptions {
                name: self.name.clone(),
                precision: (*precision).into(),
                source_label: label.to_owned(),
            };
            let mut meter = Meter::new(format!("installing {} as {precision}", self.name));
            let mut report = |progress: hush_whisper::Progress| meter.set(progress.done_bytes, progress.total_bytes);
            let installed = install(checkpoint, &self.store.models_dir, &options, &mut report);
            drop(meter);
            let dir =
                installed.map_err(|cause| InstallCommandError::Install { source_label: label.to_owned(), cause })?;
            tracing::info!(model = self.name, %precision, dir = %dir.display(), "installed");
        }
        Ok(())
    }
}
