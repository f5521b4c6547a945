//! Clients that do not keep to HTTP, and clients that are too many.

use std::time::Duration;

use hush_server::api::{ApiConfig, error_body};
use hush_server::serve::ServeOptions;
use tokio::io::AsyncReadExt;

use crate::support::{ApiFixture, FakeModel, RawClient, RawResponse, audio_file, golden, half_a_second, post};

fn options() -> ServeOptions {
    ServeOptions { format_error: error_body, ..ServeOptions::default() }
}

async fn server() -> ApiFixture {
    ApiFixture::with(FakeModel::answering(golden()), ApiConfig::default(), options()).await
}

/// A refusal in the shape of the path: `{"detail"}`, or OpenAI's below `/v1`.
#[track_caller]
fn assert_shaped(answer: &RawResponse, status: &str, is_openai: bool, about: &str) {
    assert_eq!(answer.status, status, "{about}");
    assert_eq!(answer.headers.get("content-type").map(String::as_str), Some("application/json"), "{about}");
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{about}: {error}"));
    let message = if is_openai { &body["error"]["message"] } else { &body["detail"] };
    assert!(message.as_str().is_some_and(|message| !message.is_empty()), "{about}: {}", answer.body);
    if is_openai {
        assert!(body["error"]["code"].is_string() && body["error"]["type"].is_string(), "{about}: {}", answer.body);
    }
}

#[tokio::test]
async fn heads_that_mean_two_things_are_refused() {
    let server = server().await;
    for (path, is_openai) in [("/status", false), ("/v1/models", true), ("/nope", false), ("/v1/nope", true)] {
        for headers in [
            "",
            "Host: a\r\nHost: b\r\n",
            "Host: a\r\nHost: a\r\n",
            "Host: a/b\r\n",
            "Host: a\r\nAuthorization: Bearer one\r\nAuthorization: Bearer two\r\n",
            "Host: a\r\nX-API-Key: one\r\nX-API-Key: two\r\n",
        ] {
            let answer = server.send(format!("GET {path} HTTP/1.1\r\n{headers}\r\n")).await;
            assert_shaped(&answer, "400 Bad Request", is_openai, &format!("{path} {headers}"));
        }
    }
    for path in ["/%", "/a%zz", "/%ff"] {
        assert_shaped(&server.get(path).await, "400 Bad Request", false, path);
        assert_shaped(&server.get(&format!("/v1{path}")).await, "400 Bad Request", true, path);
    }
    // HTTP/1.0 has no Host.
    let mut client = server.connect().await;
    client.write(b"GET /healthz HTTP/1.0\r\n\r\n").await;
    let mut answer = String::new();
    client.stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("ok"), "{answer}");
}

#[tokio::test]
async fn what_is_no_http_gets_a_body_too() {
    let server = server().await;
    let long = "a".repeat(200_000);
    let cases = [
        ("GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n".to_owned(), "400 Bad Request", false),
        ("GET /v1/models HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n".to_owned(), "400 Bad Request", true),
        ("\u{1}\u{2}\u{3} / HTTP/1.1\r\n\r\n".to_owned(), "400 Bad Request", false),
        ("POST /asr HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n".to_owned(), "400 Bad Request", false),
        (
            "POST /v1/models HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(),
            "400 Bad Request",
            true,
        ),
        (
            format!("GET /v1/models HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"),
            "431 Request Header Fields Too Large",
            true,
        ),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(65_600)), "414 URI Too Long", false),
    ];
    for (request, status, is_openai) in cases {
        let mut client = server.connect().await;
        client.write(request.as_bytes()).await;
        let about = request.chars().take(60).collect::<String>();
        let answer = client.answer().await;
        assert_shaped(&answer, status, is_openai, &about);
        assert!(client.closed().await, "{about}");
    }
    for (method, path, status, is_openai) in [
        ("GET", "/nope", "404 Not Found", false),
        ("GET", "/v1/nope", "404 Not Found", true),
        ("DELETE", "/asr", "405 Method Not Allowed", false),
        ("BREW", "/v1/models", "405 Method Not Allowed", true),
        ("GET", "/ui/nope.js", "404 Not Found", false),
    ] {
        let answer = server.send(format!("{method} {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        assert_shaped(&answer, status, is_openai, path);
    }
}

#[tokio::test]
async fn a_head_that_does_not_come_is_answered_with_408() {
    let options = ServeOptions { head_timeout: Duration::from_millis(200), ..options() };
    let server = ApiFixture::with(FakeModel::answering(golden()), ApiConfig::default(), options).await;
    let mut slow = server.connect().await;
    slow.write(b"GET /v1/models HTTP/1.1\r\nX: ").await;
    // One byte now and then does not help.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        slow.write(b"a").await;
    }
    assert_shaped(&slow.answer().await, "408 Request Timeout", true, "slow head");
    assert!(slow.closed().await);
    // A connection that says nothing is only idle, and a long upload is no head.
    let mut idle = server.connect().await;
    let mut upload = server.connect().await;
    let request =
        post("/asr?encode=false&output=txt", "multipart/form-data; boundary=B", &audio_file(&half_a_second()));
    upload.write(&request[..request.len() - 100]).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    upload.write(&request[request.len() - 100..]).await;
    assert_eq!(upload.answer().await.status, "200 OK");
    idle.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(idle.answer().await.body, "ok");
    // The second request of a connection has a patience of its own.
    tokio::time::sleep(Duration::from_millis(300)).await;
    idle.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(idle.answer().await.body, "ok");
    idle.write(b"GET /healthz HTTP").await;
    assert_shaped(&idle.answer().await, "408 Request Timeout", false, "second head");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so_and_probes_are_answered() {
    let options = ServeOptions { max_connections: 3, ..options() };
    let server = ApiFixture::with(FakeModel::loading(golden()), ApiConfig::default(), options).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut client = server.connect().await;
        client.write(b"POST /asr HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\nContent-Type: multipart/form-data; boundary=B\r\n\r\n").await;
        held.push(client);
    }
    let answer = server.get("/v1/models").await;
    assert_shaped(&answer, "503 Service Unavailable", true, "full");
    assert_eq!(answer.headers["retry-after"], "5");
    assert_eq!(answer.headers["connection"], "close");
    // The answer is seen although the client sends an upload that is not read.
    let answer = server.post("/asr?encode=false", &audio_file(&vec![0; 300_000])).await;
    assert_shaped(&answer, "503 Service Unavailable", false, "full, upload");
    assert_eq!(server.get("/healthz").await.body, "ok");
    assert_eq!(server.get("/readyz").await.body, "ok");
    // Those that say nothing do not keep the probes' places.
    let silent: Vec<RawClient> = vec![server.connect().await, server.connect().await];
    assert_eq!(server.get("/healthz").await.body, "ok");
    drop(silent);
    drop(held);
    for _ in 0..500 {
        if server.get("/v1/models").await.status == "200 OK" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("places did not come back");
}
