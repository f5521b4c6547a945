//! Which pages of other origins may use the API (the `fetch` standard, section "CORS protocol").

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// How long a browser may keep the answer to a preflight request.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// `*` stands for all headers of an answer; some older browsers understand only names.
const EXPOSED: [&str; 6] = ["*", "asr-engine", "content-disposition", "retry-after", "x-request-id", "x-should-retry"];

/// The CORS layer for the origins of `--cors-origin`, where `*` stands for all origins. `None`: no page of another origin may
/// use the API.
pub fn layer(origins: &[HeaderValue]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }

    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().cloned())
    };

    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::HEAD, Method::POST])
        // Clients send headers of their own with each request, and the names of these headers are no secret.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED.map(HeaderName::from_static))
        .max_age(MAX_AGE);
    Some(layer)
}
