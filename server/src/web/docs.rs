//! `/docs`: the OpenAPI document as a page of Swagger UI. Its two files are those of the npm package `swagger-ui-dist`, compressed
//! (scripts/vendor-swagger-ui); licence and notice lie beside them.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::HeaderMap;
use axum::response::Response;

use super::bundle::{PageBundle, PageContent, PageFile};

pub const FILES: &str = "/docs/{version}/{file}";

/// Swagger UI writes style attributes and has small images in its style sheet.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

static BUNDLE: LazyLock<PageBundle> = LazyLock::new(|| {
    let script = "text/javascript; charset=utf-8";
    let style = "text/css; charset=utf-8";
    let sources = [
        PageFile {
            name: "swagger-ui.css",
            content_type: style,
            content: PageContent::Gzip(include_bytes!("docs/swagger-ui.css.gz")),
        },
        PageFile {
            name: "swagger-ui.js",
            content_type: script,
            content: PageContent::Gzip(include_bytes!("docs/swagger-ui-bundle.js.gz")),
        },
        PageFile {
            name: "docs.css",
            content_type: style,
            content: PageContent::Plain(include_bytes!("docs/docs.css")),
        },
        PageFile { name: "docs.js", content_type: script, content: PageContent::Plain(include_bytes!("docs/docs.js")) },
    ];
    PageBundle::new(include_str!("docs/index.html"), &sources, POLICY)
});

pub async fn index(headers: HeaderMap) -> Response {
    BUNDLE.page(&headers)
}

pub async fn file(Path((version, file)): Path<(String, String)>, headers: HeaderMap) -> Response {
    BUNDLE.file(&headers, &version, &file)
}
