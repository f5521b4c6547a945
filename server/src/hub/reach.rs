//! Where a redirect may lead. The hub is named by the operator; where it sends on to is its own choice, and this machine may
//! reach what the hub cannot: services on the loopback, in the network, the metadata of a cloud's instance.
//!
//! The addresses that a name has are looked at when the connection is made, and the connection is made to these: a name that
//! changes its meaning between a check and its use gains nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// From where an address can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Public,
    /// Within a site: what routers of the Internet do not carry.
    Private,
    /// Within one link, such as the metadata service of a cloud; also addresses that no service has.
    Link,
    Loopback,
}

impl Reach {
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
            // Multicast, reserved, broadcast.
            (224.., ..) => Self::Link,
            // RFC 1918; shared by carriers; of protocols; of benchmarks.
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
            // An IPv4 address: mapped, compatible, translated (NAT64, for the Internet and within a site), 6to4.
            (0, 0, 0, 0, 0, 0 | 0xffff) | (0, 0, 0, 0, 0xffff, 0) | (0x64, 0xff9b, 0, 0, 0, 0) => embedded(high, low),
            (0x64, 0xff9b, 1, ..) => Self::Private,
            (0x2002, high, low, ..) => embedded(high, low),
            // Unique local; site-local, which it replaced.
            (0xfc00..=0xfdff, ..) | (0xfec0..=0xfeff, ..) => Self::Private,
            // Link-local, multicast.
            (0xfe80..=0xfebf, ..) | (0xff00.., ..) => Self::Link,
            _ => Self::Public,
        }
    }

    /// Whether one that was reached so may send on to `next`: no further in than it is itself.
    pub(super) fn may_lead_to(self, next: Self) -> bool {
        next == Self::Public || next == self || (self == Self::Loopback && next == Self::Private)
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Private => "in a private network",
            Self::Link => "on this link",
            Self::Loopback => "on this machine",
        })
    }
}

/// The next request.
#[derive(Debug, Default)]
struct Hop {
    /// Scheme and authority that is asked; proxies are resolved too, and are the operator's.
    target: String,
    /// From where it was redirected; `None`: nothing is refused.
    from: Option<Reach>,
    found: Option<Reach>,
    refused: Option<IpAddr>,
}

/// Resolves names, and leaves out the addresses that a redirect may not lead to. One request at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct GuardedResolver {
    names: Arc<DefaultResolver>,
    hop: Arc<Mutex<Hop>>,
}

impl GuardedResolver {
    fn hop(&self) -> MutexGuard<'_, Hop> {
        self.hop.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before a request to `url`. `from`: the server that redirects to it; `None` for what the operator named. An address in
    /// the place of a name is refused here already: behind a proxy nothing is resolved. What a proxy resolves is its own to
    /// allow.
    pub(super) fn expect(&self, url: &str, from: Option<Reach>) -> Result<(), String> {
        let uri: Uri = url.parse().map_err(|_| "no URL".to_owned())?;
        let literal = literal(uri.host().unwrap_or_default());
        let found = match literal {
            Some(Literal::Address(address)) => Some(Reach::of(address)),
            Some(Literal::Local) => Some(Reach::Loopback),
            _ => None,
        };
        *self.hop() = Hop { target: authority(&uri), from, found: None, refused: None };
        match (from, found) {
            (Some(_), _) if literal == Some(Literal::Number) => Err("no name and no plain address".to_owned()),
            (Some(from), Some(found)) if !from.may_lead_to(found) => Err(found.to_string()),
            _ => {
                self.hop().found = found;
                Ok(())
            }
        }
    }

    /// After a request: where it went. A name that a proxy resolved counts as public.
    pub(super) fn reached(&self) -> Reach {
        self.hop().found.unwrap_or(Reach::Public)
    }

    /// After a request that failed: the address that it was refused for.
    pub(super) fn refused(&self) -> Option<IpAddr> {
        self.hop().refused
    }
}

impl Resolver for GuardedResolver {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let resolved = self.names.resolve(uri, config, timeout)?;
        let mut hop = self.hop();
        if hop.target != authority(uri) {
            return Ok(resolved);
        }
        let may_lead_to = |address: &SocketAddr| hop.from.is_none_or(|from| from.may_lead_to(Reach::of(address.ip())));
        let mut allowed = self.empty();
        for address in resolved.iter().filter(|address| may_lead_to(address)) {
            allowed.push(*address);
        }
        if allowed.is_empty() {
            hop.refused = resolved.first().map(SocketAddr::ip);
            return Err(Error::HostNotFound);
        }
        // Any of them may be taken: the one that may lead least far inwards counts.
        let reaches = || allowed.iter().map(|address| Reach::of(address.ip()));
        hop.found = if reaches().any(|reach| reach == Reach::Public) { Some(Reach::Public) } else { reaches().next() };
        Ok(allowed)
    }
}

fn authority(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or_default();
    format!("{scheme}://{}", uri.authority().map_or("", |authority| authority.as_str())).to_ascii_lowercase()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Literal {
    Address(IpAddr),
    /// `localhost` and what is below it.
    Local,
    /// Other ways to write an address, such as `0x7f.1` and `2130706433`, which some resolvers understand.
    Number,
}

fn literal(host: &str) -> Option<Literal> {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    if let Ok(address) = host.parse() {
        return Some(Literal::Address(address));
    }
    let last = host.rsplit('.').next().unwrap_or_default();
    if last == "localhost" {
        return Some(Literal::Local);
    }
    (last.starts_with(|first: char| first.is_ascii_digit())).then_some(Literal::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(address: &str) -> Reach {
        Reach::of(address.parse().unwrap())
    }

    #[test]
    fn addresses() {
        for (expected, addresses) in [
            (Reach::Loopback, &["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::7f00:1"][..]),
            (Reach::Link, &["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "224.0.0.1", "255.255.255.255"]),
            (
                Reach::Private,
                &["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fd00:ec2::254", "fec0::1"],
            ),
            (Reach::Private, &["::ffff:10.1.2.3", "64:ff9b::a01:203", "64:ff9b:1::1", "2002:a01:203::1", "198.18.0.1"]),
            (Reach::Public, &["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1", "64:ff9b::808:808", "192.0.1.1"]),
        ] {
            for address in addresses {
                assert_eq!(reach(address), expected, "{address}");
            }
        }
    }

    #[test]
    fn a_redirect_leads_outwards() {
        use Reach::{Link, Loopback, Private, Public};
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

    /// Whatever the name looks like: the addresses that it has at that moment count, and no others are connected to.
    #[test]
    fn a_name_is_judged_by_its_addresses_when_the_connection_is_made() {
        let (resolver, config) = (GuardedResolver::default(), Config::default());
        let uri: Uri = "http://localhost:9/".parse().unwrap();
        let resolve = || resolver.resolve(&uri, &config, NextTimeout::default());
        for (from, is_allowed) in [(None, true), (Some(Reach::Loopback), true), (Some(Reach::Public), false)] {
            // What it says of the name itself is another test's.
            let _ = resolver.expect("http://localhost:9/", from);
            assert_eq!(resolve().is_ok(), is_allowed, "{from:?}");
            assert_eq!(resolver.refused().is_some_and(|address| address.is_loopback()), !is_allowed);
        }
        // Another name than that of the request is a proxy's.
        let _ = resolver.expect("http://cdn.example/", Some(Reach::Public));
        assert!(resolve().is_ok());
    }

    #[test]
    fn addresses_in_the_place_of_names() {
        let resolver = GuardedResolver::default();
        let from_public = |url: &str| resolver.expect(url, Some(Reach::Public));
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
            assert!(resolver.expect(url, None).is_ok(), "{url}: the operator's own choice");
        }
        for url in ["https://cdn.example/x", "http://8.8.8.8/", "https://4.example/"] {
            assert!(from_public(url).is_ok(), "{url}");
        }
    }
}
