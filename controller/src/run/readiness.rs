//! Whether the controller lives, and what it still waits for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A step takes milliseconds; one that has not come for so long will not come any more.
const SILENCE: Duration = Duration::from_secs(60);

/// Cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    missing: Arc<Mutex<BTreeMap<&'static str, String>>>,
    beat: Arc<Mutex<Instant>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { missing: Arc::default(), beat: Arc::new(Mutex::new(Instant::now())) }
    }
}

impl Readiness {
    /// `what`: for people; `None`: that part is there.
    pub fn set(&self, part: &'static str, what: Option<String>) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        match what {
            Some(what) => drop(missing.insert(part, what)),
            None => drop(missing.remove(part)),
        }
    }

    /// Empty when nothing is missing.
    pub fn missing(&self) -> Vec<String> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.iter().map(|(part, what)| format!("{part}: {what}")).collect()
    }

    pub(super) fn beat(&self) {
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// `Err`: for how long the loop has not stepped.
    pub fn alive(&self) -> Result<(), Duration> {
        let silent = self.beat.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        if silent < SILENCE { Ok(()) } else { Err(silent) }
    }
}
