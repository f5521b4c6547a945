//! Requests to the hub. Redirects are followed here (the token goes only to the hub, and no redirect may lead to an
//! internal address), and errors tell what the operator can do.

use std::cell::Cell;
use std::marker::PhantomData;

use hush_contract::percent::segment;
use ureq::http::{HeaderMap, Response};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body};

use super::config::{HubConfig, HubToken};
use super::digest::ContentDigest;
use super::network_scope::{GuardedResolver, NetworkScope};
use super::{HubError, Repo};

const MAX_REDIRECTS: usize = 10;
/// Limit for a listing or an index; the largest real ones have several hundred kilobytes.
const MAX_TEXT: u64 = 32 << 20;

/// A client of the hub.
pub struct HubClient {
    agent: Agent,
    /// The resolver of the agent.
    resolver: GuardedResolver,
    /// Keeps the client on one thread, because the resolver checks one request at a time.
    _on_one_thread: PhantomData<Cell<()>>,
    endpoint: String,
    token: Option<HubToken>,
}

/// The beginning of an answer with the content of a file.
pub struct FileResponse {
    pub status: u16,
    pub url: String,
    /// The digest that the hub itself states. The store that the hub redirects to is not trusted with it.
    pub digest: Option<ContentDigest>,
    /// Length of the whole file, if it is known.
    pub size: Option<u64>,
    /// Position of the body's first byte within the file.
    pub offset: u64,
    pub body: Body,
}

impl HubClient {
    pub fn new(config: &HubConfig) -> Self {
        let retry = &config.retry;
        let settings = Agent::config_builder()
            .tls_config(crate::trust::tls())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("hush-server/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(retry.connect_timeout))
            .timeout_connect(Some(retry.connect_timeout))
            .timeout_recv_response(Some(retry.read_timeout))
            .timeout_per_read(Some(retry.read_timeout))
            .timeout_per_write(Some(retry.read_timeout))
            .build();

        let resolver = GuardedResolver::default();
        let agent = Agent::with_parts(settings, DefaultConnector::default(), resolver.clone());
        Self {
            agent,
            resolver,
            _on_one_thread: PhantomData,
            endpoint: config.endpoint.clone(),
            token: config.token.clone(),
        }
    }

    /// Fetches the listing of a revision.
    pub fn listing(&self, repo: &Repo, revision: &str) -> Result<Vec<u8>, HubError> {
        let url = format!("{}/api/models/{repo}/revision/{}?blobs=true", self.endpoint, segment(revision));
        let (response, url, _) = self.get(&url, 0)?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(self.refusal(&response, url, repo, revision, None));
        }

        let mut body = response.into_body();
        body.with_config().limit(MAX_TEXT).read_to_vec().map_err(|cause| transport(&url, cause))
    }

    /// Fetches the content of a file from `offset` on.
    pub fn open(&self, repo: &Repo, commit: &str, file: &str, offset: u64) -> Result<FileResponse, HubError> {
        let url = format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, segment(file));
        let (response, url, stated) = self.get(&url, offset)?;
        let status = response.status().as_u16();

        let length = header(response.headers(), "content-length").and_then(|text| text.parse::<u64>().ok());
        let (start, size) = match status {
            200 => (0, length),
            206 => content_range(response.headers()).ok_or_else(|| HubError::InvalidAnswer {
                what: url.clone(),
                problem: "a part of a file without a Content-Range".to_owned(),
            })?,
            // No byte follows `offset`: the file is complete, or the local part belongs to another file.
            416 => (offset, content_range(response.headers()).and_then(|(_, size)| size)),
            _ => return Err(self.refusal(&response, url, repo, commit, Some(file))),
        };

        let size = size.or(stated.size);
        Ok(FileResponse { status, url, digest: stated.digest, size, offset: start, body: response.into_body() })
    }

    /// Sends a request and follows redirects. The token goes only to the hub's own origin.
    fn get(&self, url: &str, offset: u64) -> Result<(Response<Body>, String, StatedMetadata), HubError> {
        let mut url = url.to_owned();
        let mut stated = StatedMetadata::default();
        // The server that redirected to `url`, and its network scope.
        let mut sender: Option<(String, NetworkScope)> = None;
        for _ in 0..=MAX_REDIRECTS {
            let is_hub = origin(&url) == origin(&self.endpoint);
            // The operator chose the endpoint, so it may have any address.
            let from = sender.as_ref().filter(|_| !is_hub).map(|(_, scope)| *scope);

            let inward = |place: String| HubError::Inward {
                from: sender.as_ref().map_or_else(String::new, |(url, _)| without_query(url)),
                to: origin(&url),
                place,
            };

            self.resolver.prepare(&url, from).map_err(|refused| inward(refused.to_string()))?;

            let mut request = self.agent.get(&url);
            if offset > 0 {
                request = request.header("Range", format!("bytes={offset}-"));
            }

            if let (true, Some(token)) = (is_hub, &self.token) {
                request = request.header("Authorization", token.header());
            }

            let response = request.call().map_err(|cause| match self.resolver.refused() {
                Some(address) => inward(format!("{} ({address})", NetworkScope::of(address))),
                None => transport(&url, cause),
            })?;

            if is_hub {
                stated.add(response.headers());
            }

            if !response.status().is_redirection() {
                return Ok((response, url, stated));
            }

            let location = header(response.headers(), "location").ok_or_else(|| HubError::InvalidAnswer {
                what: url.clone(),
                problem: "a redirect without a Location".to_owned(),
            })?;
            let next = join(&url, location);
            // A redirect must not leave https.
            if url.starts_with("https://") && !next.starts_with("https://") {
                return Err(HubError::InvalidAnswer { what: url, problem: format!("a redirect from https to {next}") });
            }

            sender = Some((std::mem::replace(&mut url, next), self.resolver.reached()));
        }
        Err(HubError::InvalidAnswer { what: url, problem: format!("more than {MAX_REDIRECTS} redirects") })
    }

    fn refusal(
        &self,
        response: &Response<Body>,
        url: String,
        repo: &Repo,
        revision: &str,
        file: Option<&str>,
    ) -> HubError {
        let status = response.status().as_u16();
        let code = header(response.headers(), "x-error-code").unwrap_or_default();
        let (repo, hub) = (repo.to_string(), origin(&url) == origin(&self.endpoint));
        match (status, code) {
            (404, "RevisionNotFound") => HubError::NoRevision { repo, revision: revision.to_owned() },
            (404, "RepoNotFound") => HubError::NoRepository { repo, endpoint: self.endpoint.clone() },
            (404, _) => match file {
                Some(file) => HubError::NoFile { repo, file: file.to_owned() },
                None => HubError::NoRepository { repo, endpoint: self.endpoint.clone() },
            },
            (401 | 403, _) if hub => HubError::Forbidden { repo, status, had_token: self.token.is_some() },
            _ => {
                let reason = header(response.headers(), "x-error-message").map(|text| format!(": {text}"));
                HubError::Status { url, status, reason: reason.unwrap_or_default() }
            }
        }
    }
}

/// Metadata of a file that the hub itself stated, whichever server delivers the content.
#[derive(Default)]
struct StatedMetadata {
    digest: Option<ContentDigest>,
    size: Option<u64>,
}

impl StatedMetadata {
    fn add(&mut self, headers: &HeaderMap) {
        let linked = header(headers, "x-linked-etag");
        let tag = linked.or_else(|| header(headers, "etag"));
        if linked.is_some() || self.digest.is_none() {
            self.digest = tag.and_then(ContentDigest::from_etag).or(self.digest.take());
        }

        self.size = header(headers, "x-linked-size").and_then(|text| text.parse().ok()).or(self.size);
    }
}

pub fn transport(url: &str, cause: ureq::Error) -> HubError {
    HubError::Transport { url: without_query(url), cause: Box::new(cause) }
}

/// Removes the query of a URL for messages: in the URL of a store it is a credential.
pub fn without_query(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Parses a range: `bytes 5-9/10` -> (5, Some(10)); `bytes */10` -> (0, Some(10)).
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, size) = header(headers, "content-range")?.trim().strip_prefix("bytes ")?.split_once('/')?;
    let start = match range.split_once('-') {
        Some((start, _)) => start.trim().parse().ok()?,
        None => 0,
    };
    Some((start, size.trim().parse().ok()))
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return String::new() };

    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let default = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    format!("{scheme}://{}", authority.strip_suffix(default).unwrap_or(authority)).to_ascii_lowercase()
}

fn join(base: &str, location: &str) -> String {
    let scheme = base.split("://").next().unwrap_or("https");
    if location.contains("://") && !location.starts_with('/') {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{}{location}", origin(base))
    } else {
        let path = without_query(base);
        let folder = path.rfind('/').map_or(path.as_str(), |slash| &path[..slash]);
        format!("{folder}/{location}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        assert_eq!(origin("https://Hub.example/a?b"), "https://hub.example");
        assert_eq!(origin("https://hub.example:443/a"), origin("https://hub.example"));
        assert_ne!(origin("http://hub.example"), origin("https://hub.example"));
        assert_ne!(origin("http://hub.example:1"), origin("http://hub.example:2"));
        assert_ne!(origin("https://hub.example@evil.example/"), origin("https://hub.example"));
        assert_eq!(join("https://h/a/b?c", "/x"), "https://h/x");
        assert_eq!(join("https://h/a/b?c", "x"), "https://h/a/x");
        assert_eq!(join("https://h/a", "http://other/y?u=http://z"), "http://other/y?u=http://z");
        assert_eq!(join("https://h/a", "//cdn/y"), "https://cdn/y");
        assert_eq!(segment("refs/pr/1").to_string(), "refs%2Fpr%2F1");
        assert_eq!(without_query("https://cdn/x?sig=secret"), "https://cdn/x");
    }

    #[test]
    fn ranges() {
        let range = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-range", value.parse().unwrap());
            content_range(&headers)
        };

        assert_eq!(range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(range("bytes */10"), Some((0, Some(10))));
        assert_eq!(range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(range("lines 5-9/10"), None);
    }
}
