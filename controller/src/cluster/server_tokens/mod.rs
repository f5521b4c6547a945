//! Tokens for servers, asked of the API server: each is made for one pod and is worth nothing elsewhere.
//!
//! ```text
//! command to a server -> token in the cache? -> TokenRequest on the controller's own ServiceAccount,
//!                                               audience hush-server/NAMESPACE/POD-UID
//! ```

mod cache;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hush_contract::admin::ServerAudience;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{Semaphore, watch};

use crate::act::{Credentials, NoToken};
use crate::metrics::Metrics;
use crate::observe::Targets;
use crate::run::Readiness;
use cache::TokenCache;

/// The shortest that the API server makes.
const LIFETIME_SECONDS: i64 = 600;
const PATIENCE: Duration = Duration::from_secs(5);
const AT_ONCE: usize = 8;
/// After a failure nothing is asked for so long: it is no fault of the one server.
const PAUSE: Duration = Duration::from_secs(2);
/// Of [`Readiness`].
const PART: &str = "server tokens";

/// The account whose tokens servers accept: that of this controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountName {
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for AccountName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.namespace, self.name)
    }
}

/// `NAMESPACE:NAME`, as servers write it too.
impl std::str::FromStr for AccountName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let is_name = |part: &str| {
            !part.is_empty()
                && part.len() <= 253
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        };
        match text.split_once(':') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("must be a service account as NAMESPACE:NAME, such as hush:hush-controller"),
        }
    }
}

pub struct ServerTokens {
    accounts: Api<ServiceAccount>,
    account: AccountName,
    places: Semaphore,
    targets: watch::Receiver<Arc<Targets>>,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
}

#[derive(Default)]
struct State {
    cache: TokenCache,
    /// The last request failed, at that time.
    failure: Option<(Instant, NoToken)>,
}

#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("the API server gave none within {PATIENCE:?}")]
    Timeout,
    #[error(
        "the API server does not let this controller make tokens of the service account {0}: it needs the right to \
         create `serviceaccounts/token` of that account (see the role)"
    )]
    Forbidden(AccountName),
    #[error("there is no service account {0}: --service-account must name the one that this controller runs under")]
    NoAccount(AccountName),
    #[error(transparent)]
    Api(kube::Error),
    #[error("the API server answered without a token")]
    Empty,
}

impl RequestError {
    const fn label(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Forbidden(_) => "forbidden",
            Self::NoAccount(_) => "no_account",
            Self::Api(_) | Self::Empty => "error",
        }
    }
}

/// A token, and for how long it is good from when it was asked for.
struct Made {
    token: String,
    lifetime: Duration,
}

impl ServerTokens {
    /// Drops the tokens of targets that are gone, until their source is.
    pub fn start(
        client: Client,
        account: AccountName,
        targets: watch::Receiver<Arc<Targets>>,
        metrics: Arc<Metrics>,
        readiness: Readiness,
    ) -> Arc<Self> {
        let accounts = Api::namespaced(client, &account.namespace);
        let (places, state) = (Semaphore::new(AT_ONCE), Mutex::default());
        let tokens = Arc::new(Self { accounts, account, places, targets: targets.clone(), state, metrics, readiness });
        tokio::spawn(drop_those_of_gone_servers(Arc::downgrade(&tokens), targets));
        tokens
    }

    async fn token_for(&self, audience: &ServerAudience) -> Result<String, NoToken> {
        if let Some(settled) = self.settled(audience) {
            return settled;
        }
        let Ok(_place) = self.places.acquire().await else {
            return Err(NoToken("the controller is shutting down".to_owned()));
        };
        // Another command may have asked meanwhile.
        if let Some(settled) = self.settled(audience) {
            return settled;
        }

        let asked_at = Instant::now();
        let requested = tokio::time::timeout(PATIENCE, self.request(audience)).await;
        match requested.unwrap_or(Err(RequestError::Timeout)) {
            Ok(made) => Ok(self.keep(asked_at, audience, made)),
            Err(error) => Err(self.fail(&error)),
        }
    }

    /// What is known without asking.
    fn settled(&self, audience: &ServerAudience) -> Option<Result<String, NoToken>> {
        let (now, mut state) = (Instant::now(), self.state());
        if let Some(token) = state.cache.get(now, audience) {
            return Some(Ok(token));
        }
        let failure = state.failure.as_ref().filter(|(at, _)| now.saturating_duration_since(*at) < PAUSE);
        failure.map(|(_, problem)| Err(problem.clone()))
    }

    async fn request(&self, audience: &ServerAudience) -> Result<Made, RequestError> {
        let spec = TokenRequestSpec {
            audiences: vec![audience.to_string()],
            expiration_seconds: Some(LIFETIME_SECONDS),
            bound_object_ref: None,
        };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let answer = self.accounts.create_token_request(&self.account.name, &PostParams::default(), &request).await;
        let answer = answer.map_err(|error| match &error {
            kube::Error::Api(status) if status.code == 403 => RequestError::Forbidden(self.account.clone()),
            kube::Error::Api(status) if status.code == 404 => RequestError::NoAccount(self.account.clone()),
            _ => RequestError::Api(error),
        })?;

        let token = answer.status.map(|status| status.token).filter(|token| !token.is_empty());
        let seconds = answer.spec.expiration_seconds.unwrap_or(LIFETIME_SECONDS);
        let lifetime = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        Ok(Made { token: token.ok_or(RequestError::Empty)?, lifetime })
    }

    fn keep(&self, asked_at: Instant, audience: &ServerAudience, made: Made) -> String {
        self.metrics.server_token_requests_total.with_label_values(&["success"]).inc();
        let is_there = self.targets.borrow().values().any(|target| target.audience.as_ref() == Some(audience));
        let mut state = self.state();
        if is_there {
            state.cache.insert(asked_at, audience.clone(), made.token.clone(), made.lifetime);
        }
        let failed_before = state.failure.take().is_some();
        drop(state);

        if failed_before {
            tracing::info!("the API server makes tokens for servers again");
        }
        self.readiness.set(PART, None);
        made.token
    }

    fn fail(&self, error: &RequestError) -> NoToken {
        self.metrics.server_token_requests_total.with_label_values(&[error.label()]).inc();
        let problem = NoToken(format!("there is no token for servers: {error}"));
        let before = self.state().failure.replace((Instant::now(), problem.clone()));
        if before.is_none_or(|(_, before)| before != problem) {
            tracing::error!("no command is sent, {problem}");
        }
        self.readiness.set(PART, Some(problem.to_string()));
        problem
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn drop_those_of_gone_servers(tokens: std::sync::Weak<ServerTokens>, mut targets: watch::Receiver<Arc<Targets>>) {
    while targets.changed().await.is_ok() {
        let Some(tokens) = tokens.upgrade() else { return };
        let there = targets.borrow_and_update().clone();
        let there: std::collections::BTreeSet<_> =
            there.values().filter_map(|target| target.audience.as_ref()).collect();
        tokens.state().cache.retain(|audience| there.contains(audience));
        if there.is_empty() {
            // There is no server that would need one.
            tokens.readiness.set(PART, None);
        }
    }
}

impl Credentials for ServerTokens {
    fn token<'a>(&'a self, audience: Option<&'a ServerAudience>) -> BoxFuture<'a, Result<Option<String>, NoToken>> {
        async move {
            let audience = audience.ok_or_else(|| {
                NoToken("there is no token for the server: the UID of its pod is not known".to_owned())
            })?;
            self.token_for(audience).await.map(Some)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_written_as_servers_write_it() {
        let account: AccountName = "hush:hush-controller".parse().unwrap();
        assert_eq!(account.to_string(), "hush:hush-controller");
        for wrong in ["", "hush", ":a", "hush:", "a:b:c", "hush/hush-controller", "Hush:a"] {
            assert!(wrong.parse::<AccountName>().is_err(), "{wrong}");
        }
    }
}
