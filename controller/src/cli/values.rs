//! Values of options.

use std::time::Duration;

/// A duration as policies write it; more than nothing.
pub fn span(text: &str) -> Result<Duration, String> {
    let span = hush_crds::parse_duration(text).filter(|span| !span.is_zero());
    span.ok_or_else(|| "must be a duration such as 500ms, 1s or 1m30s, longer than nothing".to_owned())
}
