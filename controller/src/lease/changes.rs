//! A lease as it is seen from outside.

use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::time::sleep;

use super::candidate::Record;
use crate::api_server::LEASE_ROLE_HINT;

/// Of a watch before it is begun anew: so long a connection that has died in silence goes unnoticed.
const WATCH_SECONDS: u32 = 30;

/// The lease whenever it changes, `None` when there is none. After an error, which is for people, the watch is begun
/// anew: nothing unsafe rests on it.
pub fn changes(api: Api<Lease>, name: &str, retry: Duration) -> BoxStream<'static, Result<Option<Lease>, String>> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}")).timeout(WATCH_SECONDS);
    let mut there = false;
    let changes = watcher(api, config).filter_map(move |event| {
        let (mut pause, mut seen) = (Duration::ZERO, None);
        match event {
            Ok(Event::Init) => there = false,
            Ok(Event::InitApply(lease) | Event::Apply(lease)) => {
                there = true;
                seen = Some(Ok(Some(lease)));
            }
            Ok(Event::InitDone) => seen = (!there).then_some(Ok(None)),
            Ok(Event::Delete(_)) => seen = Some(Ok(None)),
            Err(error) => {
                seen = Some(Err(explain(&error)));
                pause = retry;
            }
        }
        async move {
            sleep(pause).await;
            seen
        }
    });
    changes.boxed()
}

/// For people.
fn explain(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            if status.code == 403 =>
        {
            format!("{}: {LEASE_ROLE_HINT}", status.message)
        }
        error => error.to_string(),
    }
}

/// What decides.
pub fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    Record {
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        duration: spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs),
        renewed: spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default(),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}
