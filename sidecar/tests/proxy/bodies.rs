//! What the body of a request says, and what becomes of it.

use std::time::Duration;

use serde_json::json;

use crate::app::RawUpstreamApp;
use crate::client::{Client, exchange, get, post};
use crate::fixture::{Fixture, counts};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (disposition, content) in parts {
        body.extend(format!("--B\r\nContent-Disposition: form-data; {disposition}\r\n\r\n").as_bytes());
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(b"--B--\r\n");
    body
}

fn post_form(path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=B\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// The generations of `tiny` and `big:7b`: which of them were loaded.
fn generations(proxy: &Fixture) -> [u64; 2] {
    ["tiny", "big:7b"].map(|name| proxy.model(name).snapshot().generation)
}

#[tokio::test]
async fn the_model_is_found_wherever_it_is_named() {
    let file = vec![b'x'; 100_000];
    let named = form(&[(r#"name="file"; filename="model""#, &file), (r#"name="model""#, b"big:7b")]);
    let long = format!(r#"{{"images":["{}"],"model":"big:7b"}}"#, "A".repeat(3 << 20));

    for request in [
        post("/v1/chat", r#"{"messages":[{"model":"tiny"}],"model":"big:7b"}"#).into_bytes(),
        post("/v1/chat", &long).into_bytes(),
        // `curl -d` without a type.
        post("/v1/chat", r#" {"model":"big:7b"}"#).replace("application/json", "application/x-www-form-urlencoded").into_bytes(),
        post("/v1/chat", "x=1&model=big%3A7b").replace("application/json", "application/x-www-form-urlencoded").into_bytes(),
        post_form("/v1/audio", &named),
        post("/v1/chat?model=big%3a7b", "{}").into_bytes(),
        b"POST /v1/chat HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\na\r\n{\"model\":\"\r\n8\r\nbig:7b\"}\r\n0\r\n\r\n".to_vec(),
    ] {
        let app = RawUpstreamApp::answering(OK).await;
        let proxy = Fixture::start(app.address).await;

        let shown = String::from_utf8_lossy(&request[..request.len().min(150)]).into_owned();
        assert_eq!(exchange(proxy.address, &request).await.status, 200, "{shown}");
        assert_eq!(generations(&proxy), [0, 1], "{shown}");
        let sent = crate::app::find(&request, b"\r\n\r\n").unwrap() + 4;
        if !shown.contains("chunked") {
            assert!(app.only().body == request[sent..], "{shown}");
        }
    }
}

#[tokio::test]
async fn names_of_models() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::with(app.address, |options| {
        options.settings.aliases.insert("chat".to_owned(), "big:7b".to_owned());
        options.settings.default_model = Some("big:7b".to_owned());
    })
    .await;

    for (name, expected) in [("tiny:latest", [1, 0]), ("tiny", [1, 0]), ("chat", [1, 1]), ("chat:latest", [1, 1])] {
        let got = exchange(proxy.address, post("/v1/chat", &json!({"model": name}).to_string())).await;
        assert_eq!((got.status, generations(&proxy)), (200, expected), "{name}");
    }
    let before = app.seen().len();
    assert_eq!(exchange(proxy.address, post("/v1/chat", "{}")).await.status, 200);

    let unknown = exchange(proxy.address, post("/v1/chat", r#"{"model":"none"}"#)).await;
    let message = "The model `none` does not exist on this server. It has: big:7b, tiny.";
    let expected = json!({"error": {"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}});
    assert_eq!((unknown.status, unknown.json()), (404, expected));
    let ollama = exchange(proxy.address, post("/api/generate", r#"{"model":"none"}"#)).await;
    assert_eq!((ollama.status, ollama.json()), (404, json!({"error": message})));
    assert_eq!(app.seen().len(), before + 1, "nothing of an unknown model is forwarded");
}

#[tokio::test]
async fn members_are_cut_out_and_nothing_else_changes() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    let padding = "y".repeat(2 << 20);
    let body = format!(
        "{{\"prompt\":\"hi\",\"keep_alive\" : 0, \"x\":1.50,\"p\":\"{padding}\" ,\"model\":\"tiny\",\"Keep\\u005fAlive\":\"5m\"}}\n"
    );
    let got = exchange(proxy.address, post("/api/generate?autoload=true&y=1", &body)).await;

    assert_eq!(got.status, 200);
    let expected = format!("{{\"prompt\":\"hi\", \"x\":1.50,\"p\":\"{padding}\" ,\"model\":\"tiny\"}}\n");
    assert!(app.only().body == expected.as_bytes());
    let length = expected.len().to_string();
    assert_eq!(app.only().header("content-length"), Some(length.as_str()));
    assert_eq!(app.only().line(), "POST /api/generate?y=1 HTTP/1.1");
}

#[tokio::test]
async fn a_body_that_is_a_command_is_no_way_around_the_admin_api() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;
    proxy.tiny().load().await.unwrap();

    for body in [r#"{"model":"tiny","keep_alive":0}"#, r#"{"Keep_Alive":"0s","prompt":"","model":"tiny"}"#] {
        let got = exchange(proxy.address, post("/api/generate", body)).await;
        assert_eq!(got.status, 403, "{}", got.text());
    }
    assert!(app.seen().is_empty());

    // A load waits for the model as work does; nothing of it lasts longer than the sidecar wants.
    let got = exchange(proxy.address, post("/api/generate", r#"{"model":"big:7b","keep_alive":"5m"}"#)).await;
    assert_eq!((got.status, generations(&proxy)), (200, [1, 1]));
    assert_eq!(app.only().body, br#"{"model":"big:7b"}"#);
}

#[tokio::test]
async fn a_model_that_runs_elsewhere_counts_as_nothing() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::with(app.address, |options| options.can_load = false).await;

    let body = r#"{"model":"gpt-oss:cloud","prompt":"x","keep_alive":7}"#;
    assert_eq!(exchange(proxy.address, post("/api/generate", body)).await.status, 200);
    assert_eq!(app.only().body, br#"{"model":"gpt-oss:cloud","prompt":"x"}"#);
    assert_eq!(generations(&proxy), [0, 0]);
}

#[tokio::test]
async fn bodies_that_do_not_tell_their_model_are_refused() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;
    let two = form(&[(r#"name="model""#, b"tiny"), (r#"name="model""#, b"big:7b")]);

    let gzip = post("/v1/chat", "{}").replacen("\r\n", "\r\nContent-Encoding: gzip\r\n", 1);
    for (request, status, says) in [
        (post("/v1/chat", r#"{"model":"tiny","model":"big:7b"}"#).into_bytes(), 400, "`tiny` and `big:7b`"),
        (post("/v1/chat", r#"{"model":"tiny""#).into_bytes(), 400, "it ends after 15 bytes"),
        (post("/v1/chat", r#"{"model":7}"#).into_bytes(), 400, "must be a text"),
        (post("/v1/chat?model=tiny&model=big:7b", "{}").into_bytes(), 400, "query names its model twice"),
        (post_form("/v1/audio", &two), 400, "two models"),
        (post("/v1/audio", "x").replace("application/json", "multipart/form-data").into_bytes(), 400, "boundary"),
        (gzip.into_bytes(), 415, "Content-Encoding"),
    ] {
        let got = exchange(proxy.address, request).await;
        assert_eq!(got.status, status, "{}", got.text());
        assert!(got.text().contains(says), "{}", got.text());
    }
    assert!(app.seen().is_empty());

    // Where nothing of the body matters, it may be compressed.
    let opaque = post("/one", "\x1f?").replacen("\r\n", "\r\nContent-Encoding: gzip\r\n", 1);
    assert_eq!(exchange(proxy.address, opaque).await.status, 200);
    assert_eq!(app.only().header("content-encoding"), Some("gzip"));
}

#[tokio::test]
async fn a_second_name_behind_a_file_ends_the_request_before_the_app_has_all_of_it() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;
    proxy.tiny().load().await.unwrap();

    let file = vec![b'x'; 1 << 20];
    let body =
        form(&[(r#"name="model""#, b"tiny"), (r#"name="file"; filename="f""#, &file), (r#"name="model""#, b"big:7b")]);
    let request = post_form("/v1/audio", &body);
    let mut client = Client::connect(proxy.address).await;
    client.send(&request[..1000]).await;
    counts(&proxy.tiny(), 1, 0).await;
    client.send(&request[1000..]).await;

    let got = client.answer().await;
    assert_eq!(got.status, 400, "{}", got.text());
    assert!(app.seen().is_empty());
    counts(&proxy.tiny(), 0, 0).await;
}

#[tokio::test]
async fn bodies_are_limited() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::with(app.address, |options| {
        options.settings.spool.limit_bytes = Some(100_000);
        options.settings.body_stall = Duration::from_millis(300);
    })
    .await;

    // Declared: refused before the body is sent.
    let declared = "POST /v1/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 100001\r\nExpect: 100-continue\r\n\r\n";
    let got = exchange(proxy.address, declared).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (413, Some("body_too_large")));

    let chunk = format!("186a1\r\n{}\r\n0\r\n\r\n", "x".repeat(100_001));
    let chunked =
        format!("POST /v1/chat HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}");
    assert_eq!(exchange(proxy.address, chunked).await.status, 413);

    let stalled = exchange(proxy.address, "POST /v1/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{").await;
    assert_eq!((stalled.status, stalled.json()["error"]["code"].as_str()), (408, Some("request_timeout")));
    assert!(app.seen().is_empty());
}

#[tokio::test]
async fn a_body_that_cannot_be_stored_is_an_error_of_the_server() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::with(app.address, |options| {
        options.settings.attribution_bytes = 1000;
        options.settings.spool.memory_bytes = 2000;
        options.settings.spool.dir = Some("/nonexistent/hush".into());
    })
    .await;

    let body = format!(r#"{{"x":"{}"}}"#, "y".repeat(5000));
    let got = exchange(proxy.address, post("/api/generate", &body)).await;
    assert_eq!(got.status, 507, "{}", got.text());
    assert!(got.text().contains("/nonexistent/hush") && got.header("retry-after").is_some(), "{got:?}");
    let ready = exchange(proxy.address, get("/readyz")).await;
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("/nonexistent/hush"));
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    let mut client = Client::connect(proxy.address).await;
    client.send("POST /v1/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 16\r\nExpect: 100-continue\r\n\r\n").await;
    client.until("100 Continue\r\n\r\n").await;
    client.buffer.clear();
    client.send(r#"{"model":"tiny"}"#).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(app.only().header("expect"), None);
}

#[tokio::test]
async fn a_large_upload_is_read_while_its_model_is_away() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::with(app.address, |options| options.can_load = false).await;

    let file: Vec<u8> = (0..40_u32 << 20).map(|at| (at % 251) as u8).collect();
    let request =
        post_form("/v1/audio", &form(&[(r#"name="model""#, b"tiny"), (r#"name="file"; filename="f""#, &file)]));
    let mut client = Client::connect(proxy.address).await;
    let sent = crate::app::find(&request, b"\r\n\r\n").unwrap() + 4;
    // All of it is taken, although nothing can go on.
    client.send(&request).await;
    counts(&proxy.tiny(), 0, 1).await;
    assert!(app.seen().is_empty());

    proxy.gate.send_replace(true);
    assert_eq!(client.answer().await.status, 200);
    assert!(app.only().body == request[sent..]);
}

#[tokio::test]
async fn uploads_that_count_as_nothing_stream_without_a_limit() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::with(app.address, |options| options.settings.spool.limit_bytes = Some(10)).await;

    let body = "x".repeat(1 << 20);
    assert_eq!(exchange(proxy.address, post("/pull", &body)).await.status, 200);
    assert_eq!((app.only().body.len(), generations(&proxy)), (1 << 20, [0, 0]));
}
