//! TLS on a listener: a certificate and a key from files, which are read again when they change.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hush_log::exposed_secret;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::watch::{WatchError, WatchedFiles};

/// A client that opens a connection and sends nothing must not keep it open.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The certificate and the key of a listener. An open connection keeps those with which it began.
#[derive(Clone)]
pub struct Tls {
    config: WatchedFiles<ServerConfig>,
}

/// Why the files that two options name cannot be the TLS of a listener. `prefix`: `tls` or `ops-tls`.
#[derive(Debug, thiserror::Error)]
pub enum TlsOptionsError {
    #[error("--{prefix}-cert and --{prefix}-key need each other")]
    Incomplete { prefix: &'static str },
    #[error("--{prefix}-cert and --{prefix}-key")]
    Files { prefix: &'static str, source: WatchError },
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// `certificate`: PEM, with the certificate of the server first and the chain after it; `key`: PEM. Must be called inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// If a file cannot be read, or the files are no certificate and its key.
    pub fn from_files(certificate: PathBuf, key: PathBuf) -> Result<Self, WatchError> {
        let config = WatchedFiles::start(vec![certificate, key], |contents| match contents {
            [certificate, key] => server_config(certificate, key),
            _ => Err("a certificate and a key are needed".to_owned()),
        })?;
        Ok(Self { config })
    }

    /// The TLS of the options `--PREFIX-cert` and `--PREFIX-key`; `None` where neither is given. Must be called inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// If one is given without the other, or the files are no certificate and its key.
    pub fn from_options(
        prefix: &'static str,
        certificate: Option<&PathBuf>,
        key: Option<&PathBuf>,
    ) -> Result<Option<Self>, TlsOptionsError> {
        let (certificate, key) = match (certificate, key) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            _ => return Err(TlsOptionsError::Incomplete { prefix }),
        };

        if let Some(problem) = exposed_secret(&format!("--{prefix}-key"), &key) {
            tracing::warn!("{problem}");
        }
        let tls = Self::from_files(certificate, key).map_err(|source| TlsOptionsError::Files { prefix, source })?;
        Ok(Some(tls))
    }

    /// The handshake with a client.
    ///
    /// # Errors
    /// If the handshake fails or takes more than 10 s.
    pub async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = TlsAcceptor::from(self.config.get()).accept(stream);
        tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

fn server_config(certificate: &[u8], key: &[u8]) -> Result<ServerConfig, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("the certificate is not in the PEM format: {error}"))?;
    if chain.is_empty() {
        return Err("the first file holds no certificate".to_owned());
    }

    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the second file holds no key: {error}"))?;

    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        // Also checks that the key belongs to the certificate.
        .with_single_cert(chain, key)
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
