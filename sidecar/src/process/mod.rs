//! An app that the sidecar starts itself: its process group, its readiness, its end, and children that left the group.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use hush_residency::{ModelRunner, Notify};

/// How an app is started, watched and ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSettings {
    /// For log lines: the name of the model, or of the app.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<OsString>,
    pub working_dir: Option<PathBuf>,
    /// Variables beside those of the sidecar's own environment.
    pub env: Vec<(OsString, OsString)>,
    /// The app listens on this port of the loopback.
    pub port: u16,
    pub probe: ReadinessProbe,
    /// An app that is not ready by then is killed.
    pub load_timeout: Duration,
    /// From SIGTERM until SIGKILL.
    pub stop_timeout: Duration,
    /// An app that was ready and does not answer its probe for this long is killed; `None`: never.
    pub hang_timeout: Option<Duration>,
}

/// What tells that an app is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadinessProbe {
    /// `GET` of this path is answered with 200.
    Http { path: String },
    /// The port accepts a connection.
    Tcp,
    /// A line of standard output or standard error contains this text.
    LogLine { text: String },
}

/// A process of the app. Clones are handles to the same one; when the last is dropped, it is ended.
#[derive(Clone)]
pub struct AppProcess {
    _private: (),
}

impl AppProcess {
    /// Starts the app without waiting for it. What becomes of it is reported to `notify`: `Started`, again whenever its
    /// processes change, `Loaded` when the probe succeeds, `LoadFailed` with the last lines of its output, `Lost`, and
    /// `Exited` when no process of it is left.
    pub fn start(_settings: ProcessSettings, _notify: Notify) -> Self {
        todo!()
    }
}

impl ModelRunner for AppProcess {
    fn stop(&self) {
        todo!()
    }

    fn kill(&self) {
        todo!()
    }
}
