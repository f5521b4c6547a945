//! `/`: a page for people. Every file of it is part of the program, and nothing comes from anywhere else.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Everything from this controller.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

struct File {
    name: &'static str,
    content_type: &'static str,
    content: &'static [u8],
    tag: String,
}

macro_rules! files {
    ($($name:literal: $content_type:literal),* $(,)?) => {
        [$(File::new($name, $content_type, include_bytes!(concat!("page/", $name)))),*]
    };
}

static FILES: LazyLock<[File; 12]> = LazyLock::new(|| {
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

impl File {
    fn new(name: &'static str, content_type: &'static str, content: &'static [u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        Self { name, content_type, content, tag: format!("\"{:016x}\"", hasher.finish()) }
    }

    /// The browser asks each time whether it has changed.
    fn answer(&self, headers: &HeaderMap) -> Response {
        let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let known = known.flat_map(|value| value.split(',')).any(|known| {
            let known = known.trim();
            known == "*" || known.strip_prefix("W/").unwrap_or(known) == self.tag
        });
        let mut response = if known { StatusCode::NOT_MODIFIED.into_response() } else { self.content.into_response() };
        let answer = response.headers_mut();
        for (name, value) in [
            (header::CONTENT_TYPE, self.content_type),
            (header::CACHE_CONTROL, "no-cache"),
            (header::ETAG, &self.tag),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ] {
            if let Ok(value) = HeaderValue::from_str(value) {
                answer.insert(name, value);
            }
        }
        let isolated = HeaderValue::from_static("same-origin");
        answer.insert(header::HeaderName::from_static("cross-origin-opener-policy"), isolated);
        response
    }
}

pub async fn index(headers: HeaderMap) -> Response {
    FILES[0].answer(&headers)
}

pub async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match FILES.iter().find(|file| file.name == name) {
        Some(file) => file.answer(&headers),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
