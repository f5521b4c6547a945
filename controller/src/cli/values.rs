//! Values of options that only `hush-controller` takes.

use hush_core::ServerName;

use crate::lease::LeaseTiming;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be whole seconds, such as 15s, from {}s to {}s", LeaseTiming::SHORTEST.as_secs(), LeaseTiming::LONGEST.as_secs())]
pub struct InvalidLeaseDuration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be NAMESPACE/NAME, such as media/whisper-0")]
pub struct InvalidPodName;

pub fn parse_lease_duration(text: &str) -> Result<LeaseTiming, InvalidLeaseDuration> {
    hush_crds::parse_duration(text).and_then(LeaseTiming::new).ok_or(InvalidLeaseDuration)
}

pub fn parse_pod_name(text: &str) -> Result<ServerName, InvalidPodName> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(ServerName(text.to_owned()))
        }
        _ => Err(InvalidPodName),
    }
}
