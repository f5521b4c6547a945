//! Option values that both command lines take: `hush-controller` and `kubectl hush`.

use std::time::Duration;

use clap::ValueEnum;

/// How a command prints its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a duration such as 500ms, 1s or 1m30s, longer than 0")]
pub struct InvalidDuration;

/// Parses a duration as policies write it; a duration of zero is refused.
pub fn parse_positive_duration(text: &str) -> Result<Duration, InvalidDuration> {
    hush_crds::parse_duration(text).filter(|duration| !duration.is_zero()).ok_or(InvalidDuration)
}
