//! The log of the process. Its lines go to standard error, so that standard output holds only results. Lines that cannot
//! be written are dropped and counted.

use std::ffi::OsString;

use hush_log::LogSetup;

use crate::cli::settings::LogSettings;
use crate::cli::values::LogFormat;

/// The variable of `--log-format`.
pub const FORMAT_VARIABLE: &str = "HUSH_LOG_FORMAT";

/// The variable of `--log-level`.
pub const LEVEL_VARIABLE: &str = "HUSH_LOG_LEVEL";

/// The settings as variables, for a runner, which reads its settings from the environment.
pub fn variables(settings: &LogSettings) -> [(OsString, OsString); 2] {
    let format = settings.format.as_str().into();
    [(FORMAT_VARIABLE.into(), format), (LEVEL_VARIABLE.into(), settings.level.clone().into())]
}

/// Sets up the log of the process; a second call changes nothing.
pub fn init(settings: &LogSettings) {
    let setup = LogSetup {
        json: settings.format == LogFormat::Json,
        with_target: true,
        // ONNX Runtime logs every allocation. A directive of the user for `ort` comes later and wins.
        base: "ort=warn",
        // The directives were checked when the settings were read.
        filter: &settings.level,
    };
    if !hush_log::init_log(&setup) {
        tracing::debug!("the log is set up already");
    }
}
