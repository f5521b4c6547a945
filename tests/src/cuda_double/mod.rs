//! Real processes on the double of the CUDA runtime (`tests/cuda`): the unmodified CUDA provider of ONNX Runtime, with
//! GPUs that a test scripts, and a log of what each process did on them.
//!
//! ```no_run
//! # use hush_tests::cuda_double::CudaDouble;
//! # fn test() -> anyhow::Result<()> {
//! let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
//! let said = cuda.transcribe("en-1.wav", &[])?;
//! let counters = cuda.only_log()?.counters();
//! assert!(said.status.success() && counters.unknown.is_empty());
//! # Ok(()) }
//! ```

mod log;
mod script;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};
use hush_nvml::{SCRIPT_VARIABLE, Script, ScriptedDevice};
use tempfile::TempDir;

pub use log::{CallCount, CopyRoute, Counters, Direction, DoubleLog, HostMemory, Kernels, LogEntry};
pub use script::{CudaScript, DEVICES_UNAVAILABLE, ECC_UNCORRECTABLE, LAUNCH_FAILURE};

use crate::gpus::{GIB, UUID};
use crate::{Server, ServerOptions, fixtures};

const CUDA_SCRIPT_VARIABLE: &str = "CUDA_DOUBLE_SCRIPT";
const LOG_VARIABLE: &str = "CUDA_DOUBLE_LOG";

/// GPUs, for as many processes as use them, and a log per process. Everything lies in a folder that is removed with it.
pub struct CudaDouble {
    folder: TempDir,
    /// The devices: one script for NVML and CUDA.
    pub gpus: Script,
    pub script: CudaScript,
}

impl CudaDouble {
    /// An H100-like GPU of 8 GiB; `None`, and a word about it, where the double is not built.
    pub fn one_gpu() -> Result<Option<Self>> {
        let device = ScriptedDevice { compute_capability: [9, 0], ..ScriptedDevice::new(UUID, 8 * GIB) };
        Self::with(Script::of([device]))
    }

    pub fn with(gpus: Script) -> Result<Option<Self>> {
        if libraries().is_none() {
            eprintln!("skipped: the double of the CUDA runtime is not built: run `make cuda-double` first");
            return Ok(None);
        }
        let folder = tempfile::tempdir()?;
        let script = CudaScript::new(&folder.path().join("gpus.json"));
        let cuda = Self { folder, gpus, script };
        cuda.write()?;
        Ok(Some(cuda))
    }

    /// Writes both scripts. Processes that run see the change within milliseconds.
    pub fn write(&self) -> Result<()> {
        self.gpus.write(&self.script.gpus)?;
        self.script.write(&self.folder.path().join("cuda.json"))
    }

    /// Changes the first GPU for processes that run and for later ones.
    pub fn change_gpu(&mut self, change: impl FnOnce(&mut ScriptedDevice)) -> Result<()> {
        change(self.gpus.devices.first_mut().context("no GPU in the script")?);
        self.write()
    }

    /// Changes what CUDA does, likewise.
    pub fn change(&mut self, change: impl FnOnce(&mut CudaScript)) -> Result<()> {
        change(&mut self.script);
        self.write()
    }

    /// ONNX Runtime with the CUDA provider; the doubles of CUDA's libraries lie beside it.
    pub fn onnxruntime(&self) -> PathBuf {
        folder().join("libonnxruntime.so")
    }

    /// Variables for a process that is to use the double.
    pub fn env(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        vec![
            ("LD_LIBRARY_PATH".to_owned(), text(&folder())),
            (CUDA_SCRIPT_VARIABLE.to_owned(), text(&self.folder.path().join("cuda.json"))),
            (LOG_VARIABLE.to_owned(), text(&self.logs_folder())),
            (SCRIPT_VARIABLE.to_owned(), text(&self.script.gpus)),
        ]
    }

    /// A folder that lives as long.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `hush-server transcribe` of a recording of the fixtures with the bundled model, fp16, on CUDA.
    pub fn transcribe(&self, recording: &str, args: &[&str]) -> Result<Output> {
        let mut command = transcribe("cuda", &self.onnxruntime(), recording)?;
        Ok(command.args(args).envs(self.env()).output()?)
    }

    /// `hush-server serve` with the bundled model, fp16, on CUDA; `args` are further ones. NVML is the scripted one.
    pub fn server(&self, args: &[&str]) -> Result<Server> {
        let models = self.own_models()?;
        let nvml = hush_nvml::library()?.to_string_lossy().into_owned();
        let mut all = vec!["--device", "cuda", "--precision", "fp16", "--nvml-lib", &nvml];
        all.extend(["--gpu-sample-interval", "100ms"]);
        all.extend(args);
        Server::start_with(ServerOptions {
            args: all.into_iter().map(str::to_owned).collect(),
            env: self.env(),
            models_dir: Some(models),
            ort_lib: Some(self.onnxruntime()),
            ..ServerOptions::default()
        })
    }

    /// The bundled model in a folder of this test: what a model was learnt to need does not leak into another one.
    fn own_models(&self) -> Result<PathBuf> {
        let models = self.folder.path().join("models");
        if !models.exists() {
            std::fs::create_dir(&models)?;
            let installed = fixtures::models_dir("fp16")?.canonicalize()?.join(fixtures::MODEL);
            std::os::unix::fs::symlink(installed, models.join(fixtures::MODEL))?;
        }
        Ok(models)
    }

    fn logs_folder(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    /// The logs of all processes that have opened the double so far, the oldest first.
    pub fn logs(&self) -> Result<Vec<DoubleLog>> {
        log::in_folder(&self.logs_folder())
    }

    /// The log of a process, also of one that was killed.
    pub fn log(&self, process: u32) -> Result<DoubleLog> {
        let logs = self.logs()?.into_iter().filter(|log| log.process == process);
        logs.last().with_context(|| format!("process {process} has not opened the double"))
    }

    /// The log of the one process that computed something.
    pub fn only_log(&self) -> Result<DoubleLog> {
        let mut logs: Vec<DoubleLog> =
            self.logs()?.into_iter().filter(|log| log.counters().kernels.total().count > 0).collect();
        anyhow::ensure!(logs.len() == 1, "{} processes computed something", logs.len());
        logs.pop().context("no log")
    }
}

/// The same on the CPU, for comparison.
pub fn transcribe_on_cpu(recording: &str, args: &[&str]) -> Result<Output> {
    Ok(transcribe("cpu", &fixtures::onnxruntime(), recording)?.args(args).output()?)
}

fn transcribe(device: &str, onnxruntime: &Path, recording: &str) -> Result<Command> {
    let mut command = Command::new(fixtures::binary()?);
    command.args(["transcribe", "--model", fixtures::MODEL, "--precision", "fp16", "--device", device]);
    command.arg("--models-dir").arg(fixtures::models_dir("fp16")?).arg("--ort-lib").arg(onnxruntime);
    command.arg(fixtures::fixture("audio").join(recording));
    for variable in ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HUSH_DEVICE", "HUSH_PRECISION"] {
        command.env_remove(variable);
    }
    Ok(command)
}

/// Where `make cuda-double` puts the libraries.
fn folder() -> PathBuf {
    let folder = fixtures::workspace().join(".hush/cuda-double");
    folder.canonicalize().unwrap_or(folder)
}

/// A library of the double, to be opened by a test itself; `None`: it is not built.
pub fn library(name: &str) -> Option<PathBuf> {
    let path = libraries()?.join(name);
    path.is_file().then_some(path)
}

fn libraries() -> Option<PathBuf> {
    let needed = ["libcudart.so.13", "libcublas.so.13", "libcuda.so.1", "libonnxruntime_providers_cuda.so"];
    needed.iter().all(|name| folder().join(name).is_file()).then(folder)
}
