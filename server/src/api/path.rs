//! Maps mistyped paths to the paths of the routes.
//!
//! A client joins a base URL and a path of its own, and users configure base URLs with a slash too many, with the version
//! twice or not at all, or with the whole path of the route. A redirect would send the upload twice, and many clients do not
//! follow one.

use axum::http::uri::PathAndQuery;
use axum::http::{Request, Uri};

/// Segments that a base URL may have before a route of OpenAI's API.
const PREFIXES: [&str; 6] = ["v1", "openai", "api", "audio", "transcriptions", "translations"];
const AUDIO: [&str; 2] = ["transcriptions", "translations"];

/// Replaces the path of a request by the path of the route that it means.
pub fn repair<B>(mut request: Request<B>) -> Request<B> {
    if let Some(uri) = canonical(request.uri().path()).and_then(|path| with_path(request.uri(), &path)) {
        *request.uri_mut() = uri;
    }
    request
}

fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    let path_and_query = match uri.query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };

    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query.ok()?);
    Uri::from_parts(parts).ok()
}

/// The path of the route that `path` means; `None` where `path` is correct already.
fn canonical(path: &str) -> Option<String> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();

    let meant = match segments.as_slice() {
        [before @ .., "audio", route] if AUDIO.contains(route) && are_prefixes(before) => format!("/v1/audio/{route}"),
        // A base URL that ends with `/asr`, to which the client adds the route.
        [before @ .., route @ ("asr" | "detect-language" | "status")] if before.iter().all(|word| *word == "asr") => {
            format!("/{route}")
        }
        segments => {
            let names_models = segments.iter().position(|word| *word == "models");
            match names_models.filter(|at| are_prefixes(&segments[..*at])) {
                Some(at) => format!("/v1/{}", segments[at..].join("/")),
                None => {
                    let doubled = segments.iter().take_while(|word| **word == "v1").count().saturating_sub(1);
                    format!("/{}", segments[doubled..].join("/"))
                }
            }
        }
    };

    (meant != path).then_some(meant)
}

fn are_prefixes(words: &[&str]) -> bool {
    words.iter().all(|word| PREFIXES.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistyped_paths_lead_to_the_routes() {
        for (typed, meant) in [
            ("/audio/transcriptions", "/v1/audio/transcriptions"),
            ("/v1//audio/transcriptions", "/v1/audio/transcriptions"),
            ("//v1/audio/translations", "/v1/audio/translations"),
            ("/v1/audio/transcriptions/", "/v1/audio/transcriptions"),
            ("/v1/v1/audio/transcriptions", "/v1/audio/transcriptions"),
            ("/v1/v1/v1/models", "/v1/models"),
            ("/v1/audio/transcriptions/audio/transcriptions", "/v1/audio/transcriptions"),
            ("/v1/audio/transcriptions/v1/audio/transcriptions", "/v1/audio/transcriptions"),
            ("/openai/v1/audio/transcriptions", "/v1/audio/transcriptions"),
            ("/models", "/v1/models"),
            ("/models/openai/whisper-base", "/v1/models/openai/whisper-base"),
            ("/v1/models/", "/v1/models"),
            ("/v1/audio/transcriptions/models", "/v1/models"),
            ("//asr", "/asr"),
            ("/asr/", "/asr"),
            ("/asr/asr", "/asr"),
            ("/asr//detect-language", "/detect-language"),
            ("/asr/status", "/status"),
            ("/status/", "/status"),
            ("/docs/", "/docs"),
            ("//", "/"),
            ("/v1/v1/hush/events", "/v1/hush/events"),
        ] {
            assert_eq!(canonical(typed).as_deref(), Some(meant), "{typed}");
        }

        for correct in ["/", "/asr", "/v1/audio/transcriptions", "/v1/models/a/b", "/v1/hush/models", "/ui/1/models.js"]
        {
            assert_eq!(canonical(correct), None, "{correct}");
        }

        for other in ["/nope", "/asr/x", "/v2/audio/transcriptions", "/a/../asr", "/audio", "/v1/audio/speech"] {
            assert_eq!(canonical(other), None, "{other}");
        }
    }

    #[test]
    fn the_query_stays() {
        let request = Request::post("//asr/?output=srt&task=transcribe").body(()).unwrap();
        assert_eq!(repair(request).uri(), "/asr?output=srt&task=transcribe");

        let request = Request::get("/models").body(()).unwrap();
        assert_eq!(repair(request).uri(), "/v1/models");
    }
}
