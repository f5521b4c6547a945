//! Requests that try to be two requests, or to open what is closed.

use serde_json::json;

use crate::app::RawUpstreamApp;
use crate::client::{Client, exchange, get, post};
use crate::fixture::Fixture;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn heads_that_proxies_may_read_differently_are_refused() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    for head in [
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: +2",
        "Content-Length: 2,3",
        "X: a\r\n folded: b",
        "X : a",
        "X: a\rb: c",
        "X: a\0b",
        "Transfer-Encoding: gzip, identity",
        "Transfer-Encoding: xchunked",
        "Host: b",
        "Authorization: a\r\nAuthorization: b",
    ] {
        let request = format!(
            "POST /v1/chat HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{{}}GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        let got = exchange(proxy.address, request).await;
        assert_eq!(got.status, 400, "{head:?}: {}", got.text());
        assert!(got.json()["error"]["message"].is_string());
    }
    let no_host = exchange(proxy.address, "GET /v1/models HTTP/1.1\r\n\r\n").await;
    assert_eq!(no_host.status, 400);
    assert!(app.seen().is_empty());
}

#[tokio::test]
async fn a_length_beside_chunks_reaches_no_app() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    for lengths in
        ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"]
    {
        let smuggled = format!("POST /one HTTP/1.1\r\nHost: a\r\n{lengths}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n");
        let mut client = Client::connect(proxy.address).await;
        client.send(&smuggled).await;
        assert_eq!(client.answer().await.status, 200);
    }
    for seen in app.seen() {
        assert!(seen.body == b"{}" && seen.header("content-length") != Some("4"), "{}", seen.head);
    }
    assert_eq!(app.seen().len(), 2);
}

#[tokio::test]
async fn a_closed_route_names_the_admin_api() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    for path in ["/unload", "/%75nload", "//unload/", "/UNLOAD", "/x/../models/unload", "/models%2Funload?x"] {
        let got = exchange(proxy.address, post(path, "{}")).await;
        assert_eq!((got.status, got.json()["error"]["code"].as_str()), (403, Some("route_closed")), "{path}");
        assert!(got.text().contains("/admin/v1/models/{model}/unload"), "{}", got.text());
    }
    assert!(app.seen().is_empty());
}

#[tokio::test]
async fn methods_and_targets() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;

    assert_eq!(exchange(proxy.address, "TRACE /v1/chat HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 405);
    assert_eq!(exchange(proxy.address, "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n").await.status, 405);
    let whole = exchange(proxy.address, "GET http://evil.example/v1/models?x=1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(whole.status, 200);
    let seen = app.only();
    assert_eq!((seen.line(), seen.header("x-forwarded-host")), ("GET /v1/models?x=1 HTTP/1.1", Some("evil.example")));
    let own = app.address.to_string();
    assert_eq!(seen.header("host"), Some(own.as_str()));
}

#[tokio::test]
async fn an_upgrade_to_something_else_is_an_ordinary_request() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::start(app.address).await;
    let request = "GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n";
    assert_eq!(exchange(proxy.address, request).await.status, 200);
    let seen = app.only();
    assert_eq!((seen.header("upgrade"), seen.header("connection"), seen.header("http2-settings")), (None, None, None));
}

#[tokio::test]
async fn probes_never_reach_the_app_and_are_answered_when_the_proxy_is_full() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::with(app.address, |options| {
        options.settings.max_connections = 2;
        options.can_load = false;
    })
    .await;

    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(proxy.address).await;
        client.send(post("/v1/chat", "{}")).await;
        held.push(client);
    }
    crate::fixture::counts(&proxy.tiny(), 0, 2).await;

    for path in ["/healthz", "/readyz"] {
        let got = exchange(proxy.address, get(path)).await;
        assert_eq!((got.status, got.text()), (200, "ok"));
    }
    let other = exchange(proxy.address, get("/v1/models")).await;
    assert_eq!((other.status, other.json()["error"]["code"].as_str()), (503, Some("too_many_connections")));
    assert!(app.seen().is_empty());
    assert_eq!(
        exchange(proxy.address, get("/api/x")).await.json(),
        json!({"error": "every connection of this server is in use; try again later"})
    );
}
