//! Whether traces are exported: OpenTelemetry's own variables say so ("Environment Variable Specification" and
//! "OpenTelemetry Protocol Exporter" of its specification).

use crate::cli::env::Env;
use crate::cli::settings::SettingError;
use crate::serve::trace::{self, Exporting};

const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const PROTOCOL: &str = "http/protobuf";

/// `None`: nobody wants traces. To be kept until the end.
pub fn start(env: &Env) -> Result<Option<Exporting>, SettingError> {
    let Some(endpoint) = wanted(env)? else { return Ok(None) };
    let wrong = |error| SettingError::Combination(format!("OpenTelemetry's variables cannot be used: {error}"));
    let exporting = trace::start().map_err(wrong)?;
    tracing::info!(endpoint, "traces are exported");
    Ok(Some(exporting))
}

/// Where to; `None`: nowhere.
fn wanted(env: &Env) -> Result<Option<&str>, SettingError> {
    let is = |name, value: &str| Ok::<_, SettingError>(env.text(name)?.is_some_and(|t| t.eq_ignore_ascii_case(value)));
    let mut endpoint = None;
    for name in ENDPOINTS {
        endpoint = endpoint.or(env.text(name)?);
    }
    if endpoint.is_none() || is("OTEL_SDK_DISABLED", "true")? || is("OTEL_TRACES_EXPORTER", "none")? {
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
    fn traces_are_wanted_where_a_collector_is_named() {
        let wants = |variables: &[(&str, &str)]| {
            let env = variables.iter().copied().collect::<Env>();
            wanted(&env).map(|endpoint| endpoint.map(str::to_owned)).map_err(|error| error.to_string())
        };
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        assert_eq!(wants(&[]), Ok(None));
        assert_eq!(wants(&[general]), Ok(Some("http://collector:4318".to_owned())));
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces/in");
        assert_eq!(wants(&[general, own]), Ok(Some("http://traces/in".to_owned())));
        assert_eq!(wants(&[general, ("OTEL_SDK_DISABLED", "TRUE")]), Ok(None));
        assert_eq!(wants(&[general, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        let refused = wants(&[general, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap_err();
        assert!(refused.contains("OTEL_EXPORTER_OTLP_PROTOCOL") && refused.contains("4318"), "{refused}");
    }
}
