//! Scripted GPUs: real server processes that look at them through the double of NVML.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hush_nvml::{ProcessMemory, SCRIPT_VARIABLE, Script, ScriptedDevice};
use tempfile::TempDir;

use crate::{Server, ServerOptions, fixtures};

pub const UUID: &str = "GPU-11111111-2222-3333-4444-555555555555";
pub const GIB: u64 = 1 << 30;

/// A file with GPUs, for as many servers as look at it.
pub struct Gpus {
    folder: TempDir,
    pub script: Script,
}

impl Gpus {
    /// One GPU of 8 GiB.
    pub fn one() -> Result<Self> {
        let gpus = Self { folder: tempfile::tempdir()?, script: Script::of([ScriptedDevice::new(UUID, 8 * GIB)]) };
        gpus.write()?;
        Ok(gpus)
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("gpus.json")
    }

    /// A folder that lives as long.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn write(&self) -> Result<()> {
        Ok(self.script.write(&self.path())?)
    }

    /// Changes the first GPU.
    pub fn change(&mut self, change: impl FnOnce(&mut ScriptedDevice)) -> Result<()> {
        change(self.script.devices.first_mut().context("no GPU in the script")?);
        self.write()
    }

    /// A server whose models count against the first GPU, and how its runners hold memory there once they are loaded.
    pub fn server(&mut self, guest: ProcessMemory, args: &[&str]) -> Result<Server> {
        let mut all = vec!["--nvml-lib".to_owned(), hush_nvml::library()?.to_string_lossy().into_owned()];
        for fixed in ["--account-gpu", UUID, "--gpu-sample-interval", "100ms"] {
            all.push(fixed.to_owned());
        }
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let env = vec![(SCRIPT_VARIABLE.to_owned(), self.path().to_string_lossy().into_owned())];
        // What a model was learnt to need must not leak from one test into another.
        let models = self.folder.path().join("models");
        if !models.exists() {
            std::fs::create_dir(&models)?;
            let installed = fixtures::models_dir("int8")?.canonicalize()?.join(fixtures::MODEL);
            std::os::unix::fs::symlink(installed, models.join(fixtures::MODEL))?;
        }
        let server =
            Server::start_with(ServerOptions { args: all, env, models_dir: Some(models), ..ServerOptions::default() })?;
        let guest = ProcessMemory {
            process: "hush-runner".to_owned(),
            parent_pid: Some(server.pid()),
            mapped: Some("weights.bin".to_owned()),
            ..guest
        };
        self.change(|gpu| gpu.guests.push(guest))?;
        Ok(server)
    }
}

/// A series of a device.
pub fn of_gpu(name: &str) -> String {
    format!("{name}{{gpu_uuid=\"{UUID}\"}}")
}

/// A series of the bundled model.
pub fn of_model(name: &str) -> String {
    format!("{name}{{model=\"{}\"}}", fixtures::MODEL)
}

/// A series of the bundled model on the device.
pub fn of_both(name: &str) -> String {
    format!("{name}{{gpu_uuid=\"{UUID}\",model=\"{}\"}}", fixtures::MODEL)
}

/// For what takes a scripted moment and a look or two.
pub const SOON: Duration = Duration::from_secs(60);
