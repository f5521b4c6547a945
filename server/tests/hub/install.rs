//! From a name or a folder to a model directory that can be opened, through the command's own code.

use std::path::{Path, PathBuf};

use hush_server::app::model_install::{InstallCommandError, MissingModel, ModelInstaller};
use hush_server::app::model_store::{ModelStore, ModelStoreError};
use hush_server::cli::models;
use hush_server::cli::progress::TerminalProgress;
use hush_server::cli::settings::{CommandSettings, resolve};
use hush_server::cli::values::{ComputeDevice, PrecisionChoice};
use hush_server::cli::{Env, parse};
use hush_whisper::ModelDir;

use crate::model_support::formats::{Quantisation, write_ctranslate2};
use crate::server::{COMMIT, Hub, HubFault, HubOptions};
use crate::{REPO, checkpoint};

fn install(argv: &[&str], models_dir: &Path, variables: &[(&str, &str)]) -> Result<Vec<PathBuf>, InstallCommandError> {
    let dir = models_dir.to_str().unwrap();
    let cli = parse([&["hush-server", "install", "--models-dir", dir], argv].concat()).unwrap();
    let env: Env = variables.iter().copied().collect();
    let CommandSettings::Install(settings) = resolve(cli, &env).unwrap() else { panic!() };
    let store = ModelStore::new(&settings.store.models_dir);
    ModelInstaller { store: &store, env: &env, progress: &TerminalProgress }.install_all(&settings, ComputeDevice::Cpu)
}

#[test]
fn a_folder_becomes_a_model() {
    let models_dir = tempfile::tempdir().unwrap();
    let source = checkpoint().display().to_string();
    let dirs = install(&[&source, "--name", "hush-tiny", "--precision", "int8,fp32"], models_dir.path(), &[]).unwrap();
    let expected = ["hush-tiny/fp32", "hush-tiny/int8"].map(|dir| models_dir.path().join(dir));
    assert_eq!(dirs, expected);
    for dir in &dirs {
        ModelDir::open(dir).unwrap().verify_digests().unwrap();
    }
    let store = ModelStore::new(models_dir.path());
    assert_eq!(store.default_model().unwrap(), "hush-tiny");
    assert_eq!(store.find("hush-tiny", PrecisionChoice::Auto, ComputeDevice::Cpu).unwrap().dir, dirs[1]);

    let rows = models::rows(&store);
    assert_eq!(rows.iter().map(|row| row.precision).collect::<Vec<_>>(), ["fp32", "int8"]);
    assert!(rows.iter().all(|row| row.name == "hush-tiny" && row.problem.is_none() && row.bytes > Some(0)));

    // A second time does nothing, unless it is forced.
    let manifest = dirs[1].join("model.json");
    let written = || std::fs::metadata(&manifest).unwrap().modified().unwrap();
    let first = written();
    install(&[&source, "--name", "hush-tiny"], models_dir.path(), &[]).unwrap();
    assert_eq!(written(), first);
    install(&[&source, "--name", "hush-tiny", "--force"], models_dir.path(), &[]).unwrap();
    assert!(written() > first);
}

#[test]
fn a_model_of_an_earlier_version_is_installed_again() {
    let models_dir = tempfile::tempdir().unwrap();
    let source = checkpoint().display().to_string();
    let argv = [source.as_str(), "--name", "hush-tiny", "--precision", "fp32"];
    let dirs = install(&argv, models_dir.path(), &[]).unwrap();

    let manifest = dirs[0].join("model.json");
    for earlier in [1, 2] {
        let mut fields: serde_json::Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
        fields["format_version"] = earlier.into();
        std::fs::write(&manifest, fields.to_string()).unwrap();

        install(&argv, models_dir.path(), &[]).unwrap();
        assert!(ModelDir::open(&dirs[0]).unwrap().is_newest_format(), "format {earlier} remained");
    }
}

#[test]
fn a_missing_model_comes_from_the_hub() {
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    let env: Env = [("HF_ENDPOINT", hub.url())].into_iter().collect();
    let models_dir = tempfile::tempdir().unwrap();
    let store = ModelStore::new(models_dir.path());
    let installer = ModelInstaller { store: &store, env: &env, progress: &TerminalProgress };
    let find = |missing| installer.find_or_install(REPO, PrecisionChoice::Auto, ComputeDevice::Cpu, missing);
    let refused = find(MissingModel::Refuse).unwrap_err();
    assert!(matches!(refused, InstallCommandError::Store(ModelStoreError::NotInstalled { .. })), "{refused:?}");
    assert!(hub.requests().is_empty());

    // As two servers that start together would.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(find(MissingModel::Install).unwrap().id, REPO));
        }
    });
    let weights = hub.requests().iter().filter(|r| r.store && r.path.ends_with("/model.safetensors")).count();
    assert_eq!(weights, 1, "one download for both");
    let found = find(MissingModel::Refuse).unwrap();
    assert_eq!(found.dir, models_dir.path().join("hush--whisper-hush-tiny/int8"));
    assert_eq!(ModelDir::open(&found.dir).unwrap().manifest().source, format!("{REPO}@{COMMIT}"));
    let download = models_dir.path().join(".download/hush--whisper-hush-tiny").join(COMMIT);
    assert!(!download.exists(), "the download is removed");
    install(&[REPO, "--force", "--keep-download"], models_dir.path(), &[("HF_ENDPOINT", &hub.url())]).unwrap();
    assert!(download.join("model.safetensors").exists(), "unless it is to be kept");
}

#[test]
fn a_failed_download_leaves_no_model_and_goes_on_later() {
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    hub.fault_forever("tokenizer.json", HubFault::Status(400));
    let models_dir = tempfile::tempdir().unwrap();
    let endpoint = hub.url();
    let variables = [("HF_ENDPOINT", endpoint.as_str())];
    assert!(matches!(install(&[REPO], models_dir.path(), &variables), Err(InstallCommandError::Hub(_))));
    assert!(ModelStore::new(models_dir.path()).installed().is_empty());
    hub.clear_faults();
    install(&[REPO], models_dir.path(), &variables).unwrap();
    let configs = hub.requests().iter().filter(|request| request.path.ends_with("/config.json")).count();
    assert_eq!(configs, 1, "what was complete was not fetched again");
}

#[test]
fn sources_that_cannot_be_installed() {
    let models_dir = tempfile::tempdir().unwrap();
    let install = |argv: &[&str]| install(argv, models_dir.path(), &[]).unwrap_err();
    let unknown = install(&["bse"]).to_string();
    assert!(unknown.contains("base") && unknown.contains("OWNER/NAME"), "{unknown}");
    assert!(matches!(install(&["./no-such-folder"]), InstallCommandError::Disk { .. }));
    let source = checkpoint().display().to_string();
    assert!(matches!(install(&[&source, "--name", "../x"]), InstallCommandError::BadName(_)));
    let empty = tempfile::tempdir().unwrap();
    let error = install(&[empty.path().to_str().unwrap(), "--name", "x"]);
    assert!(matches!(error, InstallCommandError::Install { .. }), "{error:?}");
    assert!(ModelStore::new(models_dir.path()).installed().is_empty());
}

/// A repository with the bundled model as faster-whisper reads it, and the files that nothing of it needs.
fn conversion() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_ctranslate2(&checkpoint(), folder.path(), Quantisation::Float16, true);
    std::fs::write(folder.path().join("vocabulary.txt"), "<|endoftext|>\n").unwrap();
    std::fs::write(folder.path().join("README.md"), "Whisper for CTranslate2\n").unwrap();
    folder
}

fn fetched_files(hub: &Hub) -> Vec<String> {
    let requests = hub.requests();
    let names = requests.iter().filter(|request| !request.store && request.path.contains("/resolve/"));
    names.map(|request| request.path.rsplit('/').next().unwrap().to_owned()).collect()
}

#[test]
fn a_repository_of_ctranslate2_becomes_the_model_that_its_source_becomes() {
    const CONVERSION: &str = "Systran/faster-whisper-base";
    let folder = conversion();
    let hub = Hub::start(folder.path(), HubOptions { repo: Some(CONVERSION), ..HubOptions::default() });
    let models_dir = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let (endpoint, home) = (hub.url(), home.path().to_str().unwrap().to_owned());
    let variables = [("HF_ENDPOINT", endpoint.as_str()), ("HOME", home.as_str())];

    // The weights are cut off in the middle once, as on a bad line.
    hub.fault("model.bin", HubFault::CutAfter(1 << 19));
    let dirs = install(&[CONVERSION, "--precision", "fp32"], models_dir.path(), &variables).unwrap();
    assert_eq!(dirs, [models_dir.path().join("Systran--faster-whisper-base/fp32")]);
    let installed = ModelDir::open(&dirs[0]).unwrap();
    installed.verify_digests().unwrap();
    assert_eq!(installed.manifest().source, format!("{CONVERSION}@{COMMIT}"));

    let files = fetched_files(&hub);
    assert!(["config.json", "tokenizer.json", "model.bin"].iter().all(|name| files.iter().any(|file| file == name)));
    assert!(!files.iter().any(|file| file == "vocabulary.txt" || file == "README.md"), "{files:?}");

    let source = checkpoint().display().to_string();
    let same = install(&[&source, "--name", "same", "--precision", "fp32"], models_dir.path(), &variables).unwrap();
    let weights = |dir: &Path| std::fs::read(dir.join("weights.bin")).unwrap();
    assert!(weights(&dirs[0]) == weights(&same[0]), "other weights than those of the checkpoint itself");
}

#[test]
fn a_short_name_means_its_conversion_where_the_hub_has_nothing_else() {
    let folder = conversion();
    let options = HubOptions { repo: Some("Systran/faster-whisper-base"), ..HubOptions::default() };
    let hub = Hub::start(folder.path(), options);
    let (models_dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (endpoint, home) = (hub.url(), home.path().to_str().unwrap().to_owned());
    let variables = [("HF_ENDPOINT", endpoint.as_str()), ("HOME", home.as_str())];

    // A revision is one of the repository that was asked for.
    let named = install(&["base", "--revision", "main"], models_dir.path(), &variables).unwrap_err();
    assert!(named.to_string().contains("openai/whisper-base"), "{named}");
    // The error is about what was asked for, not about the last place where it was looked for.
    let none = install(&["tiny"], models_dir.path(), &variables).unwrap_err();
    assert!(none.to_string().contains("openai/whisper-tiny"), "{none}");
    assert!(fetched_files(&hub).is_empty());

    let dirs = install(&["base", "--precision", "int8"], models_dir.path(), &variables).unwrap();
    assert_eq!(dirs, [models_dir.path().join("base/int8")]);
    let source = &ModelDir::open(&dirs[0]).unwrap().manifest().source.clone();
    assert_eq!(*source, format!("Systran/faster-whisper-base@{COMMIT}"));
    let asked: Vec<String> = hub.requests().iter().map(|request| request.path.clone()).collect();
    assert!(asked.iter().any(|path| path.contains("openai/whisper-base")), "the model itself comes first: {asked:?}");
}

#[test]
fn a_damaged_conversion_leaves_no_model() {
    let folder = conversion();
    let weights = folder.path().join("model.bin");
    let mut bytes = std::fs::read(&weights).unwrap();
    bytes.truncate(bytes.len() / 2);
    std::fs::write(&weights, bytes).unwrap();
    let hub = Hub::start(folder.path(), HubOptions::default());
    let models_dir = tempfile::tempdir().unwrap();
    let error = install(&[REPO], models_dir.path(), &[("HF_ENDPOINT", &hub.url())]).unwrap_err();
    assert!(matches!(error, InstallCommandError::Install { .. }), "{error:?}");
    assert!(ModelStore::new(models_dir.path()).installed().is_empty());
}
