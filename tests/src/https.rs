//! Certificates made for a test, and a server's operations port over TLS that remembers what reached it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use hush_server::serve::{ServeOptions, Tls, serve};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Signs certificates of servers.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// PEM.
    pub certificate: String,
}

/// A certificate and its key, PEM.
#[derive(Clone, Debug)]
pub struct CertificatePair {
    pub certificate: String,
    pub key: String,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    Now,
    Past,
}

impl Authority {
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// For these names, DNS names or addresses.
    pub fn sign(&self, names: &[&str], validity: Validity) -> Result<CertificatePair> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if validity == Validity::Past {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(CertificatePair { certificate, key: key.serialize_pem() })
    }

    /// As a Secret of cert-manager is mounted: the certificate of a namespace's servers.
    pub fn sign_for(&self, namespace: &str) -> Result<CertificatePair> {
        self.sign(&[&format!("hush-server.{namespace}.svc")], Validity::Now)
    }
}

impl CertificatePair {
    /// Into a folder, as `tls.crt` and `tls.key`.
    pub fn write(&self, folder: &Path) -> Result<(PathBuf, PathBuf)> {
        let files = (folder.join("tls.crt"), folder.join("tls.key"));
        std::fs::write(&files.0, &self.certificate)?;
        std::fs::write(&files.1, &self.key)?;
        Ok(files)
    }
}

type Requests = Arc<Mutex<Vec<String>>>;

/// Ends when it is dropped.
pub struct HttpsServer {
    pub address: SocketAddr,
    requests: Requests,
    _stop: DropGuard,
    _folder: tempfile::TempDir,
}

impl HttpsServer {
    /// Needs a runtime.
    pub async fn start(ip: Ipv4Addr, router: Router, pair: &CertificatePair) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (certificate, key) = pair.write(folder.path())?;
        let options = ServeOptions { tls: Some(Tls::from_files(certificate, key)?), ..ServeOptions::default() };
        let listener = TcpListener::bind((ip, 0)).await?;
        let address = listener.local_addr()?;

        let requests = Requests::default();
        let router = router.layer(from_fn_with_state(Arc::clone(&requests), remember));
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, router, stop.clone(), options));
        Ok(Self { address, requests, _stop: stop.drop_guard(), _folder: folder })
    }

    /// Method and path of each request that arrived, that is: after a handshake.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn remember(State(requests): State<Requests>, request: Request, next: Next) -> Response {
    let line = format!("{} {}", request.method(), request.uri().path());
    requests.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    next.run(request).await
}
