//! Tokens for servers, requested from the API server. Each is issued for one pod and is worth nothing elsewhere.
//!
//! ```text
//! command to a server -> token in the cache? -> TokenRequest on the controller's own ServiceAccount,
//!                                               audience hush-server/NAMESPACE/POD-UID
//! ```

mod cache;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hush_contract::admin::ServerAudience;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{Semaphore, watch};

use crate::act::{NoToken, ServerCredentials};
use crate::control_loop::Readiness;
use crate::metrics::ControllerMetrics;
use crate::observe::Targets;
use cache::TokenCache;

/// The lifetime of a token: the shortest that the API server issues.
const LIFETIME_SECONDS: i64 = 600;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of token requests that are under way at a time.
const AT_ONCE: usize = 8;
/// The pause after a failed request, for all servers: the failure is hardly ever caused by one server.
const PAUSE: Duration = Duration::from_secs(2);
/// The name of this part in [`Readiness`].
const PART: &str = "server tokens";

/// The service account whose tokens servers accept: that of this controller.
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

/// Parses `NAMESPACE:NAME`, the form that the options of servers have too.
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
    slots: Semaphore,
    targets: watch::Receiver<Arc<Targets>>,
    state: Mutex<TokenState>,
    metrics: Arc<ControllerMetrics>,
    readiness: Readiness,
}

#[derive(Default)]
struct TokenState {
    cache: TokenCache,
    /// Where the last request failed: when, and why.
    failure: Option<(Instant, NoToken)>,
}

#[derive(Debug, thiserror::Error)]
enum TokenRequestError {
    #[error("the API server returned none within {REQUEST_TIMEOUT:?}")]
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

impl TokenRequestError {
    const fn label(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Forbidden(_) => "forbidden",
            Self::NoAccount(_) => "no_account",
            Self::Api(_) | Self::Empty => "error",
        }
    }
}

/// A token, and its lifetime from the time of the request.
struct IssuedToken {
    token: String,
    lifetime: Duration,
}

impl ServerTokens {
    /// Starts a task that drops the tokens of targets that are gone, until the source of the targets is gone.
    pub fn start(
        client: Client,
        account: AccountName,
        targets: watch::Receiver<Arc<Targets>>,
        metrics: Arc<ControllerMetrics>,
        readiness: Readiness,
    ) -> Arc<Self> {
        let accounts = Api::namespaced(client, &account.namespace);

        let (slots, state) = (Semaphore::new(AT_ONCE), Mutex::default());
        let tokens = Arc::new(Self { accounts, account, slots, targets: targets.clone(), state, metrics, readiness });

        tokio::spawn(drop_tokens_of_gone_servers(Arc::downgrade(&tokens), targets));
        tokens
    }

    async fn token_for(&self, audience: &ServerAudience) -> Result<String, NoToken> {
        if let Some(known) = self.known(audience) {
            return known;
        }

        let Ok(_slot) = self.slots.acquire().await else {
            return Err(NoToken("the controller is shutting down".to_owned()));
        };
        // Again, because another command may have requested it meanwhile.
        if let Some(known) = self.known(audience) {
            return known;
        }

        let asked_at = Instant::now();
        let requested = tokio::time::timeout(REQUEST_TIMEOUT, self.request(audience)).await;
        match requested.unwrap_or(Err(TokenRequestError::Timeout)) {
            Ok(issued) => Ok(self.record_success(asked_at, audience, issued)),
            Err(error) => Err(self.record_failure(&error)),
        }
    }

    /// The result that is known without a request: a cached token, or a failure a moment ago.
    fn known(&self, audience: &ServerAudience) -> Option<Result<String, NoToken>> {
        let (now, mut state) = (Instant::now(), self.state());
        if let Some(token) = state.cache.get(now, audience) {
            return Some(Ok(token));
        }

        let failure = state.failure.as_ref().filter(|(at, _)| now.saturating_duration_since(*at) < PAUSE);
        failure.map(|(_, problem)| Err(problem.clone()))
    }

    async fn request(&self, audience: &ServerAudience) -> Result<IssuedToken, TokenRequestError> {
        let spec = TokenRequestSpec {
            audiences: vec![audience.to_string()],
            expiration_seconds: Some(LIFETIME_SECONDS),
            bound_object_ref: None,
        };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let created = self.accounts.create_token_request(&self.account.name, &PostParams::default(), &request).await;
        let answer = created.map_err(|error| match &error {
            kube::Error::Api(status) if status.code == 403 => TokenRequestError::Forbidden(self.account.clone()),
            kube::Error::Api(status) if status.code == 404 => TokenRequestError::NoAccount(self.account.clone()),
            _ => TokenRequestError::Api(error),
        })?;

        let token = answer.status.map(|status| status.token).filter(|token| !token.is_empty());
        let seconds = answer.spec.expiration_seconds.unwrap_or(LIFETIME_SECONDS);
        let lifetime = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        Ok(IssuedToken { token: token.ok_or(TokenRequestError::Empty)?, lifetime })
    }

    /// Caches the token, if its server is still a target, and returns it.
    fn record_success(&self, asked_at: Instant, audience: &ServerAudience, issued: IssuedToken) -> String {
        self.metrics.server_token_requests_total.with_label_values(&["success"]).inc();
        let is_target = self.targets.borrow().values().any(|target| target.audience.as_ref() == Some(audience));
        let mut state = self.state();
        if is_target {
            state.cache.insert(asked_at, audience.clone(), issued.token.clone(), issued.lifetime);
        }
        let failed_before = state.failure.take().is_some();
        drop(state);

        if failed_before {
            tracing::info!("the API server makes tokens for servers again");
        }
        self.readiness.set(PART, None);
        issued.token
    }

    fn record_failure(&self, error: &TokenRequestError) -> NoToken {
        self.metrics.server_token_requests_total.with_label_values(&[error.label()]).inc();

        let problem = NoToken(format!("there is no token for servers: {error}"));
        let before = self.state().failure.replace((Instant::now(), problem.clone()));
        if before.is_none_or(|(_, before)| before != problem) {
            tracing::error!("no command is sent, {problem}");
        }
        self.readiness.set(PART, Some(problem.to_string()));

        problem
    }

    fn state(&self) -> MutexGuard<'_, TokenState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn drop_tokens_of_gone_servers(tokens: Weak<ServerTokens>, mut targets: watch::Receiver<Arc<Targets>>) {
    while targets.changed().await.is_ok() {
        let Some(tokens) = tokens.upgrade() else { return };

        let targets = targets.borrow_and_update().clone();
        let audiences: BTreeSet<_> = targets.values().filter_map(|target| target.audience.as_ref()).collect();
        tokens.state().cache.retain(|audience| audiences.contains(audience));
        if audiences.is_empty() {
            // No server needs a token.
            tokens.readiness.set(PART, None);
        }
    }
}

impl ServerCredentials for ServerTokens {
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
    fn an_account_is_written_as_in_the_options_of_servers() {
        let account: AccountName = "hush:hush-controller".parse().unwrap();
        assert_eq!(account.to_string(), "hush:hush-controller");
        for wrong in ["", "hush", ":a", "hush:", "a:b:c", "hush/hush-controller", "Hush:a"] {
            assert!(wrong.parse::<AccountName>().is_err(), "{wrong}");
        }
    }
}
