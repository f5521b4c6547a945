//! Pools of connections. They are kept apart by the name that the server's certificate was checked for, so that a
//! connection to a server of one namespace is never used for a server of another namespace at the same address.

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
/// How long an idle connection is kept: longer than any sensible scrape interval, shorter than servers and proxies keep it.
const KEEP_ALIVE: Duration = Duration::from_secs(45);
/// A certificate is checked when a connection begins. Connections are opened anew after this time, so that a certificate
/// that has expired meanwhile is noticed.
const CHECK_INTERVAL: Duration = Duration::from_secs(600);

type ConnectionPool = legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

#[derive(Clone)]
pub struct ConnectionPools {
    authorities: AuthoritySource,
    state: Arc<Mutex<PoolState>>,
}

#[derive(Clone)]
enum AuthoritySource {
    System(Arc<CaCertificates>),
    /// The current content of the `--ca-file`.
    File(watch::Receiver<Arc<CaCertificates>>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum PoolKey {
    /// Without TLS.
    Plain,
    /// The certificate must have the name of the URI's host.
    Host,
    /// The certificate must have this name.
    Name(DnsName<'static>),
}

struct PoolState {
    /// The authorities that the connections with TLS were checked against.
    authorities: Arc<CaCertificates>,
    /// No connection with TLS is older.
    opened_since: Instant,
    tls: ClientConfig,
    pools: HashMap<PoolKey, ConnectionPool>,
}

impl ConnectionPools {
    pub fn new(file: Option<watch::Receiver<Arc<CaCertificates>>>) -> Result<Self, rustls::Error> {
        let authorities = match file {
            Some(file) => AuthoritySource::File(file),
            None => AuthoritySource::System(Arc::new(CaCertificates::from_system())),
        };

        let current = authorities.current();
        let state = PoolState {
            tls: tls_config(&current)?,
            authorities: current,
            opened_since: Instant::now(),
            pools: HashMap::new(),
        };
        Ok(Self { authorities, state: Arc::new(Mutex::new(state)) })
    }

    /// The pool for requests to this URI. `certificate_name`: the name that the certificate must have; `None`: the URI's host.
    pub fn pool_for(
        &self,
        uri: &Uri,
        certificate_name: Option<&DnsName<'static>>,
    ) -> Result<ConnectionPool, HttpError> {
        let key = match certificate_name {
            Some(name) => PoolKey::Name(name.clone()),
            None if uri.scheme_str() == Some("https") => PoolKey::Host,
            None => PoolKey::Plain,
        };
        if matches!((&key, &self.authorities), (PoolKey::Name(_), AuthoritySource::System(_))) {
            return Err(HttpError::NoAuthority);
        }

        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.renew(&self.authorities.current(), Instant::now()).map_err(HttpError::Setup)?;

        let PoolState { tls, pools, .. } = &mut *state;
        Ok(pools.entry(key).or_insert_with_key(|key| new_pool(key, tls)).clone())
    }
}

impl AuthoritySource {
    fn current(&self) -> Arc<CaCertificates> {
        match self {
            Self::System(certificates) => Arc::clone(certificates),
            Self::File(file) => Arc::clone(&file.borrow()),
        }
    }
}

impl PoolState {
    /// Drops the pools of connections that were checked against other authorities, or too long ago. Requests that are in flight
    /// on them go on.
    fn renew(&mut self, authorities: &Arc<CaCertificates>, now: Instant) -> Result<(), rustls::Error> {
        let changed = !Arc::ptr_eq(&self.authorities, authorities);
        if changed {
            self.tls = tls_config(authorities)?;
            self.authorities = Arc::clone(authorities);
        }
        if changed || now.duration_since(self.opened_since) >= CHECK_INTERVAL {
            self.opened_since = now;
            self.pools.retain(|key, _| *key == PoolKey::Plain);
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
    // A resumed session would not present its certificate again.
    tls.resumption = Resumption::disabled();
    Ok(tls)
}

fn new_pool(key: &PoolKey, tls: &ClientConfig) -> ConnectionPool {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_nodelay(true);

    let builder = HttpsConnectorBuilder::new().with_tls_config(tls.clone());
    let builder = match key {
        PoolKey::Plain => builder.https_or_http(),
        PoolKey::Host => builder.https_only(),
        PoolKey::Name(name) => {
            let name = ServerName::DnsName(name.clone());
            builder.https_only().with_server_name_resolver(FixedServerNameResolver::new(name))
        }
    };

    legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(KEEP_ALIVE)
        .pool_timer(TokioTimer::new())
        // One connection for the scrape, one for a command.
        .pool_max_idle_per_host(2)
        .build(builder.enable_http1().wrap_connector(tcp))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(state: &PoolState) -> Vec<PoolKey> {
        let mut keys: Vec<PoolKey> = state.pools.keys().cloned().collect();
        keys.sort_by_key(|key| format!("{key:?}"));
        keys
    }

    #[tokio::test]
    async fn connections_that_were_checked_long_ago_or_against_other_authorities_are_used_no_more() {
        let (file_content, file) = watch::channel(Arc::new(CaCertificates::from_system()));
        let pools = ConnectionPools::new(Some(file)).unwrap();
        let (plain, https) = (Uri::from_static("http://127.0.0.1:1/"), Uri::from_static("https://127.0.0.1:1/"));
        let name = DnsName::try_from("hush-server.a.svc").unwrap();
        let open = || {
            pools.pool_for(&plain, None).unwrap();
            pools.pool_for(&https, None).unwrap();
            pools.pool_for(&https, Some(&name)).unwrap();
        };

        open();
        let mut state = pools.state.lock().unwrap();
        let all = [PoolKey::Host, PoolKey::Name(name.clone()), PoolKey::Plain];
        assert_eq!(keys(&state), all);

        let (same, opened_since) = (Arc::clone(&state.authorities), state.opened_since);
        state.renew(&same, opened_since + CHECK_INTERVAL - Duration::from_secs(1)).unwrap();
        assert_eq!(keys(&state), all);
        state.renew(&same, opened_since + CHECK_INTERVAL).unwrap();
        assert_eq!(keys(&state), [PoolKey::Plain]);
        drop(state);

        open();
        file_content.send_replace(Arc::new(CaCertificates::from_system()));
        pools.pool_for(&plain, None).unwrap();
        assert_eq!(keys(&pools.state.lock().unwrap()), [PoolKey::Plain]);
    }

    #[tokio::test]
    async fn without_a_file_of_authorities_no_name_of_a_pod_is_checked() {
        let pools = ConnectionPools::new(None).unwrap();
        let name = DnsName::try_from("hush-server.a.svc").unwrap();
        let https = Uri::from_static("https://127.0.0.1:1/");

        assert!(matches!(pools.pool_for(&https, Some(&name)), Err(HttpError::NoAuthority)));
        assert!(pools.pool_for(&https, None).is_ok());
    }
}
