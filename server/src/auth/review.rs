//! Kubernetes TokenReview: the API server says whose token it is and for whom it was made.
//! <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/>

mod client;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{Authenticate, Caller, Denied, Digest, digest};
use crate::watch::WatchError;
use client::Client;
pub use client::{ApiServer, InvalidApiServer};

/// Reviews under way at the same time; more wait.
const CONCURRENT_MAX: usize = 4;
/// Verdicts that are remembered; tokens of strangers must not fill the memory.
const REMEMBERED_MAX: usize = 1024;

/// A service account, written `namespace:name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    namespace: String,
    name: String,
}

impl FromStr for Account {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let valid = |part: &str, max: usize| {
            (1..=max).contains(&part.len())
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        };
        match text.split_once(':') {
            Some((namespace, name)) if valid(namespace, 63) && valid(name, 253) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("expected a service account as namespace:name, such as hush:hush-controller"),
        }
    }
}

/// As Kubernetes names the user.
impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReviewSettings {
    pub api: ApiServer,
    /// PEM of those who signed the API server's certificate.
    pub ca_file: PathBuf,
    /// This server's own token, with which it asks. Kubernetes rotates it.
    pub token_file: PathBuf,
    /// For whom a token must have been made.
    pub audience: String,
    /// Who may; at least one.
    pub accounts: Vec<Account>,
    /// Longest wait for a verdict.
    pub timeout: Duration,
    /// How long a good verdict holds. A token that is revoked works for that much longer.
    pub remember: Duration,
    /// How long a bad one does.
    pub remember_refusal: Duration,
}

impl ReviewSettings {
    pub const TIMEOUT: Duration = Duration::from_secs(5);
    pub const REMEMBER: Duration = Duration::from_secs(10);
    pub const REMEMBER_REFUSAL: Duration = Duration::from_secs(2);
}

type Verdict = Result<Caller, Denied>;

/// Fails closed: without a clear answer nobody gets in.
pub struct TokenReview {
    client: Client,
    settings: ReviewSettings,
    slots: Semaphore,
    remembered: Mutex<HashMap<Digest, (Verdict, Instant)>>,
}

impl TokenReview {
    /// The files must be there and usable now. Must be called inside a tokio runtime.
    pub fn new(settings: ReviewSettings) -> Result<Self, WatchError> {
        let client = Client::new(&settings)?;
        let (slots, remembered) = (Semaphore::new(CONCURRENT_MAX), Mutex::default());
        Ok(Self { client, settings, slots, remembered })
    }

    async fn verdict(&self, token: &str) -> Verdict {
        let key = digest(token);
        if let Some(verdict) = self.recall(&key) {
            return verdict;
        }
        let verdict = match tokio::time::timeout(self.settings.timeout, self.ask(token)).await {
            Ok(verdict) => verdict,
            Err(_) => {
                let seconds = self.settings.timeout.as_secs_f64();
                Err(Denied::Unavailable(format!("the Kubernetes API server gave no verdict within {seconds} s")))
            }
        };
        self.remember(key, &verdict);
        verdict
    }

    async fn ask(&self, token: &str) -> Verdict {
        // Never closed.
        let _slot = self.slots.acquire().await.map_err(|error| Denied::Unavailable(error.to_string()))?;
        let review = self.client.review(token, &self.settings.audience).await.map_err(|error| {
            tracing::warn!(api = %self.settings.api, "a token could not be reviewed: {error}");
            Denied::Unavailable(format!("the Kubernetes API server gave no verdict: {error}"))
        })?;
        if !review.authenticated {
            let why = review.error.unwrap_or_else(|| "it is not valid".to_owned());
            return Err(Denied::Invalid(format!("Kubernetes does not accept the token: {why}")));
        }
        // A server that does not know audiences names none, and its word says nothing about them.
        if !review.audiences.contains(&self.settings.audience) {
            let audience = &self.settings.audience;
            return Err(Denied::Invalid(format!("the token is not made for the audience `{audience}`")));
        }
        let user = review.user.username;
        if self.settings.accounts.iter().any(|account| account.to_string() == user) {
            Ok(Caller(user))
        } else {
            Err(Denied::Forbidden(format!("`{user}` may not command this server; see --admin-account")))
        }
    }

    fn recall(&self, key: &Digest) -> Option<Verdict> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(key).filter(|(_, until)| Instant::now() < *until).map(|(verdict, _)| verdict.clone())
    }

    fn remember(&self, key: Digest, verdict: &Verdict) {
        let holds = match verdict {
            Ok(_) => self.settings.remember,
            Err(Denied::Invalid(_) | Denied::Forbidden(_)) => self.settings.remember_refusal,
            // The next one may find the API server back.
            Err(Denied::Unavailable(_)) => return,
        };
        let now = Instant::now();
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, (_, until)| now < *until);
        }
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(key, (verdict.clone(), now + holds));
    }
}

impl Authenticate for TokenReview {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Verdict> {
        self.verdict(token).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_written_as_namespace_and_name() {
        let account: Account = "hush:hush-controller".parse().unwrap();
        assert_eq!(account.to_string(), "system:serviceaccount:hush:hush-controller");
        for wrong in ["", "hush", "hush:", ":name", "a:b:c", "hush:Name", "hush/name", "system:serviceaccount:a:b"] {
            assert!(wrong.parse::<Account>().is_err(), "{wrong}");
        }
    }
}
