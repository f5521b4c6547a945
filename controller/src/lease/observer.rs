//! Observes a lease without standing for it: a controller that steps back while another one leads.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use tokio::sync::watch;

use super::candidate::LeaseRecord;
use super::changes::{LeaseWatchError, changes, record};
use super::clock::BootInstant;
use super::elector::LeaseName;

/// The pause before a failed watch is started anew.
const RETRY: Duration = Duration::from_secs(1);

/// The leader's name while the lease has not been observed yet.
const UNKNOWN_LEADER: &str = "a holder that is not known yet";

/// What is known of a lease, judged by the local clock as a candidate does.
#[derive(Clone, Debug)]
pub struct LeaseObserver {
    observed: Option<(Option<LeaseRecord>, BootInstant)>,
    began: BootInstant,
    lease_duration: Duration,
}

impl LeaseObserver {
    /// Until the lease has been observed, or for `lease_duration`, a controller is assumed to lead.
    pub const fn new(began: BootInstant, lease_duration: Duration) -> Self {
        Self { observed: None, began, lease_duration }
    }

    pub fn observe(&mut self, now: BootInstant, record: Option<LeaseRecord>) {
        if self.observed.as_ref().is_none_or(|(before, _)| *before != record) {
            self.observed = Some((record, now));
        }
    }

    /// The name of the controller that leads, as far as it is known.
    pub fn leader(&self, now: BootInstant) -> Option<&str> {
        match &self.observed {
            None => (now < self.began.plus(self.lease_duration)).then_some(UNKNOWN_LEADER),
            Some((Some(record), since)) => {
                let ends = since.plus(record.duration.unwrap_or(self.lease_duration));
                record.holder.as_deref().filter(|_| now < ends)
            }
            Some((None, _)) => None,
        }
    }
}

/// Watches the lease of another controller.
#[derive(Clone, Debug)]
pub struct LeaderWatcher {
    lease: LeaseName,
    watched: watch::Receiver<WatchedLease>,
}

#[derive(Clone, Debug)]
struct WatchedLease {
    observer: LeaseObserver,
    /// Why the lease cannot be watched.
    error: Option<Arc<LeaseWatchError>>,
}

impl LeaderWatcher {
    /// Watches the lease until the watcher and its clones are dropped.
    pub fn follow(client: Client, lease: LeaseName, lease_duration: Duration) -> Self {
        let observer = LeaseObserver::new(BootInstant::now(), lease_duration);
        let (sender, watched) = watch::channel(WatchedLease { observer, error: None });
        let api = Api::<Lease>::namespaced(client, &lease.namespace);
        let mut changes = changes(api, &lease.name, RETRY);

        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(change) = changes.next() => sender.send_modify(|watched| match change {
                        Ok(object) => {
                            watched.observer.observe(BootInstant::now(), object.as_ref().map(record));
                            watched.error = None;
                        }
                        Err(error) => watched.error = Some(Arc::new(error)),
                    }),
                    () = sender.closed() => return,
                }
            }
        });

        Self { lease, watched }
    }

    /// The name of the controller that leads, as far as it is known.
    pub fn name(&self) -> Option<String> {
        self.watched.borrow().observer.leader(BootInstant::now()).map(str::to_owned)
    }

    /// Why it is not known which controller leads.
    pub fn last_error(&self) -> Option<String> {
        let error = self.watched.borrow().error.clone()?;
        Some(format!("the lease {} cannot be watched, so its holder is not seen: {error}", self.lease))
    }
}
