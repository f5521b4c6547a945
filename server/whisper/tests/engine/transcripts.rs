//! Whole transcriptions against the reference's: the same tokens, times and probabilities.

use hush_whisper::{Precision, Segment, Task, TranscribeOptions};
use serde_json::Value;

use crate::support::{Kept, audio, engine, json, recordings};

/// What is different, in words; empty where all agrees.
fn compare(expected: &Value, segments: &[Segment]) -> Vec<String> {
    let expected = expected["segments"].as_array().unwrap();
    let mut different = Vec::new();
    if expected.len() != segments.len() {
        different.push(format!("{} segments, expected {}", segments.len(), expected.len()));
    }
    for (expected, segment) in expected.iter().zip(segments) {
        let mut check = |what: &str, same: bool, found: String| {
            if !same {
                different.push(format!("segment {}: {what} {found}, expected {}", segment.id, expected[what]));
            }
        };
        let near =
            |what: &str, found: f64, tolerance: f64| (found - expected[what].as_f64().unwrap()).abs() <= tolerance;
        check("id", expected["id"] == segment.id, segment.id.to_string());
        check("seek", expected["seek"] == segment.seek, segment.seek.to_string());
        check("tokens", expected["tokens"] == serde_json::json!(segment.tokens), format!("{:?}", segment.tokens));
        check("text", expected["text"] == segment.text.as_str(), segment.text.clone());
        for (what, found, tolerance) in [
            ("start", segment.start_seconds, 1e-3),
            ("end", segment.end_seconds, 1e-3),
            ("avg_logprob", segment.avg_logprob, 1e-3),
            ("no_speech_prob", segment.no_speech_prob, 1e-3),
            ("compression_ratio", segment.compression_ratio, 1e-6),
            ("temperature", f64::from(segment.temperature), 0.0),
        ] {
            check(what, near(what, found, tolerance), found.to_string());
        }
    }
    different
}

fn all_recordings(key: &str, change: fn(&mut TranscribeOptions)) {
    let mut engine = engine(Precision::Fp32);
    let mut wrong = Vec::new();
    let mut compared = 0;
    for name in recordings() {
        let parity = json(&format!("parity/{name}.json"));
        let Some(expected) = parity.get(key) else { continue };
        let mut options = TranscribeOptions {
            language: Some(parity["language"].as_str().unwrap().into()),
            temperatures: vec![0.0],
            ..TranscribeOptions::default()
        };
        change(&mut options);
        let file = ["wav", "flac"].map(|kind| format!("audio/{name}.{kind}"));
        let file = file.iter().find(|file| crate::support::fixture(file).exists()).unwrap();
        let mut kept = Kept::default();
        let transcript = engine.transcribe(&mut audio(file), &options, &mut kept).unwrap();
        assert_eq!(transcript.language, expected["language"]);
        wrong.extend(compare(expected, &kept.segments).into_iter().map(|line| format!("{name}: {line}")));
        compared += 1;
    }
    assert!(wrong.is_empty(), "{key}:\n{}", wrong.join("\n"));
    assert!(compared >= 15, "{compared} compared");
}

#[test]
fn greedy() {
    all_recordings("greedy", |_| ());
}

#[test]
fn greedy_without_condition() {
    all_recordings("greedy_no_condition", |options| options.condition_on_previous_text = false);
}

#[test]
fn greedy_with_a_prompt() {
    all_recordings("greedy_prompt", |options| options.initial_prompt = Some("The server is open.".into()));
}

#[test]
fn translated() {
    all_recordings("translate", |options| options.task = Task::Translate);
}

#[test]
fn languages() {
    let mut engine = engine(Precision::Fp32);
    for name in recordings() {
        let parity = json(&format!("parity/{name}.json"));
        let expected = parity["language_probs"].as_object().unwrap();
        let file = ["wav", "flac"].map(|kind| format!("audio/{name}.{kind}"));
        let file = file.iter().find(|file| crate::support::fixture(file).exists()).unwrap();
        let found = engine.detect_language(&mut audio(file)).unwrap();
        assert_eq!(found.len(), 99);
        assert!(found.windows(2).all(|two| two[0].probability >= two[1].probability));
        let total: f32 = found.iter().map(|language| language.probability).sum();
        assert!((total - 1.0).abs() < 1e-4, "{name}: {total}");
        for (code, probability) in expected {
            let language = found.iter().find(|language| language.code == *code).unwrap();
            let difference = (f64::from(language.probability) - probability.as_f64().unwrap()).abs();
            assert!(difference < 1e-3, "{name}, {code}: {}", language.probability);
        }
        let likeliest = expected.iter().max_by(|a, b| a.1.as_f64().unwrap().total_cmp(&b.1.as_f64().unwrap()));
        assert_eq!(found[0].code, *likeliest.unwrap().0, "{name}");
    }
}
