//! Whether traces are exported, which the variables of OpenTelemetry decide ("Environment Variable Specification" and
//! "OpenTelemetry Protocol Exporter" of its specification).

use crate::cli::env::Env;
use crate::cli::settings::SettingError;
use crate::serve::trace::{self, TraceExport};

const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const PROTOCOL: &str = "http/protobuf";

/// Starts the export, which goes on until the result is dropped. `None`: the variables name no collector.
///
/// # Errors
/// If the variables cannot be used.
pub fn start(env: &Env) -> Result<Option<TraceExport>, SettingError> {
    let Some(endpoint) = endpoint(env)? else { return Ok(None) };

    let unusable = |error| SettingError::Combination(format!("OpenTelemetry's variables cannot be used: {error}"));
    let export = trace::start_export().map_err(unusable)?;
    tracing::info!(endpoint, "traces are exported");
    Ok(Some(export))
}

/// The address of the collector; `None`: no traces are exported.
fn endpoint(env: &Env) -> Result<Option<&str>, SettingError> {
    let has_value =
        |name: &str, value: &str| env.text(name).map(|text| text.is_some_and(|text| text.eq_ignore_ascii_case(value)));

    let mut endpoint = None;
    for name in ENDPOINTS {
        endpoint = endpoint.or(env.text(name)?);
    }
    if endpoint.is_none() || has_value("OTEL_SDK_DISABLED", "true")? || has_value("OTEL_TRACES_EXPORTER", "none")? {
        return Ok(None);
    }

    for name in PROTOCOLS {
        if let Some(other) = env.text(name)?.filter(|protocol| *protocol != PROTOCOL) {
            return Err(SettingError::Variable {
                variable: name.to_owned(),
                value: other.to_owned(),
                problem: format!("traces are sent as {PROTOCOL} only (a collector's port is usually 4318)"),
            });
        }
    }
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_exported_if_a_collector_is_named() {
        let endpoint = |variables: &[(&str, &str)]| {
            let env = variables.iter().copied().collect::<Env>();
            endpoint(&env).map(|endpoint| endpoint.map(str::to_owned)).map_err(|error| error.to_string())
        };

        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        assert_eq!(endpoint(&[]), Ok(None));
        assert_eq!(endpoint(&[general]), Ok(Some("http://collector:4318".to_owned())));
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces/in");
        assert_eq!(endpoint(&[general, own]), Ok(Some("http://traces/in".to_owned())));

        assert_eq!(endpoint(&[general, ("OTEL_SDK_DISABLED", "TRUE")]), Ok(None));
        assert_eq!(endpoint(&[general, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));

        let refused = endpoint(&[general, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap_err();
        assert!(refused.contains("OTEL_EXPORTER_OTLP_PROTOCOL") && refused.contains("4318"), "{refused}");
    }
}
