//! Carries out what [`Candidate`] decides, against the API server.

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

use super::candidate::{Candidate, Loss, Next, Terms};
use super::changes::{changes, record};
use super::claim::{Claim, Standing};
use super::clock::Moment;
use crate::api_server::{FIELD_MANAGER, LEASE_ROLE_HINT};

/// What a lease promises that was given back: the least that can be written.
const RELEASED_SECONDS: i32 = 1;

/// Of a request to an API server that is busy.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

/// On a lease, written together with the holder: what the holder was installed as.
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

/// Who stands for a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    /// No other process has it, this program in an earlier life included.
    pub identity: String,
    /// What was installed together. The replicas of one installation relieve each other; a second installation for the
    /// same scope is a mistake.
    pub installation: String,
}

/// The host's name (of a pod, the pod's) and something that no other process has, this one in an earlier life included.
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
    candidate: Candidate,
    /// As it was last read or written; a write goes through only if it is still this.
    object: Option<Lease>,
    standing: watch::Sender<Standing>,
    /// What was last said of a failure; a failure that lasts is said once.
    trouble: Option<String>,
    /// Whose name was last seen in the lease; it stays while the lease has no holder.
    last_holder: Option<String>,
    leader_changes: u64,
}

impl Elector {
    pub fn new(client: Client, lease: LeaseName, contender: Contender, terms: Terms) -> (Self, Claim) {
        let (standing, receiver) = watch::channel(Standing::default());
        let api = Api::namespaced(client, &lease.namespace);
        let Contender { identity, installation } = contender;
        let elector = Self {
            api,
            name: lease.name,
            installation,
            candidate: Candidate::new(identity, terms),
            object: None,
            standing,
            trouble: None,
            last_holder: None,
            leader_changes: 0,
        };
        (elector, Claim::of(receiver))
    }

    /// Stands for the lease until `stop`, which must come after the last command: then it is given back. An error means
    /// that the claim was lost, and with it the right to go on: the process should end.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), Loss> {
        let mut stop = pin!(stop);
        let mut changes = changes(self.api.clone(), &self.name, self.candidate.terms().retry);
        loop {
            let now = Moment::now();
            let next = self.candidate.next(now);
            self.publish();
            match next {
                Next::Lost(loss) => {
                    self.standing.send_replace(Standing::default());
                    return Err(loss);
                }
                Next::Look => self.look().await,
                Next::Create => self.create().await,
                Next::Write { transitions } => self.write(transitions).await,
                Next::Wait { until } => {
                    if self.candidate.claim().is_some() {
                        // The holder learns from its own writes; what is reported may be older than they are.
                        changes = stream::pending().boxed();
                    }
                    tokio::select! {
                        () = &mut stop => break,
                        () = sleep(now.until(until)) => {}
                        Some(change) = changes.next() => {
                            // Reading the lease fails as its watch does, and tells of it.
                            if let Ok(seen) = change {
                                self.see(seen);
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

    fn see(&mut self, object: Option<Lease>) {
        self.trouble = None;
        self.candidate.saw(Moment::now(), object.as_ref().map(record));
        self.object = object;
    }

    async fn look(&mut self) {
        match self.in_time(self.api.get_opt(&self.name)).await {
            Ok(object) => self.see(object),
            Err(error) => self.failed("read", &error),
        }
    }

    async fn create(&mut self) {
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        let spec = self.spec(LeaseSpec::default(), None, 0);
        let object = Lease { metadata, spec: Some(spec) };
        match self.in_time(self.api.create(&parameters(), &object)).await {
            Ok(created) => self.see(Some(created)),
            Err(error) => self.not_written(&error),
        }
    }

    async fn write(&mut self, transitions: i32) {
        // Nothing is written that was not read before.
        let Some(mut object) = self.object.clone() else { return self.candidate.overtaken() };
        let identity = Some(self.candidate.identity().to_owned());
        object.spec = Some(self.spec(object.spec.unwrap_or_default(), identity, transitions));
        let annotations = object.metadata.annotations.get_or_insert_default();
        annotations.insert(INSTALLATION_ANNOTATION.to_owned(), self.installation.clone());
        let sent = Moment::now();
        match self.in_time(self.api.replace(&self.name, &parameters(), &object)).await {
            Ok(written) => {
                if self.candidate.claim().is_none() {
                    let identity = self.candidate.identity();
                    tracing::info!(lease = self.name, identity, transitions, "leading");
                }
                self.trouble = None;
                self.candidate.wrote(sent, record(&written));
                self.object = Some(written);
            }
            Err(error) => self.not_written(&error),
        }
    }

    fn not_written(&mut self, error: &Failure) {
        match error {
            // Somebody wrote, created or deleted it since we looked.
            Failure::Answer(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => self.candidate.overtaken(),
            _ => self.failed("written", error),
        }
    }

    fn spec(&self, before: LeaseSpec, holder: Option<String>, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let goes_on = before.holder_identity == holder;
        LeaseSpec {
            acquire_time: before.acquire_time.filter(|_| goes_on).or_else(|| holder.is_some().then(|| now.clone())),
            holder_identity: holder,
            lease_duration_seconds: i32::try_from(self.candidate.terms().lease.as_secs()).ok(),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Lets another begin at once. Best effort: otherwise the lease runs out.
    async fn release(&mut self) {
        let (Some(_), Some(mut object)) = (self.candidate.claim(), self.object.take()) else { return };
        if let Some(spec) = &mut object.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(RELEASED_SECONDS);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        match self.in_time(self.api.replace(&self.name, &parameters(), &object)).await {
            Ok(_) => tracing::info!(lease = self.name, "gave the lease back"),
            Err(error) => tracing::warn!(lease = self.name, "the lease runs out by itself: {error}"),
        }
    }

    fn failed(&mut self, what: &str, error: &Failure) {
        let text = format!("the lease could not be {what}: {error}");
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!(lease = self.name, "{text}");
            self.trouble = Some(text);
        }
        self.candidate.failed(Moment::now());
    }

    fn publish(&mut self) {
        let holder = self.candidate.holder().map(str::to_owned);
        let is_ours = holder.as_deref() == Some(self.candidate.identity());
        if holder.is_some() && holder != self.last_holder {
            // Whose name is there when this candidate first looks has not changed, unless it is its own.
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
            trouble: self.trouble.clone(),
        };
        self.standing.send_if_modified(|before| {
            let changed = *before != standing;
            *before = standing;
            changed
        });
    }

    async fn in_time<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
        // Time for a second try before the claim is over.
        let renew = self.candidate.terms().renew;
        let patience = (renew / 2).max(LEAST_PATIENCE).min(renew);
        timeout(patience, request).await.map_err(|_| Failure::Silence(patience))?.map_err(|error| match error {
            kube::Error::Api(status) if status.code == 429 => Failure::Busy,
            kube::Error::Api(status) if status.code == 403 => Failure::Forbidden(status.message),
            error => Failure::Answer(error),
        })
    }
}

fn parameters() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Answer(#[source] kube::Error),
    #[error("the API server is busy")]
    Busy,
    #[error("{0}: {LEASE_ROLE_HINT}")]
    Forbidden(String),
    #[error("no answer within {0:?}")]
    Silence(Duration),
}
