//! Recognises by their headers the requests that a page in a browser sends. A browser lets any page send requests to addresses that
//! only its user can reach, such as the loopback.
//!
//! `Sec-Fetch-Site` and `Origin` are written by the browser, and a page cannot change them. A page whose name was made to resolve to an
//! address of its user (DNS rebinding) has the same origin for the browser, so only `Host` reveals it. Source:
//! <https://www.w3.org/TR/fetch-metadata/>; the order of the checks is that of `CrossOriginProtection` in Go's `net/http`.

use std::net::IpAddr;

/// The headers of a request that are checked; `None`: not sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestOrigin<'a> {
    pub host: Option<&'a str>,
    pub origin: Option<&'a str>,
    pub sec_fetch_site: Option<&'a str>,
}

impl RequestOrigin<'_> {
    /// Whether a page of another origin sent the request. `same_origin`: hosts that count as the server's own besides `host`, for requests
    /// through a proxy that sends another `Host`.
    pub fn is_cross_origin(&self, same_origin: &[String]) -> bool {
        match (self.sec_fetch_site, self.origin) {
            // A user who typed the address, and the server's own page.
            (Some("none" | "same-origin"), _) => false,
            (Some(_), _) => true,
            // A browser that does not send `Sec-Fetch-Site` to this address sends `Origin` with every request that is not simple.
            (None, Some(origin)) => {
                let authority = origin.split_once("://").map(|(_, authority)| authority);
                let is_own = |authority: &str| {
                    self.host.is_some_and(|host| host.eq_ignore_ascii_case(authority))
                        || same_origin.iter().any(|own| own.eq_ignore_ascii_case(name(authority)))
                };
                !authority.is_some_and(is_own)
            }
            (None, None) => false,
        }
    }

    /// Whether `Host` is a name that is neither `localhost` nor one of `known`. An address cannot be made to resolve elsewhere.
    pub fn is_foreign_name(&self, known: &[String]) -> bool {
        let Some(host) = self.host else { return false };

        let name = name(host);
        address(name).is_none()
            && !name.eq_ignore_ascii_case("localhost")
            && !known.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// Whether `Host` is absent, or names this machine from its own point of view.
    pub fn is_for_this_machine(&self) -> bool {
        self.host.is_none_or(|host| {
            let name = name(host);
            name.eq_ignore_ascii_case("localhost")
                || address(name).is_some_and(|address| address.to_canonical().is_loopback())
        })
    }
}

/// A host without its port.
fn name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn address(name: &str) -> Option<IpAddr> {
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    address.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(host: &str) -> RequestOrigin<'_> {
        RequestOrigin { host: Some(host), ..RequestOrigin::default() }
    }

    #[test]
    fn hosts_of_this_machine() {
        for name in ["localhost", "localhost:9001", "LOCALHOST:1", "127.0.0.1:9001", "127.9.9.9", "[::1]:9001", "[::1]"]
        {
            assert!(host(name).is_for_this_machine() && !host(name).is_foreign_name(&[]), "{name}");
        }
        for name in ["evil.example", "evil.example:9001", "localhost.evil.example", "127.0.0.1.x", ""] {
            assert!(!host(name).is_for_this_machine() && host(name).is_foreign_name(&[]), "{name}");
        }
        assert!(!host("10.0.0.1:9001").is_for_this_machine() && !host("10.0.0.1:9001").is_foreign_name(&[]));
        assert!(!host("Box.lan:9002").is_foreign_name(&["box.lan".to_owned()]));
        assert!(!RequestOrigin::default().is_foreign_name(&[]));
    }

    #[test]
    fn pages_of_other_origins() {
        let request = |sec_fetch_site, origin| RequestOrigin { host: Some("127.0.0.1:9002"), origin, sec_fetch_site };
        for (site, origin, is_cross) in [
            (None, None, false),
            (Some("none"), None, false),
            // Behind `kubectl proxy` the origin of the page differs from that of the pod.
            (Some("same-origin"), Some("http://127.0.0.1:8001"), false),
            // Another port of the same machine.
            (Some("same-site"), Some("http://127.0.0.1:8001"), true),
            (Some("cross-site"), None, true),
            (Some("something new"), None, true),
            (None, Some("http://127.0.0.1:9002"), false),
            (None, Some("http://evil.example"), true),
            (None, Some("http://127.0.0.1:8001"), true),
            (None, Some("null"), true),
            (None, Some(""), true),
        ] {
            assert_eq!(request(site, origin).is_cross_origin(&[]), is_cross, "{site:?} {origin:?}");
        }
        let own = ["hush.example".to_owned()];
        assert!(!request(None, Some("http://hush.example:8443")).is_cross_origin(&own));
        assert!(request(None, Some("http://evil.example")).is_cross_origin(&own));
    }
}
