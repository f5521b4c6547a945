//! Log lines, on standard error so that standard output stays clean. Those that cannot be written are dropped and counted.

use std::ffi::OsString;

use hush_log::LogSetup;

use crate::cli::settings::LogSettings;
use crate::cli::values::LogFormat;
use crate::cli::variable;

/// The settings as variables, for a child process that reads its own from the environment.
pub fn variables(settings: &LogSettings) -> [(OsString, OsString); 2] {
    let format = settings.format.as_str().into();
    [(variable("log-format").into(), format), (variable("log-level").into(), settings.level.clone().into())]
}

/// Sets up the process's log; a second call changes nothing.
pub fn init(settings: &LogSettings) {
    let setup = LogSetup {
        json: settings.format == LogFormat::Json,
        with_target: true,
        // ONNX Runtime tells every allocation; later directives win, so a user's own word on `ort` does.
        base: "ort=warn",
        // The directives were checked when they were read.
        filter: &settings.level,
    };
    if !hush_log::init_log(&setup) {
        tracing::debug!("the log is set up already");
    }
}
