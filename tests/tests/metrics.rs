//! `/metrics` as Prometheus reads it: parsed by the parser of the Prometheus project's own Python client.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use hush_tests::{Server, fixtures, http};
use serde_json::Value;

const PARSE: &str = r#"
import json, sys
from prometheus_client.parser import text_string_to_metric_families
families = list(text_string_to_metric_families(sys.stdin.read()))
print(json.dumps([
    {"name": f.name, "type": f.type, "help": f.documentation,
     "samples": [{"name": s.name, "labels": s.labels, "value": s.value} for s in f.samples]}
    for f in families
]))
"#;

fn parse(exposition: &str) -> Result<Vec<Value>> {
    let packages = fixtures::workspace().join(".hush/python");
    ensure!(packages.join("prometheus_client").exists(), "the parser is missing: run `make test` once");
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let mut child = Command::new(python)
        .args(["-c", PARSE])
        .env("PYTHONPATH", packages)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no stdin")?.write_all(exposition.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the parser refused:\n{exposition}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn a_real_parser_reads_every_family_with_its_type_and_help() -> Result<()> {
    let server = Server::start(&[])?;
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    assert_eq!(http::get(server.api, "/nowhere")?.status, 404);
    let answer = http::get(server.ops, "/metrics")?;
    assert!(answer.header("content-type").is_some_and(|t| t.starts_with("text/plain; version=0.0.4")));
    let families = parse(&answer.text())?;
    let types: BTreeSet<_> =
        families.iter().map(|f| (f["name"].as_str().unwrap_or(""), f["type"].as_str().unwrap_or(""))).collect();
    for expected in [
        ("hush_model_state", "gauge"),
        ("hush_model_idle_seconds", "gauge"),
        ("hush_model_idle_since_timestamp_seconds", "gauge"),
        ("hush_model_inflight_requests", "gauge"),
        ("hush_model_queued_requests", "gauge"),
        ("hush_model_generation", "gauge"),
        ("hush_runner_resident_bytes", "gauge"),
        ("hush_model_load_duration_seconds", "histogram"),
        ("hush_model_loads", "counter"),
        ("hush_cold_start_wait_seconds", "histogram"),
        ("hush_request_duration_seconds", "histogram"),
        ("hush_audio_seconds", "counter"),
        ("hush_build_info", "gauge"),
        ("process_cpu_seconds", "counter"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_open_fds", "gauge"),
        ("process_start_time_seconds", "gauge"),
    ] {
        assert!(types.contains(&expected), "{expected:?} is not among {types:?}");
    }
    for family in &families {
        assert!(family["help"].as_str().is_some_and(|h| !h.is_empty()), "no help: {family}");
    }
    Ok(())
}

fn sum(families: &[Value], name: &str) -> f64 {
    let samples = families.iter().filter(|f| f["name"] == name).filter_map(|f| f["samples"].as_array());
    samples.flatten().filter_map(|s| s["value"].as_f64()).sum()
}

/// Controllers that scrape at different times must compute the same order.
#[test]
fn the_time_since_when_a_model_is_idle_does_not_depend_on_the_look() -> Result<()> {
    const SINCE: &str = "hush_model_idle_since_timestamp_seconds";
    let server = Server::start(&[])?;
    let look = || parse(&http::get(server.ops, "/metrics")?.text());
    assert_eq!(sum(&look()?, SINCE), 0.0, "not loaded");
    let unix = || Ok::<_, anyhow::Error>(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64());
    let before = unix()?;
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    let after = unix()?;
    let looks = (0..20).map(|_| Ok(sum(&look()?, SINCE))).collect::<Result<Vec<_>>>()?;
    assert!(looks.iter().all(|since| (before..after + 0.1).contains(since)), "{before} {looks:?} {after}");
    let [least, most] = [f64::min, f64::max].map(|of| looks.iter().copied().reduce(of).unwrap_or_default());
    assert!(most - least < 0.0015, "{looks:?}");
    Ok(())
}

#[test]
fn exactly_one_state_holds_and_the_runner_has_memory() -> Result<()> {
    let server = Server::start(&[])?;
    let cold = parse(&http::get(server.ops, "/metrics")?.text())?;
    assert_eq!(sum(&cold, "hush_model_state"), 1.0);
    assert_eq!(sum(&cold, "hush_runner_resident_bytes"), 0.0);
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    let warm = parse(&http::get(server.ops, "/metrics")?.text())?;
    assert_eq!(sum(&warm, "hush_model_state"), 1.0);
    assert!(sum(&warm, "hush_runner_resident_bytes") > 10e6);
    let audio = sum(&warm, "hush_audio_seconds");
    assert!((audio - 0.73).abs() < 0.5, "en-1.wav lasts 0.73 s, counted {audio}");
    Ok(())
}
