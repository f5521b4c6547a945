//! Connections that are kept, apart by the name that their certificate was checked for: a connection of one namespace is
//! never used for a server of another, whatever address the two have had.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Uri;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::{DnsName, ServerName};
use tokio::sync::watch;

use super::{CaCertificates, HttpError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longer than any sensible scrape interval, shorter than servers and proxies keep one.
const KEEP_ALIVE: Duration = Duration::from_secs(45);
/// A certificate is checked when a connection begins. Connections are opened anew after this time, so that one that has
/// expired meanwhile is noticed.
const CHECKED_FOR: Duration = Duration::from_secs(600);

type Pool = legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

#[derive(Clone)]
pub struct Pools {
    authorities: Authorities,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Clone)]
enum Authorities {
    System(Arc<CaCertificates>),
    /// Of the file as it is now.
    File(watch::Receiver<Arc<CaCertificates>>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Plain,
    /// The certificate has the name of the URI's host.
    Host,
    Name(DnsName<'static>),
}

struct Inner {
    /// What the connections with TLS were checked against, and since when.
    authorities: Arc<CaCertificates>,
    opened_since: Instant,
    tls: ClientConfig,
    pools: HashMap<Key, Pool>,
}

impl Pools {
    pub fn new(file: Option<watch::Receiver<Arc<CaCertificates>>>) -> Result<Self, rustls::Error> {
        let authorities = match file {
            Some(file) => Authorities::File(file),
            None => Authorities::System(Arc::new(CaCertificates::of_system())),
        };
        let now = authorities.now();
        let inner =
            Inner { tls: tls_config(&now)?, authorities: now, opened_since: Instant::now(), pools: HashMap::new() };
        Ok(Self { authorities, inner: Arc::new(Mutex::new(inner)) })
    }

    /// Connections to where this goes; cheap to clone.
    pub fn of(&self, uri: &Uri, certificate_name: Option<&DnsName<'static>>) -> Result<Pool, HttpError> {
        let key = match certificate_name {
            Some(name) => Key::Name(name.clone()),
            None if uri.scheme_str() == Some("https") => Key::Host,
            None => Key::Plain,
        };
        if matches!((&key, &self.authorities), (Key::Name(_), Authorities::System(_))) {
            return Err(HttpError::NoAuthority);
        }

        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.renew(&self.authorities.now(), Instant::now()).map_err(HttpError::Setup)?;
        let Inner { tls, pools, .. } = &mut *inner;
        Ok(pools.entry(key).or_insert_with_key(|key| pool(key, tls)).clone())
    }
}

impl Authorities {
    fn now(&self) -> Arc<CaCertificates> {
        match self {
            Self::System(certificates) => Arc::clone(certificates),
            Self::File(file) => Arc::clone(&file.borrow()),
        }
    }
}

impl Inner {
    /// What was checked against other authorities, or long ago, is used no more; requests under way end on it.
    fn renew(&mut self, authorities: &Arc<CaCertificates>, now: Instant) -> Result<(), rustls::Error> {
        let changed = !Arc::ptr_eq(&self.authorities, authorities);
        if changed {
            self.tls = tls_config(authorities)?;
            self.authorities = Arc::clone(authorities);
        }
        if changed || now.duration_since(self.opened_since) >= CHECKED_FOR {
            self.opened_since = now;
            self.pools.retain(|key, _| *key == Key::Plain);
        }
        Ok(())
    }
}

fn tls_config(authorities: &CaCertificates) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(authorities.roots())
        .with_no_client_auth();
    // A resumed session does not show its certificate again.
    tls.resumption = Resumption::disabled();
    Ok(tls)
}

fn pool(key: &Key, tls: &ClientConfig) -> Pool {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_nodelay(true);

    let builder = HttpsConnectorBuilder::new().with_tls_config(tls.clone());
    let builder = match key {
        Key::Plain => builder.https_or_http(),
        Key::Host => builder.https_only(),
        Key::Name(name) => {
            let name = ServerName::DnsName(name.clone());
            builder.https_only().with_server_name_resolver(FixedServerNameResolver::new(name))
        }
    };
    legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(KEEP_ALIVE)
        .pool_timer(TokioTimer::new())
        // One for the scrape, one for a command.
        .pool_max_idle_per_host(2)
        .build(builder.enable_http1().wrap_connector(tcp))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(inner: &Inner) -> Vec<Key> {
        let mut keys: Vec<Key> = inner.pools.keys().cloned().collect();
        keys.sort_by_key(|key| format!("{key:?}"));
        keys
    }

    #[tokio::test]
    async fn connections_that_were_checked_long_ago_or_against_other_authorities_are_used_no_more() {
        let (told, file) = watch::channel(Arc::new(CaCertificates::of_system()));
        let pools = Pools::new(Some(file)).unwrap();
        let (plain, https) = (Uri::from_static("http://127.0.0.1:1/"), Uri::from_static("https://127.0.0.1:1/"));
        let name = DnsName::try_from("hush-server.a.svc").unwrap();
        let open = || {
            pools.of(&plain, None).unwrap();
            pools.of(&https, None).unwrap();
            pools.of(&https, Some(&name)).unwrap();
        };
        open();
        let mut inner = pools.inner.lock().unwrap();
        let all = [Key::Host, Key::Name(name.clone()), Key::Plain];
        assert_eq!(keys(&inner), all);
        let (same, opened_since) = (Arc::clone(&inner.authorities), inner.opened_since);
        inner.renew(&same, opened_since + CHECKED_FOR - Duration::from_secs(1)).unwrap();
        assert_eq!(keys(&inner), all);
        inner.renew(&same, opened_since + CHECKED_FOR).unwrap();
        assert_eq!(keys(&inner), [Key::Plain]);
        drop(inner);

        open();
        told.send_replace(Arc::new(CaCertificates::of_system()));
        pools.of(&plain, None).unwrap();
        assert_eq!(keys(&pools.inner.lock().unwrap()), [Key::Plain]);
    }

    #[tokio::test]
    async fn without_a_file_of_authorities_no_name_of_a_pod_is_checked() {
        let pools = Pools::new(None).unwrap();
        let name = DnsName::try_from("hush-server.a.svc").unwrap();
        let https = Uri::from_static("https://127.0.0.1:1/");
        assert!(matches!(pools.of(&https, Some(&name)), Err(HttpError::NoAuthority)));
        assert!(pools.of(&https, None).is_ok());
    }
}
