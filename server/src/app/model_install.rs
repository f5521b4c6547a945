//! Installs models: those of `hush-server install`, and a model that `serve` or `transcribe` needs and does not find.
//!
//! The functions block: call them from a thread of their own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use hush_whisper::checkpoint::Checkpoint;
use hush_whisper::{InstallError, InstallOptions, ModelDir, install};

use super::model_store::{ModelStore, ModelStoreError, StoredModel, as_folder, best_precision, is_name};
use crate::cli::env::Env;
use crate::cli::settings::InstallSettings;
use crate::cli::values::{ComputeDevice, PrecisionChoice, PrecisionWord};
use crate::hub::{self, DownloadedCheckpoint, HubConfig, HubError, Repo};

/// The folder below the models folder in which downloads lie until they are installed.
const DOWNLOADS: &str = ".download";

/// Shows how far the tasks of an installation have come.
pub trait ProgressDisplay: Send + Sync {
    /// `task`: a phrase such as "downloading openai/whisper-base".
    fn begin(&self, task: String) -> Box<dyn TaskMeter>;
}

/// Shows how far one task has come, until it is dropped.
pub trait TaskMeter {
    fn set_bytes(&mut self, done: u64, total: u64);

    fn show_download(&mut self, event: hub::DownloadEvent<'_>);
}

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
    Store(#[from] ModelStoreError),
}

fn disk(path: &Path) -> impl FnOnce(std::io::Error) -> InstallCommandError {
    let path = path.to_owned();
    move |cause| InstallCommandError::Disk { path, cause }
}

enum InstallSource {
    /// A folder or file of any format of [`hush_whisper::checkpoint::CheckpointFormat`].
    Local(PathBuf),
    Hub(Repo),
}

/// What happens if a model is not installed and its checkpoint is known: a repository on the hub or a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingModel {
    /// It is an error.
    Refuse,
    /// It is installed.
    Install,
    /// It is treated as installed, for a command that only shows the settings.
    AssumeInstalled,
}

/// Installs models into one models folder.
pub struct ModelInstaller<'a> {
    pub store: &'a ModelStore,
    /// The variables of the Hugging Face hub.
    pub env: &'a Env,
    pub progress: &'a dyn ProgressDisplay,
}

/// One model to install.
struct InstallTask<'a> {
    source: InstallSource,
    /// Name of the folder below the models folder.
    name: String,
    precisions: Vec<PrecisionWord>,
    /// The revision that the user names. Without one, a copy of the model on this machine is used.
    revision: Option<&'a str>,
    force: bool,
    keep_download: bool,
}

impl InstallTask<'_> {
    /// The installation of a model that `serve` or `transcribe` needs.
    fn of_missing_model(source: InstallSource, name: String, precision: PrecisionWord) -> Self {
        Self { source, name, precisions: vec![precision], revision: None, force: false, keep_download: false }
    }
}

impl ModelInstaller<'_> {
    /// Installs every source of the command and returns the model directories, in the order of the arguments.
    ///
    /// # Errors
    /// If a source is unknown, or cannot be downloaded, converted or written.
    pub fn install_all(
        &self,
        settings: &InstallSettings,
        device: ComputeDevice,
    ) -> Result<Vec<PathBuf>, InstallCommandError> {
        let mut precisions: Vec<PrecisionWord> =
            settings.precisions.iter().map(|choice| exact_precision(*choice, device)).collect();
        precisions.sort_unstable();
        precisions.dedup();

        let mut installed = Vec::new();
        for source in &settings.sources {
            let source = parse_source(source)?;
            let task = InstallTask {
                name: model_name(&source, settings.name.as_deref())?,
                source,
                precisions: precisions.clone(),
                revision: settings.revision.as_deref(),
                force: settings.force,
                keep_download: settings.keep_download,
            };
            installed.extend(self.install(&task)?);
        }
        Ok(installed)
    }

    /// The directory of `model`, which is a name or a path. A model that is not there is treated as `missing` says.
    ///
    /// # Errors
    /// If the model is not installed and is not to be, or cannot be installed.
    pub fn find_or_install(
        &self,
        model: &str,
        wanted: PrecisionChoice,
        device: ComputeDevice,
        missing: MissingModel,
    ) -> Result<StoredModel, InstallCommandError> {
        let error = match self.store.find(model, wanted, device) {
            Err(error) if missing != MissingModel::Refuse => error,
            found => return Ok(found?),
        };

        let (precision, source) = match &error {
            ModelStoreError::Checkpoint(path) => {
                return self.find_or_install_checkpoint(path, wanted, device, missing);
            }
            ModelStoreError::NotInstalled { repo, precision, installed, .. } => {
                let from_hub = repo.clone().map(InstallSource::Hub);
                (*precision, from_hub.or_else(|| self.earlier_checkpoint(model, installed)))
            }
            _ => return Err(error.into()),
        };
        let Some(source) = source else { return Err(error.into()) };

        if missing == MissingModel::AssumeInstalled {
            return Ok(StoredModel { id: model.to_owned(), dir: self.store.dir(model, precision), precision });
        }

        let from = match &source {
            InstallSource::Hub(repo) => repo.to_string(),
            InstallSource::Local(path) => path.display().to_string(),
        };
        tracing::info!(model, from, %precision, "not installed in this precision; installing it");
        self.install(&InstallTask::of_missing_model(source, hub::folder_of(model), precision))?;
        Ok(self.store.find(model, wanted, device)?)
    }

    /// The model directory of a checkpoint that is given by its path: that of an earlier install, or a new one.
    fn find_or_install_checkpoint(
        &self,
        path: &Path,
        wanted: PrecisionChoice,
        device: ComputeDevice,
        missing: MissingModel,
    ) -> Result<StoredModel, InstallCommandError> {
        let path = fs::canonicalize(path).map_err(disk(path))?;
        let source = InstallSource::Local(path.clone());
        let name = model_name(&source, None)?;

        let installed_models = self.store.installed();
        if let Some((_, precisions)) = installed_models.iter().find(|(installed, _)| *installed == name) {
            let taken_by = self.installed_from(&name, precisions);
            if taken_by != path.display().to_string() {
                return Err(InstallCommandError::NameTaken { path, name, taken_by });
            }
            if let Ok(found) = self.store.find(&name, wanted, device) {
                return Ok(found);
            }
        }

        let precision = exact_precision(wanted, device);
        let dir = self.store.dir(&name, precision);
        if missing == MissingModel::Install {
            tracing::info!(model = name, from = %path.display(), %precision, "a checkpoint that is not installed; installing it");
            self.install(&InstallTask::of_missing_model(source, name.clone(), precision))?;
        }
        Ok(StoredModel { id: name, dir, precision })
    }

    /// The source from which an installed model was made, as its manifest says.
    fn installed_from(&self, name: &str, precisions: &[PrecisionWord]) -> String {
        let dir = precisions.first().map(|precision| self.store.dir(name, *precision));
        let model = dir.and_then(|dir| ModelDir::open(&dir).ok());
        model.map_or_else(|| "an install that is damaged".to_owned(), |model| model.manifest().source.clone())
    }

    /// The checkpoint from which a model was installed in another precision, if it is still there.
    fn earlier_checkpoint(&self, name: &str, installed: &[PrecisionWord]) -> Option<InstallSource> {
        installed.iter().find_map(|precision| {
            let model = ModelDir::open(&self.store.dir(name, *precision)).ok()?;
            let checkpoint = PathBuf::from(&model.manifest().source);
            let is_readable = checkpoint.is_absolute() && Checkpoint::open(&checkpoint).is_ok();
            is_readable.then_some(InstallSource::Local(checkpoint))
        })
    }

    fn install(&self, task: &InstallTask<'_>) -> Result<Vec<PathBuf>, InstallCommandError> {
        let downloads = self.store.models_dir.join(DOWNLOADS);
        fs::create_dir_all(&downloads).map_err(disk(&downloads))?;
        // If two servers start together on one models folder, the second waits and finds the model installed.
        let _lock = lock_model(&downloads, &task.name)?;

        let folder = self.store.models_dir.join(&task.name);
        // A model that an earlier version of Hush installed is installed again, which is what its warning advises.
        let is_installed = |precision: &&PrecisionWord| {
            ModelDir::open(&folder.join(precision.as_str())).is_ok_and(|model| model.is_newest_format())
        };
        let (installed, to_build): (Vec<PrecisionWord>, Vec<PrecisionWord>) =
            task.precisions.iter().partition(|precision| !task.force && is_installed(precision));

        for precision in installed {
            tracing::info!(model = task.name, %precision, "is installed already; --force installs it again");
        }
        if !to_build.is_empty() {
            self.build_from_source(task, &downloads, &to_build)?;
        }
        Ok(task.precisions.iter().map(|precision| folder.join(precision.as_str())).collect())
    }

    fn build_from_source(
        &self,
        task: &InstallTask<'_>,
        downloads: &Path,
        precisions: &[PrecisionWord],
    ) -> Result<(), InstallCommandError> {
        match &task.source {
            InstallSource::Local(path) => {
                let label = fs::canonicalize(path).map_err(disk(path))?.display().to_string();
                self.build(task, path, &label, precisions)
            }
            InstallSource::Hub(repo) => match self.local_copy(task, repo) {
                Some(path) => self.build(task, &path, &path.display().to_string(), precisions),
                None => self.build_from_hub(task, repo, downloads, precisions),
            },
        }
    }

    /// A complete copy of the model that another program left on this machine.
    fn local_copy(&self, task: &InstallTask<'_>, repo: &Repo) -> Option<PathBuf> {
        if task.revision.is_some() {
            return None;
        }

        let copies = hub::local_copies(repo, &self.store.models_dir, self.env);
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
        task: &InstallTask<'_>,
        repo: &Repo,
        downloads: &Path,
        precisions: &[PrecisionWord],
    ) -> Result<(), InstallCommandError> {
        let config = HubConfig::from_env(self.env)?;
        let downloaded = self.download(task, repo, &config, downloads)?;
        tracing::info!(repo = downloaded.repo, commit = downloaded.commit, "downloaded");

        let label = format!("{}@{}", downloaded.repo, downloaded.commit);
        self.build(task, &downloaded.dir, &label, precisions)?;

        if !task.keep_download {
            fs::remove_dir_all(&downloaded.dir).map_err(disk(&downloaded.dir))?;
        }
        Ok(())
    }

    /// Downloads the model, or a conversion of it if the hub has nothing else: a mirror may have only what faster-whisper
    /// reads. A revision that the user names belongs to the repository that the user names.
    fn download(
        &self,
        task: &InstallTask<'_>,
        repo: &Repo,
        config: &HubConfig,
        downloads: &Path,
    ) -> Result<DownloadedCheckpoint, InstallCommandError> {
        let fetch = |repo: &Repo| {
            let mut meter = self.progress.begin(format!("downloading {repo}"));
            let revision = task.revision.unwrap_or("main");
            hub::download(config, repo, revision, downloads, &mut |event| meter.show_download(event))
        };

        let absent = match fetch(repo) {
            Err(error) if error.is_absent() && task.revision.is_none() => error,
            done => return Ok(done?),
        };

        for conversion in repo.conversions() {
            tracing::info!(%repo, %conversion, reason = %absent, "looking for a conversion of the model");
            match fetch(&conversion) {
                Err(error) if error.is_absent() => {}
                done => return Ok(done?),
            }
        }

        Err(absent.into())
    }

    /// Converts a checkpoint. `label`: its origin, for the manifest of the model.
    fn build(
        &self,
        task: &InstallTask<'_>,
        checkpoint: &Path,
        label: &str,
        precisions: &[PrecisionWord],
    ) -> Result<(), InstallCommandError> {
        for precision in precisions {
            let options = InstallOptions {
                name: task.name.clone(),
                precision: (*precision).into(),
                source_label: label.to_owned(),
            };

            let mut meter = self.progress.begin(format!("installing {} as {precision}", task.name));
            let mut report = |progress: hush_whisper::InstallProgress| {
                meter.set_bytes(progress.done_bytes, progress.total_bytes);
            };
            let installed = install(checkpoint, &self.store.models_dir, &options, &mut report);
            drop(meter);

            let failed = |cause| InstallCommandError::Install { source_label: label.to_owned(), cause };
            let dir = installed.map_err(failed)?;
            tracing::info!(model = task.name, %precision, dir = %dir.display(), "installed");
        }
        Ok(())
    }
}

/// The lock is held until the file is dropped.
fn lock_model(downloads: &Path, name: &str) -> Result<File, InstallCommandError> {
    let path = downloads.join(format!("{name}.lock"));
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(disk(&path))?;
    if file.try_lock().is_err() {
        tracing::info!(model = name, "another process installs this model; waiting for it");
        file.lock().map_err(disk(&path))?;
    }
    Ok(file)
}

fn exact_precision(choice: PrecisionChoice, device: ComputeDevice) -> PrecisionWord {
    match choice {
        PrecisionChoice::Auto => best_precision(device),
        PrecisionChoice::Exactly(precision) => precision,
    }
}

fn parse_source(text: &str) -> Result<InstallSource, InstallCommandError> {
    if let Some(folder) = as_folder(text) {
        return Ok(InstallSource::Local(folder));
    }
    if let Some(repo) = Repo::of(text) {
        return Ok(InstallSource::Hub(repo));
    }
    // `--model` takes a single word for a name only. Here a word that is no model can only mean a file or a folder.
    if Path::new(text).exists() {
        return Ok(InstallSource::Local(text.into()));
    }

    let short_names: Vec<_> = hub::short_names().collect();
    Err(InstallCommandError::UnknownSource(text.to_owned(), short_names.join(", ")))
}

fn model_name(source: &InstallSource, given: Option<&str>) -> Result<String, InstallCommandError> {
    let name = match (given, source) {
        (Some(given), _) => hub::folder_of(given),
        (None, InstallSource::Hub(repo)) => repo.folder(),
        (None, InstallSource::Local(path)) => {
            // `.` gets the name of the folder that it stands for.
            let whole = fs::canonicalize(path).map_err(disk(path))?;
            let file_name = whole.file_name().map(|name| name.to_string_lossy().into_owned());
            let file_name = file_name.ok_or_else(|| InstallCommandError::NoName(path.clone()))?;
            if whole.is_file() { model_name_of_file(&file_name).to_owned() } else { file_name }
        }
    };
    if is_name(&name) { Ok(name) } else { Err(InstallCommandError::BadName(name)) }
}

/// The model's name in the name of a file: `base.en` of `base.en.pt` and of `ggml-base.en.bin`.
fn model_name_of_file(file_name: &str) -> &str {
    let stem = file_name.strip_suffix(".pt").or_else(|| file_name.strip_suffix(".bin")).unwrap_or(file_name);
    stem.strip_prefix("ggml-").unwrap_or(stem)
}
