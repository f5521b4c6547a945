//! Finds the directory of a model by the model's name or by a path. In the models folder, a model lies in
//! `NAME/PRECISION`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::cli::values::{ComputeDevice, PrecisionChoice, PrecisionWord};
use crate::hub::{Repo, folder_of};

const MANIFEST: &str = "model.json";

/// A model directory that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredModel {
    /// The model's name for clients: the name by which it was looked for, or the name of the folder.
    pub id: String,
    pub dir: PathBuf,
    pub precision: PrecisionWord,
}

#[derive(Debug, thiserror::Error)]
pub enum ModelStoreError {
    /// If the model has a repository on the hub, `serve` may install it.
    #[error(
        "model `{name}` is not installed as {precision} in {}{}{}",
        .models_dir.display(), other_precisions(*.precision, .installed),
        how_to_install(.repo.as_ref(), .name, *.precision, .known)
    )]
    NotInstalled {
        name: String,
        precision: PrecisionWord,
        /// The other precisions in which the model is installed.
        installed: Box<[PrecisionWord]>,
        repo: Option<Repo>,
        models_dir: PathBuf,
        /// The names of all installed models.
        known: Box<[String]>,
    },
    #[error("{0} is not a model name; letters, digits, `.`, `_` and `-` are allowed, or OWNER/NAME of the hub")]
    BadName(String),
    #[error("there is no folder or file {}", .0.display())]
    NoFolder(PathBuf),
    #[error("{dir} is a checkpoint, not an installed model; install it first: hush-server install {dir}", dir = .0.display())]
    Checkpoint(PathBuf),
    #[error("{} is not a model directory: it has neither {MANIFEST} nor folders named fp32, fp16 or int8", .0.display())]
    NotAModel(PathBuf),
    #[error("{} is installed as {installed}, not as {wanted}", .dir.display())]
    OtherPrecision { dir: PathBuf, wanted: PrecisionWord, installed: String },
    #[error(
        "{} is installed as {installed}, and CUDA takes fp16 only; install its checkpoint with --precision fp16, or use \
         --device cpu",
        .dir.display()
    )]
    NotForCuda { dir: PathBuf, installed: String },
    #[error("several models are installed in {} ({}); say which with --model or HUSH_MODEL", .models_dir.display(), .known.join(", "))]
    Several { models_dir: PathBuf, known: Vec<String> },
    #[error("two models are called `{0}`; rename one of the folders")]
    Twice(String),
    #[error("{}: {cause}", .path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The part of the message that lists the precisions in which the model is installed.
fn other_precisions(wanted: PrecisionWord, installed: &[PrecisionWord]) -> String {
    if installed.is_empty() {
        return String::new();
    }

    let why = if wanted == PrecisionWord::Fp16 { ", and CUDA takes fp16 only" } else { "" };
    format!(" (it is there as {}{why})", joined(installed))
}

/// The part of the message that says how to install the model.
fn how_to_install(repo: Option<&Repo>, name: &str, precision: PrecisionWord, known: &[String]) -> String {
    if repo.is_some() {
        return format!("; install it with: hush-server install {name} --precision {precision}");
    }
    if known.iter().any(|known| known == name) {
        return format!(
            "; install its checkpoint once more: hush-server install FOLDER --name {name} --precision {precision}"
        );
    }

    let installed = if known.is_empty() { "nothing".to_owned() } else { known.join(", ") };
    format!(
        "; it is not a model of the hub either (OWNER/NAME, or a short name such as base). A checkpoint of yours: \
         hush-server install FOLDER --name {name}. Installed: {installed}"
    )
}

fn joined(precisions: &[PrecisionWord]) -> String {
    let names: Vec<_> = precisions.iter().map(|precision| precision.as_str()).collect();
    names.join(", ")
}

/// The folder with the installed models.
#[derive(Clone, Debug)]
pub struct ModelStore {
    pub models_dir: PathBuf,
}

impl ModelStore {
    pub fn new(models_dir: impl Into<PathBuf>) -> Self {
        Self { models_dir: models_dir.into() }
    }

    /// The folder of a model with this name, which need not exist.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.models_dir.join(folder_of(name))
    }

    /// The folder of a model in one precision, which need not exist.
    pub fn dir(&self, name: &str, precision: PrecisionWord) -> PathBuf {
        self.folder(name).join(precision.as_str())
    }

    /// Names and precisions of the installed models, sorted; empty if there is no models folder.
    pub fn installed(&self) -> Vec<(String, Vec<PrecisionWord>)> {
        let Ok(entries) = fs::read_dir(&self.models_dir) else { return Vec::new() };

        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut models: Vec<_> = names
            .filter(|name| !name.starts_with('.'))
            .map(|name| {
                let precisions = precisions_in(&self.models_dir.join(&name));
                (name, precisions)
            })
            .filter(|(_, precisions)| !precisions.is_empty())
            .collect();

        models.sort();
        models
    }

    fn names(&self) -> Vec<String> {
        self.installed().into_iter().map(|(name, _)| name).collect()
    }

    /// The model to use if the settings name none: the only installed one, or `base` (as in whisper-asr-webservice) if
    /// none is installed.
    ///
    /// # Errors
    /// If several models are installed.
    pub fn default_model(&self) -> Result<String, ModelStoreError> {
        let known = self.names();
        match known.as_slice() {
            [] => Ok("base".to_owned()),
            [only] => Ok(only.clone()),
            _ => Err(ModelStoreError::Several { models_dir: self.models_dir.clone(), known }),
        }
    }

    /// `model`: a name, or the path of a model directory or of a folder with one directory for each precision.
    ///
    /// # Errors
    /// If there is no such model, or not in a precision that is wanted and runs on `device`.
    pub fn find(
        &self,
        model: &str,
        wanted: PrecisionChoice,
        device: ComputeDevice,
    ) -> Result<StoredModel, ModelStoreError> {
        if let Some(dir) = as_folder(model) {
            return find_folder(&dir, wanted, device);
        }
        if !is_name(model) && Repo::of(model).is_none() {
            return Err(ModelStoreError::BadName(format!("{model:?}")));
        }

        let folder = self.folder(model);
        let installed = precisions_in(&folder);
        match choose(&installed, wanted, device) {
            Ok(precision) => {
                warn_if_second_choice(model, precision, wanted, device);
                Ok(StoredModel { id: model.to_owned(), dir: folder.join(precision.as_str()), precision })
            }
            Err(precision) => Err(ModelStoreError::NotInstalled {
                name: model.to_owned(),
                precision,
                installed: installed.into(),
                repo: Repo::of(model),
                models_dir: self.models_dir.clone(),
                known: self.names().into(),
            }),
        }
    }
}

/// # Errors
/// If two of the models have the same name.
pub fn check_ids<'a>(ids: impl Iterator<Item = &'a str>) -> Result<(), ModelStoreError> {
    let mut seen = BTreeSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(ModelStoreError::Twice(id.to_owned()));
        }
    }
    Ok(())
}

/// Whether the text is one plain path component that no tool takes for an option or a hidden file.
pub fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The text as a path, if the user means it as one: anything that looks like a path, and `a/b` if that exists. A single
/// word is a name, even if a folder of that name is in the current folder.
pub fn as_folder(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let is_explicit = path.is_absolute()
        || text.ends_with('/')
        || matches!(path.components().next(), Some(Component::CurDir | Component::ParentDir));
    (is_explicit || (text.contains('/') && path.exists())).then(|| path.to_owned())
}

fn find_folder(dir: &Path, wanted: PrecisionChoice, device: ComputeDevice) -> Result<StoredModel, ModelStoreError> {
    // `.` gets the name of the folder that it stands for.
    let dir = fs::canonicalize(dir).map_err(|_| ModelStoreError::NoFolder(dir.to_owned()))?;
    if !dir.is_dir() {
        return Err(ModelStoreError::Checkpoint(dir));
    }
    if dir.join(MANIFEST).is_file() {
        return open_model_dir(dir, wanted, device);
    }

    let installed = precisions_in(&dir);
    if installed.is_empty() {
        let is_checkpoint = ["config.json", "model.bin"].iter().any(|file| dir.join(file).is_file());
        return Err(if is_checkpoint { ModelStoreError::Checkpoint(dir) } else { ModelStoreError::NotAModel(dir) });
    }

    match choose(&installed, wanted, device) {
        Ok(precision) => {
            let id = folder_name(&dir);
            warn_if_second_choice(&id, precision, wanted, device);
            Ok(StoredModel { id, dir: dir.join(precision.as_str()), precision })
        }
        Err(wanted) if installed.iter().any(|precision| runs_on(*precision, device)) => {
            Err(ModelStoreError::OtherPrecision { dir, wanted, installed: joined(&installed) })
        }
        Err(_) => Err(ModelStoreError::NotForCuda { dir, installed: joined(&installed) }),
    }
}

/// The model of a directory that holds a manifest itself.
fn open_model_dir(
    dir: PathBuf,
    wanted: PrecisionChoice,
    device: ComputeDevice,
) -> Result<StoredModel, ModelStoreError> {
    let precision = read_precision(&dir)?;
    if let PrecisionChoice::Exactly(wanted) = wanted
        && wanted != precision
    {
        return Err(ModelStoreError::OtherPrecision { dir, wanted, installed: precision.to_string() });
    }
    if !runs_on(precision, device) {
        return Err(ModelStoreError::NotForCuda { dir, installed: precision.to_string() });
    }

    let own_name = folder_name(&dir);
    let id = match dir.parent() {
        Some(parent) if own_name == precision.as_str() => folder_name(parent),
        _ => own_name,
    };
    warn_if_second_choice(&id, precision, wanted, device);
    Ok(StoredModel { id, dir, precision })
}

fn folder_name(dir: &Path) -> String {
    dir.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn precisions_in(folder: &Path) -> Vec<PrecisionWord> {
    let is_installed = |precision: &PrecisionWord| folder.join(precision.as_str()).join(MANIFEST).is_file();
    PrecisionWord::ALL.iter().copied().filter(is_installed).collect()
}

/// Reads nothing else of the manifest: the engine checks the rest when it opens the directory.
fn read_precision(dir: &Path) -> Result<PrecisionWord, ModelStoreError> {
    #[derive(serde::Deserialize)]
    struct ManifestPrecision {
        precision: String,
    }

    let path = dir.join(MANIFEST);
    let unreadable = |cause| ModelStoreError::Unreadable { path: path.clone(), cause };
    let text = fs::read(&path).map_err(|cause| unreadable(cause.into()))?;
    let manifest: ManifestPrecision = serde_json::from_slice(&text).map_err(|cause| unreadable(cause.into()))?;
    manifest.precision.parse().map_err(|_| unreadable(format!("`precision` is {:?}", manifest.precision).into()))
}

/// The precisions that a device runs, best first.
const fn precisions_for(device: ComputeDevice) -> &'static [PrecisionWord] {
    match device {
        ComputeDevice::Cpu => &[PrecisionWord::Int8, PrecisionWord::Fp32, PrecisionWord::Fp16],
        ComputeDevice::Cuda(_) => &[PrecisionWord::Fp16],
    }
}

fn runs_on(precision: PrecisionWord, device: ComputeDevice) -> bool {
    precisions_for(device).contains(&precision)
}

/// The precision that `auto` installs for a device.
pub const fn best_precision(device: ComputeDevice) -> PrecisionWord {
    match device {
        ComputeDevice::Cpu => PrecisionWord::Int8,
        ComputeDevice::Cuda(_) => PrecisionWord::Fp16,
    }
}

/// The precision to load; the error is the precision that is missing.
fn choose(
    installed: &[PrecisionWord],
    wanted: PrecisionChoice,
    device: ComputeDevice,
) -> Result<PrecisionWord, PrecisionWord> {
    match wanted {
        PrecisionChoice::Exactly(precision) if installed.contains(&precision) && runs_on(precision, device) => {
            Ok(precision)
        }
        PrecisionChoice::Exactly(precision) => Err(precision),
        PrecisionChoice::Auto => {
            let mut by_preference = precisions_for(device).iter().copied();
            by_preference.find(|precision| installed.contains(precision)).ok_or(best_precision(device))
        }
    }
}

fn warn_if_second_choice(model: &str, precision: PrecisionWord, wanted: PrecisionChoice, device: ComputeDevice) {
    let best = best_precision(device);
    if wanted == PrecisionChoice::Auto && precision != best {
        tracing::warn!(
            model,
            "{best} would suit {device} best, but only {precision} is installed; `hush-server install` makes the other"
        );
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const AUTO: PrecisionChoice = PrecisionChoice::Auto;
    const CUDA: ComputeDevice = ComputeDevice::Cuda(crate::gpu::CudaDevice::Index(0));

    /// A models folder in which each of `models` (`name/precision`) has only its manifest.
    pub fn store(models: &[&str]) -> (tempfile::TempDir, ModelStore) {
        let folder = tempfile::tempdir().unwrap();
        for model in models {
            let dir = folder.path().join(model);
            fs::create_dir_all(&dir).unwrap();
            let precision = model.rsplit('/').next().unwrap();
            fs::write(dir.join(MANIFEST), format!("{{\"precision\":\"{precision}\"}}")).unwrap();
        }

        let store = ModelStore::new(folder.path());
        (folder, store)
    }

    fn exactly(precision: PrecisionWord) -> PrecisionChoice {
        PrecisionChoice::Exactly(precision)
    }

    #[test]
    fn precision_follows_the_device() {
        let (folder, store) = store(&["base/int8", "base/fp16", "base/fp32", "tiny/fp32"]);
        let find = |model: &str, wanted, device| store.find(model, wanted, device).unwrap();

        assert_eq!(find("base", AUTO, ComputeDevice::Cpu).precision, PrecisionWord::Int8);
        assert_eq!(find("base", AUTO, CUDA).precision, PrecisionWord::Fp16);
        assert_eq!(find("base", exactly(PrecisionWord::Fp32), ComputeDevice::Cpu).dir, folder.path().join("base/fp32"));
        assert_eq!(find("tiny", AUTO, ComputeDevice::Cpu).precision, PrecisionWord::Fp32);
    }

    #[test]
    fn cuda_takes_fp16_only() {
        let (folder, store) = store(&["mine/int8", "mine/fp32", "base/int8", "alone"]);
        fs::write(folder.path().join("alone/model.json"), r#"{"precision":"int8"}"#).unwrap();
        let refused = |model: &str, parts: &[&str]| {
            let error = store.find(model, AUTO, CUDA).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        };

        refused("mine", &["fp32, int8", "fp16 only", "install FOLDER --name mine --precision fp16"]);
        refused("base", &["int8", "fp16 only", "hush-server install base --precision fp16"]);

        let dir = |name: &str| folder.path().join(name).display().to_string();
        for folder in [dir("mine"), dir("mine/int8"), dir("alone")] {
            refused(&folder, &["int8", "fp16 only", "--precision fp16", "--device cpu"]);
        }

        assert!(store.find("mine", exactly(PrecisionWord::Int8), CUDA).is_err());
        assert!(store.find("mine", exactly(PrecisionWord::Int8), ComputeDevice::Cpu).is_ok());
    }

    #[test]
    fn one_model_is_found_under_all_its_names() {
        let (folder, store) = store(&["large-v3-turbo/int8", "someone--tune/int8"]);
        for name in ["turbo", "large-v3-turbo", "openai/whisper-large-v3-turbo"] {
            let found = store.find(name, AUTO, ComputeDevice::Cpu).unwrap();
            assert_eq!((found.id.as_str(), found.dir), (name, folder.path().join("large-v3-turbo/int8")));
        }
        assert_eq!(store.find("someone/tune", AUTO, ComputeDevice::Cpu).unwrap().id, "someone/tune");
    }

    #[test]
    fn what_is_not_installed_is_typed() {
        let (_folder, store) = store(&["base/int8"]);
        let error = store.find("turbo", AUTO, CUDA).unwrap_err();
        let ModelStoreError::NotInstalled { precision, repo, .. } = &error else { panic!("{error:?}") };
        assert_eq!(
            (*precision, repo.as_ref().unwrap().as_str()),
            (PrecisionWord::Fp16, "openai/whisper-large-v3-turbo")
        );
        assert!(error.to_string().contains("hush-server install turbo"), "{error}");

        let other = store.find("base", exactly(PrecisionWord::Fp32), ComputeDevice::Cpu).unwrap_err();
        assert!(matches!(other, ModelStoreError::NotInstalled { precision: PrecisionWord::Fp32, .. }), "{other:?}");

        let unknown = store.find("unpublished", AUTO, ComputeDevice::Cpu).unwrap_err();
        assert!(matches!(unknown, ModelStoreError::NotInstalled { repo: None, .. }), "{unknown:?}");
        assert!(unknown.to_string().contains("Installed: base"), "{unknown}");

        assert!(matches!(store.find("-x", AUTO, ComputeDevice::Cpu), Err(ModelStoreError::BadName(_))));
        assert!(matches!(store.find("", AUTO, ComputeDevice::Cpu), Err(ModelStoreError::BadName(_))));
    }

    #[test]
    fn folders() {
        let (folder, store) = store(&["mine/int8", "mine/fp32", "alone"]);
        fs::write(folder.path().join("alone/model.json"), r#"{"precision":"fp32"}"#).unwrap();
        let at = |dir: &str| folder.path().join(dir).display().to_string();
        let find = |dir: &str, wanted| store.find(&at(dir), wanted, ComputeDevice::Cpu);

        assert_eq!(find("mine", AUTO).unwrap().dir, fs::canonicalize(at("mine/int8")).unwrap());
        assert_eq!(find("mine", AUTO).unwrap().id, "mine");
        assert_eq!(find("mine/fp32", AUTO).unwrap().id, "mine");
        assert_eq!(find("alone", AUTO).unwrap().id, "alone");

        assert!(matches!(find("alone", exactly(PrecisionWord::Int8)), Err(ModelStoreError::OtherPrecision { .. })));
        assert!(matches!(find("mine", exactly(PrecisionWord::Fp16)), Err(ModelStoreError::OtherPrecision { .. })));
        assert!(matches!(find("gone", AUTO), Err(ModelStoreError::NoFolder(_))));

        fs::create_dir_all(folder.path().join("raw")).unwrap();
        assert!(matches!(find("raw", AUTO), Err(ModelStoreError::NotAModel(_))));
        fs::write(folder.path().join("raw/config.json"), "{}").unwrap();
        let error = find("raw", AUTO).unwrap_err().to_string();
        assert!(error.contains("hush-server install /"), "{error}");

        fs::write(folder.path().join("alone/model.json"), "{").unwrap();
        assert!(matches!(find("alone", AUTO), Err(ModelStoreError::Unreadable { .. })));
    }

    #[test]
    fn the_default_model() {
        let (_folder, none) = store(&[]);
        assert_eq!(none.default_model().unwrap(), "base");
        assert_eq!(ModelStore::new("/nowhere").default_model().unwrap(), "base");

        let (_folder, one) = store(&["mine/int8", "mine/fp32", ".download/x"]);
        assert_eq!(one.default_model().unwrap(), "mine");
        assert_eq!(one.installed(), [("mine".to_owned(), vec![PrecisionWord::Fp32, PrecisionWord::Int8])]);

        let (_folder, two) = store(&["a/int8", "b/int8"]);
        assert!(two.default_model().unwrap_err().to_string().contains("a, b"));
    }

    #[test]
    fn names_and_paths() {
        for path in ["/m", "./m", "../m", ".", "..", "m/", "/"] {
            assert!(as_folder(path).is_some(), "{path}");
        }

        assert_eq!(as_folder("base"), None);
        assert_eq!(as_folder("src"), None, "a word is a name even where such a folder lies");
        assert_eq!(as_folder("openai/whisper-base"), None);
        assert_eq!(as_folder("src/cli"), Some("src/cli".into()));
    }

    #[test]
    fn names_are_unique() {
        assert!(check_ids(["a", "b"].into_iter()).is_ok());
        assert!(matches!(check_ids(["a", "b", "a"].into_iter()), Err(ModelStoreError::Twice(id)) if id == "a"));
    }
}
