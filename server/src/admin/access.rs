//! Who may use the admin API.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hush_contract::admin::code;
use hush_contract::browser::RequestOrigin;

use super::AdminState;
use super::error::AdminError;
use crate::auth::{Authenticate, Caller, Denied};
use crate::serve::Peer;

/// Longer ones are no token of anybody's.
const TOKEN_LIMIT_BYTES: usize = 16 << 10;

/// Requests with bad tokens may come without end.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(1);

/// How the admin API is guarded.
pub enum Access {
    /// Nothing is configured and the listener is on the loopback: whoever is on this machine, browsers apart.
    Local,
    /// Nothing is configured and the listener is not on the loopback.
    Closed,
    /// One of these must know the token; asked in this order.
    Tokens(Vec<Arc<dyn Authenticate>>),
}

impl Access {
    /// `listener`: the address of the operations listener.
    pub fn new(checks: Vec<Arc<dyn Authenticate>>, listener: IpAddr) -> Self {
        match checks.is_empty() {
            false => Self::Tokens(checks),
            true if listener.to_canonical().is_loopback() => Self::Local,
            true => Self::Closed,
        }
    }

    async fn admit(
        &self,
        headers: &HeaderMap,
        peer: Option<IpAddr>,
        refusals: &RefusalLog,
    ) -> Result<Caller, AdminError> {
        match self {
            Self::Closed => Err(AdminError::new(
                StatusCode::FORBIDDEN,
                code::FORBIDDEN,
                "no credential is configured, and the operations listener is not on the loopback: give \
                 --admin-token-file or --admin-token-review, or listen on 127.0.0.1",
            )),
            Self::Local => local(headers, peer),
            Self::Tokens(checks) => check(checks, bearer(headers)?, peer, refusals).await,
        }
    }
}

/// Which refusals are logged: one each second, with the number of those before it that were not.
#[derive(Debug, Default)]
pub(super) struct RefusalLog(Mutex<RefusalCount>);

#[derive(Debug, Default)]
struct RefusalCount {
    last_logged: Option<Instant>,
    unlogged: u64,
}

impl RefusalLog {
    /// `Some`: this one is to be logged, and so many were not since the last that was.
    fn count(&self, now: Instant) -> Option<u64> {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if count.last_logged.is_some_and(|at| now.saturating_duration_since(at) < REFUSALS_LOGGED_EVERY) {
            count.unlogged += 1;
            return None;
        }
        count.last_logged = Some(now);
        Some(std::mem::take(&mut count.unlogged))
    }
}

/// Middleware of every admin route.
pub(super) async fn guard(State(state): State<AdminState>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.address.ip());
    match state.access.admit(request.headers(), peer, &state.refusals).await {
        Ok(caller) => {
            state.governor.note(Instant::now());
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

/// A page in a browser on this machine is not its user: it must not command a server that it can reach. Browsers say
/// `Origin` with every POST and `Sec-Fetch-Site` with every look, and a name that was rebound to the loopback stands in
/// `Host`.
fn local(headers: &HeaderMap, peer: Option<IpAddr>) -> Result<Caller, AdminError> {
    let forbidden = |message: &str| AdminError::new(StatusCode::FORBIDDEN, code::FORBIDDEN, message);
    if !peer.is_some_and(|peer| peer.to_canonical().is_loopback()) {
        return Err(forbidden("without a configured credential only this machine is served"));
    }
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let host = text(header::HOST.as_str());
    let said = RequestOrigin { host, origin: None, sec_fetch_site: text("sec-fetch-site") };
    if headers.contains_key(header::ORIGIN) || said.is_cross_origin(&[]) || !said.is_for_this_machine() {
        return Err(forbidden("without a configured credential no browser is served"));
    }
    Ok(Caller("local".to_owned()))
}

fn bearer(headers: &HeaderMap) -> Result<&str, AdminError> {
    let missing = "this needs a credential: `Authorization: Bearer <token>`";
    let value = headers
        .get(header::AUTHORIZATION)
        .ok_or_else(|| AdminError::unauthorized(code::UNAUTHENTICATED, missing, "Bearer"))?;
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("Bearer").then_some(token.trim())
    });
    let malformed = "the header `Authorization` must be `Bearer <token>`";
    token
        .filter(|token| (1..=TOKEN_LIMIT_BYTES).contains(&token.len()))
        .ok_or_else(|| AdminError::unauthorized(code::INVALID_TOKEN, malformed, "Bearer error=\"invalid_token\""))
}

/// The first that knows the token decides; otherwise the most telling refusal.
async fn check(
    checks: &[Arc<dyn Authenticate>],
    token: &str,
    peer: Option<IpAddr>,
    refusals: &RefusalLog,
) -> Result<Caller, AdminError> {
    let mut denied = Denied::Invalid("this token is not known here".to_owned());
    for check in checks {
        match check.authenticate(token, peer).await {
            Ok(caller) => return Ok(caller),
            Err(Denied::Invalid(message)) => {
                if matches!(denied, Denied::Invalid(_)) {
                    denied = Denied::Invalid(message);
                }
            }
            Err(other) => denied = other,
        }
    }
    if let Some(unlogged) = refusals.count(Instant::now()) {
        tracing::warn!(%denied, peer = peer.map(tracing::field::display), unlogged, "the admin API refused a token");
    }
    Err(match denied {
        Denied::Invalid(message) => {
            AdminError::unauthorized(code::INVALID_TOKEN, message, "Bearer error=\"invalid_token\"")
        }
        Denied::Forbidden(message) => AdminError::new(StatusCode::FORBIDDEN, code::FORBIDDEN, message),
        Denied::Unavailable(message) => {
            AdminError::new(StatusCode::SERVICE_UNAVAILABLE, code::AUTHENTICATION_UNAVAILABLE, message)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_without_end_are_one_line_a_second() {
        let (log, began) = (RefusalLog::default(), Instant::now());
        assert_eq!(log.count(began), Some(0));
        assert!((0..500).all(|n| log.count(began + Duration::from_millis(n)).is_none()));
        assert_eq!(log.count(began + REFUSALS_LOGGED_EVERY), Some(500));
        assert_eq!(log.count(began + REFUSALS_LOGGED_EVERY * 2), Some(0));
    }

    #[test]
    fn without_a_credential_only_the_loopback_is_open() {
        let access = |ip: &str| Access::new(Vec::new(), ip.parse().unwrap());
        assert!(matches!(access("127.0.0.1"), Access::Local));
        assert!(matches!(access("::1"), Access::Local));
        assert!(matches!(access("::ffff:127.0.0.1"), Access::Local));
        assert!(matches!(access("0.0.0.0"), Access::Closed));
        assert!(matches!(access("::"), Access::Closed));
        assert!(matches!(access("10.0.0.1"), Access::Closed));
    }
}
