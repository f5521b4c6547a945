//! What strangers may send to a running server, and what it costs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use hush_tests::{Server, http, wait::wait_for};

const SOON: Duration = Duration::from_secs(60);

/// The status and the body of the answer to bytes that need not be a request.
fn answer(address: SocketAddr, bytes: &[u8]) -> Result<(u16, String)> {
    let mut stream = http::connect(address)?;
    stream.write_all(bytes)?;
    let response = http::read_response(&mut stream)?;
    let text = response.text();
    ensure!(response.header("content-type") == Some("application/json"), "no JSON: {text}");
    Ok((response.status, text))
}

#[test]
fn decoded_audio_has_a_budget_and_a_longest_duration() -> Result<()> {
    // The beginning of a file has room in it, and no more than 33 seconds.
    let server = Server::start(&["--max-decoded", "1MiB"])?;
    let refused = server.asr("?output=txt&language=en", "long-en.flac")?;
    assert_eq!(refused.status, 507, "{}", refused.text());
    assert!(refused.text().contains("--max-decoded"), "{}", refused.text());
    assert_eq!(refused.header("retry-after"), Some("30"));
    let served = server.asr("?output=txt&language=en", "en-1.wav")?;
    assert_eq!((served.status, served.text().trim()), (200, "Clean the light."));
    drop(server);

    let server = Server::start(&["--max-audio-duration", "40s"])?;
    let refused = server.asr("?output=txt&language=en", "long-en.flac")?;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains("longer than the limit of 40 s"), "{}", refused.text());
    assert_eq!(server.asr("?output=txt&language=en", "en-1.wav")?.status, 200);
    Ok(())
}

#[test]
fn a_full_listener_answers_probes_and_the_other_listener_answers_everything() -> Result<()> {
    let server = Server::start(&["--max-connections", "4"])?;
    let upload = b"POST /asr HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\
                   Content-Type: multipart/form-data; boundary=B\r\n\r\n--B";
    let mut stalled: Vec<TcpStream> = Vec::new();
    for _ in 0..4 {
        let mut stream = http::connect(server.api)?;
        stream.write_all(upload)?;
        stalled.push(stream);
    }
    wait_for("the listener is full", SOON, || {
        let (status, body) = answer(server.api, b"GET /v1/models HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")?;
        Ok((status == 503 && body.contains("too_many_connections")).then_some(()))
    })?;
    assert_eq!(http::get(server.api, "/healthz")?.status, 200);
    assert_eq!(http::get(server.api, "/readyz")?.status, 200);
    assert_eq!(http::get(server.ops, "/healthz")?.status, 200);
    assert_eq!(http::get(server.ops, "/metrics")?.status, 200);
    drop(stalled);
    wait_for("places come back", SOON, || Ok((http::get(server.api, "/v1/models")?.status == 200).then_some(())))?;
    // Connections that say nothing keep no client out.
    let silent = [(); 4].map(|()| http::connect(server.api));
    wait_for("silent ones make room", SOON, || Ok((http::get(server.api, "/v1/models")?.status == 200).then_some(())))?;
    for stream in silent {
        let mut stream = stream?;
        stream.set_read_timeout(Some(Duration::from_millis(1)))?;
        let _ = stream.read(&mut [0; 1]);
    }
    Ok(())
}

#[test]
fn requests_without_a_clear_head_are_refused_by_both_listeners() -> Result<()> {
    let server = Server::start(&[])?;
    for (address, path) in [(server.api, "/asr"), (server.api, "/v1/models"), (server.ops, "/admin/v1/models")] {
        for head in [
            format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n"),
            format!("GET {path} HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n"),
            format!("GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n"),
            format!("GET {path}/%ff HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
            format!("GET {path} HTTP/1.1\r\nno header\r\n\r\n"),
        ] {
            let (status, body) = answer(address, head.as_bytes())?;
            assert_eq!(status, 400, "{head}: {body}");
            let body: serde_json::Value = serde_json::from_str(&body)?;
            let is_shaped = match path {
                "/asr" => body["detail"].is_string(),
                "/v1/models" => body["error"]["message"].is_string(),
                _ => body["code"].is_string() && body["message"].is_string(),
            };
            assert!(is_shaped, "{head}: {body}");
        }
    }
    Ok(())
}
