//! How an app is started, observed and ended.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Method};

/// Variables with this prefix are the sidecar's own, and may be secrets. An app does not inherit them.
const OWN_VARIABLE_PREFIX: &[u8] = b"HUSH_";
/// Names the process of an app to which a process belongs, for the case that its keeper is killed.
const MARK_VARIABLE: &str = "HUSH_SIDECAR_APP";
/// Stands for the app's port in its arguments and variables.
const PORT_PLACEHOLDER: &[u8] = b"{port}";

/// How an app is started, watched and ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSettings {
    /// For log lines: the name of the model, or of the app.
    pub name: String,
    /// The program and its arguments. `{port}` in an argument stands for the port.
    pub command: Vec<OsString>,
    pub working_dir: Option<PathBuf>,
    /// Variables beside those of the sidecar's own environment, of which the app inherits all but `HUSH_*`. `{port}` in a
    /// value stands for the port.
    pub env: Vec<(OsString, OsString)>,
    /// The app listens on this port of the loopback.
    pub port: u16,
    pub probe: ReadinessProbe,
    /// A request that the app must have answered before it counts as loaded.
    pub warm: Option<WarmRequest>,
    /// An app that is not ready by then is killed.
    pub load_timeout: Duration,
    /// From SIGTERM until SIGKILL.
    pub stop_timeout: Duration,
    /// An app that was ready and does not answer its probe for this long is killed, unless it sends bytes of answers
    /// meanwhile; `None`: never.
    pub hang_timeout: Option<Duration>,
    /// The program that understands `spawn-app`: this one.
    pub launcher: PathBuf,
}

impl ProcessSettings {
    /// An app with the usual time limits, whose probe is `GET /health`.
    pub fn new(name: impl Into<String>, command: Vec<OsString>, port: u16) -> Self {
        Self {
            name: name.into(),
            command,
            working_dir: None,
            env: Vec::new(),
            port,
            probe: ReadinessProbe::Http { path: "/health".to_owned() },
            warm: None,
            load_timeout: Duration::from_secs(600),
            stop_timeout: Duration::from_secs(10),
            hang_timeout: None,
            // At the path of the program, an upgrade may have put another version.
            launcher: PathBuf::from("/proc/self/exe"),
        }
    }

    /// The command with the port in its place.
    pub(super) fn resolved_command(&self) -> Vec<OsString> {
        self.command.iter().map(|argument| with_port(argument, self.port)).collect()
    }

    /// All variables of the app.
    pub(super) fn environment(&self, mark: &ProcessMark) -> Vec<(OsString, OsString)> {
        let own = self.env.iter().map(|(name, value)| (name.clone(), with_port(value, self.port)));
        let mark = (OsString::from(MARK_VARIABLE), OsString::from(&mark.value));
        inherited(env::vars_os()).chain(own).chain([mark]).collect()
    }
}

/// A variable that all processes of one start of an app inherit, and no others.
#[derive(Clone, Debug)]
pub(super) struct ProcessMark {
    value: String,
}

impl ProcessMark {
    pub(super) fn new() -> Self {
        Self { value: format!("{}-{:016x}", std::process::id(), fastrand::u64(..)) }
    }

    /// `NAME=VALUE`.
    pub(super) fn assignment(&self) -> OsString {
        format!("{MARK_VARIABLE}={}", self.value).into()
    }
}

fn inherited(variables: impl Iterator<Item = (OsString, OsString)>) -> impl Iterator<Item = (OsString, OsString)> {
    variables.filter(|(name, _)| !name.as_bytes().starts_with(OWN_VARIABLE_PREFIX))
}

fn with_port(text: &OsStr, port: u16) -> OsString {
    let mut rest = text.as_bytes();
    let mut replaced = Vec::with_capacity(rest.len());
    while let Some(at) = memchr::memmem::find(rest, PORT_PLACEHOLDER) {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(port.to_string().as_bytes());
        rest = &rest[at + PORT_PLACEHOLDER.len()..];
    }
    replaced.extend_from_slice(rest);
    OsString::from_vec(replaced)
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

/// A request that the sidecar sends to an app which has become ready, because some load their weights with the first one.
/// An answer with a status of 2xx ends the load; another one means that it has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmRequest {
    pub method: Method,
    /// Path and query.
    pub path: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Sent as JSON; `None`: no body.
    pub body: Option<serde_json::Value>,
}

/// When the app last sent a byte of an answer through the proxy: as long as it does it is not hung, whatever its probe
/// says. Clones are the same.
#[derive(Clone, Debug)]
pub struct AppActivity {
    started_at: Instant,
    /// Milliseconds since `started_at`.
    last: Arc<AtomicU64>,
}

impl AppActivity {
    pub fn new() -> Self {
        Self { started_at: Instant::now(), last: Arc::new(AtomicU64::new(0)) }
    }

    /// The app has just sent something.
    pub fn record(&self) {
        let elapsed = u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(elapsed, Ordering::Relaxed);
    }

    pub(super) fn last(&self) -> Instant {
        self.started_at + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

impl Default for AppActivity {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_stands_in_arguments_and_variables() {
        let command = ["serve", "--port", "{port}", "--url=http://localhost:{port}/{port}", "{ports}"];
        let mut settings = ProcessSettings::new("app", command.map(OsString::from).to_vec(), 8081);
        settings.env = vec![("ADDRESS".into(), "127.0.0.1:{port}".into())];

        let expected = ["serve", "--port", "8081", "--url=http://localhost:8081/8081", "{ports}"];
        assert_eq!(settings.resolved_command(), expected.map(OsString::from));
        assert!(settings.environment(&ProcessMark::new()).contains(&("ADDRESS".into(), "127.0.0.1:8081".into())));
    }

    #[test]
    fn bytes_that_are_no_text_stay_as_they_are() {
        let argument = OsString::from_vec(b"\xff{port}\xfe".to_vec());
        assert_eq!(with_port(&argument, 7), OsString::from_vec(b"\xff7\xfe".to_vec()));
    }

    #[test]
    fn variables_of_the_sidecar_are_not_inherited() {
        let variables = [("PATH", "/bin"), ("HUSH_TOKEN", "secret"), ("HF_TOKEN", "the app's")];
        let variables = variables.map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let names: Vec<OsString> = inherited(variables.into_iter()).map(|(name, _)| name).collect();
        assert_eq!(names, ["PATH", "HF_TOKEN"].map(OsString::from));
    }

    #[test]
    fn activity_is_that_of_the_last_byte() {
        let activity = AppActivity::new();
        let before = activity.last();
        std::thread::sleep(Duration::from_millis(5));
        activity.clone().record();
        assert!(activity.last() > before);
    }
}
