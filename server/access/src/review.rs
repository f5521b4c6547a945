//! Kubernetes TokenReview: the API server tells the owner of a token and the audiences that it was made for.
//! <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/>

mod admission;
mod client;
mod jwt;
mod verdicts;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hush_contract::admin::TOKEN_AUDIENCE;
use tokio::time::Instant;

use super::{AccessDenied, Authenticate, Caller, digest};
use crate::watch::WatchError;
use admission::ReviewAdmission;
pub use client::{ApiServer, InvalidApiServer};
use client::{ReviewClient, ReviewStatus};
use verdicts::{VerdictCache, VerdictPeriods};

/// A Kubernetes service account, written `namespace:name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    namespace: String,
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a service account as namespace:name, such as hush:hush-controller")]
pub struct InvalidServiceAccount;

impl FromStr for ServiceAccount {
    type Err = InvalidServiceAccount;

    fn from_str(text: &str) -> Result<Self, InvalidServiceAccount> {
        let valid = |part: &str, max: usize| {
            (1..=max).contains(&part.len())
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        };

        match text.split_once(':') {
            Some((namespace, name)) if valid(namespace, 63) && valid(name, 253) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(InvalidServiceAccount),
        }
    }
}

/// The user name that Kubernetes gives to the service account.
impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

/// Settings of [`TokenReview`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReviewSettings {
    pub api: ApiServer,
    /// The certificate authority of the API server, in PEM.
    pub ca_file: PathBuf,
    /// This server's own token, with which it calls the API server. Kubernetes rotates it.
    pub token_file: PathBuf,
    /// The audience that a token must be made for.
    pub audience: String,
    /// The UID of this server's pod. A token that is bound to this pod needs only the audience [`TOKEN_AUDIENCE`]: the
    /// controller in the same pod has such a token.
    pub pod_uid: Option<String>,
    /// The accounts that may command this server; at least one.
    pub accounts: Vec<ServiceAccount>,
    /// Longest wait for a verdict.
    pub timeout: Duration,
    /// How long a good verdict is reused. A token that is revoked works for this much longer.
    pub remember: Duration,
    /// How long a bad verdict is reused.
    pub remember_refusal: Duration,
}

impl ReviewSettings {
    pub const TIMEOUT: Duration = Duration::from_secs(5);
    pub const REMEMBER: Duration = Duration::from_secs(10);
    pub const REMEMBER_REFUSAL: Duration = Duration::from_secs(2);
}

type ReviewVerdict = Result<Caller, AccessDenied>;

/// Checks tokens with the API server. Without a clear answer a token is refused.
pub struct TokenReview {
    client: ReviewClient,
    settings: ReviewSettings,
    admission: ReviewAdmission,
    verdicts: Mutex<VerdictCache>,
}

impl TokenReview {
    /// The files of the settings must be readable and valid. Must be called inside a tokio runtime.
    pub fn new(settings: ReviewSettings) -> Result<Self, WatchError> {
        let client = ReviewClient::new(&settings)?;
        Ok(Self { client, settings, admission: ReviewAdmission::default(), verdicts: Mutex::default() })
    }

    async fn verdict(&self, token: &str, peer: Option<IpAddr>) -> ReviewVerdict {
        let claimed = jwt::claimed_audiences(token).map_err(|error| AccessDenied::Invalid(error.to_string()))?;
        if !self.audiences().iter().any(|audience| claimed.iter().any(|claimed| claimed == audience)) {
            return Err(self.wrong_audience());
        }

        if let Some(verdict) = self.recall(token) {
            return verdict;
        }

        let reviewed = tokio::time::timeout(self.settings.timeout, self.review(token, peer)).await;
        reviewed.unwrap_or_else(|_| {
            let seconds = self.settings.timeout.as_secs_f64();
            Err(AccessDenied::Unavailable(format!(
                "the Kubernetes API server did not review the token within {seconds} s"
            )))
        })
    }

    /// Reviews a token as soon as the admission gives it a slot.
    async fn review(&self, token: &str, peer: Option<IpAddr>) -> ReviewVerdict {
        let digest = digest(token);
        let is_known = self.verdicts().is_known(Instant::now(), &digest);
        let _slot = self
            .admission
            .enter(peer, is_known)
            .await
            .map_err(|too_many| AccessDenied::Unavailable(too_many.to_string()))?;

        // Another request with the same token may have been answered meanwhile.
        if let Some(verdict) = self.recall(token) {
            return verdict;
        }

        let verdict = self.request_verdict(token).await;
        if verdict.is_ok() {
            self.admission.remember_peer(peer);
        }

        self.verdicts().remember(Instant::now(), digest, &verdict, self.periods());
        verdict
    }

    async fn request_verdict(&self, token: &str) -> ReviewVerdict {
        let review = self.client.review(token, &self.audiences()).await.map_err(|error| {
            tracing::warn!(api = %self.settings.api, "a token could not be reviewed: {error}");
            AccessDenied::Unavailable(format!("the Kubernetes API server did not review the token: {error}"))
        })?;
        // An answer with an error is not clear, even if it says `authenticated`.
        if !review.authenticated || review.error.as_ref().is_some_and(|error| !error.is_empty()) {
            let why = review.error.unwrap_or_else(|| "it is not valid".to_owned());
            return Err(AccessDenied::Invalid(format!("Kubernetes does not accept the token: {why}")));
        }

        if !self.is_made_for_this_server(&review) {
            return Err(self.wrong_audience());
        }

        let user = review.user.username;
        if self.settings.accounts.iter().any(|account| account.to_string() == user) {
            Ok(Caller(user))
        } else {
            Err(AccessDenied::Forbidden(format!("`{user}` may not command this server; see --admin-account")))
        }
    }

    /// Whether the API server confirms an audience of this server. An API server that does not know audiences names
    /// none.
    fn is_made_for_this_server(&self, review: &ReviewStatus) -> bool {
        let is_for = |audience: &str| review.audiences.iter().any(|named| named == audience);
        let is_of_own_pod =
            || review.user.pod_uid().is_some() && review.user.pod_uid() == self.settings.pod_uid.as_deref();
        is_for(&self.settings.audience) || (is_for(TOKEN_AUDIENCE) && is_of_own_pod())
    }

    /// The audiences that a token may be made for.
    fn audiences(&self) -> Vec<&str> {
        let own_pod = self.settings.pod_uid.as_ref().map(|_| TOKEN_AUDIENCE);
        [self.settings.audience.as_str()].into_iter().chain(own_pod).collect()
    }

    fn wrong_audience(&self) -> AccessDenied {
        AccessDenied::Invalid(format!("the token is not made for the audience `{}`", self.settings.audience))
    }

    fn recall(&self, token: &str) -> Option<ReviewVerdict> {
        self.verdicts().recall(Instant::now(), &digest(token), self.periods())
    }

    fn verdicts(&self) -> MutexGuard<'_, VerdictCache> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    const fn periods(&self) -> VerdictPeriods {
        VerdictPeriods { good: self.settings.remember, refused: self.settings.remember_refusal }
    }
}

impl Authenticate for TokenReview {
    fn authenticate<'a>(&'a self, token: &'a str, peer: Option<IpAddr>) -> BoxFuture<'a, ReviewVerdict> {
        self.verdict(token, peer).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_written_as_namespace_and_name() {
        let account: ServiceAccount = "hush:hush-controller".parse().unwrap();
        assert_eq!(account.to_string(), "system:serviceaccount:hush:hush-controller");
        for wrong in ["", "hush", "hush:", ":name", "a:b:c", "hush:Name", "hush/name", "system:serviceaccount:a:b"] {
            assert!(wrong.parse::<ServiceAccount>().is_err(), "{wrong}");
        }
    }
}
