//! Liveness and readiness of the controller: whether the loop still steps, and which parts are missing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A step takes milliseconds. A loop without a step for this long hangs.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// Cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    missing: Arc<Mutex<BTreeMap<&'static str, String>>>,
    last_step: Arc<Mutex<Instant>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { missing: Arc::default(), last_step: Arc::new(Mutex::new(Instant::now())) }
    }
}

impl Readiness {
    /// Sets what is missing of a part, as a text for users; `None`: the part is ready.
    pub fn set(&self, part: &'static str, missing: Option<String>) {
        let mut parts = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        match missing {
            Some(missing) => drop(parts.insert(part, missing)),
            None => drop(parts.remove(part)),
        }
    }

    /// One line for each part that is not ready; empty when the controller is ready.
    pub fn missing(&self) -> Vec<String> {
        let parts = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().map(|(part, missing)| format!("{part}: {missing}")).collect()
    }

    pub(super) fn record_step(&self) {
        *self.last_step.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// `Err`: the loop hangs; the time since its last step.
    pub fn check_alive(&self) -> Result<(), Duration> {
        let since_step = self.last_step.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        if since_step < STEP_TIMEOUT { Ok(()) } else { Err(since_step) }
    }
}
