//! The HTTP client for requests to servers and controllers. It reuses connections, bounds responses, follows no redirects,
//! and never falls back from HTTPS to HTTP.

mod certificate;
mod pools;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::http::request::Builder;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy;
use rustls::pki_types::DnsName;
use tokio::sync::watch;

use crate::api_server::USER_AGENT_VALUE;

pub use certificate::{CaCertificates, CaFileError, CertificateProblem};
use pools::ConnectionPools;

/// The address of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub uri: Uri,
    /// The name that the server's certificate must have; `None`: the host of the URI.
    pub certificate_name: Option<DnsName<'static>>,
}

impl From<Uri> for Endpoint {
    fn from(uri: Uri) -> Self {
        Self { uri, certificate_name: None }
    }
}

/// Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct HttpClient {
    pools: ConnectionPools,
}

#[derive(Clone, Debug)]
pub struct HttpResponse {
    pub status: StatusCode,
    pub body: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("the address is not valid: {0}")]
    Uri(#[from] hyper::http::uri::InvalidUri),
    #[error("the request could not be written: {0}")]
    Request(#[from] hyper::http::Error),
    #[error(
        "it does not answer in HTTP on this port; if it speaks TLS, `https` must be asked for: the annotation \
         `gpu.hush.dev/ops-scheme: https` of its pod, or `https://` in the target"
    )]
    NotHttp(#[source] legacy::Error),
    #[error("{}", connection_problem(.0))]
    Connect(#[source] legacy::Error),
    /// Nothing was sent.
    #[error("{0}")]
    Certificate(CertificateProblem),
    /// Nothing was sent.
    #[error("{}", handshake_problem(.0))]
    Tls(rustls::Error),
    /// Nothing was sent.
    #[error(
        "its pod asks for https, and this controller has no authority to check certificates against: give --ca-file"
    )]
    NoAuthority,
    #[error("TLS could not be set up: {0}")]
    Setup(rustls::Error),
    #[error("the answer broke off or is larger than {limit} bytes: {source}")]
    Body { limit: usize, source: Box<dyn std::error::Error + Send + Sync> },
}

impl HttpError {
    /// The value of a metric's label; there are few of them.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Certificate(_) | Self::Tls(_) | Self::NoAuthority => "tls",
            _ => "unreachable",
        }
    }

    /// `name`: the name that the certificate had to have.
    fn from_request(error: legacy::Error, name: &str) -> Self {
        match tls_error(&error) {
            Some(rustls::Error::InvalidCertificate(problem)) => {
                Self::Certificate(CertificateProblem::new(problem, name))
            }
            Some(error) => Self::Tls(error.clone()),
            None if is_parse_error(&error) => Self::NotHttp(error),
            None => Self::Connect(error),
        }
    }
}

/// The text of the innermost cause, which says what happened; the outer ones only say where.
fn connection_problem(error: &legacy::Error) -> String {
    let mut text = error.to_string();
    let mut at = std::error::Error::source(error);
    while let Some(inner) = at {
        text = inner.to_string();
        at = inner.source();
    }

    if error.is_connect() { format!("connecting failed: {text}") } else { format!("the request failed: {text}") }
}

fn handshake_problem(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidMessage(_) => "it does not speak TLS on this port".to_owned(),
        other => format!("the TLS handshake failed: {other}"),
    }
}

/// Whether the bytes of the response are not HTTP.
fn is_parse_error(error: &legacy::Error) -> bool {
    let source = std::error::Error::source(error);
    source.and_then(|source| source.downcast_ref::<hyper::Error>()).is_some_and(hyper::Error::is_parse)
}

/// The error of rustls inside of another error. I/O errors that carry it do not name it as their source.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        at = inner.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

impl HttpClient {
    /// `authorities`: the current authorities that servers with HTTPS are checked against; `None`: those of the system. They
    /// do not vouch for namespaces, so that endpoints with a certificate name are refused with them.
    pub fn new(authorities: Option<watch::Receiver<std::sync::Arc<CaCertificates>>>) -> Result<Self, rustls::Error> {
        Ok(Self { pools: ConnectionPools::new(authorities)? })
    }

    pub async fn get(
        &self,
        endpoint: impl Into<Endpoint>,
        token: Option<&str>,
        limit: usize,
    ) -> Result<HttpResponse, HttpError> {
        let Endpoint { uri, certificate_name } = endpoint.into();
        let request = add_token(Request::builder().method(Method::GET).uri(uri), token)?;
        self.exchange(request.body(Full::default())?, certificate_name.as_ref(), limit).await
    }

    pub async fn post(
        &self,
        endpoint: impl Into<Endpoint>,
        token: Option<&str>,
        json: Vec<u8>,
        limit: usize,
    ) -> Result<HttpResponse, HttpError> {
        let Endpoint { uri, certificate_name } = endpoint.into();
        let request = Request::builder().method(Method::POST).uri(uri).header(CONTENT_TYPE, "application/json");
        let request = add_token(request, token)?;
        self.exchange(request.body(Full::from(json))?, certificate_name.as_ref(), limit).await
    }

    pub async fn send(&self, request: Request<Full<Bytes>>, limit: usize) -> Result<HttpResponse, HttpError> {
        self.exchange(request, None, limit).await
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        certificate_name: Option<&DnsName<'static>>,
        limit: usize,
    ) -> Result<HttpResponse, HttpError> {
        let name = certificate_name.map_or_else(|| request.uri().host().unwrap_or_default(), AsRef::as_ref).to_owned();
        let pool = self.pools.pool_for(request.uri(), certificate_name)?;
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));

        let response = pool.request(request).await.map_err(|error| HttpError::from_request(error, &name))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limit).collect().await;
        let body = body.map_err(|source| HttpError::Body { limit, source })?.to_bytes();
        Ok(HttpResponse { status, body })
    }
}

fn add_token(request: Builder, token: Option<&str>) -> Result<Builder, HttpError> {
    let Some(token) = token else { return Ok(request) };

    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(hyper::http::Error::from)?;
    value.set_sensitive(true);
    Ok(request.header(AUTHORIZATION, value))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_http_request_to_a_port_that_speaks_tls_has_an_error_of_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri: Uri = format!("http://{}/metrics", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            // A TLS alert: unexpected message.
            stream.write_all(&[21, 3, 3, 0, 2, 2, 10]).await.unwrap();
        });

        let error = HttpClient::new(None).unwrap().get(uri, None, 1024).await.unwrap_err();
        assert!(error.to_string().contains("`gpu.hush.dev/ops-scheme: https`"), "{error}");
        assert_eq!(error.label(), "unreachable");
    }

    #[tokio::test]
    async fn a_request_names_the_program_that_sends_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri: Uri = format!("http://{}/metrics", listener.local_addr().unwrap()).parse().unwrap();
        let server = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let length = connection.read(&mut head).await.unwrap();
            connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            String::from_utf8_lossy(&head[..length]).to_ascii_lowercase()
        });

        let response = HttpClient::new(None).unwrap().get(uri, None, 1024).await.unwrap();
        assert_eq!(response.status, StatusCode::OK);
        let expected = concat!("user-agent: hush-controller/", env!("CARGO_PKG_VERSION"), "\r\n");
        let head = server.await.unwrap();
        assert_eq!(head.matches(expected).count(), 1, "{head}");
    }
}
