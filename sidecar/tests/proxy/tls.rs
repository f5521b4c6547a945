//! The listener for clients over TLS.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hush_access::Tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::app::{RawUpstreamApp, find};
use crate::client::{LONG, exchange, get, post};
use crate::fixture::{Fixture, counts, soon};
use crate::stalled_clients::{CHUNKED, STALL, assert_cut_off, chunk, flooding};

/// A certificate for 127.0.0.1, in files.
struct Certificate {
    folder: tempfile::TempDir,
    pem: String,
}

impl Certificate {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut certificate = Self { folder, pem: String::new() };
        certificate.renew();
        certificate
    }

    /// Writes another pair into the same files. Returns the certificate before.
    fn renew(&mut self) -> String {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        fs::write(self.folder.path().join("tls.key"), made.signing_key.serialize_pem()).unwrap();
        fs::write(self.folder.path().join("tls.crt"), made.cert.pem()).unwrap();
        std::mem::replace(&mut self.pem, made.cert.pem())
    }

    fn tls(&self) -> Tls {
        Tls::from_files(self.folder.path().join("tls.crt"), self.folder.path().join("tls.key")).unwrap()
    }
}

async fn connect(address: SocketAddr, trusted: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();

    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    timeout(LONG, TlsConnector::from(Arc::new(config)).connect(name, stream)).await.unwrap()
}

/// Reads until the text has come.
async fn until(stream: &mut TlsStream<TcpStream>, text: &str) -> String {
    let mut got = Vec::new();
    while find(&got, text.as_bytes()).is_none() {
        let read = timeout(LONG, stream.read_buf(&mut got)).await.expect("nothing came").unwrap();
        assert!(read > 0, "the connection ended: {:?}", String::from_utf8_lossy(&got));
    }
    String::from_utf8_lossy(&got).into_owned()
}

async fn with_tls(app: &RawUpstreamApp, certificate: &Certificate) -> Fixture {
    let tls = certificate.tls();
    Fixture::with(app.address, |options| options.settings.tls = Some(tls)).await
}

#[tokio::test]
async fn a_request_passes_and_the_app_learns_the_scheme() {
    let app = RawUpstreamApp::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let certificate = Certificate::new();
    let proxy = with_tls(&app, &certificate).await;

    let mut client = connect(proxy.address, &certificate.pem).await.unwrap();
    assert_eq!(client.get_ref().1.alpn_protocol(), None, "the client offers none");
    for _ in 0..2 {
        client.write_all(post("/v1/chat", r#"{"model":"tiny"}"#).as_bytes()).await.unwrap();
        assert!(until(&mut client, "\r\n\r\nok").await.starts_with("HTTP/1.1 200 OK\r\n"));
    }
    assert_eq!(app.seen().len(), 2);
    assert_eq!(app.seen()[0].header("x-forwarded-proto"), Some("https"));
    counts(&proxy.tiny(), 0, 0).await;
}

#[tokio::test]
async fn plain_requests_and_silent_clients_get_nothing_and_hold_up_no_other() {
    let app = RawUpstreamApp::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let certificate = Certificate::new();
    let proxy = with_tls(&app, &certificate).await;

    let _silent = TcpStream::connect(proxy.address).await.unwrap();
    let mut plain = TcpStream::connect(proxy.address).await.unwrap();
    plain.write_all(get("/v1/models").as_bytes()).await.unwrap();
    let mut got = Vec::new();
    // An alert of TLS, or a reset.
    let _ = timeout(LONG, plain.read_to_end(&mut got)).await.unwrap();
    assert!(find(&got, b"HTTP/").is_none(), "{got:?}");

    let mut client = connect(proxy.address, &certificate.pem).await.unwrap();
    client.write_all(get("/healthz").as_bytes()).await.unwrap();
    until(&mut client, "\r\n\r\nok").await;
    assert!(app.seen().is_empty());
}

#[tokio::test]
async fn an_answer_that_is_cut_has_no_clean_end() {
    for head in ["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", "HTTP/1.0 200 OK"] {
        let app = RawUpstreamApp::start(move |mut connection| async move {
            connection.request().await;
            let piece = if head.contains("chunked") { "2\r\nab\r\n" } else { "ab" };
            connection.send(format!("{head}\r\n\r\n{piece}")).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            connection.reset();
        })
        .await;
        let certificate = Certificate::new();
        let proxy = with_tls(&app, &certificate).await;

        let mut client = connect(proxy.address, &certificate.pem).await.unwrap();
        let version = if head.contains("1.0") { "1.0" } else { "1.1" };
        let request = format!("GET /v1/models HTTP/{version}\r\nHost: a\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        until(&mut client, "ab").await;

        let mut rest = Vec::new();
        let ended = timeout(LONG, client.read_to_end(&mut rest)).await.unwrap();
        assert!(ended.is_err() || !rest.ends_with(b"0\r\n\r\n") && version == "1.1", "{head}: {ended:?} {rest:?}");
    }
}

#[tokio::test]
async fn a_websocket_passes_both_ways_and_is_told_of_its_end() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        connection.head().await;
        let accepted = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        connection.send([&accepted[..], &[0x81, 5], b"hello"].concat()).await;
        // A masked frame of two bytes.
        let frame = connection.take(8).await.unwrap();
        assert_eq!(frame[..2], [0x81, 0x82]);
        connection.send([0x81, 2, b'o', b'k']).await;
        let large = vec![b'x'; 300_000];
        connection.send([&[0x82, 127, 0, 0, 0, 0, 0, 4, 0x93, 0xe0][..], &large].concat()).await;
        connection.closed().await;
    })
    .await;
    let certificate = Certificate::new();
    let proxy = with_tls(&app, &certificate).await;

    let mut client = connect(proxy.address, &certificate.pem).await.unwrap();
    let handshake = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    client.write_all(handshake.as_bytes()).await.unwrap();
    let opened = until(&mut client, "hello").await;
    assert!(opened.starts_with("HTTP/1.1 101 "), "{opened}");

    client.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).await.unwrap();
    let mut answer = vec![0; 4 + 10 + 300_000];
    timeout(LONG, client.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer[..4], [0x81, 2, b'o', b'k']);
    assert!(answer[14..].iter().all(|byte| *byte == b'x'));
    assert_eq!(proxy.metric("hush_open_websockets{kind=\"display\"} "), Some(1.0));

    proxy.proxy.shut_down();
    let mut rest = Vec::new();
    timeout(LONG, client.read_to_end(&mut rest)).await.unwrap().expect("TLS is told of the end");
    assert_eq!(rest, [0x88, 2, 0x03, 0xe9], "going away");
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let app = RawUpstreamApp::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let mut certificate = Certificate::new();
    let proxy = with_tls(&app, &certificate).await;

    let mut open = connect(proxy.address, &certificate.pem).await.unwrap();
    let before = certificate.renew();
    soon("the new certificate", || async { connect(proxy.address, &certificate.pem).await.is_ok() }).await;
    assert!(connect(proxy.address, &before).await.is_err());

    open.write_all(get("/healthz").as_bytes()).await.unwrap();
    until(&mut open, "\r\n\r\nok").await;
}

#[tokio::test]
async fn without_tls_the_scheme_is_http() {
    let app = RawUpstreamApp::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let proxy = Fixture::start(app.address).await;
    exchange(proxy.address, get("/v1/models")).await;
    assert_eq!(app.only().header("x-forwarded-proto"), Some("http"));
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_off() {
    let (app, has_ended) = flooding(CHUNKED, chunk()).await;
    let certificate = Certificate::new();
    let tls = certificate.tls();
    let proxy = Fixture::with(app.address, |options| {
        options.settings.tls = Some(tls);
        options.settings.client_stall = Some(STALL);
    })
    .await;

    let mut client = connect(proxy.address, &certificate.pem).await.unwrap();
    client.write_all(post("/v1/chat", "{}").as_bytes()).await.unwrap();
    until(&mut client, "xxxx").await;
    counts(&proxy.tiny(), 1, 0).await;

    assert_cut_off(&proxy, has_ended).await;
    let ended = timeout(LONG, client.read_to_end(&mut Vec::new())).await.unwrap();
    assert!(ended.is_err(), "{ended:?}");
}
