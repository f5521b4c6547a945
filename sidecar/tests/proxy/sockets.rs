//! Websockets, with and without a model.

use std::num::NonZeroUsize;
use std::time::Duration;

use hush_contract::ModelState;
use hush_sidecar::status::AppStatus;
use tokio::time::{sleep, timeout};

use crate::app::RawUpstreamApp;
use crate::client::{Client, LONG};
use crate::fixture::{Fixture, counts};

pub fn handshake(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: gpu.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nOrigin: http://gpu.example\r\n\r\n"
    )
}

pub const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A frame of a client, masked with zeros.
fn masked(opcode: u8, payload: &str) -> Vec<u8> {
    [&[0x80 | opcode, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload.as_bytes()].concat()
}

fn plain(opcode: u8, payload: &str) -> Vec<u8> {
    [&[0x80 | opcode, payload.len() as u8], payload.as_bytes()].concat()
}

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Accepts, and sends each frame back with its payload. `bye` closes without a word.
async fn echoing() -> RawUpstreamApp {
    RawUpstreamApp::start(|mut connection| async move {
        if connection.request().await.is_none() {
            return;
        }
        // With the handshake, a frame at once.
        connection.send([ACCEPT.as_bytes(), &plain(TEXT, "hello")].concat()).await;

        while let Some(head) = connection.take(6).await {
            let payload = connection.take(usize::from(head[1] & 0x7f)).await.unwrap();
            let text = String::from_utf8(payload).unwrap();
            if text == "bye" {
                return;
            }
            if head[0] & 0xf != PONG {
                connection.send(plain(head[0] & 0xf, &text)).await;
            }
        }
    })
    .await
}

impl Client {
    async fn open(proxy: &Fixture, path: &str) -> Self {
        let mut client = Self::connect(proxy.address).await;
        client.send(handshake(path)).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.to_lowercase().contains("sec-websocket-accept: s3ppl"), "{head}");
        assert_eq!(client.frame().await, plain(TEXT, "hello"));
        client
    }

    async fn frame(&mut self) -> Vec<u8> {
        self.frame_within(LONG).await.expect("no frame")
    }

    async fn frame_within(&mut self, limit: Duration) -> Option<Vec<u8>> {
        use tokio::io::AsyncReadExt;
        while self.buffer.len() < 2 || self.buffer.len() < 2 + usize::from(self.buffer[1]) {
            let read = timeout(limit, self.stream.read_buf(&mut self.buffer)).await.ok()?.unwrap();
            assert!(read > 0, "the socket ended: {:?}", self.buffer);
        }
        let length = 2 + usize::from(self.buffer[1]);
        Some(self.buffer.drain(..length).collect())
    }

    async fn say(&mut self, text: &str) -> Vec<u8> {
        self.send(masked(TEXT, text)).await;
        self.frame().await
    }
}

#[tokio::test]
async fn a_socket_that_displays_stays_open_over_an_unload() {
    let app = echoing().await;
    let proxy = Fixture::start(app.address).await;
    proxy.tiny().load().await.unwrap();

    let mut client = Client::open(&proxy, "/ws?clientId=1").await;
    assert_eq!(client.say("one").await, plain(TEXT, "one"));
    assert_eq!(proxy.tiny().snapshot().inflight, 0);
    assert_eq!(proxy.metric(r#"hush_open_websockets{kind="display"}"#), Some(1.0));

    proxy.unload("tiny").await;
    assert_eq!(client.say("two").await, plain(TEXT, "two"));
    assert_eq!(proxy.tiny().snapshot().state, ModelState::Unloaded);

    let seen = app.only();
    assert_eq!((seen.header("origin"), seen.header("connection")), (Some("http://gpu.example"), Some("Upgrade")));
    drop(client);
    timeout(LONG, async {
        while proxy.metric(r#"hush_open_websockets{kind="display"}"#) != Some(0.0) {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_client_is_told_when_the_app_ends_its_socket_without_a_word() {
    let app = echoing().await;
    let proxy = Fixture::start(app.address).await;

    let mut client = Client::open(&proxy, "/ws").await;
    client.send(masked(TEXT, "bye")).await;
    assert_eq!(client.frame().await, [0x88, 2, 0x03, 0xf4], "1012, service restart");
    assert!(client.is_closed().await);

    // Where the app has said it itself, nothing is added.
    let mut client = Client::open(&proxy, "/ws").await;
    client.send(masked(CLOSE, "")).await;
    assert_eq!(client.frame().await, plain(CLOSE, ""));
    client.send(masked(TEXT, "bye")).await;
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_socket_that_works_holds_its_model_while_messages_go_by() {
    let app = echoing().await;
    let proxy = Fixture::with(app.address, |options| options.settings.socket_idle = Duration::from_millis(300)).await;

    let mut client = Client::open(&proxy, "/realtime?model=big:7b").await;
    let model = proxy.model("big:7b");
    for text in ["a", "b", "c"] {
        sleep(Duration::from_millis(150)).await;
        assert_eq!(client.say(text).await, plain(TEXT, text));
        assert_eq!(model.snapshot().inflight, 1);
    }

    // Pings count as nothing.
    for _ in 0..6 {
        sleep(Duration::from_millis(100)).await;
        client.send(masked(PING, "p")).await;
        assert_eq!(client.frame().await, plain(PING, "p"));
    }
    counts(&model, 0, 0).await;

    proxy.unload("big:7b").await;
    assert_eq!(client.say("again").await, plain(TEXT, "again"));
    let loaded = model.snapshot();
    assert_eq!((loaded.state, loaded.generation, loaded.inflight), (ModelState::Ready, 2, 1));
    drop(client);
    counts(&model, 0, 0).await;
}

#[tokio::test]
async fn a_message_waits_for_its_model_and_pings_pass_it() {
    let app = echoing().await;
    let proxy = Fixture::with(app.address, |options| options.settings.socket_idle = Duration::from_millis(100)).await;

    let mut client = Client::open(&proxy, "/realtime").await;
    counts(&proxy.tiny(), 0, 0).await;
    proxy.unload("tiny").await;
    proxy.gate.send_replace(false);

    let message = masked(TEXT, "held");
    client.send(&message[..4]).await;
    sleep(Duration::from_millis(20)).await;
    client.send(&message[4..]).await;
    client.send(masked(TEXT, "too")).await;
    counts(&proxy.tiny(), 0, 1).await;
    client.send(masked(PING, "p")).await;
    assert_eq!(client.frame().await, plain(PING, "p"));
    assert_eq!(client.frame_within(Duration::from_millis(100)).await, None);

    proxy.gate.send_replace(true);
    assert_eq!(client.frame().await, plain(TEXT, "held"));
    assert_eq!(client.frame().await, plain(TEXT, "too"));
}

#[tokio::test]
async fn a_handshake_waits_for_the_model() {
    let app = echoing().await;
    let proxy = Fixture::with(app.address, |options| {
        options.can_load = false;
        options.settings.cold_hold = Some(Duration::from_millis(200));
    })
    .await;

    let mut refused = Client::connect(proxy.address).await;
    refused.send(handshake("/realtime")).await;
    let got = refused.answer().await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (503, Some("model_not_loaded")));
    assert!(app.seen().is_empty());

    proxy.gate.send_replace(true);
    Client::open(&proxy, "/realtime").await;
}

#[tokio::test]
async fn a_message_that_cannot_have_its_model_ends_the_socket() {
    let app = echoing().await;
    let proxy = Fixture::with(app.address, |options| {
        options.settings.socket_idle = Duration::from_millis(100);
        options.settings.cold_hold = Some(Duration::from_millis(200));
        options.lifecycle.queue_limit = NonZeroUsize::new(2).unwrap();
    })
    .await;

    let mut client = Client::open(&proxy, "/realtime").await;
    counts(&proxy.tiny(), 0, 0).await;
    proxy.unload("tiny").await;
    proxy.gate.send_replace(false);
    client.send(masked(TEXT, "held")).await;
    assert_eq!(client.frame().await, [0x88, 2, 0x03, 0xf5], "1013, try again later");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_handshake_that_the_app_refuses_is_answered_as_it_is() {
    let app = RawUpstreamApp::answering("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let proxy = Fixture::start(app.address).await;

    let mut client = Client::connect(proxy.address).await;
    for path in ["/ws", "/realtime"] {
        client.send(handshake(path)).await;
        let got = client.answer().await;
        assert_eq!((got.status, got.text()), (403, "no"));
    }
    counts(&proxy.tiny(), 0, 0).await;

    proxy.status.send_replace(AppStatus::Stopped);
    client.send(handshake("/ws")).await;
    assert_eq!(client.answer().await.status, 503);
}

#[tokio::test]
async fn a_shutdown_closes_sockets() {
    let app = echoing().await;
    let mut proxy =
        Fixture::with(app.address, |options| options.settings.socket_idle = Duration::from_millis(300)).await;

    let mut display = Client::open(&proxy, "/ws").await;
    let mut work = Client::open(&proxy, "/realtime").await;
    proxy.proxy.shut_down();
    assert_eq!(display.frame().await, [0x88, 2, 0x03, 0xe9], "1001, going away");
    assert_eq!(work.say("still").await, plain(TEXT, "still"));
    assert_eq!(work.frame().await, [0x88, 2, 0x03, 0xe9]);
    timeout(LONG, &mut proxy.served).await.unwrap().unwrap();
}
