//! A page in a browser of this machine is not its user: it may neither read nor send what only the user can reach.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hush_contract::admin::code;
use hush_contract::browser::RequestOrigin;

use super::Web;
use super::error::Refusal;

/// Below it is what a page reads and sends; the rest is the page itself, which every browser may show.
const API: &str = "/api/";
const CROSS_ORIGIN: &str = "a page of another origin sent this, and only the controller's own page may";

/// By which names the controller is reached.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// Given by the option `--page-host`.
    pub names: Vec<String>,
    /// The own listener's.
    pub listener: IpAddr,
}

impl Hosts {
    /// A name that was pointed at the loopback reaches what only this machine reaches. Elsewhere the names of the controller
    /// are known only where they were given.
    fn are_checked(&self, peer: Option<IpAddr>) -> bool {
        let is_loopback = |address: IpAddr| address.to_canonical().is_loopback();
        !self.names.is_empty() || is_loopback(self.listener) || peer.is_some_and(is_loopback)
    }

    fn check(&self, path: &str, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<(), Refusal> {
        let forbidden = |message: String| Refusal::new(StatusCode::FORBIDDEN, code::FORBIDDEN, message);
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let host = text(header::HOST.as_str());
        let said =
            RequestOrigin { host, origin: text(header::ORIGIN.as_str()), sec_fetch_site: text("sec-fetch-site") };
        if self.are_checked(peer) && said.is_foreign_name(&self.names) {
            let name = hush_log::printable(host.unwrap_or_default(), 100);
            return Err(forbidden(format!(
                "`{name}` is no name of this controller: open it by its address or as localhost, or give the name with \
                 --page-host"
            )));
        }
        if path.starts_with(API) && said.is_cross_origin(&self.names) {
            return Err(forbidden(CROSS_ORIGIN.to_owned()));
        }
        Ok(())
    }
}

/// Middleware of the page and its API.
pub async fn guard(State(web): State<Web>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    match web.hosts.check(request.uri().path(), request.headers(), peer) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(hosts: &Hosts, peer: &str, headers: &[(&'static str, &str)]) -> bool {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        hosts.check("/api/v1/state", &headers, Some(peer.parse().unwrap())).is_ok()
    }

    #[test]
    fn names_are_checked_where_only_this_machine_comes_from() {
        let hosts = |listener: &str, names: &[&str]| Hosts {
            listener: listener.parse().unwrap(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        let rebound = [("host", "evil.example:9002")];
        assert!(!verdict(&hosts("127.0.0.1", &[]), "127.0.0.1", &rebound));
        // Over `kubectl port-forward`, which comes from the loopback of the pod.
        assert!(!verdict(&hosts("0.0.0.0", &[]), "127.0.0.1", &rebound));
        assert!(!verdict(&hosts("::", &[]), "::ffff:127.0.0.1", &rebound));
        // A name of the cluster or of the network.
        assert!(verdict(&hosts("0.0.0.0", &[]), "10.0.0.7", &[("host", "hush-controller.hush.svc:9002")]));
        assert!(!verdict(&hosts("0.0.0.0", &["hush.example"]), "10.0.0.7", &rebound));
        assert!(verdict(&hosts("127.0.0.1", &["hush.example"]), "127.0.0.1", &[("host", "hush.example")]));
        assert!(!verdict(&hosts("0.0.0.0", &[]), "10.0.0.7", &[("host", "10.0.0.9:9002"), ("origin", "http://evil")]));
    }
}
