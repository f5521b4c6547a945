//! Memory of the scripted GPU that this process holds.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use hush_nvml::SCRIPT_VARIABLE;

#[derive(Debug)]
pub struct DeviceMemory {
    /// The script and the UUID; `None`: no GPU is scripted.
    device: Option<(PathBuf, String)>,
    held_bytes: Mutex<u64>,
}

impl DeviceMemory {
    pub fn new(gpu: Option<&str>) -> Self {
        let script = std::env::var_os(SCRIPT_VARIABLE).map(PathBuf::from);
        Self { device: script.zip(gpu.map(str::to_owned)), held_bytes: Mutex::new(0) }
    }

    /// `false`: the device has no room for it.
    pub fn take(&self, bytes: u64) -> Result<bool> {
        let mut held = self.held_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = self.register(*held + bytes)?;
        if fits {
            *held += bytes;
        }
        Ok(fits)
    }

    pub fn give_back(&self, bytes: u64) -> Result<()> {
        let mut held = self.held_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *held = held.saturating_sub(bytes);
        self.register(*held)?;
        Ok(())
    }

    pub fn held_bytes(&self) -> u64 {
        *self.held_bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, bytes: u64) -> Result<bool> {
        match &self.device {
            Some((script, uuid)) => Ok(hush_nvml::hold_memory(script, uuid, bytes)?),
            None => Ok(true),
        }
    }
}
