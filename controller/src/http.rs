//! HTTP to servers: connections are kept and used again, answers are bounded.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::http::request::Builder;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::api_server::USER_AGENT_VALUE;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longer than any sensible scrape interval, shorter than servers and proxies keep one.
const KEEP_ALIVE: Duration = Duration::from_secs(45);

/// Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    inner: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("the address is not valid: {0}")]
    Uri(#[from] hyper::http::uri::InvalidUri),
    #[error("the request could not be written: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("{}", cause(.0))]
    Connect(#[source] legacy::Error),
    #[error("the answer broke off or is larger than {limit} bytes: {source}")]
    Body { limit: usize, source: Box<dyn std::error::Error + Send + Sync> },
}

/// The innermost cause says what happened; the outer ones only where.
fn cause(error: &legacy::Error) -> String {
    let mut text = error.to_string();
    let mut at = std::error::Error::source(error);
    while let Some(inner) = at {
        text = inner.to_string();
        at = inner.source();
    }
    if error.is_connect() { format!("connecting failed: {text}") } else { format!("the request failed: {text}") }
}

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("{}: there is no certificate in it", path.display())]
    Empty { path: PathBuf },
    #[error("TLS could not be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl Client {
    /// Servers with HTTPS must show a certificate that `ca_file` has signed; without one, that the system trusts.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(ca_file)?)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        let inner = legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(KEEP_ALIVE)
            .pool_timer(TokioTimer::new())
            // One for the scrape, one for a command.
            .pool_max_idle_per_host(2)
            .build(connector);
        Ok(Self { inner })
    }

    pub async fn get(&self, uri: Uri, token: Option<&str>, limit: usize) -> Result<Answer, HttpError> {
        let request = authorized(Request::builder().method(Method::GET).uri(uri), token)?;
        self.send(request.body(Full::default())?, limit).await
    }

    pub async fn post(&self, uri: Uri, token: Option<&str>, json: Vec<u8>, limit: usize) -> Result<Answer, HttpError> {
        let request = Request::builder().method(Method::POST).uri(uri).header(CONTENT_TYPE, "application/json");
        let request = authorized(request, token)?;
        self.send(request.body(Full::from(json))?, limit).await
    }

    pub async fn send(&self, mut request: Request<Full<Bytes>>, limit: usize) -> Result<Answer, HttpError> {
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
        let answer = self.inner.request(request).await.map_err(HttpError::Connect)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), limit).collect().await;
        let body = body.map_err(|source| HttpError::Body { limit, source })?.to_bytes();
        Ok(Answer { status, body })
    }
}

fn authorized(request: Builder, token: Option<&str>) -> Result<Builder, HttpError> {
    let Some(token) = token else { return Ok(request) };
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(hyper::http::Error::from)?;
    value.set_sensitive(true);
    Ok(request.header(AUTHORIZATION, value))
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca_file else {
        // What the system has that is no certificate helps nobody and hurts nobody.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let failed = |source| TrustError::Read { path: path.to_owned(), source };
    for certificate in CertificateDer::pem_file_iter(path).map_err(failed)? {
        roots.add(certificate.map_err(failed)?)?;
    }
    if roots.is_empty() { Err(TrustError::Empty { path: path.to_owned() }) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_server_is_told_which_program_asks() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri: Uri = format!("http://{}/metrics", listener.local_addr().unwrap()).parse().unwrap();
        let server = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let length = connection.read(&mut head).await.unwrap();
            connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            String::from_utf8_lossy(&head[..length]).to_ascii_lowercase()
        });
        let answer = Client::new(None).unwrap().get(uri, None, 1024).await.unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        let expected = concat!("user-agent: hush-controller/", env!("CARGO_PKG_VERSION"), "\r\n");
        let head = server.await.unwrap();
        assert_eq!(head.matches(expected).count(), 1, "{head}");
    }
}
