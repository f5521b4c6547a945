//! Pages of other origins.

use axum::http::HeaderValue;
use hush_access::KeyFile;
use hush_server::api::ApiConfig;
use hush_server::serve::ServeOptions;

use crate::openai::{TRANSCRIPTIONS, with};
use crate::support::{ApiFixture, FakeModel, RawResponse, golden, post};

const APP: &str = "http://localhost:5173";

async fn server(origins: &[&'static str], config: ApiConfig) -> ApiFixture {
    let cors_origins = origins.iter().map(|origin| HeaderValue::from_static(origin)).collect();
    ApiFixture::with(FakeModel::answering(golden()), ApiConfig { cors_origins, ..config }, ServeOptions::default())
        .await
}

async fn preflight(server: &ApiFixture, origin: &str, path: &str) -> RawResponse {
    let request = format!(
        "OPTIONS {path} HTTP/1.1\r\nHost: h\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
         Access-Control-Request-Headers: authorization,x-stainless-lang\r\n\r\n"
    );
    server.send(request).await
}

async fn transcribe(server: &ApiFixture, origin: &str, fields: &[(&str, &str)]) -> RawResponse {
    let request = post(TRANSCRIPTIONS, "multipart/form-data; boundary=B", &with(fields));
    let origin = format!("Host: h\r\nOrigin: {origin}\r\n");
    let at = request.windows(9).position(|window| window == b"Host: h\r\n").unwrap();
    server.send([&request[..at], origin.as_bytes(), &request[at + 9..]].concat()).await
}

fn allowed(answer: &RawResponse) -> Option<&str> {
    answer.headers.get("access-control-allow-origin").map(String::as_str)
}

#[tokio::test]
async fn without_the_option_no_page_of_another_origin_may_use_the_api() {
    let server = server(&[], ApiConfig::default()).await;
    assert_eq!(preflight(&server, APP, TRANSCRIPTIONS).await.status, "405 Method Not Allowed");
    let answer = transcribe(&server, APP, &[]).await;
    assert_eq!((answer.status.as_str(), allowed(&answer)), ("200 OK", None));
}

#[tokio::test]
async fn a_page_of_a_named_origin_asks_and_uses_the_api() {
    let server = server(&["https://app.example.com", APP], ApiConfig::default()).await;
    for path in [TRANSCRIPTIONS, "/v1/v1/audio/transcriptions", "/asr", "/status", "/nope"] {
        let answer = preflight(&server, APP, path).await;
        assert_eq!((answer.status.as_str(), allowed(&answer)), ("200 OK", Some(APP)), "{path}");
        assert_eq!(answer.headers["access-control-allow-methods"], "GET,HEAD,POST");
        assert_eq!(answer.headers["access-control-allow-headers"], "authorization,x-stainless-lang");
        assert_eq!(answer.headers["access-control-max-age"], "3600");
        assert!(answer.headers["vary"].contains("origin"), "{:?}", answer.headers);
    }
    let answer = transcribe(&server, APP, &[]).await;
    assert_eq!((answer.status.as_str(), allowed(&answer)), ("200 OK", Some(APP)));
    for exposed in ["*", "x-request-id", "retry-after"] {
        let all = &answer.headers["access-control-expose-headers"];
        assert!(all.split(',').any(|name| name == exposed), "{exposed} in {all}");
    }
    assert_eq!(allowed(&transcribe(&server, "https://app.example.com", &[]).await), Some("https://app.example.com"));
    for stranger in ["http://localhost:5174", "https://localhost:5173", "https://evil.example", "null"] {
        assert_eq!(allowed(&preflight(&server, stranger, TRANSCRIPTIONS).await), None, "{stranger}");
        assert_eq!(allowed(&transcribe(&server, stranger, &[]).await), None, "{stranger}");
    }
}

#[tokio::test]
async fn streams_and_errors_can_be_read_too() {
    let server = server(&["*"], ApiConfig::default()).await;
    let stream = transcribe(&server, APP, &[("stream", "true")]).await;
    assert!(stream.body.contains("transcript.text.done"), "{}", stream.body);
    assert_eq!(allowed(&stream), Some("*"));
    let wrong = transcribe(&server, APP, &[("language", "klingon")]).await;
    assert_eq!((wrong.status.as_str(), allowed(&wrong)), ("400 Bad Request", Some("*")));
    let lost = server.send(format!("GET /nope HTTP/1.1\r\nHost: h\r\nOrigin: {APP}\r\n\r\n")).await;
    assert_eq!((lost.status.as_str(), allowed(&lost)), ("404 Not Found", Some("*")));
}

/// A browser asks without a key, and must be able to read that the key is wrong.
#[tokio::test]
async fn a_preflight_needs_no_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    std::fs::write(&file, "0123456789abcdef\n").unwrap();
    let keys = Some(KeyFile::open(file).unwrap());
    let server = server(&[APP], ApiConfig { keys, ..ApiConfig::default() }).await;
    let answer = preflight(&server, APP, TRANSCRIPTIONS).await;
    assert_eq!((answer.status.as_str(), allowed(&answer)), ("200 OK", Some(APP)));
    let refused = transcribe(&server, APP, &[]).await;
    assert_eq!((refused.status.as_str(), allowed(&refused)), ("401 Unauthorized", Some(APP)));
}
