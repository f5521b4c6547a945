//! OpenAI's audio API as its own Python package uses it, against a running server.

use std::io::{BufRead, BufReader, Write};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_tests::{Server, ServerOptions, fixtures, http, process};
use rustix::process::Signal;
use serde_json::{Value, json};

const SAID: &str = "Clean the light.";

/// What `tests/openai_client.py` saw in this case.
fn client(server: &Server, case: &str) -> Result<Value> {
    let packages = fixtures::workspace().join(".hush/python");
    ensure!(packages.join("openai").exists(), "the openai package is missing: run `make test` once");
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let output = Command::new(python)
        .arg(fixtures::workspace().join("tests/openai_client.py"))
        .arg(format!("http://{}", server.api))
        .arg(fixtures::fixture("audio"))
        .arg(case)
        .env("PYTHONPATH", packages)
        .output()?;
    ensure!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn every_format() -> Result<()> {
    let server = Server::start(&[])?;
    let saw = client(&server, "formats")?;
    assert_eq!(saw["json"], SAID);
    assert_eq!(saw["text"], format!("{SAID}\n"));
    assert_eq!(saw["srt"], format!("1\n00:00:00,000 --> 00:00:00,735\n{SAID}\n\n"));
    assert_eq!(saw["vtt"], format!("WEBVTT\n\n00:00.000 --> 00:00.735\n{SAID}\n\n"));
    assert_eq!(saw["pcm"], SAID, "raw samples");
    let verbose = &saw["verbose"];
    assert_eq!((&verbose["type"], &verbose["language"]), (&json!("TranscriptionVerbose"), &json!("english")));
    assert!(verbose["duration"].as_f64().is_some_and(|seconds| (seconds - 0.73).abs() < 0.1), "{verbose}");
    let segment = &verbose["segments"][0];
    assert_eq!(segment["text"], format!(" {SAID}"));
    assert!(segment["tokens"].as_array().is_some_and(|tokens| tokens.len() > 3), "{segment}");
    assert!(segment["avg_logprob"].as_f64().is_some_and(f64::is_finite), "{segment}");
    let logprobs = saw["logprobs"].as_array().context("no logprobs")?;
    let bytes: Vec<u8> = logprobs
        .iter()
        .flat_map(|item| item["bytes"].as_array().into_iter().flatten())
        // The package reads them as numbers with a fraction.
        .filter_map(|byte| byte.as_f64().map(|byte| byte as u8))
        .collect();
    assert_eq!(String::from_utf8(bytes)?, format!(" {SAID}"), "the tokens of the text and no others");
    assert!(logprobs.iter().all(|item| item["logprob"].as_f64().is_some_and(|p| p <= 0.0)), "{logprobs:?}");
    Ok(())
}

#[test]
fn a_stream_is_the_text_in_pieces() -> Result<()> {
    let server = Server::start(&[])?;
    let saw = client(&server, "stream")?;
    let events = saw["events"].as_array().context("no events")?;
    let (done, deltas) = events.split_last().context("no events")?;
    assert!(deltas.len() >= 3, "77 s are at least three windows: {events:?}");
    assert!(deltas.iter().all(|event| event["type"] == "transcript.text.delta"), "{events:?}");
    let joined: String = deltas.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(done["type"], "transcript.text.done");
    assert_eq!((&done["text"], &saw["whole"]), (&json!(joined), &json!(joined)));
    let count = |event: &Value| event["logprobs"].as_array().map_or(0, Vec::len);
    assert_eq!(count(done), deltas.iter().map(count).sum::<usize>());
    assert_eq!(done["usage"]["input_tokens"], json!(3865), "77.3 s of 50 positions: {done}");
    Ok(())
}

/// The runner is stopped when the first piece is here; that the rest does not come until it goes on again shows that
/// the piece was sent while the rest was not decoded.
#[test]
fn the_first_piece_comes_before_the_last_is_decoded() -> Result<()> {
    let server = Server::start(&[])?;
    ensure!(server.asr("?language=en", "en-1.wav")?.status == 200);
    let runner = *server.runners()?.first().context("no runner")?;
    let wav = fixtures::audio("en-2.wav")?;
    let data = wav.windows(4).position(|w| w == b"data").context("no data chunk")? + 8;
    // Ten minutes, so that the rest takes far longer than to stop the process.
    let samples = wav[data..].repeat(600 * 32_000 / (wav.len() - data));
    let mut body = b"--B\r\nContent-Disposition: form-data; name=\"stream\"\r\n\r\ntrue\r\n\
        --B\r\nContent-Disposition: form-data; name=\"language\"\r\n\r\nen\r\n\
        --B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\nContent-Type: audio/pcm\r\n\r\n"
        .to_vec();
    body.extend_from_slice(&samples);
    body.extend_from_slice(b"\r\n--B--\r\n");
    let mut stream = http::connect(server.api)?;
    write!(
        stream,
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\
         Content-Type: multipart/form-data; boundary=B\r\n\r\n",
        body.len()
    )?;
    stream.write_all(&body)?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut until = |what: &str| -> Result<String> {
        let mut line = String::new();
        while !line.contains(what) {
            line.clear();
            ensure!(lines.read_line(&mut line)? > 0, "the stream ended before {what}");
        }
        Ok(line)
    };
    until("transcript.text.delta")?;
    process::send(runner, Signal::STOP)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let early = until("transcript.text.done");
    process::send(runner, Signal::CONT)?;
    assert!(early.is_err(), "the whole text was there already: {early:?}");
    stream.set_read_timeout(Some(http::READ_TIMEOUT))?;
    until("transcript.text.done")?;
    Ok(())
}

#[test]
fn translations_and_models() -> Result<()> {
    let server = Server::start(&[])?;
    let expected: Value = serde_json::from_slice(&std::fs::read(fixtures::fixture("parity/de-1.json"))?)?;
    let expected = expected["translate"]["text"].as_str().context("no text")?.trim().to_owned();
    let saw = client(&server, "translations")?;
    assert_eq!(
        (&saw["text"], &saw["verbose"], &saw["language"]),
        (&json!(expected), &json!(expected), &json!("english"))
    );
    let saw = client(&server, "models")?;
    let model = &saw["listed"][0];
    assert_eq!((&model["id"], &model["object"]), (&json!(fixtures::MODEL), &json!("model")));
    assert!(model["created"].as_u64().is_some_and(|seconds| seconds > 1_600_000_000), "{model}");
    assert_eq!(saw["retrieved"], json!([fixtures::MODEL]));
    Ok(())
}

#[test]
fn errors_have_the_classes_of_the_package() -> Result<()> {
    let server = Server::start(&[])?;
    let saw = client(&server, "errors")?;
    for (case, class, param, code) in [
        ("model", "NotFoundError", json!("model"), "model_not_found"),
        ("retrieve", "NotFoundError", json!("model"), "model_not_found"),
        ("format", "BadRequestError", json!("response_format"), "unsupported_value"),
        ("file", "BadRequestError", json!("file"), "invalid_file_format"),
        ("words", "BadRequestError", json!("timestamp_granularities"), "unsupported_value"),
        ("route", "NotFoundError", Value::Null, "unknown_url"),
    ] {
        let error = &saw[case];
        assert_eq!(
            (&error["class"], &error["param"], &error["code"]),
            (&json!(class), &param, &json!(code)),
            "{error}"
        );
        assert!(error["request_id"].as_str().is_some_and(|id| !id.is_empty()), "{error}");
    }
    assert!(saw["model"]["message"].as_str().is_some_and(|text| text.contains(fixtures::MODEL)), "{saw}");
    Ok(())
}

/// The model's weights are away for the first load; the client waits as `Retry-After` says and then gets its text.
#[test]
fn a_failed_load_is_tried_again_by_the_client() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fixtures::install_into(folder.path(), "int8")?;
    let server =
        Server::start_with(ServerOptions { models_dir: Some(folder.path().to_owned()), ..ServerOptions::default() })?;
    let weights = folder.path().join(fixtures::MODEL).join("int8/weights.bin");
    let away = weights.with_extension("away");
    std::fs::rename(&weights, &away)?;
    std::thread::scope(|scope| -> Result<()> {
        let asking = scope.spawn(|| client(&server, "retried"));
        server.wait_for_state("failed", Duration::from_secs(60))?;
        std::fs::rename(&away, &weights)?;
        let saw = asking.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        assert_eq!(saw["text"], SAID);
        Ok(())
    })
}
