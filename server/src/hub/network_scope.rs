//! Limits where a redirect may lead. The operator names the hub, but the hub chooses its redirects, and this machine may reach
//! addresses that the hub cannot: services on the loopback and in the local network, and the metadata service of a cloud.
//!
//! The addresses of a name are checked when the connection is made, and the connection goes to the checked addresses, so that a
//! name whose addresses change between the check and the connection gains nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// The part of the network from which an address can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NetworkScope {
    Public,
    /// Within a site; routers of the Internet do not carry it.
    Private,
    /// Within one link, such as the metadata service of a cloud. Also addresses that no service has.
    Link,
    Loopback,
}

impl NetworkScope {
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [a, b, c, _] = address.octets();
        match (a, b, c) {
            (0 | 127, ..) => Self::Loopback,
            (169, 254, _) => Self::Link,
            // Multicast, reserved and broadcast addresses.
            (224.., ..) => Self::Link,
            // RFC 1918, carrier-grade NAT, protocol assignments, benchmarks.
            (10, ..) | (172, 16..=31, _) | (192, 168, _) | (100, 64..=127, _) | (192, 0, 0) | (198, 18..=19, _) => {
                Self::Private
            }
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let [a, b, c, d, e, f, high, low] = address.segments();
        let embedded = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Self::of_v4(Ipv4Addr::new(a, b, c, d))
        };
        match (a, b, c, d, e, f) {
            _ if address.is_loopback() || address.is_unspecified() => Self::Loopback,
            // An embedded IPv4 address: mapped, compatible, translated (NAT64, for the Internet and within a site), 6to4.
            (0, 0, 0, 0, 0, 0 | 0xffff) | (0, 0, 0, 0, 0xffff, 0) | (0x64, 0xff9b, 0, 0, 0, 0) => embedded(high, low),
            (0x64, 0xff9b, 1, ..) => Self::Private,
            (0x2002, high, low, ..) => embedded(high, low),
            // Unique local addresses, and site-local ones, which they replaced.
            (0xfc00..=0xfdff, ..) | (0xfec0..=0xfeff, ..) => Self::Private,
            // Link-local and multicast addresses.
            (0xfe80..=0xfebf, ..) | (0xff00.., ..) => Self::Link,
            _ => Self::Public,
        }
    }

    /// Whether a server in this scope may redirect to an address in scope `next`, which must not be more internal.
    pub(super) fn may_lead_to(self, next: Self) -> bool {
        next == Self::Public || next == self || (self == Self::Loopback && next == Self::Private)
    }
}

impl fmt::Display for NetworkScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Private => "in a private network",
            Self::Link => "on this link",
            Self::Loopback => "on this machine",
        })
    }
}

/// The request that the resolver expects.
#[derive(Debug, Default)]
struct ExpectedRequest {
    /// Scheme and authority of the request. Proxies are resolved too, and the operator chose them.
    target: String,
    /// The scope of the redirecting server; `None`: every address is allowed.
    from: Option<NetworkScope>,
    found: Option<NetworkScope>,
    refused: Option<IpAddr>,
}

/// A resolver that leaves out the addresses that a redirect may not lead to. Checks one request at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct GuardedResolver {
    names: Arc<DefaultResolver>,
    expected: Arc<Mutex<ExpectedRequest>>,
}

impl GuardedResolver {
    fn expected(&self) -> MutexGuard<'_, ExpectedRequest> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Must be called before a request to `url`. `from`: the scope of the server that redirects to it, or `None` for a URL of the
    /// operator. An address in place of a name is checked here, because behind a proxy nothing is resolved here. What a proxy
    /// resolves is the proxy's responsibility. The error describes the address.
    pub(super) fn prepare(&self, url: &str, from: Option<NetworkScope>) -> Result<(), String> {
        let uri: Uri = url.parse().map_err(|_| "no URL".to_owned())?;
        let literal = host_literal(uri.host().unwrap_or_default());
        let found = match literal {
            Some(HostLiteral::Address(address)) => Some(NetworkScope::of(address)),
            Some(HostLiteral::Local) => Some(NetworkScope::Loopback),
            _ => None,
        };

        *self.expected() = ExpectedRequest { target: authority(&uri), from, found: None, refused: None };

        match (from, found) {
            (Some(_), _) if literal == Some(HostLiteral::Number) => Err("no name and no plain address".to_owned()),
            (Some(from), Some(found)) if !from.may_lead_to(found) => Err(found.to_string()),
            _ => {
                self.expected().found = found;
                Ok(())
            }
        }
    }

    /// The scope that the last request reached. A name that a proxy resolved counts as public.
    pub(super) fn reached(&self) -> NetworkScope {
        self.expected().found.unwrap_or(NetworkScope::Public)
    }

    /// The address that the last request was refused for.
    pub(super) fn refused(&self) -> Option<IpAddr> {
        self.expected().refused
    }
}

impl Resolver for GuardedResolver {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let resolved = self.names.resolve(uri, config, timeout)?;
        let mut expected = self.expected();
        if expected.target != authority(uri) {
            return Ok(resolved);
        }

        let from = expected.from;
        let is_allowed =
            |address: &SocketAddr| from.is_none_or(|from| from.may_lead_to(NetworkScope::of(address.ip())));
        let mut allowed = self.empty();
        for address in resolved.iter().filter(|address| is_allowed(address)) {
            allowed.push(*address);
        }
        if allowed.is_empty() {
            expected.refused = resolved.first().map(SocketAddr::ip);
            return Err(Error::HostNotFound);
        }

        // The connection may go to any of them, so the one that allows the least internal redirects counts.
        let scopes = || allowed.iter().map(|address| NetworkScope::of(address.ip()));
        expected.found = scopes().find(|scope| *scope == NetworkScope::Public).or_else(|| scopes().next());
        Ok(allowed)
    }
}

fn authority(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or_default();
    format!("{scheme}://{}", uri.authority().map_or("", |authority| authority.as_str())).to_ascii_lowercase()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostLiteral {
    Address(IpAddr),
    /// `localhost` and its subdomains.
    Local,
    /// Other notations of an address, such as `0x7f.1` and `2130706433`, which some resolvers accept.
    Number,
}

fn host_literal(host: &str) -> Option<HostLiteral> {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    if let Ok(address) = host.parse() {
        return Some(HostLiteral::Address(address));
    }

    let last = host.rsplit('.').next().unwrap_or_default();
    if last == "localhost" {
        return Some(HostLiteral::Local);
    }
    (last.starts_with(|first: char| first.is_ascii_digit())).then_some(HostLiteral::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(address: &str) -> NetworkScope {
        NetworkScope::of(address.parse().unwrap())
    }

    #[test]
    fn addresses() {
        for (expected, addresses) in [
            (
                NetworkScope::Loopback,
                &["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::7f00:1"][..],
            ),
            (
                NetworkScope::Link,
                &["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "224.0.0.1", "255.255.255.255"],
            ),
            (
                NetworkScope::Private,
                &["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fd00:ec2::254", "fec0::1"],
            ),
            (
                NetworkScope::Private,
                &["::ffff:10.1.2.3", "64:ff9b::a01:203", "64:ff9b:1::1", "2002:a01:203::1", "198.18.0.1"],
            ),
            (
                NetworkScope::Public,
                &["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1", "64:ff9b::808:808", "192.0.1.1"],
            ),
        ] {
            for address in addresses {
                assert_eq!(scope(address), expected, "{address}");
            }
        }
    }

    #[test]
    fn a_redirect_leads_outwards() {
        use NetworkScope::{Link, Loopback, Private, Public};
        for (from, to) in [
            (Public, &[Public][..]),
            (Private, &[Public, Private]),
            (Link, &[Public, Link]),
            (Loopback, &[Public, Private, Loopback]),
        ] {
            for next in [Public, Private, Link, Loopback] {
                assert_eq!(from.may_lead_to(next), to.contains(&next), "{from:?} -> {next:?}");
            }
        }
    }

    /// The addresses that a name has at the moment of the connection count, whatever the name is, and no other is connected to.
    #[test]
    fn a_name_is_judged_by_its_addresses_when_the_connection_is_made() {
        let (resolver, config) = (GuardedResolver::default(), Config::default());
        let uri: Uri = "http://localhost:9/".parse().unwrap();
        let resolve = || resolver.resolve(&uri, &config, NextTimeout::default());
        for (from, is_allowed) in
            [(None, true), (Some(NetworkScope::Loopback), true), (Some(NetworkScope::Public), false)]
        {
            // Another test checks what is said of the name itself.

            let _ = resolver.prepare("http://localhost:9/", from);
            assert_eq!(resolve().is_ok(), is_allowed, "{from:?}");
            assert_eq!(resolver.refused().is_some_and(|address| address.is_loopback()), !is_allowed);
        }

        // A name that is not the request's belongs to a proxy.
        let _ = resolver.prepare("http://cdn.example/", Some(NetworkScope::Public));
        assert!(resolve().is_ok());
    }

    #[test]
    fn addresses_in_the_place_of_names() {
        let resolver = GuardedResolver::default();
        let from_public = |url: &str| resolver.prepare(url, Some(NetworkScope::Public));
        for url in [
            "http://127.0.0.1/",
            "http://[::1]:80/",
            "http://[::ffff:10.0.0.1]/",
            "http://169.254.169.254/latest/meta-data",
            "http://localhost:9001/",
            "http://x.LOCALHOST./",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.0.0.1/",
            "http://0x7f000001/",
            "http://user@10.0.0.1/",
        ] {
            assert!(from_public(url).is_err(), "{url}");
            assert!(resolver.prepare(url, None).is_ok(), "{url}: the operator's own choice");
        }
        for url in ["https://cdn.example/x", "http://8.8.8.8/", "https://4.example/"] {
            assert!(from_public(url).is_ok(), "{url}");
        }
    }
}
