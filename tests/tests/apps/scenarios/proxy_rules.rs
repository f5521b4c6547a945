//! What passes through to an app, what waits, and what does not.

use std::time::Duration;

use anyhow::{Context, Result};
use hush_tests::apps::standins::{JournalEvent, StandInKind};
use hush_tests::apps::{AppCall, ClientSocket, post};
use hush_tests::http;
use hush_tests::wait::wait_for;
use serde_json::{Value, json};

use super::fixture::{Governed, LONG_DRAIN, SHORT_DRAIN, Subject};
use crate::support::SOON;

fn governed(kind: StandInKind) -> Result<Governed> {
    Subject::StandIn(kind).govern()?.context("a stand-in is always here")
}

/// Method and path of everything that reached the app.
fn reached(governed: &Governed) -> Result<Vec<String>> {
    let entries = governed.journal()?.into_iter();
    Ok(entries
        .filter_map(|entry| match entry.event {
            JournalEvent::Request { method, path, .. } => Some(format!("{method} {path}")),
            _ => None,
        })
        .collect())
}

#[test]
fn a_clients_keep_alive_is_cut_out_and_no_other_byte_is_touched() -> Result<()> {
    let governed = governed(StandInKind::Ollama)?;
    governed.make_ready()?;
    let odd = r#"{"model" : "tiny","options":{"num_predict":1,"keep_alive":"nested"}, "keep_alive" : 0 ,"prompt":"x", "seed": 1.0e0,"stream":false}"#;
    let call = AppCall { body: odd.into(), ..AppCall::json("/api/generate", &Value::Null) };
    assert_eq!(governed.send(&call)?.status, 200);

    let seen = governed.journal()?.into_iter().find_map(|entry| match entry.event {
        JournalEvent::Request { body_text: Some(body), .. } if body.contains("1.0e0") => Some(body),
        _ => None,
    });
    let seen = seen.context("the request did not arrive")?;
    let parsed: Value = serde_json::from_str(&seen)?;
    assert_eq!(parsed["keep_alive"], Value::Null, "{seen}");
    for kept in [
        r#"{"model" : "tiny""#,
        r#""options":{"num_predict":1,"keep_alive":"nested"}"#,
        r#""prompt":"x", "seed": 1.0e0,"stream":false}"#,
    ] {
        assert!(seen.contains(kept), "{kept} in {seen}");
    }
    std::thread::sleep(Duration::from_secs(1));
    governed.wait_until_app_has_model(true)?;
    governed.assert_no_violation()
}

#[test]
fn commands_of_clients_do_not_unload() -> Result<()> {
    let cases = [
        (StandInKind::LlamaServer, AppCall::json("/models/unload", &json!({"model": "tiny"}))),
        (StandInKind::Vllm, AppCall::json("/sleep?level=1", &json!({}))),
        (StandInKind::Sglang, AppCall::json("/release_memory_occupation", &json!({}))),
        (StandInKind::Sglang, AppCall::get("/release_memory_occupation")),
        (StandInKind::Triton, AppCall::json("/v2/repository/models/tiny/unload", &json!({}))),
        (StandInKind::Comfyui, AppCall::json("/free", &json!({"unload_models": true}))),
        (StandInKind::Comfyui, AppCall::json("/api/free", &json!({"unload_models": true}))),
        (StandInKind::Localai, AppCall::json("/backend/shutdown", &json!({"model": "tiny"}))),
        (StandInKind::Speaches, AppCall { method: "DELETE", ..AppCall::get("/api/ps/Systran/faster-whisper-tiny") }),
        (StandInKind::A1111, AppCall::json("/sdapi/v1/unload-checkpoint", &json!({}))),
    ];
    for (kind, call) in cases {
        let governed = governed(kind)?;
        governed.make_ready()?;
        let answer = governed.send(&call)?;
        assert!((400..500).contains(&answer.status), "{kind:?} {}: {}", call.path, answer.status);
        std::thread::sleep(Duration::from_millis(300));
        governed.wait_until_app_has_model(true)?;
        governed.assert_no_violation()?;
    }
    Ok(())
}

#[test]
fn reads_that_would_load_are_not_forwarded_while_the_model_is_away() -> Result<()> {
    let governed = governed(StandInKind::LlamaServer)?;
    governed.make_away()?;
    for path in ["/metrics?model=tiny", "/slots?model=tiny&autoload=true", "/props?model=tiny&autoload=1", "/anything"]
    {
        let answer = http::get(governed.sidecar()?.api, path)?;
        // Forwarded or not: the app must not be asked in a way that makes it load.
        assert!(answer.status >= 400, "{path}: {} {}", answer.status, answer.text());
        assert!(!reached(&governed)?.iter().any(|seen| seen.contains("autoload=t") || seen.contains("autoload=1")));
    }
    assert_eq!(governed.sidecar()?.state()?, "unloaded");
    governed.assert_no_violation()
}

#[test]
fn lists_are_served_while_the_model_is_away() -> Result<()> {
    for (kind, path) in [
        (StandInKind::Ollama, "/api/tags"),
        (StandInKind::Ollama, "/v1/models"),
        (StandInKind::LlamaServer, "/v1/models"),
        (StandInKind::Vllm, "/v1/models"),
        (StandInKind::Comfyui, "/object_info"),
    ] {
        let governed = governed(kind)?;
        governed.make_away()?;
        let answer = http::get(governed.sidecar()?.api, path)?;
        assert_eq!(answer.status, 200, "{kind:?} {path}: {}", answer.text());
        assert_eq!(governed.sidecar()?.state()?, "unloaded");
        governed.assert_no_violation()?;
    }
    Ok(())
}

#[test]
fn probes_are_answered_without_the_app() -> Result<()> {
    let governed = governed(StandInKind::Sglang)?;
    for _ in 0..5 {
        assert_eq!(http::get(governed.sidecar()?.api, "/healthz")?.status, 200);
        assert_eq!(http::get(governed.sidecar()?.api, "/readyz")?.status, 200);
    }
    governed.make_away()?;
    // The app's own probe would generate on memory that is released.
    let _ = http::get(governed.sidecar()?.api, "/health")?;
    assert!(!reached(&governed)?.iter().any(|seen| seen.contains("/health")));
    governed.assert_no_violation()
}

#[test]
fn an_unknown_model_is_refused_without_the_app() -> Result<()> {
    for kind in [StandInKind::Ollama, StandInKind::LlamaServer, StandInKind::Localai] {
        let governed = governed(kind)?;
        let call = AppCall::json("/v1/chat/completions", &json!({"model": "nothing", "messages": []}));
        let answer = governed.send(&call)?;
        assert_eq!(answer.status, 404, "{kind:?}: {}", answer.text());
        assert!(answer.json()?["error"]["message"].as_str().is_some_and(|text| text.contains("nothing")));
        assert!(!reached(&governed)?.iter().any(|seen| seen.contains("completions")));
    }
    Ok(())
}

#[test]
fn the_host_that_ollama_sees_is_its_own() -> Result<()> {
    let governed = governed(StandInKind::Ollama)?;
    let api = governed.sidecar()?.api;
    let request = "GET /api/version HTTP/1.1\r\nHost: chat.example.org\r\nConnection: close\r\n\r\n";
    assert_eq!(http::exchange(api, request.as_bytes())?.status, 200);
    governed.assert_no_violation()
}

#[test]
fn a_display_socket_stays_open_over_an_unload() -> Result<()> {
    let governed = governed(StandInKind::Comfyui)?;
    governed.make_ready()?;
    let mut socket = ClientSocket::open(governed.sidecar()?.api, "/ws?clientId=1")?;
    assert!(socket.receive(SOON)?.is_some_and(|event| event.contains("status")));
    governed.wait_until_idle()?;
    governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;

    governed.short()?;
    wait_for("the socket tells of the next prompt", SOON, || {
        let event = socket.receive(SOON)?.context("the socket was closed")?;
        Ok(event.contains("executing").then_some(()))
    })?;
    governed.assert_no_violation()
}

#[test]
fn a_work_socket_keeps_its_model_while_it_works() -> Result<()> {
    let mut governed = governed(StandInKind::Vllm)?;
    governed.kill_sidecar()?;
    governed.start_sidecar(&["--socket-idle", "2s"])?;
    governed.sidecar()?.wait_until_ready()?;
    governed.make_away()?;
    let mut socket = ClientSocket::open(governed.sidecar()?.api, "/v1/realtime")?;
    socket.send("hello")?;
    assert_eq!(socket.receive(SOON)?.as_deref(), Some("hello"), "the handshake waited for the model");
    let refused = governed.sidecar()?.unload(&json!({"drain_seconds": SHORT_DRAIN}))?;
    assert_eq!(refused.status, 409, "{}", refused.text());
    socket.send("again")?;
    assert_eq!(socket.receive(SOON)?.as_deref(), Some("again"));
    drop(socket);
    governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    governed.assert_no_violation()
}

/// 64 MiB; with HUSH_APPS_LONG the whole GiB.
fn upload_bytes() -> usize {
    if std::env::var_os("HUSH_APPS_LONG").is_some() { 1 << 30 } else { 64 << 20 }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_large_upload_waits_for_its_model_and_arrives_byte_for_byte() -> Result<()> {
    const BOUNDARY: &str = "------------------------0123456789abcdef";

    let governed = governed(StandInKind::Speaches)?;
    governed.make_ready()?;
    let held = governed.sidecar()?.unload(&json!({"drain_seconds": 5, "hold_seconds": 4}))?;
    assert_eq!(held.status, 200, "{}", held.text());

    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nSystran/faster-whisper-tiny\r\n\
         --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"long.wav\"\r\n\r\n"
    );
    let mut body = head.into_bytes();
    body.extend((0..upload_bytes()).map(|index| (index % 251) as u8));
    body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    let expected = hexadecimal(ring::digest::digest(&ring::digest::SHA256, &body).as_ref());
    let call = AppCall {
        method: "POST",
        path: "/v1/audio/transcriptions".to_owned(),
        content_type: "multipart/form-data; boundary=------------------------0123456789abcdef",
        body,
    };
    let answer = post(governed.sidecar()?.api, &call, &["X-Test-Marker: large"])?;
    assert_eq!(answer.status, 200, "{}", answer.text());

    let seen = governed.journal()?.into_iter().find_map(|entry| match entry.event {
        JournalEvent::Request { marker: Some(marker), body_sha256, .. } if marker == "large" => Some(body_sha256),
        _ => None,
    });
    assert_eq!(seen.as_deref(), Some(expected.as_str()));
    governed.assert_no_violation()
}

#[test]
fn other_options_that_restart_the_runner_are_seen_as_a_new_generation() -> Result<()> {
    let governed = governed(StandInKind::Ollama)?;
    governed.make_ready()?;
    let before = governed.sidecar()?.generation()?;
    let call = AppCall::json(
        "/api/generate",
        &json!({"model": "tiny", "prompt": "x", "stream": false,
        "options": {"num_ctx": 512, "num_predict": 1}}),
    );
    assert_eq!(governed.send(&call)?.status, 200);
    let sidecar = governed.sidecar()?;
    sidecar.wait_for_status("a new generation", SOON, |status| status["generation"].as_u64() > Some(before))?;
    governed.assert_no_violation()
}

#[test]
fn the_work_of_comfyui_ends_with_its_queue_not_with_its_answer() -> Result<()> {
    let governed = governed(StandInKind::Comfyui)?;
    governed.make_ready()?;
    let answer = governed.send(&governed.app.long_call().call)?;
    assert_eq!(answer.status, 200);
    let refused = governed.sidecar()?.unload(&json!({"if_idle_seconds": 0}))?;
    assert_eq!(refused.status, 409, "the answer is there, the work goes on: {}", refused.text());
    governed.assert_complete(&answer)?;
    governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    governed.assert_no_violation()
}
