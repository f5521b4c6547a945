//! A page with its files: compressed once, and cached by browsers until they change.

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

/// The placeholder in the page for the version of its files.
const VERSION_MARK: &str = "{version}";
/// A page asks for an old version only just before it is reloaded.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
const REVALIDATE: HeaderValue = HeaderValue::from_static("no-cache");

/// A file as it is in the repository.
pub struct PageFile {
    pub name: &'static str,
    pub content_type: &'static str,
    pub content: PageContent,
}

pub enum PageContent {
    Plain(&'static [u8]),
    /// A large file is compressed in the repository.
    Gzip(&'static [u8]),
}

struct PreparedFile {
    content_type: &'static str,
    content: Bytes,
    gzip: bool,
}

/// A page, and the files that it loads from `.../{version}/{name}`.
pub struct PageBundle {
    /// Changes when any byte of any file changes.
    version: String,
    html: PreparedFile,
    files: BTreeMap<&'static str, PreparedFile>,
    policy: HeaderValue,
}

impl PageBundle {
    /// `policy`: the PageContent-Security-Policy of the page.
    pub fn new(html: &str, sources: &[PageFile], policy: &'static str) -> Self {
        let mut digest = Sha256::new();
        digest.update(html);
        let mut files = BTreeMap::new();
        for PageFile { name, content_type, content } in sources {
            let (PageContent::Plain(bytes) | PageContent::Gzip(bytes)) = content;
            digest.update(name);
            digest.update(bytes);
            let (content, gzip) = match content {
                PageContent::Plain(bytes) => compressed(bytes),
                PageContent::Gzip(bytes) => (Bytes::from_static(bytes), true),
            };
            files.insert(*name, PreparedFile { content_type, content, gzip });
        }
        let mut version = String::with_capacity(16);
        for byte in &digest.finalize()[..8] {
            // Writing to a String cannot fail.
            let _ = write!(version, "{byte:02x}");
        }
        let (content, gzip) = compressed(html.replace(VERSION_MARK, &version).as_bytes());
        let html = PreparedFile { content_type: "text/html; charset=utf-8", content, gzip };
        Self { version, html, files, policy: HeaderValue::from_static(policy) }
    }

    /// Answers with the page. Browsers revalidate it each time.
    pub fn page(&self, headers: &HeaderMap) -> Response {
        let tag = format!("\"{}\"", self.version);
        let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let mut response = if known.flat_map(|value| value.split(',')).any(|known| weak_equal(known, &tag)) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            body(headers, self.html.content_type, &self.html.content, self.html.gzip)
        };

        let answer = response.headers_mut();
        answer.insert(header::CACHE_CONTROL, REVALIDATE);
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

    /// Answers with a file, whose content never changes under its URL.
    pub fn file(&self, headers: &HeaderMap, version: &str, name: &str) -> Response {
        let Some(file) = self.files.get(name).filter(|_| version == self.version) else {
            return not_found();
        };
        let mut response = body(headers, file.content_type, &file.content, file.gzip);
        response.headers_mut().insert(header::CACHE_CONTROL, IMMUTABLE);
        response
    }
}

/// The 404 of the public listener, as FastAPI writes it.
fn not_found() -> Response {
    const BODY: &str = r#"{"detail":"Not Found"}"#;
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "application/json")], BODY).into_response()
}

/// Answers with content, compressed where the client accepts that.
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

/// Compresses the bytes, where that makes them smaller. The `bool` says whether the result is compressed.
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

/// Escapes the characters that have a meaning in HTML.
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

    fn bundle() -> PageBundle {
        let source = |name, content| PageFile { name, content_type: "text/plain", content };
        let sources = [source("long.txt", PageContent::Plain(LONG)), source("short.txt", PageContent::Plain(b"a"))];
        PageBundle::new("<p>{version}</p>", &sources, "default-src 'none'")
    }

    fn asking(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::try_from(value).unwrap())])
    }

    async fn content(response: Response) -> Vec<u8> {
        to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()
    }

    #[tokio::test]
    async fn files_are_compressed_where_the_client_accepts_it() {
        let bundle = bundle();
        for (accepted, gzip) in [("gzip, br", true), ("br, GZIP;q=0.5", true), ("gzip;q=0", false), ("br", false)] {
            let headers = asking(header::ACCEPT_ENCODING, accepted);
            let response = bundle.file(&headers, &bundle.version, "long.txt");

            assert_eq!(response.headers().contains_key(header::CONTENT_ENCODING), gzip, "{accepted}");
            let got = content(response).await;
            let got = if gzip { decompressed(&got).unwrap() } else { got };
            assert_eq!(got, LONG, "{accepted}");
            // Compression would make a file of one byte larger.
            let response = bundle.file(&headers, &bundle.version, "short.txt");
            assert!(!response.headers().contains_key(header::CONTENT_ENCODING));
            assert_eq!(content(response).await, b"a");
        }
    }

    #[tokio::test]
    async fn a_page_that_the_client_has_is_not_sent_again() {
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
    fn unknown_versions_and_names_are_not_found() {
        let bundle = bundle();
        let status = |version: &str, name| bundle.file(&HeaderMap::new(), version, name).status();
        assert_eq!(status(&bundle.version, "long.txt"), StatusCode::OK);
        assert_eq!(status("0", "long.txt"), StatusCode::NOT_FOUND);
        assert_eq!(status(&bundle.version, "../Cargo.toml"), StatusCode::NOT_FOUND);
    }
}
