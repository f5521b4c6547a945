//! Requests and answers that are within or beyond the letter of HTTP, and that a proxy and an app may read differently.

use std::fmt::Write as _;

use crate::app::RawUpstreamApp;
use crate::client::{Client, exchange, get, post};
use crate::fixture::{Fixture, counts};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn typed(path: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

fn utf16(text: &str, big: bool, mark: bool) -> Vec<u8> {
    let units = mark.then_some(0xfeff).into_iter().chain(text.encode_utf16());
    units.flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
}

#[tokio::test]
async fn no_content_type_hides_a_command_in_json() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    for content_type in [
        "application/json",
        "text/plain",
        "multipart/mixed; boundary=x",
        "multipart/related",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "image/png",
        "x",
    ] {
        let unload = typed("/api/generate", content_type, br#"{"model":"tiny","keep_alive":0}"#);
        let got = exchange(proxy.address, unload).await;
        assert_eq!(got.status, 403, "{content_type}: {}", got.text());
    }
    assert!(app.seen().is_empty());

    let chat = typed("/api/generate", "multipart/mixed", br#"{"model":"big:7b","prompt":"a","keep_alive":0}"#);
    assert_eq!(exchange(proxy.address, chat).await.status, 200);
    assert_eq!(app.only().body, br#"{"model":"big:7b","prompt":"a"}"#);
}

#[tokio::test]
async fn json_in_other_encodings_is_refused() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    let text = r#" {"model":"tiny","keep_alive":0}"#;
    for content_type in ["application/json", "text/plain", "application/octet-stream", "multipart/mixed"] {
        for (big, mark) in [(false, false), (false, true), (true, false), (true, true)] {
            let body = utf16(text, big, mark);
            let got = exchange(proxy.address, typed("/api/generate", content_type, &body)).await;
            assert_eq!(got.status, 400, "{content_type} {big} {mark}: {}", got.text());
        }
    }
    let wide: Vec<u8> = text.chars().flat_map(|c| (c as u32).to_be_bytes()).collect();
    assert_eq!(exchange(proxy.address, typed("/api/generate", "text/plain", &wide)).await.status, 400);
    assert!(app.seen().is_empty());

    // A byte at a time is read the same way.
    let body = utf16(text, true, true);
    let mut client = Client::connect(proxy.address).await;
    client.send(typed("/v1/chat", "text/plain", &body).strip_suffix(&body[..]).unwrap()).await;
    for byte in &body[..6] {
        client.send([*byte]).await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(client.head().await.split(' ').nth(1), Some("400"));

    // Files that begin with such bytes are no JSON.
    let movie = b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2";
    let got = exchange(proxy.address, typed("/v1/x?model=tiny", "video/mp4", movie)).await;
    assert_eq!((got.status, &app.only().body[..]), (200, &movie[..]));
}

#[tokio::test]
async fn a_byte_order_mark_and_two_values_do_not_hide_a_model() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    for body in [
        r#"{"model":"tiny","model":"big:7b"}"#,
        r#"{"model":"tiny","MODEL":"big:7b"}"#,
        r#"{"model":"tiny","mo\u0064el":"big:7b"}"#,
        "\u{feff}{\"model\":\"tiny\",\"model\":\"big:7b\"}",
        r#"{"model":["tiny"]}"#,
        r#"{"model":{"name":"tiny"}}"#,
    ] {
        let got = exchange(proxy.address, typed("/api/generate", "text/plain", body.as_bytes())).await;
        assert_eq!(got.status, 400, "{body}: {}", got.text());
    }
    assert!(app.seen().is_empty());

    // Apps read the first value, or refuse the body.
    let body = r#"{"model":"big:7b","keep_alive":0,"prompt":"a"}{"model":"tiny","keep_alive":0}"#;
    assert_eq!(exchange(proxy.address, post("/api/generate", body)).await.status, 200);
    assert_eq!(app.only().body, br#"{"model":"big:7b","prompt":"a"}{"model":"tiny","keep_alive":0}"#);

    let twice = get("/realtime?model=tiny&model=big:7b");
    assert_eq!(exchange(proxy.address, twice).await.status, 400);
}

#[tokio::test]
async fn two_content_types_and_headers_of_the_connection() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    let twice = post("/v1/chat", r#"{"model":"tiny"}"#).replacen("\r\n", "\r\nContent-Type: text/plain\r\n", 1);
    let got = exchange(proxy.address, twice).await;
    assert_eq!((got.status, got.text().contains("more than once")), (400, true), "{}", got.text());

    let named = post("/v1/chat", r#"{"model":"tiny"}"#).replacen(
        "\r\n",
        "\r\nConnection: Content-Type, X-A, content-length, host\r\nX-A: 1\r\n",
        1,
    );
    assert_eq!(exchange(proxy.address, named).await.status, 200);
    let seen = app.only();
    assert_eq!((seen.header("content-type"), seen.header("x-a")), (Some("application/json"), None));
    assert_eq!(seen.body, br#"{"model":"tiny"}"#);
}

#[tokio::test]
async fn compressed_bodies_are_refused_where_their_model_matters() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    for encoding in ["gzip", "GZIP", "br", "identity, gzip", "zstd", "x"] {
        let request = post("/v1/chat", "\x1f").replacen("\r\n", &format!("\r\nContent-Encoding: {encoding}\r\n"), 1);
        let got = exchange(proxy.address, request).await;
        assert_eq!(got.status, 415, "{encoding}: {}", got.text());
    }
    assert!(app.seen().is_empty());
}

#[tokio::test]
async fn lengths_and_codings_that_disagree_reach_no_app() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    // The body that a careless reader takes for a second request.
    let second = "GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n";
    for (version, head) in [
        ("1.1", "Content-Length: 0\r\nContent-Length: 38"),
        ("1.1", "Content-Length: 0, 38"),
        ("1.1", "Content-Length: 0x10"),
        ("1.1", "Content-Length: -1"),
        ("1.1", "Content-Length: 99999999999999999999999"),
        ("1.1", "Transfer-Encoding: chunked, identity"),
        ("1.1", "Transfer-Encoding: \x0bchunked"),
        ("1.1", "Transfer-Encoding : chunked"),
        ("1.1", "Transfer-Encoding: chunked\r\n , identity"),
        ("1.0", "Transfer-Encoding: chunked"),
    ] {
        let mut client = Client::connect(proxy.address).await;
        client.send(format!("POST /one HTTP/{version}\r\nHost: a\r\n{head}\r\n\r\n{second}")).await;
        let got = client.answer().await;
        assert!(matches!(got.status, 400 | 411 | 501), "{head:?}: {}", got.head);
        assert!(client.is_closed().await, "{head:?}: what follows must not be read");
    }
    assert!(app.seen().is_empty(), "{:?}", app.seen());
}

#[tokio::test]
async fn chunks_that_are_malformed_end_the_request() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    for body in ["zz\r\n{}\r\n0\r\n\r\n", "2\r\n{}X0\r\n\r\n", "-2\r\n{}\r\n0\r\n\r\n", "fffffffffffffffff\r\n{}"] {
        let request = format!("POST /v1/chat HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let got = exchange(proxy.address, request).await;
        assert_eq!(got.status, 400, "{body:?}: {}", got.text());
    }
    assert!(app.seen().is_empty());
}

#[tokio::test]
async fn trailers_of_a_request_do_not_become_headers() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    let request = "POST /one HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n\
                   2\r\n{}\r\n0\r\nAuthorization: Bearer x\r\n\r\n";
    assert_eq!(exchange(proxy.address, request).await.status, 200);
    let seen = app.only();
    assert_eq!((seen.header("authorization"), seen.header("trailer"), &seen.body[..]), (None, None, &b"{}"[..]));
}

#[tokio::test]
async fn oversized_heads_are_refused_and_large_ones_pass() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    let with_headers = |count: usize, bytes: usize| {
        let mut head = "GET /v1/models HTTP/1.1\r\nHost: a\r\n".to_owned();
        for number in 0..count {
            let _ = write!(head, "X-{number}: {}\r\n", "v".repeat(bytes));
        }
        head + "\r\n"
    };
    assert_eq!(exchange(proxy.address, with_headers(1, 40 << 10)).await.status, 200);
    for (count, bytes) in [(1, 80 << 10), (500, 1), (3, 30 << 10)] {
        let got = exchange(proxy.address, with_headers(count, bytes)).await;
        assert_eq!(got.status, 431, "{count} of {bytes}");
        assert!(got.json()["error"]["message"].is_string());
    }
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(70_000));
    assert!(matches!(exchange(proxy.address, long_path).await.status, 414 | 431));
    assert_eq!(app.seen().len(), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        while let Some(request) = connection.request().await {
            let body = request.line().split(' ').nth(1).unwrap().to_owned();
            connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
        }
    })
    .await;
    let proxy = Fixture::start(app.address).await;

    let mut client = Client::connect(proxy.address).await;
    let all: String = (0..5).map(|number| post(&format!("/v1/{number}"), r#"{"model":"tiny"}"#)).collect();
    client.send(all).await;
    for number in 0..5 {
        let got = client.answer().await;
        assert_eq!((got.status, got.text()), (200, format!("/v1/{number}").as_str()));
    }
    counts(&proxy.tiny(), 0, 0).await;
}

#[tokio::test]
async fn bare_line_feeds_make_no_second_request() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    let got = exchange(proxy.address, "GET /v1/models HTTP/1.1\nHost: a\nX-A: b\n\n").await;
    assert!(matches!(got.status, 200 | 400), "{}", got.head);
    for seen in app.seen() {
        assert!(!seen.head.replace("\r\n", "").contains('\n'), "{:?}", seen.head);
    }

    let hidden = "GET /v1/models HTTP/1.1\r\nHost: a\r\nX: a\n\nGET /unload HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut client = Client::connect(proxy.address).await;
    client.send(hidden).await;
    let _ = client.answer_to("GET").await;
    assert!(app.seen().iter().all(|seen| !seen.line().contains("unload") || seen.line().starts_with("GET")));
}

#[tokio::test]
async fn an_answer_with_two_framings_is_no_second_answer() {
    let chunks = "2\r\nok\r\n0\r\n\r\n";
    for (head, expected) in [
        ("Content-Length: 2\r\nContent-Length: 3", None),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked", Some("ok")),
        ("Transfer-Encoding: chunked\r\nContent-Length: 90", Some("ok")),
    ] {
        let app = RawUpstreamApp::answering(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{chunks}")).await;
        let proxy = Fixture::start(app.address).await;

        let mut client = Client::connect(proxy.address).await;
        client.send(get("/v1/models")).await;
        let got = client.answer_to("GET").await;
        match expected {
            None => assert_eq!(got.status, 502, "{head}"),
            Some(text) => {
                assert_eq!((got.status, got.text(), got.is_whole), (200, text, true), "{head}");
                assert!(got.header("content-length").is_none() || got.header("transfer-encoding").is_none());
            }
        }

        // The connection to the client is still in step.
        client.send(get("/healthz")).await;
        assert_eq!(client.answer_to("GET").await.text(), "ok", "{head}");
    }
}

#[tokio::test]
async fn an_app_that_sends_more_than_its_length_spoils_no_later_answer() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother";
    let app = RawUpstreamApp::answering(answer).await;
    let proxy = Fixture::start(app.address).await;

    let mut client = Client::connect(proxy.address).await;
    for _ in 0..4 {
        client.send(get("/v1/models")).await;
        let got = client.answer_to("GET").await;
        assert!(got.status == 502 || (got.status, got.text()) == (200, "ok"), "{}: {}", got.status, got.text());
    }
}

#[tokio::test]
async fn an_answer_cut_within_a_chunk_or_before_its_length_is_broken() {
    for answer in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
    ] {
        let app = RawUpstreamApp::start(move |mut connection| async move {
            connection.request().await;
            connection.send(answer).await;
        })
        .await;
        let proxy = Fixture::start(app.address).await;

        let got = exchange(proxy.address, post("/v1/chat", r#"{"model":"tiny"}"#)).await;
        assert_eq!((got.status, &got.body[..], got.is_whole), (200, &b"ab"[..], false), "{answer:?}");
        counts(&proxy.tiny(), 0, 0).await;
    }
}

#[tokio::test]
async fn the_earlier_request_tells_the_model_of_a_later_one() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;
    proxy.unload("tiny").await;

    let away = exchange(proxy.address, get("/v1/stream?conv_id=c1")).await;
    assert_eq!(away.status, 503, "the id is unknown, and the default model is away");

    let chat = post("/v1/chat", r#"{"model":"big:7b"}"#).replacen("\r\n", "\r\nX-Conversation-Id: c1\r\n", 1);
    assert_eq!(exchange(proxy.address, chat).await.status, 200);
    assert_eq!(exchange(proxy.address, get("/v1/stream?conv_id=c1")).await.status, 200);
    assert_eq!(exchange(proxy.address, get("/v1/stream?conv_id=c2")).await.status, 503);

    proxy.unload("big:7b").await;
    let away = exchange(proxy.address, get("/v1/stream?conv_id=c1")).await;
    assert_eq!((away.status, away.text().contains("big:7b")), (503, true));
}

#[tokio::test]
async fn connections_beyond_the_open_files_are_refused_and_idle_ones_give_way() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::with(app.address, |options| {
        options.settings.files = hush_listener::open_files::FileBudget::new(4);
        options.settings.max_connections = 4;
    })
    .await;

    let mut idle = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(proxy.address).await;
        client.send(get("/healthz")).await;
        assert_eq!(client.answer_to("GET").await.status, 200);
        idle.push(client);
    }
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;

    // A connection and its request take the files of two idle ones.
    let got = exchange(proxy.address, post("/v1/chat", r#"{"model":"tiny"}"#)).await;
    assert_eq!(got.status, 200, "{}", got.text());
}
