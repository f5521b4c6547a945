//! `hush-server install`.

use anyhow::Context;
use hush_log::outln;

use super::Env;
use super::progress::InstallProgress;
use super::settings::InstallSettings;
use crate::app::device_placement::place_in_this_process;
use crate::app::model_install::ModelInstaller;
use crate::app::model_store::ModelStore;
use crate::app::ort_library;

/// Installs the models and prints their directories, one a line.
///
/// # Errors
/// If a model cannot be installed.
pub fn run(settings: &InstallSettings, env: &Env) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    // Without ONNX Runtime's library, `auto` means the CPU.
    let library = ort_library::find(env.path("HUSH_ORT_LIB").as_deref(), env, &program).ok();
    let placement = place_in_this_process(settings.device, &program, library.as_deref(), env);

    let store = ModelStore::new(&settings.store.models_dir);
    let installer = ModelInstaller { store: &store, env, progress: &InstallProgress };
    for dir in installer.install_all(settings, placement.device)? {
        outln!("{}", dir.display());
    }
    Ok(())
}
