//! Clients that do not read what is sent to them, and clients that read it slowly.

use std::net::SocketAddr;
use std::time::Duration;

use hush_contract::ModelState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::app::{RawUpstreamApp, find};
use crate::client::{LONG, exchange, post};
use crate::fixture::{Fixture, counts};
use crate::sockets::{ACCEPT, handshake};

pub const STALL: Duration = Duration::from_millis(800);
pub const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Sends its head, and then the piece without an end. The receiver tells when the sidecar has ended the connection.
pub async fn flooding(head: &'static str, piece: Vec<u8>) -> (RawUpstreamApp, watch::Receiver<bool>) {
    let (ended, has_ended) = watch::channel(false);
    let app = RawUpstreamApp::start(move |mut connection| {
        let (piece, ended) = (piece.clone(), ended.clone());
        async move {
            connection.request().await;
            connection.send(head).await;
            while connection.stream.write_all(&piece).await.is_ok() {}
            ended.send_replace(true);
        }
    })
    .await;
    (app, has_ended)
}

pub fn chunk() -> Vec<u8> {
    [b"2000\r\n", &[b'x'; 0x2000][..], b"\r\n"].concat()
}

async fn with_limit(app: &RawUpstreamApp) -> Fixture {
    Fixture::with(app.address, |options| options.settings.client_stall = Some(STALL)).await
}

/// A client whose system takes little that the client has not read.
async fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    socket.connect(address).await.unwrap()
}

async fn read_head(stream: &mut TcpStream) {
    let mut got = Vec::new();
    while find(&got, b"\r\n\r\n").is_none() {
        got.push(timeout(LONG, stream.read_u8()).await.expect("nothing came").unwrap());
    }
}

/// The lease has ended as with a client that left, and the app has been told.
pub async fn assert_cut_off(proxy: &Fixture, mut has_ended: watch::Receiver<bool>) {
    let begun = Instant::now();
    counts(&proxy.tiny(), 0, 0).await;
    assert!(begun.elapsed() < 5 * STALL, "{:?}", begun.elapsed());

    timeout(LONG, has_ended.wait_for(|has_ended| *has_ended)).await.expect("the app goes on").unwrap();
    assert_eq!(proxy.tiny().snapshot().state, ModelState::Ready);
    assert_eq!(proxy.metric("hush_client_stalls_total"), Some(1.0));
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_off() {
    let (app, has_ended) = flooding(CHUNKED, chunk()).await;
    let proxy = with_limit(&app).await;

    let mut client = connect(proxy.address).await;
    client.write_all(post("/v1/chat", "{}").as_bytes()).await.unwrap();
    read_head(&mut client).await;
    sleep(STALL / 2).await;
    counts(&proxy.tiny(), 1, 0).await;
    assert_eq!(proxy.metric("hush_client_stalls_total"), Some(0.0));

    assert_cut_off(&proxy, has_ended).await;
    let ended = timeout(LONG, client.read_to_end(&mut Vec::new())).await.unwrap();
    assert!(ended.is_err(), "the client must not take what it has for all: {ended:?}");
}

#[tokio::test]
async fn without_a_limit_a_client_may_stop_reading() {
    let (app, has_ended) = flooding(CHUNKED, chunk()).await;
    let proxy = Fixture::with(app.address, |options| options.settings.client_stall = None).await;

    let mut client = connect(proxy.address).await;
    client.write_all(post("/v1/chat", "{}").as_bytes()).await.unwrap();
    read_head(&mut client).await;
    sleep(3 * STALL).await;

    assert_eq!((proxy.tiny().snapshot().inflight, *has_ended.borrow()), (1, false));
    drop(client);
    counts(&proxy.tiny(), 0, 0).await;
    assert_eq!(proxy.metric("hush_client_stalls_total"), Some(0.0), "it has left");
}

#[tokio::test]
async fn the_client_of_a_socket_that_stops_reading_is_cut_off() {
    let frame = [&[0x81, 100][..], &[b'x'; 100]].concat();
    let (app, has_ended) = flooding(ACCEPT, frame.repeat(100)).await;
    let proxy = with_limit(&app).await;

    let mut client = connect(proxy.address).await;
    client.write_all(handshake("/realtime").as_bytes()).await.unwrap();
    read_head(&mut client).await;
    counts(&proxy.tiny(), 1, 0).await;

    assert_cut_off(&proxy, has_ended).await;
    let ended = timeout(LONG, client.read_to_end(&mut Vec::new())).await.unwrap();
    assert!(ended.is_err(), "{ended:?}");
}

/// The kernel holds megabytes for it, so that no write goes on for much longer than the limit.
#[tokio::test]
async fn a_client_that_reads_slowly_is_not_cut_off() {
    let (app, has_ended) = flooding(CHUNKED, chunk()).await;
    let proxy = with_limit(&app).await;

    let mut client = connect(proxy.address).await;
    client.write_all(post("/v1/chat", "{}").as_bytes()).await.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < 6 * STALL {
        client.read_exact(&mut [0; 4 << 10]).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }

    assert_eq!((proxy.tiny().snapshot().inflight, *has_ended.borrow()), (1, false));
    assert_eq!(proxy.metric("hush_client_stalls_total"), Some(0.0));
}

#[tokio::test]
async fn a_stream_that_is_silent_is_not_cut_off() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        connection.request().await;
        connection.send(CHUNKED).await;
        connection.send("9\r\ndata: 1\n\n\r\n").await;
        sleep(3 * STALL).await;
        connection.send("9\r\ndata: 2\n\n\r\n0\r\n\r\n").await;
    })
    .await;
    let proxy = with_limit(&app).await;

    let got = exchange(proxy.address, post("/v1/chat", "{}")).await;
    assert_eq!((got.is_whole, got.text()), (true, "data: 1\n\ndata: 2\n\n"));
    assert_eq!(proxy.metric("hush_client_stalls_total"), Some(0.0));
}
