//! Watches a lease.

use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::time::sleep;

use super::candidate::LeaseRecord;
use crate::api_server::LEASE_ROLE_HINT;

/// After this many seconds a watch is started anew. A connection that was lost in silence goes unnoticed for this long.
const WATCH_SECONDS: u32 = 30;

/// Why the lease cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum LeaseWatchError {
    #[error("{0}: {LEASE_ROLE_HINT}")]
    Forbidden(String),
    #[error(transparent)]
    Watch(watcher::Error),
}

impl From<watcher::Error> for LeaseWatchError {
    fn from(error: watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(kube::Error::Api(status))
            | watcher::Error::WatchStartFailed(kube::Error::Api(status))
                if status.code == 403 =>
            {
                Self::Forbidden(status.message)
            }
            error => Self::Watch(error),
        }
    }
}

/// The lease after each change, `None` while there is none. After an error the watch is started anew, `retry` later; the
/// safety of the election does not depend on it.
pub fn changes(
    api: Api<Lease>,
    name: &str,
    retry: Duration,
) -> BoxStream<'static, Result<Option<Lease>, LeaseWatchError>> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}")).timeout(WATCH_SECONDS);
    let mut exists = false;

    let changes = watcher(api, config).filter_map(move |event| {
        let mut pause = Duration::ZERO;
        let change = match event {
            Ok(Event::Init) => {
                exists = false;
                None
            }
            Ok(Event::InitApply(lease) | Event::Apply(lease)) => {
                exists = true;
                Some(Ok(Some(lease)))
            }
            Ok(Event::InitDone) => (!exists).then_some(Ok(None)),
            Ok(Event::Delete(_)) => Some(Ok(None)),
            Err(error) => {
                pause = retry;
                Some(Err(LeaseWatchError::from(error)))
            }
        };

        async move {
            sleep(pause).await;
            change
        }
    });
    changes.boxed()
}

pub fn record(lease: &Lease) -> LeaseRecord {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());

    LeaseRecord {
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        duration: seconds.map(Duration::from_secs),
        renewed: spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default(),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}
