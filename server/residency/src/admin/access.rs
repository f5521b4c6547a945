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
use hush_listener::{AccessDenied, Authenticate, Caller, ConnectionPeer};

use super::AdminState;
use super::error::AdminError;
use crate::runner::RunnerFactory;

/// A longer token is refused without being checked.
const TOKEN_LIMIT_BYTES: usize = 16 << 10;

/// The pause between two log lines about refused tokens, because such requests may come without end.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(1);

/// Who may use the admin API.
pub enum AdminAccess {
    /// No credential is configured and the listener is on the loopback: programs on this machine may use the API,
    /// browsers may not.
    Local,
    /// No credential is configured and the listener is not on the loopback: no client may use the API.
    Closed,
    /// One of these checks, which are made in this order, must know the token.
    Tokens(Vec<Arc<dyn Authenticate>>),
}

impl AdminAccess {
    /// `listener`: the address of the operations listener.
    pub fn new(checks: Vec<Arc<dyn Authenticate>>, listener: IpAddr) -> Self {
        match checks.is_empty() {
            false => Self::Tokens(checks),
            true if listener.to_canonical().is_loopback() => Self::Local,
            true => Self::Closed,
        }
    }

    /// Logs what an operator would not expect: that the API is closed, or open without a credential.
    pub fn log(&self) {
        match self {
            Self::Closed => tracing::warn!(
                "the admin API is closed: no credential is configured (--admin-token-file, --admin-token-review) and the \
                 operations listener is not on the loopback"
            ),
            Self::Local => tracing::info!("the admin API serves this machine without a credential"),
            Self::Tokens(_) => {}
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
            Self::Local => admit_local(headers, peer),
            Self::Tokens(checks) => check_token(checks, bearer(headers)?, peer, refusals).await,
        }
    }
}

/// Decides which refusals are logged: one each second, with the number of refusals before it that were not.
#[derive(Debug, Default)]
pub(super) struct RefusalLog(Mutex<RefusalCount>);

#[derive(Debug, Default)]
struct RefusalCount {
    last_logged: Option<Instant>,
    unlogged: u64,
}

impl RefusalLog {
    /// `Some`: log this refusal; so many were not logged since the last one that was.
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
pub(super) async fn guard<F: RunnerFactory>(
    State(state): State<AdminState<F>>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<ConnectionPeer>().map(|peer| peer.address.ip());

    match state.access.admit(request.headers(), peer, &state.refusals).await {
        Ok(caller) => {
            state.presence.note(Instant::now());
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

/// Admits programs on this machine. A page in a browser on this machine does not act for its user, and must not command a
/// server that it can reach: browsers send `Origin` with every POST and `Sec-Fetch-Site` with every request, and a name
/// that was rebound to the loopback appears in `Host`.
fn admit_local(headers: &HeaderMap, peer: Option<IpAddr>) -> Result<Caller, AdminError> {
    let forbidden = |message: &str| AdminError::new(StatusCode::FORBIDDEN, code::FORBIDDEN, message);
    if !peer.is_some_and(|peer| peer.to_canonical().is_loopback()) {
        return Err(forbidden("without a configured credential only this machine is served"));
    }

    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let host = text(header::HOST.as_str());
    let origin = RequestOrigin { host, origin: None, sec_fetch_site: text("sec-fetch-site") };
    if headers.contains_key(header::ORIGIN) || origin.is_cross_origin(&[]) || !origin.is_for_this_machine() {
        return Err(forbidden("without a configured credential no browser is served"));
    }

    Ok(Caller("local".to_owned()))
}

/// The token of the header `Authorization`.
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

/// The first check that knows the token admits the caller. Otherwise a refusal that says more than "unknown" is returned,
/// where there is one.
async fn check_token(
    checks: &[Arc<dyn Authenticate>],
    token: &str,
    peer: Option<IpAddr>,
    refusals: &RefusalLog,
) -> Result<Caller, AdminError> {
    let mut denied = AccessDenied::Invalid("this token is not known here".to_owned());

    for check in checks {
        match check.authenticate(token, peer).await {
            Ok(caller) => return Ok(caller),
            Err(AccessDenied::Invalid(message)) => {
                if matches!(denied, AccessDenied::Invalid(_)) {
                    denied = AccessDenied::Invalid(message);
                }
            }
            Err(other) => denied = other,
        }
    }

    if let Some(unlogged) = refusals.count(Instant::now()) {
        tracing::warn!(%denied, peer = peer.map(tracing::field::display), unlogged, "the admin API refused a token");
    }

    Err(match denied {
        AccessDenied::Invalid(message) => {
            AdminError::unauthorized(code::INVALID_TOKEN, message, "Bearer error=\"invalid_token\"")
        }
        AccessDenied::Forbidden(message) => AdminError::new(StatusCode::FORBIDDEN, code::FORBIDDEN, message),
        AccessDenied::Unavailable(message) => {
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
        let access = |ip: &str| AdminAccess::new(Vec::new(), ip.parse().unwrap());
        assert!(matches!(access("127.0.0.1"), AdminAccess::Local));
        assert!(matches!(access("::1"), AdminAccess::Local));
        assert!(matches!(access("::ffff:127.0.0.1"), AdminAccess::Local));
        assert!(matches!(access("0.0.0.0"), AdminAccess::Closed));
        assert!(matches!(access("::"), AdminAccess::Closed));
        assert!(matches!(access("10.0.0.1"), AdminAccess::Closed));
    }
}
