//! TLS on a listener, with certificates that rotate while requests run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod https;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use https::{HttpsListener, LoopbackCertificate, connect};
use hush_server::serve::Tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_secs(30);

fn router() -> Router {
    Router::new().route("/healthz", get(|| async { "ok" }))
}

/// One request on one connection; the certificate that answered.
async fn ask(server: &HttpsListener, trusted: &[&LoopbackCertificate]) -> std::io::Result<Vec<u8>> {
    let mut stream = connect(server.address, trusted).await?;
    let request = "GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    let (_, session) = stream.get_ref();
    assert_eq!(session.alpn_protocol(), Some(b"http/1.1".as_slice()));
    Ok(session.peer_certificates().unwrap()[0].to_vec())
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_pair_is_used_for_new_connections_and_no_request_is_lost() {
    let server = Arc::new(HttpsListener::start(router()).await);
    let first = Arc::new(LoopbackCertificate { certificate: server.certificate().to_owned(), key: String::new() });
    let second = Arc::new(LoopbackCertificate::new());
    let done = Arc::new(AtomicBool::new(false));
    let load = (0..4).map(|_| {
        let (server, first, second, done) = (server.clone(), first.clone(), second.clone(), done.clone());
        tokio::spawn(async move {
            let mut answered = 0;
            while !done.load(Ordering::Relaxed) {
                ask(&server, &[&first, &second]).await.unwrap();
                answered += 1;
            }
            answered
        })
    });
    let load: Vec<_> = load.collect();
    // A connection from before goes on.
    let mut kept = connect(server.address, &[&first]).await.unwrap();
    second.write(server.dir.path());
    until("the new certificate answers", async || ask(&server, &[&first, &second]).await.unwrap() == second.der())
        .await;
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    kept.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("ok"), "{answer}");
    done.store(true, Ordering::Relaxed);
    for task in load {
        assert!(task.await.unwrap() > 0);
    }
}

/// As Kubernetes does it: `tls.crt -> ..data/tls.crt`, and `..data` is swapped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swapped_directory_is_seen_and_a_broken_pair_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (LoopbackCertificate::new(), LoopbackCertificate::new());
    for (name, pair) in [("one", &first), ("two", &second)] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        pair.write(&dir.path().join(name));
    }
    std::fs::create_dir(dir.path().join("broken")).unwrap();
    LoopbackCertificate { certificate: second.certificate.clone(), key: first.key.clone() }
        .write(&dir.path().join("broken"));
    std::os::unix::fs::symlink("one", dir.path().join("..data")).unwrap();
    let swap = |to: &str| {
        std::os::unix::fs::symlink(to, dir.path().join("..new")).unwrap();
        std::fs::rename(dir.path().join("..new"), dir.path().join("..data")).unwrap();
    };
    for name in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(Path::new("..data").join(name), dir.path().join(name)).unwrap();
    }
    let tls = Tls::from_files(dir.path().join("tls.crt"), dir.path().join("tls.key")).unwrap();
    let server = HttpsListener::with(router(), tls).await;
    assert_eq!(ask(&server, &[&first]).await.unwrap(), first.der());
    swap("broken");
    // Longer than it takes to look again.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(ask(&server, &[&first]).await.unwrap(), first.der(), "the old pair stays");
    swap("two");
    until("the new certificate answers", async || ask(&server, &[&first, &second]).await.unwrap() == second.der())
        .await;
}

#[tokio::test]
async fn what_is_no_pair_is_said_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (LoopbackCertificate::new(), LoopbackCertificate::new());
    let (certificate, key) = one.write(dir.path());
    assert!(Tls::from_files(certificate.clone(), key.clone()).is_ok());
    let refused = |says: &str| {
        let error = Tls::from_files(certificate.clone(), key.clone()).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("tls.crt"), "{error}");
    };
    std::fs::write(&key, &other.key).unwrap();
    refused("tls.key");
    std::fs::write(&key, "nothing").unwrap();
    refused("no key");
    std::fs::write(&certificate, "nothing").unwrap();
    refused("no certificate");
    std::fs::remove_file(&certificate).unwrap();
    refused("cannot be read");
}

#[tokio::test]
async fn a_client_without_tls_gets_no_answer_and_delays_no_other() {
    let server = HttpsListener::start(router()).await;
    let first = LoopbackCertificate { certificate: server.certificate().to_owned(), key: String::new() };
    // One says nothing at all, one speaks plain HTTP.
    let _silent = TcpStream::connect(server.address).await.unwrap();
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // An alert, or a reset.
    let _ = tokio::time::timeout(DEADLINE, plain.read_to_end(&mut answer)).await.unwrap();
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1"), "{answer:?}");
    ask(&server, &[&first]).await.unwrap();
    assert!(
        connect(server.address, &[&LoopbackCertificate::new()]).await.is_err(),
        "a stranger's certificate is not trusted"
    );
}
