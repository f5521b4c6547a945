//! An engine in this process, without a server and without a runner.

use std::num::NonZeroUsize;
use std::path::Path;
use std::thread::available_parallelism;

use anyhow::Context;
use hush_whisper::vad::VadError;
use hush_whisper::{Engine, EngineOptions, ModelDir, runtime};

use super::cuda_binding::index_in_this_process;
use super::device_placement::{DevicePlacement, find_model_for_device, place_in_this_process};
use super::model_install::{MissingModel, ModelInstaller, ProgressDisplay};
use super::model_store::{ModelStore, StoredModel};
use super::{ort_library, vad_model};
use crate::cli::env::Env;
use crate::cli::settings::TranscribeSettings;
use crate::cli::values::ComputeDevice;

/// Chunks of a file that are transcribed at once with --vad-parallel.
const PARALLEL_WINDOWS: usize = 8;

/// Finds the model of the settings, installs it if they allow that, and loads it. Blocks for seconds, or for minutes if
/// the model is installed.
///
/// # Errors
/// If a library or the model is not there, or the model cannot be loaded on its device.
pub fn load_engine(settings: &TranscribeSettings, env: &Env, progress: &dyn ProgressDisplay) -> anyhow::Result<Engine> {
    let program = std::env::current_exe().context("finding this program")?;
    let library = ort_library::find(settings.engine.ort_lib.as_deref(), env, &program)?;
    let vad_model = vad_model::find(settings.engine.vad_model.as_deref(), &library, &program)?;
    if settings.vad.is_some() && vad_model.is_none() {
        return Err(anyhow::Error::new(VadError::NoModel).context("--vad-filter"));
    }

    let (model, placement) = find_model(settings, env, &program, &library, progress)?;
    if let Some(reason) = &placement.reason {
        tracing::info!("--device {} is the CPU here: {reason}", settings.engine.device);
    }

    let device = engine_device(placement.device, env)?;
    runtime::init(&library)?;
    let engine = Engine::load(&ModelDir::open(&model.dir)?, &engine_options(settings, device))?;
    if let Some(model) = vad_model {
        engine.use_vad(model);
    }
    Ok(engine)
}

fn find_model(
    settings: &TranscribeSettings,
    env: &Env,
    program: &Path,
    library: &Path,
    progress: &dyn ProgressDisplay,
) -> anyhow::Result<(StoredModel, DevicePlacement)> {
    let store = ModelStore::new(&settings.store.models_dir);
    let installer = ModelInstaller { store: &store, env, progress };
    let missing = if settings.install_missing { MissingModel::Install } else { MissingModel::Refuse };
    let name = match &settings.model {
        Some(name) => name.clone(),
        None => store.default_model()?,
    };

    let choice = settings.engine.device;
    let precision = settings.engine.precision;
    let found = find_model_for_device(
        choice,
        || place_in_this_process(choice, program, Some(library), env),
        precision,
        |device| installer.find_or_install(&name, precision, device, missing),
        |device| store.find(&name, precision, device),
    )?;
    Ok(found)
}

fn engine_options(settings: &TranscribeSettings, device: hush_whisper::EngineDevice) -> EngineOptions {
    let available_threads = || available_parallelism().map_or(1, NonZeroUsize::get);
    let is_parallel = settings.vad.as_ref().is_some_and(|vad| vad.parallel);

    EngineOptions {
        device,
        threads: settings.engine.threads.unwrap_or_else(available_threads),
        // Prepacking makes the load slower and each file faster, and all files are transcribed after one load.
        prepack: true,
        // Files are transcribed one after the other; only the chunks of one file run at once.
        max_batch: if is_parallel { PARALLEL_WINDOWS } else { 1 },
        memory_limit_bytes: None,
        cuda_graphs: true,
    }
}

fn engine_device(device: ComputeDevice, env: &Env) -> anyhow::Result<hush_whisper::EngineDevice> {
    match device {
        ComputeDevice::Cpu => Ok(hush_whisper::EngineDevice::Cpu),
        ComputeDevice::Cuda(gpu) => {
            let index = i32::try_from(index_in_this_process(gpu, env)?)?;
            Ok(hush_whisper::EngineDevice::Cuda { index })
        }
    }
}
