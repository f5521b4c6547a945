//! Protects the page and its API from pages of other origins: such a page in a user's browser must neither read nor send
//! what only the user can reach.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hush_contract::admin::code;
use hush_contract::browser::RequestOrigin;

use super::WebState;
use super::error::ApiRefusal;

/// The data and commands of the page are below this path. Everything else is the page itself, which holds no data.
const API_PREFIX: &str = "/api/";
const CROSS_ORIGIN: &str = "a page of another origin sent this, and only the controller's own page may";
/// An error message repeats at most this much of the `Host` header.
const HOST_MAX_CHARS: usize = 100;

/// The names by which the controller is reached.
#[derive(Clone, Debug)]
pub struct AllowedHosts {
    /// The values of the option `--page-host`.
    pub names: Vec<String>,
    /// The address that the controller listens on.
    pub listener: IpAddr,
}

impl AllowedHosts {
    /// Whether the `Host` header is checked. On the loopback it is, because a foreign name that resolves to the loopback
    /// would reach what only this machine can reach. Elsewhere the controller's names are known only where `--page-host`
    /// gives them.
    fn are_checked(&self, peer: Option<IpAddr>) -> bool {
        let is_loopback = |address: IpAddr| address.to_canonical().is_loopback();
        !self.names.is_empty() || is_loopback(self.listener) || peer.is_some_and(is_loopback)
    }

    fn check(&self, path: &str, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<(), ApiRefusal> {
        let forbidden = |message: String| ApiRefusal::new(StatusCode::FORBIDDEN, code::FORBIDDEN, message);
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let host = text(header::HOST.as_str());
        let origin =
            RequestOrigin { host, origin: text(header::ORIGIN.as_str()), sec_fetch_site: text("sec-fetch-site") };

        if self.are_checked(peer) && origin.is_foreign_name(&self.names) {
            let name = hush_log::printable(host.unwrap_or_default(), HOST_MAX_CHARS);
            return Err(forbidden(format!(
                "`{name}` is not a name of this controller: open it by its address or as localhost, or give the name with \
                 --page-host"
            )));
        }
        if path.starts_with(API_PREFIX) && origin.is_cross_origin(&self.names) {
            return Err(forbidden(CROSS_ORIGIN.to_owned()));
        }
        Ok(())
    }
}

/// Middleware of the page and its API.
pub async fn guard(State(web): State<WebState>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());

    match web.hosts.check(request.uri().path(), request.headers(), peer) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_allowed(hosts: &AllowedHosts, peer: &str, headers: &[(&'static str, &str)]) -> bool {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        hosts.check("/api/v1/state", &headers, Some(peer.parse().unwrap())).is_ok()
    }

    #[test]
    fn names_are_checked_where_only_this_machine_comes_from() {
        let hosts = |listener: &str, names: &[&str]| AllowedHosts {
            listener: listener.parse().unwrap(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        let rebound = [("host", "evil.example:9002")];
        assert!(!is_allowed(&hosts("127.0.0.1", &[]), "127.0.0.1", &rebound));

        // Over `kubectl port-forward`, which comes from the loopback of the pod.
        assert!(!is_allowed(&hosts("0.0.0.0", &[]), "127.0.0.1", &rebound));
        assert!(!is_allowed(&hosts("::", &[]), "::ffff:127.0.0.1", &rebound));

        // A name of the cluster or of the network.
        let cluster_name = [("host", "hush-controller.hush.svc:9002")];
        assert!(is_allowed(&hosts("0.0.0.0", &[]), "10.0.0.7", &cluster_name));
        assert!(!is_allowed(&hosts("0.0.0.0", &["hush.example"]), "10.0.0.7", &rebound));
        assert!(is_allowed(&hosts("127.0.0.1", &["hush.example"]), "127.0.0.1", &[("host", "hush.example")]));

        let cross_origin = [("host", "10.0.0.9:9002"), ("origin", "http://evil")];
        assert!(!is_allowed(&hosts("0.0.0.0", &[]), "10.0.0.7", &cross_origin));
    }
}
