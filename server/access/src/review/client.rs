//! Sends one request to the Kubernetes API server on a connection of its own. Verdicts are cached, so there are few
//! requests.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::ReviewSettings;
use crate::watch::{WatchError, WatchedFiles};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// Limit for the answer. A review has some kB, most of them the token.
const ANSWER_LIMIT_BYTES: usize = 1 << 20;

/// The address of the API server, which always uses HTTPS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiServer {
    /// A host name, or an address without brackets.
    host: String,
    port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the URL of an API server, such as https://10.96.0.1:443")]
pub struct InvalidApiServer;

impl ApiServer {
    pub fn new(host: &str, port: u16) -> Result<Self, InvalidApiServer> {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        ServerName::try_from(host).map_err(|_| InvalidApiServer)?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl FromStr for ApiServer {
    type Err = InvalidApiServer;

    fn from_str(url: &str) -> Result<Self, InvalidApiServer> {
        let uri: Uri = url.parse().map_err(|_| InvalidApiServer)?;
        let plain = matches!(uri.path(), "" | "/") && uri.query().is_none();
        match (uri.scheme_str(), uri.authority()) {
            (Some("https"), Some(authority)) if plain && !authority.as_str().contains('@') => {
                Self::new(authority.host(), authority.port_u16().unwrap_or(443))
            }
            _ => Err(InvalidApiServer),
        }
    }
}

impl fmt::Display for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Why the API server did not review a token.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReviewError {
    #[error("connecting to it failed: {0}")]
    Connect(#[source] io::Error),
    #[error("TLS with it failed: {0}")]
    Tls(#[source] io::Error),
    #[error("asking it failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("the request could not be written: {0}")]
    Request(#[from] hyper::http::Error),
    #[error(
        "it does not let this server review tokens ({0}): the ClusterRole of its service account lacks `create` on \
         `tokenreviews` or is not bound; where the chart made it, it is called `NAMESPACE-NAME-server` \
         (docs/kubernetes.md, Roles)"
    )]
    Refused(StatusCode),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("its answer broke off: {0}")]
    Body(#[source] axum::Error),
    #[error("its answer is not a TokenReview: {0}")]
    Answer(#[from] serde_json::Error),
}

/// Why a file with a credential of this server cannot be used.
#[derive(Debug, thiserror::Error)]
enum CredentialFileError {
    #[error("it is not in the PEM format: {0}")]
    Pem(#[source] pem::Error),
    #[error("a certificate in it cannot be used: {0}")]
    Certificate(#[source] rustls::Error),
    #[error("it holds no certificate")]
    NoCertificate,
    #[error("{0}")]
    Tls(#[source] rustls::Error),
    #[error("it is not UTF-8")]
    NotUtf8,
    #[error("it holds no token")]
    NoToken,
}

/// The TokenReview object of the answer.
#[derive(Deserialize)]
struct TokenReviewBody {
    status: ReviewStatus,
}

/// `status` of a TokenReview. An absent field counts as a refusal.
#[derive(Deserialize)]
pub(super) struct ReviewStatus {
    #[serde(default)]
    pub authenticated: bool,
    #[serde(default)]
    pub user: ReviewedUser,
    #[serde(default)]
    pub audiences: Vec<String>,
    pub error: Option<String>,
}

#[derive(Default, Deserialize)]
pub(super) struct ReviewedUser {
    #[serde(default)]
    pub username: String,
    /// Attributes of the user besides its name.
    #[serde(default)]
    extra: HashMap<String, Vec<String>>,
}

impl ReviewedUser {
    /// The pod that the token is bound to. The API server accepts the token only while this pod exists.
    /// <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/>
    pub(super) fn pod_uid(&self) -> Option<&str> {
        match self.extra.get("authentication.kubernetes.io/pod-uid")?.as_slice() {
            [uid] => Some(uid),
            _ => None,
        }
    }
}

/// A client of the TokenReview API, with credentials that are read again when they change.
pub(super) struct ReviewClient {
    api: ApiServer,
    trust: WatchedFiles<ClientConfig>,
    token: WatchedFiles<String>,
}

impl ReviewClient {
    pub(super) fn new(settings: &ReviewSettings) -> Result<Self, WatchError> {
        Ok(Self {
            api: settings.api.clone(),
            trust: WatchedFiles::start(vec![settings.ca_file.clone()], |contents| parse_trust(only_file(contents)))?,
            token: WatchedFiles::start(vec![settings.token_file.clone()], |contents| parse_token(only_file(contents)))?,
        })
    }

    pub(super) async fn review(&self, token: &str, audiences: &[&str]) -> Result<ReviewStatus, ReviewError> {
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": audiences},
        });

        let request = Request::builder()
            .method(Method::POST)
            .uri(PATH)
            .header(HOST, self.api.to_string())
            .header(AUTHORIZATION, format!("Bearer {}", self.token.get()))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .body(Body::from(body.to_string()))?;

        let name =
            ServerName::try_from(self.api.host.clone()).map_err(|error| ReviewError::Tls(io::Error::other(error)))?;
        let stream = TcpStream::connect((self.api.host.as_str(), self.api.port)).await.map_err(ReviewError::Connect)?;
        let connector = TlsConnector::from(self.trust.get());

        let stream = connector.connect(name, stream).await.map_err(ReviewError::Tls)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(ReviewError::Refused(status)),
                _ if !status.is_success() => Err(ReviewError::Status(status)),
                _ => {
                    let body = to_bytes(Body::new(response.into_body()), ANSWER_LIMIT_BYTES).await;
                    let answer: TokenReviewBody = serde_json::from_slice(&body.map_err(ReviewError::Body)?)?;
                    Ok(answer.status)
                }
            }
        };

        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // The connection ends when it breaks, or when the whole answer has arrived.
            ended = connection => {
                ended?;
                answer.await
            }
        }
    }
}

fn only_file(contents: &[Vec<u8>]) -> &[u8] {
    contents.first().map_or(&[], Vec::as_slice)
}

fn parse_trust(pem: &[u8]) -> Result<ClientConfig, CredentialFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(CredentialFileError::Pem)?;
        roots.add(certificate).map_err(CredentialFileError::Certificate)?;
    }

    if roots.is_empty() {
        return Err(CredentialFileError::NoCertificate);
    }

    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(CredentialFileError::Tls)?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn parse_token(content: &[u8]) -> Result<String, CredentialFileError> {
    let token = std::str::from_utf8(content).map_err(|_| CredentialFileError::NotUtf8)?.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(CredentialFileError::NoToken);
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_api_servers() {
        let show = |url: &str| url.parse::<ApiServer>().map(|api| api.to_string()).ok();
        assert_eq!(show("https://10.96.0.1:6443").as_deref(), Some("10.96.0.1:6443"));
        assert_eq!(show("https://kubernetes.default.svc").as_deref(), Some("kubernetes.default.svc:443"));
        assert_eq!(show("https://[fd00::1]/").as_deref(), Some("[fd00::1]:443"));

        for wrong in
            ["", "http://10.96.0.1", "10.96.0.1:443", "https://", "https://u@h", "https://h/path", "https://h?q"]
        {
            assert_eq!(show(wrong), None, "{wrong}");
        }

        assert_eq!(ApiServer::new("fd00::1", 443).unwrap().to_string(), "[fd00::1]:443");
    }
}
