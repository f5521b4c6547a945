//! Speech goes in, text comes out, the model leaves and comes back.

use std::time::Duration;

use anyhow::{Context, Result};
use hush_tests::{Server, fixtures, http, process, wait::wait_for};
use serde_json::Value;

const LOAD: Duration = Duration::from_secs(60);
const LEAVE: Duration = Duration::from_secs(20);

fn parity(name: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(fixtures::fixture(&format!("parity/{name}.json")))?)?)
}

#[test]
fn every_short_recording_gives_the_words_of_the_reference() -> Result<()> {
    let server = Server::start(&[])?;
    for name in ["en-1", "en-2", "de-1", "fr-1", "fr-3", "es-1", "zh-1", "zh-2"] {
        let expected = parity(name)?;
        let language = expected["language"].as_str().context("no language")?;
        let answer = server.asr(&format!("?output=txt&language={language}"), &format!("{name}.wav"))?;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        let said = expected["greedy"]["text"].as_str().context("no text")?.trim();
        assert_eq!(answer.text().trim(), said, "{name}");
    }
    Ok(())
}

#[test]
fn subtitles_have_the_headers_and_the_shape_of_the_peer() -> Result<()> {
    let server = Server::start(&[])?;
    let answer = server.asr("?output=srt&language=en", "en-1.wav")?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(answer.header("asr-engine"), Some("openai_whisper"));
    assert_eq!(answer.header("content-disposition"), Some("attachment; filename=\"en-1.wav.srt\""));
    assert_eq!(answer.header("content-length"), None);
    assert_eq!(answer.text(), "1\n00:00:00,000 --> 00:00:00,735\nClean the light.\n\n");
    Ok(())
}

#[test]
fn words_are_in_json_and_subtitles_are_made_of_them() -> Result<()> {
    let server = Server::start(&[])?;
    let answer = server.asr("?output=json&language=en&word_timestamps=true", "en-1.wav")?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json()?;
    let words = json["segments"][0]["words"].as_array().context("no words")?;
    assert_eq!(
        words.iter().filter_map(|word| word["word"].as_str()).collect::<Vec<_>>(),
        [" Clean", " the", " light."]
    );
    for word in words {
        let number = |key: &str| word[key].as_f64().context("no number");
        assert!(number("start")? < number("end")? && (0.0..=1.0).contains(&number("probability")?), "{word}");
    }
    let query = "?output=srt&language=en&word_timestamps=true&max_words_per_line=1";
    let answer = server.asr(query, "en-1.wav")?;
    assert_eq!(answer.text().matches(" --> ").count(), 3, "{}", answer.text());
    assert!(answer.text().contains("\nlight.\n\n"), "{}", answer.text());
    Ok(())
}

#[test]
fn only_what_is_spoken_is_listened_to() -> Result<()> {
    let server = Server::start(&[])?;
    let answer = server.asr("?output=json&language=es&vad_filter=true", "pauses-es.flac")?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json()?;
    let segments = json["segments"].as_array().context("no segments")?;
    let said = parity("pauses-es")?["said"].as_array().context("nothing said")?.clone();
    // Further on the small model loses the thread, with and without pauses; the times of what it hears are right.
    for (heard, said) in segments.iter().zip(&said).take(2) {
        assert_eq!(heard["text"].as_str().map(str::trim), said["text"].as_str(), "{json}");
        for key in ["start", "end"] {
            let apart = heard[key].as_f64().context("no time")? - said[key].as_f64().context("no time")?;
            assert!(apart.abs() < 0.2, "{key} {apart}: {json}");
        }
    }
    for file in ["silence.flac", "noise.flac"] {
        let answer = server.asr("?output=txt&language=en&vad_filter=true", file)?;
        assert_eq!((answer.status, answer.text().as_str()), (200, ""), "{file}");
    }
    Ok(())
}

#[test]
fn subtitles_stand_on_the_clock_of_the_video() -> Result<()> {
    let server = Server::start(&[])?;
    // Sound that starts three seconds after the pictures.
    for file in ["late.mp4", "late-frag.mp4", "late.webm"] {
        let bytes = std::fs::read(fixtures::fixture(&format!("formats/{file}")))?;
        let answer = http::upload(server.api, "/asr?output=json&language=en", file, &bytes)?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json()?;
        let start = json["segments"][0]["start"].as_f64().with_context(|| format!("{file}: {json}"))?;
        let end = json["segments"][0]["end"].as_f64().context("no end")?;
        assert!((2.8..3.2).contains(&start) && (3.5..4.3).contains(&end), "{file}: {start} {end}");
    }
    Ok(())
}

#[test]
fn silence_is_empty_in_every_format() -> Result<()> {
    let server = Server::start(&[])?;
    let silence = vec![0; 60 * 16_000 * 2];
    for (output, expected) in [("txt", ""), ("srt", ""), ("vtt", "WEBVTT\n\n"), ("tsv", "start\tend\ttext\n")] {
        for words in ["false", "true"] {
            let query = format!("/asr?encode=false&output={output}&language=en&word_timestamps={words}");
            let answer = http::upload(server.api, &query, "silence.pcm", &silence)?;
            assert_eq!((answer.status, answer.text().as_str()), (200, expected), "{output}");
        }
    }
    Ok(())
}

#[test]
fn a_long_recording_is_transcribed_to_its_end_and_twice_the_same() -> Result<()> {
    let server = Server::start(&["--fallback-time", "0"])?;
    // 51 s and 80 s: the small model is unsure of both, so windows fall back to higher temperatures.
    for (name, seconds) in [("long-de", 51.0), ("long-en", 80.0)] {
        let query = format!("?output=json&language={}", parity(name)?["language"].as_str().context("no language")?);
        let answer = server.asr(&query, &format!("{name}.flac"))?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json()?;
        let segments = json["segments"].as_array().context("no segments")?;
        let times = |key: &str| segments.iter().filter_map(|s| s[key].as_f64()).collect::<Vec<_>>();
        let (starts, ends) = (times("start"), times("end"));
        assert!(starts.is_sorted(), "{name}: {starts:?}");
        let last = ends.last().copied().context("no end")?;
        assert!((last - seconds).abs() < 10.0, "{name} ends at {last}");
        assert_eq!(server.asr(&query, &format!("{name}.flac"))?.body, answer.body, "the sampler is seeded");
    }
    Ok(())
}

#[test]
fn the_language_is_detected_with_its_own_probability() -> Result<()> {
    let server = Server::start(&[])?;
    for (file, code, english) in [("de-1.wav", "de", "german"), ("zh-1.wav", "zh", "chinese")] {
        let answer = http::upload(server.api, "/detect-language", file, &fixtures::audio(file)?)?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json()?;
        assert_eq!(json["language_code"], code);
        assert_eq!(json["detected_language"], english);
        assert!(json["confidence"].as_f64().is_some_and(|c| c > 0.5 && c <= 1.0), "{json}");
    }
    Ok(())
}

#[test]
fn translation_writes_english() -> Result<()> {
    let server = Server::start(&[])?;
    let expected = parity("de-1")?;
    let answer = server.asr("?task=translate&language=de&output=txt", "de-1.wav")?;
    assert_eq!(answer.text().trim(), expected["translate"]["text"].as_str().context("no text")?.trim());
    Ok(())
}

#[test]
fn the_model_leaves_when_idle_and_comes_back_with_the_next_request() -> Result<()> {
    let server = Server::start(&["--idle-timeout", "1s"])?;
    assert_eq!(server.runners()?, [0_u32; 0], "nothing is loaded before the first request");
    server.wait_for_state("unloaded", LOAD)?;

    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    let first = server.runners()?;
    assert_eq!(first.len(), 1, "one runner while the model is in memory");
    assert!(process::maps(first[0], "onnxruntime")?, "the runner maps ONNX Runtime");

    server.wait_for_state("unloaded", LEAVE)?;
    wait_for("the runner is reaped", LEAVE, || Ok(server.runners()?.is_empty().then_some(())))?;
    assert_eq!(server.metric("hush_model_unloads_total{model=\"hush-tiny\",reason=\"IdleTimeout\"}")?, Some(1.0));
    assert_eq!(http::get(server.api, "/readyz")?.status, 200, "ready also while the model is away");

    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    assert_eq!(server.metric("hush_model_generation{model=\"hush-tiny\"}")?, Some(2.0));
    assert_ne!(server.runners()?, first);
    assert!(!process::maps(server.pid(), "onnxruntime")?, "the server itself never maps ONNX Runtime");
    Ok(())
}

#[test]
fn on_demand_unloads_as_soon_as_no_request_waits() -> Result<()> {
    let server = Server::start(&["--residency", "on-demand"])?;
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    server.wait_for_state("unloaded", LEAVE)?;
    assert_eq!(server.metric("hush_model_unloads_total{model=\"hush-tiny\",reason=\"OnDemand\"}")?, Some(1.0));
    Ok(())
}

#[test]
fn resident_loads_at_start_and_stays() -> Result<()> {
    let server = Server::start(&["--residency", "resident", "--idle-timeout", "1s"])?;
    server.wait_for_state("ready", LOAD)?;
    let runner = server.runners()?;
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(server.runners()?, runner, "the idle timeout does not concern a resident model");
    Ok(())
}

#[test]
fn a_spare_runner_waits_with_the_libraries_and_takes_the_load() -> Result<()> {
    let server = Server::start(&["--spare-runner", "--idle-timeout", "1s"])?;
    let spare = wait_for("the spare runner maps the library", LOAD, || {
        let runners = server.runners()?;
        Ok(runners.first().copied().filter(|pid| process::maps(*pid, "onnxruntime").unwrap_or(false)))
    })?;
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    assert!(server.runners()?.contains(&spare), "the spare became the runner of the model");
    wait_for("a new spare", LOAD, || Ok((server.runners()?.len() == 2).then_some(())))?;
    Ok(())
}

#[test]
fn variables_of_whisper_asr_webservice_keep_working() -> Result<()> {
    let models_dir = fixtures::models_dir("fp32")?;
    let server = Server::start_with(hush_tests::ServerOptions {
        env: vec![
            ("ASR_MODEL".into(), fixtures::MODEL.into()),
            ("ASR_QUANTIZATION".into(), "float32".into()),
            ("ASR_DEVICE".into(), "cpu".into()),
            ("MODEL_IDLE_TIMEOUT".into(), "1".into()),
        ],
        models_dir: Some(models_dir),
        ..Default::default()
    })?;
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    server.wait_for_state("unloaded", LEAVE)
}
