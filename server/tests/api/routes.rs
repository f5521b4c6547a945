//! Everything beside the two routes that do the work.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use hush_server::metrics::ServerMetrics;
use hush_server::ops;
use tower::ServiceExt;

use crate::support::{ApiFixture, FakeModel, audio_file, form, golden, half_a_second, part};

#[tokio::test]
async fn unknown_routes_and_methods_are_refused_as_fastapi_does() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    for path in ["/nope", "/asr/x", "/v1x", "/assets/../asr"] {
        server.get(path).await.is_json("404 Not Found", r#"{"detail":"Not Found"}"#);
    }
    server.post("/nope", &audio_file(&half_a_second())).await.is_json("404 Not Found", r#"{"detail":"Not Found"}"#);
    let refused = r#"{"detail":"Method Not Allowed"}"#;
    let headers = [("allow", "POST"), ("content-length", "31"), ("content-type", "application/json")];
    for path in ["/asr", "//asr", "/asr/", "/detect-language", "/asr?encode=maybe"] {
        for method in ["GET", "PUT", "OPTIONS", "DELETE"] {
            let answer = server.send(format!("{method} {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
            answer.is("405 Method Not Allowed", &headers, refused);
        }
        let mut client = server.connect().await;
        client.write(format!("HEAD {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).await;
        client.head().await.is("405 Method Not Allowed", &headers, "");
    }
}

#[tokio::test]
async fn paths_as_people_type_them_work() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let form = form(&[part("name=\"file\"; filename=\"a\"\r\nContent-Type: audio/pcm", &half_a_second())]);
    for path in [
        "/audio/transcriptions",
        "/v1//audio/transcriptions",
        "/v1/audio/transcriptions/",
        "/v1/v1/audio/transcriptions",
        "/v1/audio/transcriptions/audio/transcriptions",
        "/audio/translations?language=en",
    ] {
        let answer = server.post(path, &form).await;
        assert_eq!(answer.status, "200 OK", "{path}: {}", answer.body);
        assert!(answer.body.contains("Hello"), "{path}: {}", answer.body);
    }
    for path in
        ["/models", "/v1/models/", "/v1/v1/models", "/models/tiny", "/docs/", "/status/", "//healthz", "/asr/status"]
    {
        assert_eq!(server.get(path).await.status, "200 OK", "{path}");
    }
    // The names of routes in metrics stay few.
    let text = String::from_utf8(server.metrics.encode().unwrap()).unwrap();
    assert!(text.contains("{code=\"200\",route=\"/v1/audio/transcriptions\"} 5\n"), "{text}");
    // What is not there is refused under the name that the client used, where that means nothing else.
    assert_eq!(server.get("/v1/nope").await.status, "404 Not Found");
}

#[tokio::test]
async fn status_has_a_version_for_bazarr() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let expected = format!(
        r#"{{"version":"Hush {}","models":[{{"name":"tiny","state":"unloaded"}}]}}"#,
        env!("CARGO_PKG_VERSION")
    );
    server.get("/status").await.is_json("200 OK", &expected);
}

#[tokio::test]
async fn alive_is_not_able() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let plain = [("content-length", "2"), ("content-type", "text/plain; charset=utf-8")];
    server.get("/healthz").await.is("200 OK", &plain, "ok");
    // The model is unloaded, and that is fine.
    server.get("/readyz").await.is("200 OK", &plain, "ok");
    *server.fake.missing.lock().unwrap() =
        vec!["model directory /models/tiny".to_owned(), "libonnxruntime.so".to_owned()];
    server.get("/healthz").await.is("200 OK", &plain, "ok");
    let answer = server.get("/readyz").await;
    assert_eq!(answer.status, "503 Service Unavailable");
    assert_eq!(answer.body, "model directory /models/tiny\nlibonnxruntime.so");
}

#[tokio::test]
async fn requests_have_ids() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let (one, other) = (server.get("/healthz").await.id.unwrap(), server.get("/healthz").await.id.unwrap());
    assert_ne!(one, other);
    let given = server.send("GET /healthz HTTP/1.1\r\nHost: h\r\nX-Request-Id: abc-1\r\n\r\n").await;
    assert_eq!(given.id.as_deref(), Some("abc-1"));
}

#[tokio::test]
async fn requests_and_audio_are_counted() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    server.post("//asr?encode=false", &audio_file(&half_a_second())).await;
    server.post("/asr?encode=false", &audio_file(&half_a_second())).await;
    server.post("/asr?encode=maybe", &audio_file(&half_a_second())).await;
    server.get("/secret-path").await;
    server.get("/other-path").await;
    let text = String::from_utf8(server.metrics.encode().unwrap()).unwrap();
    for line in [
        "hush_request_duration_seconds_count{code=\"200\",route=\"/asr\"} 2",
        "hush_request_duration_seconds_count{code=\"422\",route=\"/asr\"} 1",
        "hush_request_duration_seconds_count{code=\"404\",route=\"other\"} 2",
        "hush_audio_seconds_total{model=\"tiny\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    assert!(!text.contains("path"), "{text}");
}

#[tokio::test]
async fn the_operations_listener_shows_the_metrics() {
    let router = ops::router(Arc::new(ServerMetrics::new().unwrap()), None);
    let get = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (content_type, String::from_utf8(body.to_vec()).unwrap())
    };
    assert_eq!(get("/healthz").await.1, "ok");
    let (content_type, text) = get("/metrics").await;
    assert_eq!(content_type, "text/plain; version=0.0.4");
    assert!(text.contains("hush_request_duration_seconds_count{code=\"200\",route=\"/healthz\"} 1\n"), "{text}");
}
