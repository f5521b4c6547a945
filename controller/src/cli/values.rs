//! Values of options.

use std::time::Duration;

use hush_core::ServerName;

use crate::lease::LeaseTiming as Terms;

/// A duration as policies write it; more than nothing.
pub fn span(text: &str) -> Result<Duration, String> {
    let span = hush_crds::parse_duration(text).filter(|span| !span.is_zero());
    span.ok_or_else(|| "must be a duration such as 500ms, 1s or 1m30s, longer than nothing".to_owned())
}

/// The duration of a lease.
pub fn lease(text: &str) -> Result<Terms, String> {
    hush_crds::parse_duration(text).and_then(Terms::of).ok_or_else(|| {
        let (shortest, longest) = (Terms::SHORTEST.as_secs(), Terms::LONGEST.as_secs());
        format!("must be whole seconds, such as 15s, from {shortest}s to {longest}s")
    })
}

/// A pod.
pub fn server(text: &str) -> Result<ServerName, &'static str> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(ServerName(text.to_owned()))
        }
        _ => Err("must be NAMESPACE/NAME, such as media/whisper-0"),
    }
}
