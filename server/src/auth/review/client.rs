//! One request to the Kubernetes API server. A connection each: verdicts are remembered, so there are few.

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
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::ReviewSettings;
use crate::watch::{WatchError, Watched};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// A review has some kB, most of them the token.
const ANSWER_LIMIT_BYTES: usize = 1 << 20;

/// Where the API server is; always HTTPS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiServer {
    /// Without brackets.
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
    #[error("its answer is no TokenReview: {0}")]
    Answer(#[from] serde_json::Error),
}

#[derive(Deserialize)]
struct Answer {
    status: Review,
}

/// `status` of a TokenReview. What is absent is taken as a no.
#[derive(Deserialize)]
pub(super) struct Review {
    #[serde(default)]
    pub authenticated: bool,
    #[serde(default)]
    pub user: User,
    #[serde(default)]
    pub audiences: Vec<String>,
    pub error: Option<String>,
}

#[derive(Default, Deserialize)]
pub(super) struct User {
    #[serde(default)]
    pub username: String,
    /// What the API server knows beside the name.
    #[serde(default)]
    extra: HashMap<String, Vec<String>>,
}

impl User {
    /// The pod that the token is bound to: the API server accepts it only while that pod is there.
    /// <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/>
    pub(super) fn pod_uid(&self) -> Option<&str> {
        match self.extra.get("authentication.kubernetes.io/pod-uid")?.as_slice() {
            [uid] => Some(uid),
            _ => None,
        }
    }
}

pub(super) struct Client {
    api: ApiServer,
    trust: Watched<ClientConfig>,
    token: Watched<String>,
}

impl Client {
    pub(super) fn new(settings: &ReviewSettings) -> Result<Self, WatchError> {
        Ok(Self {
            api: settings.api.clone(),
            trust: Watched::start(vec![settings.ca_file.clone()], |contents| trust(only(contents)))?,
            token: Watched::start(vec![settings.token_file.clone()], |contents| token(only(contents)))?,
        })
    }

    pub(super) async fn review(&self, token: &str, audiences: &[&str]) -> Result<Review, ReviewError> {
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
        let name = ServerName::try_from(self.api.host.clone())
            .map_err(|error| ReviewError::Tls(io::Error::other(error.to_string())))?;
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
                    let answer: Answer = serde_json::from_slice(&body.map_err(ReviewError::Body)?)?;
                    Ok(answer.status)
                }
            }
        };
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // The connection ends by itself when it breaks, or once the answer is all here.
            ended = connection => {
                ended?;
                answer.await
            }
        }
    }
}

fn only(contents: &[Vec<u8>]) -> &[u8] {
    contents.first().map_or(&[], Vec::as_slice)
}

fn trust(pem: &[u8]) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("it is no PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("a certificate in it cannot be used: {error}"))?;
    }
    if roots.is_empty() {
        return Err("it holds no certificate".to_owned());
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn token(content: &[u8]) -> Result<String, String> {
    let token = std::str::from_utf8(content).map_err(|_| "it is not UTF-8".to_owned())?.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("it holds no token".to_owned());
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
