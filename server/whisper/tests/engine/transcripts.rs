//! Whole transcriptions compared with the reference's: the same tokens, times and probabilities.

use hush_whisper::{Precision, Segment, SpeechTask, TranscribeOptions};
use serde_json::Value;

use crate::support::{CollectedTranscript, batched, engine, expected_segments, json, on_device, recording, recordings};

/// How much a probability may differ from the reference's, which is computed in fp32.
fn tolerance(precision: Precision) -> f64 {
    match on_device(precision) {
        Precision::Fp32 => 1e-3,
        Precision::Fp16 | Precision::Int8 => 0.02,
    }
}

/// A description of each difference.
fn compare(expected: &Value, samples: &[f32], segments: &[Segment], tolerance: f64) -> Vec<String> {
    let expected = expected_segments(expected, samples);
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
            ("avg_logprob", segment.avg_logprob, tolerance),
            ("no_speech_prob", segment.no_speech_prob, tolerance),
            // It is that of the window, whose last words may be in no segment.
            ("compression_ratio", segment.compression_ratio, if tolerance > 1e-3 { 0.1 } else { 1e-6 }),
            ("temperature", f64::from(segment.temperature), 0.0),
        ] {
            check(what, near(what, found, tolerance), found.to_string());
        }
    }

    different
}

fn all_recordings(precision: Precision, key: &str, change: fn(&mut TranscribeOptions)) {
    let engine = engine(precision);
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
        let mut kept = CollectedTranscript::default();
        let mut samples = recording(&name);
        let audible = samples.clone();
        let transcript = engine.transcribe(&mut samples, &options, &mut kept).unwrap();

        assert_eq!(transcript.language, expected["language"]);

        wrong.extend(
            compare(expected, &audible, &kept.segments, tolerance(precision))
                .into_iter()
                .map(|line| format!("{name}: {line}")),
        );
        compared += 1;
    }

    assert!(wrong.is_empty(), "{key}:\n{}", wrong.join("\n"));
    assert!(compared >= 15, "{compared} compared");
}

#[test]
fn greedy() {
    all_recordings(Precision::Fp32, "greedy", |_| ());
}

#[test]
fn greedy_without_condition() {
    all_recordings(Precision::Fp32, "greedy_no_condition", |options| options.condition_on_previous_text = false);
}

#[test]
fn greedy_with_a_prompt() {
    all_recordings(Precision::Fp32, "greedy_prompt", |options| {
        options.initial_prompt = Some("The server is open.".into())
    });
}

#[test]
fn beams() {
    all_recordings(Precision::Fp32, "beam5", |options| options.beam_size = Some(5));
}

/// The precision of GPUs has its own graphs; on the CPU too its tokens are the reference's.
#[test]
fn greedy_in_16_bits() {
    all_recordings(Precision::Fp16, "greedy", |_| ());
}

#[test]
fn beams_in_16_bits() {
    all_recordings(Precision::Fp16, "beam5", |options| options.beam_size = Some(5));
}

/// The segments of each of `names` when all are transcribed at the same time.
fn at_once(precision: Precision, names: &[String], options: &TranscribeOptions) -> Vec<Vec<Segment>> {
    let engine = batched(precision, names.len());

    std::thread::scope(|scope| {
        let jobs: Vec<_> = names
            .iter()
            .map(|name| {
                let engine = engine.clone();
                scope.spawn(move || {
                    let mut kept = CollectedTranscript::default();
                    engine.transcribe(&mut recording(name), options, &mut kept).unwrap();
                    kept.segments
                })
            })
            .collect();

        jobs.into_iter().map(|job| job.join().unwrap()).collect()
    })
}

/// Eight recordings of different languages and lengths, so that they begin and end at different times.
fn eight() -> Vec<String> {
    ["en-1", "de-1", "long-de", "fr-1", "long-en", "es-1", "zh-1", "noisy-fr"].map(str::to_owned).to_vec()
}

#[test]
fn eight_at_once_are_the_same_as_each_alone() {
    let options = TranscribeOptions { temperatures: vec![0.0], ..TranscribeOptions::default() };
    let beams = TranscribeOptions { beam_size: Some(5), ..options.clone() };

    for (key, options) in [("greedy", &options), ("beam5", &beams)] {
        let names = eight();
        let found = at_once(Precision::Fp32, &names, options);
        let mut wrong = Vec::new();

        for (name, segments) in names.iter().zip(&found) {
            let expected = &json(&format!("parity/{name}.json"))[key];
            wrong.extend(
                compare(expected, &recording(name), segments, tolerance(Precision::Fp32))
                    .into_iter()
                    .map(|line| format!("{name}: {line}")),
            );
        }

        assert!(wrong.is_empty(), "{key}:\n{}", wrong.join("\n"));
    }
}

#[test]
fn eight_at_once_in_8_bits_are_the_same_as_each_alone() {
    eight_at_once(Precision::Int8);
}

#[test]
fn eight_at_once_in_16_bits_are_the_same_as_each_alone() {
    eight_at_once(Precision::Fp16);
}

fn eight_at_once(precision: Precision) {
    let options = TranscribeOptions { temperatures: vec![0.0], ..TranscribeOptions::default() };
    let names = eight();
    let together = at_once(precision, &names, &options);
    let mut different = Vec::new();

    for (name, together) in names.iter().zip(together) {
        let alone = at_once(precision, std::slice::from_ref(name), &options).remove(0);
        let tokens = |segments: &[Segment]| segments.iter().flat_map(|s| s.tokens.clone()).collect::<Vec<_>>();
        if tokens(&together) != tokens(&alone) {
            different.push(name.clone());
        }
    }

    println!("{precision}, different from alone: {different:?}");

    assert!(different.is_empty(), "{different:?}");
}

#[test]
fn translated() {
    all_recordings(Precision::Fp32, "translate", |options| options.task = SpeechTask::Translate);
}

#[test]
fn languages() {
    let engine = engine(Precision::Fp32);

    for name in recordings() {
        let parity = json(&format!("parity/{name}.json"));
        let expected = parity["language_probs"].as_object().unwrap();
        let found = engine.detect_language(&mut recording(&name)).unwrap();

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
