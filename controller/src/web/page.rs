//! `/`: the page. All of its files are part of the program, and it loads nothing from anywhere else.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Allows only what comes from this controller.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                                       connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

struct EmbeddedFile {
    name: &'static str,
    content_type: &'static str,
    content: &'static [u8],
    etag: String,
}

macro_rules! files {
    ($($name:literal: $content_type:literal),* $(,)?) => {
        [$(EmbeddedFile::new($name, $content_type, include_bytes!(concat!("page/", $name)))),*]
    };
}

static FILES: LazyLock<[EmbeddedFile; 12]> = LazyLock::new(|| {
    files! {
        "index.html": "text/html; charset=utf-8",
        "app.css": "text/css; charset=utf-8",
        "app.js": "text/javascript; charset=utf-8",
        "actions.js": "text/javascript; charset=utf-8",
        "api.js": "text/javascript; charset=utf-8",
        "dom.js": "text/javascript; charset=utf-8",
        "gpus.js": "text/javascript; charset=utf-8",
        "models.js": "text/javascript; charset=utf-8",
        "timeline.js": "text/javascript; charset=utf-8",
        "whatif.js": "text/javascript; charset=utf-8",
        "words.js": "text/javascript; charset=utf-8",
        "icon.svg": "image/svg+xml",
    }
});

impl EmbeddedFile {
    fn new(name: &'static str, content_type: &'static str, content: &'static [u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        Self { name, content_type, content, etag: format!("\"{:016x}\"", hasher.finish()) }
    }

    /// 304 when the browser has this version of the file. The browser asks each time (`no-cache`).
    fn respond(&self, headers: &HeaderMap) -> Response {
        let mut response = if self.is_known(headers) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            self.content.into_response()
        };

        let response_headers = response.headers_mut();
        for (name, value) in [
            (header::CONTENT_TYPE, self.content_type),
            (header::CACHE_CONTROL, "no-cache"),
            (header::ETAG, &self.etag),
            (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        ] {
            if let Ok(value) = HeaderValue::from_str(value) {
                response_headers.insert(name, value);
            }
        }
        response
    }

    /// Whether `If-None-Match` names the file's tag.
    fn is_known(&self, headers: &HeaderMap) -> bool {
        let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());

        values.flat_map(|value| value.split(',')).map(str::trim).any(|etag| {
            let etag = etag.strip_prefix("W/").unwrap_or(etag);
            etag == "*" || etag == self.etag
        })
    }
}

pub async fn index(headers: HeaderMap) -> Response {
    FILES[0].respond(&headers)
}

pub async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match FILES.iter().find(|file| file.name == name) {
        Some(file) => file.respond(&headers),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
