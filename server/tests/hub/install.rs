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
