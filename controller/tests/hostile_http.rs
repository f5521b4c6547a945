//! The controller's listener with clients that do not keep to HTTP, and with too many of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hush_controller::control_loop::{LoopSnapshot, Readiness};
use hush_controller::metrics::ControllerMetrics;
use hush_controller::web::{self, AllowedHosts, WebState};
use hush_controller::{listen, ops};
use hush_listener::ListenOptions;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

const DEADLINE: Duration = Duration::from_secs(30);

/// Shorter than the program's own limit.
const HEAD_TIMEOUT: Duration = Duration::from_millis(500);

async fn start(max_connections: usize) -> SocketAddr {
    let metrics = Arc::new(ControllerMetrics::new().unwrap());
    let (_, snapshots) = watch::channel(Arc::new(LoopSnapshot::empty()));
    let (ask, _) = mpsc::channel(1);
    let hosts = AllowedHosts { names: vec!["a".to_owned()], listener: Ipv4Addr::LOCALHOST.into() };
    let web = web::router(WebState::new(snapshots, ask, Arc::clone(&metrics), None, hosts));
    let router = ops::router(metrics, Readiness::default()).merge(web);
    let options = ListenOptions { max_connections, head_timeout: HEAD_TIMEOUT, ..listen::LISTEN_OPTIONS };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(listen::serve(listener, router, options));
    address
}

/// The head of the answer in lower case, and the body.
async fn send(address: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
}

#[tokio::test]
async fn every_error_is_an_object_with_a_code() {
    let address = start(8).await;
    let close = "Connection: close\r\n\r\n";
    for (request, status) in [
        (format!("GET /api/v1/state HTTP/1.1\r\n{close}"), 400),
        (format!("GET /api/v1/state HTTP/1.1\r\nHost: a\r\nHost: b\r\n{close}"), 400),
        (format!("POST /api/v1/load HTTP/1.1\r\nHost: a\r\nX-Hush-Token: a\r\nX-Hush-Token: b\r\n{close}"), 400),
        (format!("GET /ui/%ff HTTP/1.1\r\nHost: a\r\n{close}"), 400),
        (format!("GET /nope HTTP/1.1\r\nHost: a\r\n{close}"), 404),
        (format!("GET /ui/nope.js HTTP/1.1\r\nHost: a\r\n{close}"), 404),
        (format!("DELETE /api/v1/state HTTP/1.1\r\nHost: a\r\n{close}"), 405),
        (format!("BREW /metrics HTTP/1.1\r\nHost: a\r\n{close}"), 405),
        ("GET / HTTP/1.1\r\nbad header\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(200_000)), 431),
    ] {
        let (found, head, body) = send(address, &request).await;
        let about = request.chars().take(60).collect::<String>();
        assert_eq!(found, status, "{about}");
        assert!(head.contains("content-type: application/json"), "{about}: {head}");
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{about}: {error}: {body}"));
        assert!(body["code"].is_string() && body["message"].is_string(), "{about}: {body}");
    }
}

#[tokio::test]
async fn too_many_connections_are_told_so_and_probes_are_answered() {
    let address = start(2).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut begun = [0; 12];
        stream.read_exact(&mut begun).await.unwrap();
        assert_eq!(&begun, b"HTTP/1.1 200");
        held.push(stream);
    }

    let (status, head, body) = send(address, "GET /api/v1/state HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(status, 503);
    assert!(head.contains("retry-after: 5") && body.contains("too_many_connections"), "{head} {body}");
    let (status, ..) = send(address, "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(status, 200);
    drop(held);
    let served = tokio::time::timeout(DEADLINE, async {
        while send(address, "GET /api/v1/state HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    served.await.expect("the connections did not become free");
}

#[tokio::test]
async fn a_head_that_does_not_come_is_answered_with_408() {
    let address = start(2).await;
    let began = Instant::now();
    let (status, _, body) = send(address, "GET /api/v1/state HTTP/1.1\r\nX: ").await;
    assert_eq!(status, 408);
    assert!(body.contains("request_timeout"), "{body}");
    assert!(began.elapsed() >= HEAD_TIMEOUT, "{:?}", began.elapsed());
}
