//! HTTPS on the loopback with certificates made for the test: the server's side through `hush_server::serve`, the
//! client's side plain rustls.

#![allow(dead_code, reason = "each test executable uses its part")]
#![allow(clippy::unwrap_used, reason = "test support, though no test itself")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use hush_server::serve::{ServeOptions, Tls, serve};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// A certificate for the loopback and its key, PEM.
pub struct LoopbackCertificate {
    pub certificate: String,
    pub key: String,
}

impl LoopbackCertificate {
    pub fn new() -> Self {
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
        Self { certificate: cert.pem(), key: signing_key.serialize_pem() }
    }

    /// Where the two files are.
    pub fn write(&self, dir: &Path) -> (PathBuf, PathBuf) {
        let files = (dir.join("tls.crt"), dir.join("tls.key"));
        std::fs::write(&files.0, &self.certificate).unwrap();
        std::fs::write(&files.1, &self.key).unwrap();
        files
    }

    pub fn der(&self) -> Vec<u8> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap().to_vec()
    }
}

/// Ends when it is dropped.
pub struct HttpsListener {
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
    pair: LoopbackCertificate,
    serving: tokio::task::JoinHandle<()>,
}

impl HttpsListener {
    pub async fn start(router: Router) -> Self {
        let (dir, pair) = (tempfile::tempdir().unwrap(), LoopbackCertificate::new());
        let (certificate, key) = pair.write(dir.path());
        Self::serving(router, Tls::from_files(certificate, key).unwrap(), dir, pair).await
    }

    /// With files of the test's own.
    pub async fn with(router: Router, tls: Tls) -> Self {
        Self::serving(router, tls, tempfile::tempdir().unwrap(), LoopbackCertificate::new()).await
    }

    async fn serving(router: Router, tls: Tls, dir: tempfile::TempDir, pair: LoopbackCertificate) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let options = ServeOptions { tls: Some(tls), ..ServeOptions::default() };
        let serving = tokio::spawn(serve(listener, router, CancellationToken::new(), options));
        Self { address, dir, pair, serving }
    }

    /// PEM.
    pub fn certificate(&self) -> &str {
        &self.pair.certificate
    }
}

impl Drop for HttpsListener {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A connection that trusts these certificates.
pub async fn connect(address: SocketAddr, trusted: &[&LoopbackCertificate]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for pair in trusted {
        roots.add(CertificateDer::from(pair.der())).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
}
