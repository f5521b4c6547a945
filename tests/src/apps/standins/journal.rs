//! What happened in a stand-in: a JSON object a line, in a file that outlives it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use hush_nvml::unix_millis;
use serde::{Deserialize, Serialize};

/// What a governor of the app must never cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ViolationKind {
    /// An answer ended early because the model or the app was ended.
    Cut,
    /// An unload arrived while requests were in flight.
    UnloadWhileBusy,
    /// A second unload arrived while the first was going on.
    UnloadTwice,
    /// Work arrived while the model was away: the app loads it, queues the work unseen, or refuses it.
    RequestWhileAway,
    /// A load arrived while the model was loaded.
    LoadWhileLoaded,
    /// A `GET` arrived that loads a model.
    GetLoads,
    /// A probe arrived that uses the model.
    ProbeGenerates,
    /// A client's own `keep_alive` came through.
    ClientKeepAlive,
    /// A `Host` that is none of the loopback.
    ForeignHost,
    /// The app died of a request.
    Died,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JournalEvent {
    Started {
        pid: u32,
    },
    Request {
        method: String,
        /// Path and query.
        path: String,
        body_bytes: u64,
        /// SHA-256 of the whole body, in hexadecimal digits.
        body_sha256: String,
        /// The whole body, if it is short and text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body_text: Option<String>,
        /// The header `x-test-marker`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        marker: Option<String>,
    },
    /// An answer was complete.
    Answered {
        path: String,
    },
    /// The client left before the answer was complete.
    ClientGone {
        path: String,
    },
    Loaded {
        model: String,
    },
    Unloaded {
        model: String,
    },
    RunnerStarted {
        pid: u32,
    },
    Violation {
        kind: ViolationKind,
        detail: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
    #[serde(flatten)]
    pub event: JournalEvent,
}

impl JournalEntry {
    /// All entries of a journal; none if there is no file yet.
    pub fn read_all(path: &Path) -> Result<Vec<Self>> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // The last line may be half written at this moment.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }
}

#[derive(Debug)]
pub struct Journal {
    file: Option<Mutex<File>>,
}

impl Journal {
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let open = |path: &Path| OpenOptions::new().create(true).append(true).open(path);
        Ok(Self { file: path.map(open).transpose()?.map(Mutex::new) })
    }

    pub fn write(&self, event: JournalEvent) {
        let entry = JournalEntry { at_unix_ms: unix_millis(), event };
        let Ok(mut line) = serde_json::to_string(&entry) else { return };
        line.push('\n');
        match &self.file {
            Some(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                // One call, so that a line is whole though the process may be killed. A full disk fails the test elsewhere.
                let _ = file.write_all(line.as_bytes());
            }
            None => eprint!("{line}"),
        }
    }

    pub fn violation(&self, kind: ViolationKind, detail: impl Into<String>) {
        self.write(JournalEvent::Violation { kind, detail: detail.into() });
    }
}
