//! Log lines, on standard error so that standard output stays clean. Those that cannot be written are dropped and counted.

use std::ffi::OsString;

use tracing_subscriber::EnvFilter;

use super::settings::LogSettings;
use super::values::LogFormat;
use super::variable;

/// The settings as variables, for a child process that reads its own from the environment.
pub fn variables(settings: &LogSettings) -> [(OsString, OsString); 2] {
    let format = settings.format.as_str().into();
    [(variable("log-format").into(), format), (variable("log-level").into(), settings.level.clone().into())]
}

/// Sets up the process's log; a second call changes nothing.
pub fn init(settings: &LogSettings) {
    use std::io::IsTerminal;
    // ONNX Runtime tells every allocation; later directives win, so a user's own word on `ort` does.
    // The directives were checked when they were read.
    let filter = EnvFilter::new(format!("ort=warn,{}", settings.level));
    // What the log reports of itself would go to standard error with a panic where that cannot be written.
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false).with_writer(hush_log::writer);
    let done = match settings.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    if done.is_err() {
        tracing::debug!("the log is set up already");
    }
}
