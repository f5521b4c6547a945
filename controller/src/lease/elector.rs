//! Carries out the steps of a [`LeaseCandidate`] against the API server.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::candidate::{ClaimLoss, LeaseCandidate, LeaseStep, LeaseTiming};
use super::changes::{changes, record};
use super::claim::{Claim, Standing};
use super::clock::BootInstant;
use crate::api_server::{FIELD_MANAGER, LEASE_ROLE_HINT};

/// The duration of a lease that was given back: the shortest that can be written.
const RELEASED_SECONDS: i32 = 1;

/// The shortest timeout of a request, for an API server that is busy.
const SHORTEST_TIMEOUT: Duration = Duration::from_secs(1);

/// An annotation of the lease, written together with the holder: the installation that the holder belongs to.
const INSTALLATION_ANNOTATION: &str = "gpu.hush.dev/installation";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseName {
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for LeaseName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The process that stands for a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    /// Unique to this process; an earlier process of this program has another one.
    pub identity: String,
    /// The name of what was installed together. The replicas of one installation take over from each other; a second
    /// installation for the same scope is a mistake.
    pub installation: String,
}

/// The host name (in a pod, the pod's name) and a random number, so that no other process has the same identity.
pub fn identity() -> std::io::Result<String> {
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;

    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(format!("{host}_{:016x}", u64::from_ne_bytes(random)))
}

pub struct Elector {
    api: Api<Lease>,
    name: String,
    installation: String,
    candidate: LeaseCandidate,
    /// The lease as it was last read or written. A write succeeds only while the lease is still this version.
    object: Option<Lease>,
    standing: watch::Sender<Standing>,
    /// The failure that was logged last; a failure that lasts is logged once.
    last_error: Option<String>,
    /// The holder as it was last observed; it stays while the lease has no holder.
    last_holder: Option<String>,
    leader_changes: u64,
}

impl Elector {
    pub fn new(client: Client, lease: LeaseName, contender: Contender, timing: LeaseTiming) -> (Self, Claim) {
        let (standing, receiver) = watch::channel(Standing::default());
        let api = Api::namespaced(client, &lease.namespace);
        let Contender { identity, installation } = contender;

        let elector = Self {
            api,
            name: lease.name,
            installation,
            candidate: LeaseCandidate::new(identity, timing),
            object: None,
            standing,
            last_error: None,
            last_holder: None,
            leader_changes: 0,
        };
        (elector, Claim::new(receiver))
    }

    /// Stands for the lease until `stop`, then gives it back; `stop` must come after the last command. `Err`: the claim was
    /// lost, and with it the right to act; the process should end.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), ClaimLoss> {
        let mut stop = pin!(stop);
        let mut changes = changes(self.api.clone(), &self.name, self.candidate.timing().retry);

        loop {
            let now = BootInstant::now();
            let next = self.candidate.next_step(now);
            self.publish();

            match next {
                LeaseStep::Lost(loss) => {
                    self.standing.send_replace(Standing::default());
                    return Err(loss);
                }
                LeaseStep::Read => self.read().await,
                LeaseStep::Create => self.create().await,
                LeaseStep::Write { transitions } => self.write(transitions).await,
                LeaseStep::Wait { until } => {
                    if self.candidate.claim().is_some() {
                        // The holder knows the lease from its own writes; a report of the watch may be older than they are.
                        changes = stream::pending().boxed();
                    }
                    tokio::select! {
                        () = &mut stop => break,
                        () = sleep(now.until(until)) => {}
                        Some(change) = changes.next() => {
                            // When the watch fails, so does the next read of the lease, which reports the failure.
                            if let Ok(object) = change {
                                self.observe(object);
                            }
                        }
                    }
                }
            }
        }

        self.standing.send_replace(Standing::default());
        self.release().await;
        Ok(())
    }

    fn observe(&mut self, object: Option<Lease>) {
        self.last_error = None;
        self.candidate.observe(BootInstant::now(), object.as_ref().map(record));
        self.object = object;
    }

    async fn read(&mut self) {
        match self.with_timeout(self.api.get_opt(&self.name)).await {
            Ok(object) => self.observe(object),
            Err(error) => self.handle_failure("read", &error),
        }
    }

    async fn create(&mut self) {
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        let spec = self.spec(LeaseSpec::default(), None, 0);
        let object = Lease { metadata, spec: Some(spec) };

        match self.with_timeout(self.api.create(&parameters(), &object)).await {
            Ok(created) => self.observe(Some(created)),
            Err(error) => self.handle_write_failure(&error),
        }
    }

    async fn write(&mut self, transitions: i32) {
        // A lease is never written that was not read before.
        let Some(mut object) = self.object.clone() else { return self.candidate.mark_outdated() };

        let identity = Some(self.candidate.identity().to_owned());
        object.spec = Some(self.spec(object.spec.unwrap_or_default(), identity, transitions));
        let annotations = object.metadata.annotations.get_or_insert_default();
        annotations.insert(INSTALLATION_ANNOTATION.to_owned(), self.installation.clone());

        let sent = BootInstant::now();
        match self.with_timeout(self.api.replace(&self.name, &parameters(), &object)).await {
            Ok(written) => {
                if self.candidate.claim().is_none() {
                    let identity = self.candidate.identity();
                    tracing::info!(lease = self.name, identity, transitions, "leading");
                }
                self.last_error = None;
                self.candidate.record_write(sent, record(&written));
                self.object = Some(written);
            }
            Err(error) => self.handle_write_failure(&error),
        }
    }

    fn handle_write_failure(&mut self, error: &LeaseRequestError) {
        match error {
            // Another process has written, created or deleted the lease since it was read.
            LeaseRequestError::Api(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                self.candidate.mark_outdated();
            }
            _ => self.handle_failure("written", error),
        }
    }

    fn spec(&self, before: LeaseSpec, holder: Option<String>, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let is_same_holder = before.holder_identity == holder;
        let acquired = before.acquire_time.filter(|_| is_same_holder);

        LeaseSpec {
            acquire_time: acquired.or_else(|| holder.is_some().then(|| now.clone())),
            holder_identity: holder,
            lease_duration_seconds: i32::try_from(self.candidate.timing().lease.as_secs()).ok(),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Gives the lease back, so that another candidate can take it at once. Best effort: otherwise the lease expires.
    async fn release(&mut self) {
        let (Some(_), Some(mut object)) = (self.candidate.claim(), self.object.take()) else { return };
        if let Some(spec) = &mut object.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(RELEASED_SECONDS);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }

        match self.with_timeout(self.api.replace(&self.name, &parameters(), &object)).await {
            Ok(_) => tracing::info!(lease = self.name, "gave the lease back"),
            Err(error) => tracing::warn!(lease = self.name, "the lease runs out by itself: {error}"),
        }
    }

    fn handle_failure(&mut self, what: &str, error: &LeaseRequestError) {
        let text = format!("the lease could not be {what}: {error}");
        if self.last_error.as_ref() != Some(&text) {
            tracing::warn!(lease = self.name, "{text}");
            self.last_error = Some(text);
        }

        self.candidate.record_failure(BootInstant::now());
    }

    fn publish(&mut self) {
        let holder = self.candidate.holder().map(str::to_owned);
        let is_ours = holder.as_deref() == Some(self.candidate.identity());
        if holder.is_some() && holder != self.last_holder {
            // The first holder that this candidate observes is no change, unless it is the candidate itself.
            self.leader_changes += u64::from(is_ours || self.last_holder.is_some());
            self.last_holder.clone_from(&holder);
        }

        let annotations = self.object.as_ref().and_then(|object| object.metadata.annotations.as_ref());
        let installation = annotations.and_then(|annotations| annotations.get(INSTALLATION_ANNOTATION));
        let other_installation =
            installation.filter(|name| holder.is_some() && !is_ours && **name != self.installation);

        let standing = Standing {
            claim: self.candidate.claim(),
            other_installation: other_installation.cloned(),
            leader_changes: self.leader_changes,
            holder,
            last_error: self.last_error.clone(),
        };
        self.standing.send_if_modified(|before| {
            let changed = *before != standing;
            *before = standing;
            changed
        });
    }

    async fn with_timeout<T>(
        &self,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, LeaseRequestError> {
        // Half of the time to the next write: a second attempt still fits in before the claim is over.
        let renew = self.candidate.timing().renew;
        let limit = (renew / 2).max(SHORTEST_TIMEOUT).min(renew);

        match timeout(limit, request).await {
            Ok(answer) => answer.map_err(LeaseRequestError::from),
            Err(_) => Err(LeaseRequestError::Timeout(limit)),
        }
    }
}

fn parameters() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

#[derive(Debug, thiserror::Error)]
enum LeaseRequestError {
    #[error(transparent)]
    Api(kube::Error),
    #[error("the API server is busy")]
    Busy,
    #[error("{0}: {LEASE_ROLE_HINT}")]
    Forbidden(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

impl From<kube::Error> for LeaseRequestError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 429 => Self::Busy,
            kube::Error::Api(status) if status.code == 403 => Self::Forbidden(status.message),
            error => Self::Api(error),
        }
    }
}
