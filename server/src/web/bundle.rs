//! A page and its files, ready to send: compressed once, cached by browsers for as long as they do not change.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read, Write};

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use crate::api::detail;

/// In the page: the version of its files.
const VERSION_MARK: &str = "{version}";
/// A stale version is asked for by a page that is about to be reloaded; nothing else.
const FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
const ASK_FIRST: HeaderValue = HeaderValue::from_static("no-cache");

/// A file as it is in the repository.
pub struct Source {
    pub name: &'static str,
    pub content_type: &'static str,
    pub content: Content,
}

pub enum Content {
    Plain(&'static [u8]),
    /// Compressed already, because it is large.
    Gzip(&'static [u8]),
}

struct File {
    content_type: &'static str,
    content: Bytes,
    gzip: bool,
}

/// One page, and the files that it loads from `.../{version}/{name}`.
pub struct Bundle {
    /// Changes when any byte of any file does.
    version: String,
    html: File,
    files: BTreeMap<&'static str, File>,
    policy: HeaderValue,
}

impl Bundle {
    /// `policy`: the Content-Security-Policy of the page.
    pub fn new(html: &str, sources: &[Source], policy: &'static str) -> Self {
        let mut digest = Sha256::new();
        digest.update(html);
        let mut files = BTreeMap::new();
        for Source { name, content_type, content } in sources {
            let (Content::Plain(bytes) | Content::Gzip(bytes)) = content;
            digest.update(name);
            digest.update(bytes);
            let (content, gzip) = match content {
                Content::Plain(bytes) => compressed(bytes),
                Content::Gzip(bytes) => (Bytes::from_static(bytes), true),
            };
            files.insert(*name, File { content_type, content, gzip });
        }
        let mut version = String::with_capacity(16);
        for byte in &digest.finalize()[..8] {
            // Writing to a String cannot fail.
            let _ = write!(version, "{byte:02x}");
        }
        let (content, gzip) = compressed(html.replace(VERSION_MARK, &version).as_bytes());
        let html = File { content_type: "text/html; charset=utf-8", content, gzip };
        Self { version, html, files, policy: HeaderValue::from_static(policy) }
    }

    /// The page: the browser asks each time whether it has changed.
    pub fn page(&self, headers: &HeaderMap) -> Response {
        let tag = format!("\"{}\"", self.version);
        let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let mut response = if known.flat_map(|value| value.split(',')).any(|known| weak_equal(known, &tag)) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            body(headers, self.html.content_type, &self.html.content, self.html.gzip)
        };
        let answer = response.headers_mut();
        answer.insert(header::CACHE_CONTROL, ASK_FIRST);
        if let Ok(tag) = HeaderValue::try_from(tag) {
            answer.insert(header::ETAG, tag);
        }
        answer.insert(header::CONTENT_SECURITY_POLICY, self.policy.clone());
        answer.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        let others = HeaderValue::from_static("camera=(), geolocation=(), microphone=(self)");
        answer.insert(header::HeaderName::from_static("permissions-policy"), others);
        let isolated = HeaderValue::from_static("same-origin");
        answer.insert(header::HeaderName::from_static("cross-origin-opener-policy"), isolated);
        response
    }

    /// One of its files: never changes under its address.
    pub fn file(&self, headers: &HeaderMap, version: &str, name: &str) -> Response {
        let Some(file) = self.files.get(name).filter(|_| version == self.version) else {
            return detail(StatusCode::NOT_FOUND, "Not Found");
        };
        let mut response = body(headers, file.content_type, &file.content, file.gzip);
        response.headers_mut().insert(header::CACHE_CONTROL, FOR_EVER);
        response
    }
}

/// An answer that is compressed where the client takes that.
fn body(headers: &HeaderMap, content_type: &'static str, content: &Bytes, gzip: bool) -> Response {
    let takes_gzip = takes_gzip(headers);
    let content = match gzip && !takes_gzip {
        false => Ok(content.clone()),
        true => decompressed(content).map(Bytes::from),
    };
    let content = match content {
        Ok(content) => content,
        Err(error) => {
            tracing::error!(%error, "a file of this program does not unpack");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    let mut response = content.into_response();
    let answer = response.headers_mut();
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer.insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
    if gzip && takes_gzip {
        answer.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// Compressed, where that makes it smaller.
fn compressed(bytes: &[u8]) -> (Bytes, bool) {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let packed = encoder.write_all(bytes).and_then(|()| encoder.finish());
    match packed {
        Ok(packed) if packed.len() < bytes.len() => (packed.into(), true),
        _ => (Bytes::copy_from_slice(bytes), false),
    }
}

fn decompressed(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain)?;
    Ok(plain)
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = matches!(weight.replace(' ', "").as_str(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000");
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

fn weak_equal(known: &str, tag: &str) -> bool {
    let known = known.trim();
    known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
}

/// `text` with what HTML gives a meaning written as itself.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;"))
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    const LONG: &[u8] = &[b'a'; 1000];

    fn bundle() -> Bundle {
        let source = |name, content| Source { name, content_type: "text/plain", content };
        let sources = [source("long.txt", Content::Plain(LONG)), source("short.txt", Content::Plain(b"a"))];
        Bundle::new("<p>{version}</p>", &sources, "default-src 'none'")
    }

    fn asking(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::try_from(value).unwrap())])
    }

    async fn content(response: Response) -> Vec<u8> {
        to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()
    }

    #[tokio::test]
    async fn files_are_compressed_for_whom_it_suits() {
        let bundle = bundle();
        for (accepted, gzip) in [("gzip, br", true), ("br, GZIP;q=0.5", true), ("gzip;q=0", false), ("br", false)] {
            let headers = asking(header::ACCEPT_ENCODING, accepted);
            let response = bundle.file(&headers, &bundle.version, "long.txt");
            assert_eq!(response.headers().contains_key(header::CONTENT_ENCODING), gzip, "{accepted}");
            let got = content(response).await;
            let got = if gzip { decompressed(&got).unwrap() } else { got };
            assert_eq!(got, LONG, "{accepted}");
            // One byte would grow.
            let response = bundle.file(&headers, &bundle.version, "short.txt");
            assert!(!response.headers().contains_key(header::CONTENT_ENCODING));
            assert_eq!(content(response).await, b"a");
        }
    }

    #[tokio::test]
    async fn a_page_that_is_known_is_not_sent_again() {
        let bundle = bundle();
        let first = bundle.page(&HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        let page = String::from_utf8(content(first).await).unwrap();
        assert_eq!(page, format!("<p>{}</p>", bundle.version));
        for known in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
            let again = bundle.page(&asking(header::IF_NONE_MATCH, &known));
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(again.headers()[header::ETAG], tag);
        }
        assert_eq!(bundle.page(&asking(header::IF_NONE_MATCH, "\"x\"")).status(), StatusCode::OK);
    }

    #[test]
    fn other_versions_and_names_are_not_there() {
        let bundle = bundle();
        let status = |version: &str, name| bundle.file(&HeaderMap::new(), version, name).status();
        assert_eq!(status(&bundle.version, "long.txt"), StatusCode::OK);
        assert_eq!(status("0", "long.txt"), StatusCode::NOT_FOUND);
        assert_eq!(status(&bundle.version, "../Cargo.toml"), StatusCode::NOT_FOUND);
    }
}
