//! Answers of apps, good and bad.

use std::time::Duration;

use hush_contract::ModelState;
use tokio::time::{sleep, timeout};

use crate::app::RawUpstreamApp;
use crate::client::{Client, LONG, exchange, get, post};
use crate::fixture::{Fixture, counts};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn an_answer_passes_byte_for_byte() {
    let answer = "HTTP/1.1 201 Created\r\nContent-Type: x/y\r\nContent-Length: 5\r\nContent-Encoding: gzip\r\n\
                  Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, X-Hop\r\n\
                  X-Hop: 1\r\n\r\n\0\x01\x7f\r\n";
    let app = RawUpstreamApp::answering(answer).await;
    let proxy = Fixture::start(app.address).await;

    let body = r#"{ "model" : "tiny","n":1e400, "n":2}"#;
    let request =
        post("/v1/chat?x=%2F&y", body).replacen("\r\n", "\r\nAuthorization: Bearer k\r\nX-Request-Id: mine\r\n", 1);
    let got = exchange(proxy.address, request).await;

    assert_eq!((got.status, got.is_whole, &got.body[..]), (201, true, &b"\0\x01\x7f\r\n"[..]));
    assert_eq!(
        (got.header("content-encoding"), got.header("x-hop"), got.header("keep-alive")),
        (Some("gzip"), None, None)
    );
    assert_eq!(got.head.matches("set-cookie").count(), 2);
    assert_eq!(got.header("x-request-id"), Some("mine"));

    let seen = app.only();
    assert_eq!((seen.line(), &seen.body[..]), ("POST /v1/chat?x=%2F&y HTTP/1.1", body.as_bytes()));
    let seen = app.only();
    assert_eq!(seen.header("host"), Some(app.address.to_string().as_str()));
    assert_eq!(seen.header("x-forwarded-host"), Some("gpu.example"));
    assert_eq!((seen.header("x-forwarded-for"), seen.header("x-forwarded-proto")), (Some("127.0.0.1"), Some("http")));
    assert_eq!((seen.header("authorization"), seen.header("x-request-id")), (Some("Bearer k"), Some("mine")));
    counts(&proxy.tiny(), 0, 0).await;
}

#[tokio::test]
async fn each_piece_is_sent_at_once_and_the_lease_lasts_until_the_last() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        connection.request().await;
        connection
            .send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        connection.send("9\r\ndata: 1\n\n\r\n").await;
        // The next piece comes when the client has the first.
        connection.request().await;
    })
    .await;
    let proxy = Fixture::start(app.address).await;

    let mut client = Client::connect(proxy.address).await;
    client.send(post("/v1/chat", r#"{"model":"tiny"}"#)).await;
    client.until("data: 1\n\n").await;
    assert_eq!(proxy.tiny().snapshot().inflight, 1);

    // The client leaves: the app sees it, and the lease ends.
    drop(client);
    counts(&proxy.tiny(), 0, 0).await;
}

#[tokio::test]
async fn an_answer_that_is_cut_has_no_clean_end() {
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", &b"abc"[..]),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\nde", b"abcde"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", b"abc"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", b"abc"),
    ] {
        let app = RawUpstreamApp::start(move |mut connection| async move {
            connection.request().await;
            connection.send(answer).await;
        })
        .await;
        let proxy = Fixture::start(app.address).await;

        let got = exchange(proxy.address, post("/v1/chat", "{}")).await;
        assert_eq!((got.status, got.is_whole, &got.body[..]), (200, false, expected), "{answer:?}");
        counts(&proxy.tiny(), 0, 0).await;
        assert_eq!(app.seen().len(), 1, "no second try");
        assert_eq!(proxy.metric(r#"hush_upstream_failures_total{cause="cut"}"#), Some(1.0));
    }
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_ends_cleanly() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        connection.request().await;
        connection.send("HTTP/1.0 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n{\"a\":1}\n").await;
        sleep(Duration::from_millis(50)).await;
        connection.send("{\"done\":true}\n").await;
    })
    .await;
    let proxy = Fixture::start(app.address).await;

    let got = exchange(proxy.address, post("/v1/chat", "{}")).await;
    assert_eq!((got.is_whole, got.text()), (true, "{\"a\":1}\n{\"done\":true}\n"));
}

#[tokio::test]
async fn a_client_of_http_1_0_sees_that_an_answer_was_cut() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        connection.request().await;
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
        sleep(Duration::from_millis(100)).await;
        connection.reset();
    })
    .await;
    let proxy = Fixture::start(app.address).await;

    let got = exchange(proxy.address, "POST /v1/chat HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}").await;
    assert_eq!((got.status, got.header("transfer-encoding")), (200, None));
    assert!(got.is_reset && !got.is_whole, "{got:?}");
}

#[tokio::test]
async fn an_app_that_says_nothing_is_given_up_in_time() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        if connection.request().await.is_some_and(|request| request.line().contains("begin")) {
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n").await;
        }
        connection.closed().await;
    })
    .await;
    let proxy = Fixture::with(app.address, |options| {
        options.settings.first_byte_timeout = Some(Duration::from_millis(300));
        options.settings.between_bytes_timeout = Some(Duration::from_millis(300));
    })
    .await;

    let never = exchange(proxy.address, post("/v1/chat", "{}")).await;
    assert_eq!((never.status, never.json()["error"]["code"].as_str()), (504, Some("app_timeout")));
    let begun = exchange(proxy.address, post("/v1/begin", "{}")).await;
    assert_eq!((begun.status, begun.text(), begun.is_whole), (200, "a", false));
    counts(&proxy.tiny(), 0, 0).await;
}

#[tokio::test]
async fn a_kept_connection_that_the_app_closes_costs_no_request() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        connection.request().await;
        connection.send(OK).await;
        // Without `Connection: close`: the next request may meet the end.
    })
    .await;
    let proxy = Fixture::start(app.address).await;

    for _ in 0..20 {
        let got = exchange(proxy.address, post("/v1/chat", "{}")).await;
        assert_eq!((got.status, got.text()), (200, "ok"));
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(app.seen().len(), 20);
}

#[tokio::test]
async fn connections_are_kept_and_not_for_long() {
    let connections = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = std::sync::Arc::clone(&connections);
    let counting = RawUpstreamApp::start(move |mut connection| {
        let log = std::sync::Arc::clone(&log);
        async move {
            let begun = std::time::Instant::now();
            while connection.request().await.is_some() {
                connection.send(OK).await;
            }
            log.lock().unwrap().push(begun.elapsed());
        }
    })
    .await;
    let proxy = Fixture::start(counting.address).await;

    for _ in 0..5 {
        assert_eq!(exchange(proxy.address, post("/v1/chat", "{}")).await.status, 200);
    }
    timeout(LONG, async {
        while connections.lock().unwrap().is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    let lives = connections.lock().unwrap().clone();
    assert_eq!((counting.seen().len(), lives.len()), (5, 1), "one connection for all");
    assert!(lives[0] < Duration::from_secs(5), "uvicorn closes its own after 5 s: {lives:?}");
}

#[tokio::test]
async fn a_request_that_the_app_has_seen_is_not_repeated() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        if connection.number > 0 || connection.request().await.is_some() {
            connection.send(OK).await;
            // On a kept connection, the app reads the request and dies.
            connection.request().await;
        }
    })
    .await;
    let proxy = Fixture::start(app.address).await;

    assert_eq!(exchange(proxy.address, post("/v1/chat", "{}")).await.status, 200);
    let got = exchange(proxy.address, post("/v1/chat", "{}")).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (502, Some("app_failed")));
    assert_eq!(app.seen().len(), 2);
}

#[tokio::test]
async fn an_app_that_is_away_is_no_fault_of_the_request() {
    let nothing = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let proxy = Fixture::start(nothing).await;

    let got = exchange(proxy.address, post("/v1/chat", "{}")).await;
    assert_eq!((got.status, got.header("retry-after")), (503, Some("10")));
    assert_eq!(got.json()["error"]["code"], "app_not_running");
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_is_read() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        connection.head().await;
        connection.send("HTTP/1.1 413 Payload Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge").await;
        connection.closed().await;
    })
    .await;
    let proxy = Fixture::start(app.address).await;
    proxy.tiny().load().await.unwrap();

    let mut client = Client::connect(proxy.address).await;
    client.send("POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nsome").await;
    let got = client.answer().await;
    assert_eq!((got.status, got.text()), (413, "large"));
    counts(&proxy.tiny(), 0, 0).await;
}

#[tokio::test]
async fn interim_answers_are_passed_over() {
    let app = RawUpstreamApp::answering("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let proxy = Fixture::start(app.address).await;
    for _ in 0..2 {
        let got = exchange(proxy.address, post("/v1/chat", "{}")).await;
        assert_eq!((got.status, got.text()), (200, "ok"));
    }
}

#[tokio::test]
async fn answers_that_are_not_http_are_a_bad_gateway() {
    let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(2 << 20));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(1000));
    for answer in [
        "garbage\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "",
        &large,
        &many,
    ] {
        let bytes = answer.to_owned();
        let app = RawUpstreamApp::start(move |mut connection| {
            let bytes = bytes.clone();
            async move {
                connection.request().await;
                connection.send(bytes).await;
            }
        })
        .await;
        let proxy = Fixture::start(app.address).await;

        let got = exchange(proxy.address, post("/v1/chat", "{}")).await;
        let shown = &answer[..answer.len().min(60)];
        assert_eq!((got.status, got.json()["error"]["type"].as_str()), (502, Some("server_error")), "{shown:?}");
        counts(&proxy.tiny(), 0, 0).await;
    }
}

#[tokio::test]
async fn trailers_pass_to_a_client_that_takes_them() {
    let app = RawUpstreamApp::answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
    )
    .await;
    let proxy = Fixture::start(app.address).await;

    let request = post("/v1/chat", "{}").replacen("\r\n", "\r\nTE: trailers\r\nConnection: TE\r\n", 1);
    let got = exchange(proxy.address, request).await;
    assert_eq!((got.text(), got.is_whole, got.trailers.as_str()), ("ok", true, "x-sum: 7"));
    assert_eq!(app.only().header("te"), Some("trailers"));
}

#[tokio::test]
async fn answers_without_a_body_keep_their_length() {
    let app = RawUpstreamApp::answering("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").await;
    let proxy = Fixture::start(app.address).await;
    let mut client = Client::connect(proxy.address).await;
    client.send("HEAD /v1/models HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let got = client.answer_to("HEAD").await;
    assert_eq!((got.status, got.header("content-length")), (200, Some("1234")));

    for status in ["204 No Content", "304 Not Modified"] {
        let app = RawUpstreamApp::answering(format!("HTTP/1.1 {status}\r\nETag: x\r\n\r\n")).await;
        let proxy = Fixture::start(app.address).await;
        let got = exchange(proxy.address, get("/v1/models")).await;
        assert_eq!(got.header("etag"), Some("x"));
    }
}

#[tokio::test]
async fn a_request_that_takes_too_long_ends() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        connection.request().await;
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        loop {
            connection.send("1\r\na\r\n").await;
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let proxy =
        Fixture::with(app.address, |options| options.settings.request_timeout = Some(Duration::from_millis(400))).await;

    let got = exchange(proxy.address, post("/v1/chat", "{}")).await;
    assert!(got.status == 200 && !got.is_whole && !got.body.is_empty(), "{got:?}");
    counts(&proxy.tiny(), 0, 0).await;
    assert_eq!(proxy.tiny().snapshot().state, ModelState::Ready);
}
