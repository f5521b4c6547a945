//! Clients that leave, and a server that ends.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hush_server::api::ApiConfig;
use hush_server::serve::ServeOptions;
use tokio::net::TcpStream;

use crate::support::{DEADLINE, Fake, GOLDEN_SRT, Server, audio_file, golden, half_a_second, post};

fn request() -> Vec<u8> {
    post("/asr?encode=false&output=srt", "multipart/form-data; boundary=B", &audio_file(&half_a_second()))
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_work() {
    let server = Server::start(Fake::loading(golden())).await;
    let mut client = server.connect().await;
    client.write(&request()).await;
    server.until(|fake| fake.running.load(Ordering::SeqCst) == 1).await;
    drop(client);
    server.until(|fake| fake.cancelled.load(Ordering::SeqCst) == 1).await;
    assert_eq!(server.fake.running.load(Ordering::SeqCst), 0);
    crate::support::until(|| {
        let text = String::from_utf8(server.metrics.encode().unwrap()).unwrap();
        text.contains("hush_request_duration_seconds_count{code=\"499\",route=\"/asr\"} 1\n")
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_lets_running_requests_finish() {
    let server = Server::start(Fake::loading(golden())).await;
    let mut idle = server.connect().await;
    idle.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(idle.answer().await.body, "ok");
    let mut running = server.connect().await;
    running.write(&request()).await;
    server.until(|fake| fake.running.load(Ordering::SeqCst) == 1).await;
    server.shutdown.cancel();
    assert!(idle.closed().await);
    while TcpStream::connect(server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!server.served.is_finished());
    server.fake.gate.add_permits(1);
    let answer = running.answer().await;
    assert_eq!((answer.status.as_str(), answer.body.as_str()), ("200 OK", GOLDEN_SRT));
    assert!(running.closed().await);
    tokio::time::timeout(DEADLINE, server.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_shutdown_has_a_deadline() {
    let options = ServeOptions { drain_deadline: Duration::from_millis(50), ..ServeOptions::default() };
    let server = Server::with(Fake::loading(golden()), ApiConfig::default(), options).await;
    let mut running = server.connect().await;
    running.write(&request()).await;
    server.until(|fake| fake.running.load(Ordering::SeqCst) == 1).await;
    server.shutdown.cancel();
    tokio::time::timeout(DEADLINE, server.served).await.unwrap().unwrap();
    assert!(running.closed().await);
    assert_eq!(server.fake.cancelled.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let options = ServeOptions { head_timeout: Duration::from_millis(50), ..ServeOptions::default() };
    let server = Server::with(Fake::answering(golden()), ApiConfig::default(), options).await;
    let mut silent = server.connect().await;
    let mut halting = server.connect().await;
    halting.write(b"GET /heal").await;
    assert!(silent.closed().await);
    assert!(halting.closed().await);
}
