//! Clients that leave, and a server that ends.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hush_server::api::ApiConfig;
use hush_server::serve::ServeOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{ApiFixture, DEADLINE, FakeModel, GOLDEN_SRT, audio_file, golden, half_a_second, post};

fn request() -> Vec<u8> {
    post("/asr?encode=false&output=srt", "multipart/form-data; boundary=B", &audio_file(&half_a_second()))
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_work() {
    let server = ApiFixture::start(FakeModel::loading(golden())).await;
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

/// RFC 9112, 9.6: a connection may be closed on one side.
#[tokio::test]
async fn a_client_that_closes_its_sending_side_gets_its_answer() {
    let server = ApiFixture::start(FakeModel::loading(golden())).await;
    let mut client = server.connect().await;
    client.write(&request()).await;
    client.stream.shutdown().await.unwrap();
    server.until(|fake| fake.running.load(Ordering::SeqCst) == 1).await;
    server.fake.gate.add_permits(1);
    let answer = client.answer().await;
    assert_eq!((answer.status.as_str(), answer.body.as_str()), ("200 OK", GOLDEN_SRT));
    assert!(client.closed().await);
}

/// After a second the server asks whether the client is still connected, by a line that clients skip.
#[tokio::test]
async fn a_half_closed_connection_may_wait_long_for_its_answer() {
    let server = ApiFixture::start(FakeModel::loading(golden())).await;
    let mut client = server.connect().await;
    client.write(&request()).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.head().await.status, "100 Continue");
    // Longer than the server takes to see a client that is gone.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.fake.running.load(Ordering::SeqCst), 1);
    server.fake.gate.add_permits(1);
    let answer = client.answer().await;
    assert_eq!((answer.status.as_str(), answer.body.as_str()), ("200 OK", GOLDEN_SRT));
    assert!(client.closed().await);
}

/// HTTP/1.0 has no interim responses.
#[tokio::test]
async fn a_half_closed_connection_of_http_1_0_gets_nothing_but_its_answer() {
    let server = ApiFixture::start(FakeModel::loading(golden())).await;
    let mut client = server.connect().await;
    client.write(String::from_utf8_lossy(&request()).replace(" HTTP/1.1\r\n", " HTTP/1.0\r\n").as_bytes()).await;
    client.stream.shutdown().await.unwrap();
    server.until(|fake| fake.running.load(Ordering::SeqCst) == 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.fake.gate.add_permits(1);
    let mut answer = String::new();
    client.stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with(GOLDEN_SRT), "{answer}");
}

#[tokio::test]
async fn a_client_that_closes_in_the_middle_of_its_request_is_gone() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let mut client = server.connect().await;
    let request = request();
    client.write(&request[..request.len() - 5000]).await;
    client.stream.shutdown().await.unwrap();
    client.closed().await;
    crate::support::until(|| {
        let text = String::from_utf8(server.metrics.encode().unwrap()).unwrap();
        text.contains("hush_request_duration_seconds_count{code=\"400\",route=\"/asr\"} 1\n")
            || text.contains("hush_request_duration_seconds_count{code=\"499\",route=\"/asr\"} 1\n")
    })
    .await;
    assert_eq!(server.fake.running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_shutdown_lets_running_requests_finish() {
    let server = ApiFixture::start(FakeModel::loading(golden())).await;
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
    let server = ApiFixture::with(FakeModel::loading(golden()), ApiConfig::default(), options).await;
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
    let options = ServeOptions { idle_timeout: Duration::from_millis(50), ..ServeOptions::default() };
    let server = ApiFixture::with(FakeModel::answering(golden()), ApiConfig::default(), options).await;
    let mut silent = server.connect().await;
    let mut halting = server.connect().await;
    halting.write(b"GET /heal").await;
    assert!(silent.closed().await);
    assert!(halting.closed().await);
}
