//! The admin API of a real server process with the bundled model: what a controller and an operator do.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hush_tests::{Server, fixtures, http, wait::wait_for};
use serde_json::{Value, json};

const LOAD: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(60);

/// `token`: of the operator; empty for none.
fn post(ops: SocketAddr, command: &str, body: &Value, token: &str) -> Result<http::Response> {
    let (body, model) = (body.to_string(), fixtures::MODEL);
    let authorization = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let request = format!(
        "POST /admin/v1/models/{model}/{command} HTTP/1.1\r\nHost: {ops}\r\nContent-Type: application/json\r\n\
         {authorization}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    http::exchange(ops, request.as_bytes())
}

fn command(server: &Server, command: &str, body: &Value) -> Result<http::Response> {
    post(server.ops, command, body, "")
}

fn refused(answer: &http::Response, status: u16, code: &str) -> Result<()> {
    ensure!(answer.status == status && answer.json()?["code"] == code, "{} {}", answer.status, answer.text());
    Ok(())
}

/// The one model, as the listing has it.
fn listed(server: &Server) -> Result<Value> {
    Ok(http::get(server.ops, "/admin/v1/models")?.json()?["models"][0].clone())
}

#[test]
fn an_idle_model_is_unloaded_by_its_condition() -> Result<()> {
    let server = Server::start(&["--idle-timeout", "0"])?;
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    let model = listed(&server)?;
    assert_eq!((&model["state"], &model["generation"]), (&json!("ready"), &json!(1)), "{model}");
    assert_eq!(
        (&model["device"], &model["precision"], &model["residency"]),
        (&json!("cpu"), &json!("int8"), &json!("idle"))
    );
    let unload = json!({"if_generation": 1, "if_idle_seconds": 1.5, "drain_seconds": 5, "reason": "IdleTimeout", "policy": "speech/quiet"});
    refused(&command(&server, "unload", &unload)?, 409, "not_idle")?;
    wait_for("the model is idle for long enough", SOON, || {
        Ok(listed(&server)?["idle_seconds"].as_f64().filter(|idle| *idle > 1.5))
    })?;
    let answer = command(&server, "unload", &unload)?;
    let report = answer.json()?;
    assert_eq!((answer.status, &report["outcome"], &report["generation"]), (200, &json!("unloaded"), &json!(1)));
    assert!(report["exit_seconds"].as_f64().is_some_and(|seconds| seconds < 5.0), "{report}");
    assert!(server.runners()?.is_empty(), "nothing of the model is left");
    refused(&command(&server, "unload", &unload)?, 409, "not_loaded")?;
    let model = format!("model=\"{}\"", fixtures::MODEL);
    for (series, expected) in [
        (format!("hush_model_unloads_total{{{model},reason=\"IdleTimeout\"}}"), 1.0),
        (format!("hush_model_unload_refused_total{{{model},reason=\"not_idle\"}}"), 1.0),
        (format!("hush_model_unload_refused_total{{{model},reason=\"not_loaded\"}}"), 1.0),
    ] {
        assert_eq!(server.metric(&series)?, Some(expected), "{series}");
    }
    Ok(())
}

#[test]
fn a_busy_model_is_left_alone_under_soft_pressure_and_drained_under_hard() -> Result<()> {
    let server = Server::start(&["--idle-timeout", "0"])?;
    let (api, content) = (server.api, fixtures::audio("long-en.flac")?);
    let request = std::thread::spawn(move || http::upload(api, "/asr?language=en", "long-en.flac", &content));
    server.wait_for_metric("hush_model_inflight_requests{model=\"hush-tiny\"}", 1.0, LOAD)?;
    refused(&command(&server, "unload", &json!({"if_idle_seconds": 0, "reason": "SoftPressure"}))?, 409, "busy")?;
    refused(&command(&server, "unload", &json!({"if_generation": 7}))?, 409, "generation_changed")?;
    let answer =
        command(&server, "unload", &json!({"if_generation": 1, "drain_seconds": 300, "reason": "HardPressure"}))?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.json()?["drain_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{}", answer.text());
    let transcript = request.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    assert_eq!(transcript.status, 200, "what was in flight has ended first");
    Ok(())
}

#[test]
fn a_hold_keeps_the_model_away_until_it_expires() -> Result<()> {
    let server = Server::start(&["--idle-timeout", "0"])?;
    assert_eq!(command(&server, "load", &json!({}))?.status, 200);
    assert_eq!(command(&server, "unload", &json!({"hold_seconds": 3, "reason": "HardPressure"}))?.status, 200);
    let held = Instant::now();
    let load = command(&server, "load", &json!({}))?;
    refused(&load, 409, "held")?;
    assert!(load.header("retry-after").is_some());
    let (api, content) = (server.api, fixtures::audio("en-1.wav")?);
    let request = std::thread::spawn(move || http::upload(api, "/asr?language=en", "en-1.wav", &content));
    server.wait_for_state("waiting_for_memory", SOON)?;
    assert!(listed(&server)?["hold_remaining_seconds"].as_f64().is_some_and(|left| left > 0.0));
    let answer = request.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    assert_eq!(answer.status, 200, "the client was held, not refused");
    assert!(held.elapsed() > Duration::from_millis(2500), "it was loaded {:?} into the hold", held.elapsed());
    Ok(())
}

/// Reads `model` events until the model is in `last`.
fn states_until(events: &mut impl BufRead, last: &str) -> Result<Vec<String>> {
    let mut states = Vec::new();
    loop {
        let mut line = String::new();
        if events.read_line(&mut line)? == 0 {
            bail!("the stream ended after {states:?}");
        }
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let event: Value = serde_json::from_str(data)?;
        let Some(state) = event["model"]["state"].as_str() else { continue };
        if event["from"] != state {
            states.push(state.to_owned());
            if state == last {
                return Ok(states);
            }
        }
    }
}

#[test]
fn a_life_is_seen_as_events_in_order() -> Result<()> {
    let server = Server::start(&["--idle-timeout", "1s"])?;
    let mut stream = http::connect(server.ops)?;
    stream.write_all(format!("GET /admin/v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", server.ops).as_bytes())?;
    let mut events = BufReader::new(stream);
    // The head of the answer and the snapshot come first.
    loop {
        let mut line = String::new();
        ensure!(events.read_line(&mut line)? > 0, "no snapshot");
        if line.starts_with("data: ") {
            ensure!(line.contains("\"type\":\"snapshot\"") && line.contains("unloaded"), "{line}");
            break;
        }
    }
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    assert_eq!(states_until(&mut events, "unloaded")?, ["loading", "ready", "unloading", "unloaded"]);
    Ok(())
}

#[test]
fn a_token_file_guards_the_admin_api_and_nothing_else() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("tokens");
    std::fs::write(&path, "ops 0123456789abcdef0123456789abcdef\n")?;
    let path = path.to_str().context("the path is not UTF-8")?;
    let server = Server::start(&["--admin-token-file", path, "--ops-listen", "0.0.0.0:0"])?;
    let ops = SocketAddr::from(([127, 0, 0, 1], server.ops.port()));
    refused(&post(ops, "load", &json!({}), "")?, 401, "unauthenticated")?;
    refused(&post(ops, "load", &json!({}), "0123456789abcdef0123456789abcdee")?, 401, "invalid_token")?;
    refused(&http::get(ops, "/admin/v1/models")?, 401, "unauthenticated")?;
    assert_eq!(http::get(ops, "/metrics")?.status, 200);
    assert_eq!(post(ops, "load", &json!({}), "0123456789abcdef0123456789abcdef")?.status, 200);
    let log = server.log().join("\n");
    assert!(log.contains("token:ops") && !log.contains("0123456789abcdef"), "the name is logged, the token is not");
    Ok(())
}

#[test]
fn without_a_credential_a_listener_on_every_address_refuses_commands() -> Result<()> {
    let server = Server::start(&["--ops-listen", "0.0.0.0:0"])?;
    let ops = SocketAddr::from(([127, 0, 0, 1], server.ops.port()));
    refused(&post(ops, "load", &json!({}), "")?, 403, "forbidden")?;
    assert_eq!(http::get(ops, "/metrics")?.status, 200);
    assert!(server.runners()?.is_empty());
    Ok(())
}

#[test]
fn the_log_has_one_line_for_a_request_with_all_its_phases() -> Result<()> {
    let server = Server::start(&["--log-level", "info,hush_server::runner::child=debug"])?;
    let content = fixtures::audio("en-1.wav")?;
    let bytes = http::upload_bytes(server.api, "/asr?language=en", "en-1.wav", &content);
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let at = head.find("\r\n").context("no request line")? + 2;
    let request = [&bytes[..at], b"X-Request-Id: trace-me-1\r\n", &bytes[at..]].concat();
    let answer = http::exchange(server.api, &request)?;
    assert_eq!((answer.status, answer.header("x-request-id")), (200, Some("trace-me-1")));
    let lines = wait_for("the line of the request", SOON, || {
        let lines: Vec<Value> = server.log().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let of_request =
            lines.into_iter().filter(|line| line["span"]["id"] == "trace-me-1" && line["message"] == "answered");
        let lines: Vec<Value> = of_request.collect();
        Ok((!lines.is_empty()).then_some(lines))
    })?;
    assert_eq!(lines.len(), 1);
    let line = &lines[0];
    for field in [
        "seconds",
        "audio_seconds",
        "upload_seconds",
        "audio_decode_seconds",
        "cold_start_seconds",
        "mel_seconds",
        "encode_seconds",
        "prefill_seconds",
        "first_token_seconds",
        "decode_seconds",
    ] {
        assert!(line[field].as_f64().is_some_and(|seconds| seconds >= 0.0), "{field} in {line}");
    }
    assert_eq!((&line["model"], &line["generation"], &line["status"]), (&json!("hush-tiny"), &json!(1), &json!(200)));
    assert_eq!((&line["client_gone"], line.get("retries")), (&json!(false), None));
    let of_runner = |line: &Value| line["message"] == "work begins" && line["span"]["id"] == "trace-me-1";
    let mut log = server.log().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    assert!(log.any(|line| of_runner(&line)), "the runner's lines carry the id too");
    // The next one finds it loaded.
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    wait_for("the line of the second request", SOON, || {
        let mut lines = server.log().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        Ok(lines.rfind(|line| line["message"] == "answered" && line.get("queue_seconds").is_some()))
    })?;
    Ok(())
}

#[test]
fn a_request_that_holds_the_model_for_too_long_is_ended() -> Result<()> {
    let server = Server::start(&["--busy-timeout", "100ms"])?;
    let answer = server.asr("?language=en", "long-en.flac")?;
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert!(answer.text().contains("--busy-timeout"), "{}", answer.text());
    server.wait_for_metric("hush_model_inflight_requests{model=\"hush-tiny\"}", 0.0, SOON)
}

#[test]
fn a_client_that_leaves_is_said_in_the_log() -> Result<()> {
    let server = Server::start(&[])?;
    let bytes = http::upload_bytes(server.api, "/asr?language=en", "long-en.flac", &fixtures::audio("long-en.flac")?);
    let mut stream: TcpStream = http::connect(server.api)?;
    stream.write_all(&bytes)?;
    server.wait_for_metric("hush_model_inflight_requests{model=\"hush-tiny\"}", 1.0, LOAD)?;
    drop(stream);
    wait_for("the line of the request", SOON, || {
        let mut lines = server.log().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        Ok(lines.find(|line| line["message"] == "answered" && line["status"] == 499 && line["client_gone"] == true))
    })?;
    Ok(())
}
