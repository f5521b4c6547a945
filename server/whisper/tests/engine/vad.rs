//! Voice activity detection: the model compared with Python's onnxruntime, chunks compared with faster-whisper, and
//! transcription of speech alone.

use std::{io, path::PathBuf};

use hush_whisper::{
    PcmSource, Precision, TranscribeError, TranscribeOptions, VadOptions,
    vad::{self, ChunkMap, SpeechChunk, SpeechDetector, SpeechModel, VadError},
};
use serde_json::Value;

use crate::support::{
    CollectedTranscript, audio, batched, engine, fixture, json, recording, recordings, root, start_runtime,
};

fn model_path() -> PathBuf {
    std::env::var_os("HUSH_VAD_MODEL").map_or_else(|| root().join(".hush/lib").join(vad::FILE), PathBuf::from)
}

fn model() -> SpeechModel {
    start_runtime();
    SpeechModel::open(&model_path(), 2).unwrap_or_else(|error| panic!("{error}; `make vad` fetches it"))
}

/// The sets of options of `scripts/golden_vad.py`.
fn options(set: &str) -> VadOptions {
    let default = VadOptions::default();
    match set {
        "short" => {
            VadOptions { min_silence_duration_ms: 100, speech_pad_ms: 30, min_speech_duration_ms: 250, ..default }
        }
        "cut" => VadOptions { min_silence_duration_ms: 500, max_speech_duration_seconds: Some(5.0), ..default },
        "strict" => VadOptions { threshold: 0.8, neg_threshold: Some(0.2), min_silence_duration_ms: 300, ..default },
        _ => default,
    }
}

fn pairs(chunks: &[SpeechChunk]) -> Value {
    chunks.iter().map(|chunk| Value::from(vec![chunk.start, chunk.end])).collect()
}

#[test]
fn probabilities_are_those_of_python_s_onnxruntime() {
    let mut model = model();
    let mut worst = 0.0_f64;

    for name in recordings() {
        let golden = json(&format!("vad/{name}.json"));
        let mut samples = recording(&name);

        assert_eq!(golden["samples"], samples.len());

        samples.resize((samples.len() / vad::WINDOW_SAMPLES + 1) * vad::WINDOW_SAMPLES, 0.0);
        model.reset();

        // In blocks of another length than the engine uses.
        let mut found = Vec::new();
        for piece in samples.chunks(7 * vad::WINDOW_SAMPLES) {
            found.extend(model.probabilities(piece).unwrap());
        }

        let expected = golden["probabilities"].as_array().unwrap();
        assert_eq!(found.len(), expected.len(), "{name}");

        for (found, expected) in found.iter().zip(expected) {
            worst = worst.max((f64::from(*found) - expected.as_f64().unwrap()).abs());
        }
    }

    println!("probabilities differ by {worst:.1e} at most");
    assert!(worst < 1e-3, "{worst}");
}

#[test]
fn chunks_are_those_of_faster_whisper() {
    for name in recordings() {
        let golden = json(&format!("vad/{name}.json"));
        let length = golden["samples"].as_u64().unwrap();
        for (set, expected) in golden["chunks"].as_object().unwrap() {
            let mut detector = SpeechDetector::new(&options(set));
            for probability in golden["probabilities"].as_array().unwrap() {
                detector.push(probability.as_f64().unwrap() as f32);
            }
            assert_eq!(pairs(&detector.finish(length)), *expected, "{name}, {set}");
        }
    }
}

#[test]
fn speech_is_found_where_it_was_said() {
    let mut model = model();
    for name in ["pauses-es", "long-en", "long-de", "long-zh", "noisy-fr", "noise", "silence"] {
        let mut source = recording(name);
        let found = vad::speech_chunks(&mut source, &mut model, &VadOptions::default(), &mut || true).unwrap();

        assert_eq!(pairs(&found), json(&format!("vad/{name}.json"))["chunks"]["default"], "{name}");

        let parity = json(&format!("parity/{name}.json"));
        let said = parity["said"].as_array().unwrap();

        assert_eq!(found.is_empty(), said.is_empty(), "{name}");

        for phrase in said {
            let middle = f64::midpoint(phrase["start"].as_f64().unwrap(), phrase["end"].as_f64().unwrap()) * 16_000.0;
            let is_found = found.iter().any(|chunk| (chunk.start as f64..chunk.end as f64).contains(&middle));
            assert!(is_found, "{name}: {phrase} is in none of {found:?}");
        }

        for chunk in &found {
            let overlaps = |phrase: &Value| {
                let at = |key: &str| phrase[key].as_f64().unwrap() * 16_000.0;
                at("start") < chunk.end as f64 && at("end") > chunk.start as f64
            };
            assert!(said.iter().any(overlaps), "{name}: nothing was said in {chunk:?}");
        }
    }
}

fn filtered(language: &str) -> TranscribeOptions {
    TranscribeOptions {
        language: Some(language.into()),
        temperatures: vec![0.0],
        word_timestamps: true,
        vad: Some(VadOptions::default()),
        ..TranscribeOptions::default()
    }
}

#[test]
fn pauses_are_left_out_and_times_are_those_of_the_recording() {
    let engine = engine(Precision::Fp32);
    engine.use_vad(model_path());
    let mut samples = audio("audio/pauses-es.flac");
    let mut kept = CollectedTranscript::default();
    let transcript = engine.transcribe(&mut samples, &filtered("es"), &mut kept).unwrap();
    let seconds = samples.len() as f64 / 16_000.0;

    assert_eq!(transcript.duration_seconds, seconds);
    assert!(kept.progress.iter().all(|(done, total)| *done <= *total && *total == seconds), "{:?}", kept.progress);
    assert_eq!(kept.progress.last().unwrap().0, seconds);

    let golden = json("vad/pauses-es.json");
    let chunks: Vec<(f64, f64)> = serde_json::from_value(golden["chunks"]["default"].clone()).unwrap();
    let said = json("parity/pauses-es.json")["said"].clone();
    let words: Vec<_> = kept.segments.iter().flat_map(|segment| &segment.words).collect();

    assert!(words.len() >= said.as_array().unwrap().len() * 2, "{words:?}");

    for word in &words {
        let middle = f64::midpoint(word.start_seconds, word.end_seconds) * 16_000.0;
        // The times are rounded to hundredths of a second.
        let inside = chunks.iter().any(|(start, end)| start - 160.0 <= middle && middle <= end + 160.0);
        assert!(inside, "{word:?} is in none of {chunks:?}");
    }

    // Each of the phrases has words.
    for phrase in said.as_array().unwrap() {
        let (start, end) = (phrase["start"].as_f64().unwrap(), phrase["end"].as_f64().unwrap());
        let inside = words.iter().any(|word| word.start_seconds < end + 0.4 && word.end_seconds > start - 0.4);
        assert!(inside, "nothing at {phrase}");
    }
}

/// Text, times and number of words, which do not depend on how many rows share a step.
fn plain(kept: &CollectedTranscript) -> Vec<(String, f64, f64, usize)> {
    kept.segments.iter().map(|s| (s.text.clone(), s.start_seconds, s.end_seconds, s.words.len())).collect()
}

/// Packs are transcribed in parallel: the text is the same as for each pack alone, the times are those of the whole
/// recording, and the order is kept.
#[test]
fn packs_side_by_side_are_the_same_as_each_alone() {
    for (name, language) in [("long-en", "en"), ("long-de", "de")] {
        let engine = batched(Precision::Fp32, 3);
        engine.use_vad(model_path());
        let vad = VadOptions { parallel: true, min_silence_duration_ms: 300, ..VadOptions::default() };
        let options = TranscribeOptions { vad: Some(vad.clone()), ..filtered(language) };
        let mut samples = recording(name);
        let length = samples.len() as u64;
        let mut kept = CollectedTranscript::default();
        let transcript = engine.transcribe(&mut samples, &options, &mut kept).unwrap();
        let seconds = length as f64 / 16_000.0;

        assert_eq!((transcript.language.as_str(), transcript.duration_seconds), (language, seconds));

        let longest = VadOptions { max_speech_duration_seconds: Some(30.0), ..vad };
        let chunks = vad::speech_chunks(&mut samples, &mut model(), &longest, &mut || true).unwrap();
        let packs = vad::pack_chunks(chunks, 480_000);

        assert!(packs.len() > 1, "{name}: {packs:?}");

        let mut alone = Vec::new();
        for pack in &packs {
            let map = ChunkMap::new(pack.clone(), length);
            let options = TranscribeOptions { vad: None, ..filtered(language) };
            let mut kept = CollectedTranscript::default();
            engine
                .transcribe(&mut map.spoken_source(&mut samples), &options, &mut map.restoring_sink(&mut kept))
                .unwrap();
            alone.extend(plain(&kept));
        }

        assert_eq!(plain(&kept), alone, "{name}");
        assert!(kept.segments.iter().enumerate().all(|(index, segment)| segment.id == index));
        assert!(kept.segments.is_sorted_by_key(|segment| segment.seek), "{name}");
        assert_eq!(kept.first_tokens, 1);
        assert_eq!(kept.progress.len(), packs.len());
        assert!(kept.progress.is_sorted_by(|a, b| a.0 < b.0 && b.0 <= seconds), "{:?}", kept.progress);
    }
}

#[test]
fn packs_side_by_side_agree_on_a_language_and_stop_when_the_request_is_cancelled() {
    let engine = batched(Precision::Fp32, 2);
    engine.use_vad(model_path());
    let vad = Some(VadOptions { parallel: true, min_silence_duration_ms: 300, ..VadOptions::default() });
    let options = TranscribeOptions { vad, language: None, ..filtered("en") };
    let mut kept = CollectedTranscript::default();
    let transcript = engine.transcribe(&mut recording("long-en"), &options, &mut kept).unwrap();

    assert_eq!(transcript.language, "en");
    assert!(transcript.language_probability.is_some_and(|probability| probability > 0.5));

    // Voice activity detection reads the recording in ten blocks first.
    for stop in [1, 3, 12] {
        let mut stopping = CollectedTranscript { stop_at: Some(stop), ..CollectedTranscript::default() };
        let result = engine.transcribe(&mut recording("long-en"), &options, &mut stopping);
        assert!(matches!(result, Err(TranscribeError::Cancelled)), "{stop}: {result:?}");
    }

    let mut again = CollectedTranscript::default();
    engine.transcribe(&mut recording("long-en"), &options, &mut again).unwrap();

    assert_eq!(plain(&again), plain(&kept));

    // A recording without speech.
    let mut silence = CollectedTranscript::default();
    engine.transcribe(&mut recording("noise"), &options, &mut silence).unwrap();

    assert!(silence.segments.is_empty());
}

#[test]
fn nothing_is_written_where_there_is_no_speech() {
    let engine = engine(Precision::Fp32);
    engine.use_vad(model_path());

    for file in ["audio/silence.flac", "audio/noise.flac"] {
        let mut kept = CollectedTranscript::default();
        let options = TranscribeOptions { no_speech_threshold: None, ..filtered("en") };
        let transcript = engine.transcribe(&mut audio(file), &options, &mut kept).unwrap();
        assert!(kept.segments.is_empty(), "{file}: {:?}", kept.text());
        assert_eq!(transcript.language, "en");
        assert!(transcript.duration_seconds > 5.0);
    }

    for samples in [0, 1, 511, 512] {
        engine.transcribe(&mut vec![f32::NAN; samples], &filtered("en"), &mut CollectedTranscript::default()).unwrap();
    }
}

#[test]
fn without_the_model_the_error_says_how_to_get_it() {
    let engine = engine(Precision::Fp32);
    let error =
        engine.transcribe(&mut vec![0.0; 16_000], &filtered("en"), &mut CollectedTranscript::default()).unwrap_err();

    assert!(matches!(error, TranscribeError::Vad(VadError::NoModel)));
    assert!(error.to_string().contains("make vad"), "{error}");

    engine.use_vad(fixture("README.md"));
    let wrong_file =
        engine.transcribe(&mut vec![0.0; 16_000], &filtered("en"), &mut CollectedTranscript::default()).unwrap_err();
    let text = wrong_file.to_string();

    assert!(text.contains("README.md") && text.contains("silero-vad"), "{text}");
}

#[test]
fn contradicting_options_are_refused() {
    let default = VadOptions::default();
    for (option, vad) in [
        ("threshold", VadOptions { threshold: 1.5, ..default.clone() }),
        ("neg_threshold", VadOptions { neg_threshold: Some(0.6), ..default.clone() }),
        ("max_speech_duration_seconds", VadOptions { max_speech_duration_seconds: Some(1.0), ..default }),
    ] {
        let options = TranscribeOptions { vad: Some(vad), ..TranscribeOptions::default() };
        let error = options.validate().unwrap_err().to_string();
        assert!(error.contains(option), "{error}");
    }
}

/// Speech between long silences, of which at most a block is in memory.
struct LongSource {
    speech: Vec<f32>,
    largest_read: usize,
}

impl PcmSource for LongSource {
    fn len(&self) -> u64 {
        16_000 * 60 * 12
    }

    fn read(&mut self, offset: u64, out: &mut [f32]) -> io::Result<()> {
        self.largest_read = self.largest_read.max(out.len());

        for (index, sample) in out.iter_mut().enumerate() {
            // The speech is repeated every two minutes.
            let at = ((offset + index as u64) % (16_000 * 120)) as usize;
            *sample = self.speech.get(at).copied().unwrap_or_default();
        }

        Ok(())
    }
}

#[test]
fn a_long_recording_is_read_a_block_at_a_time() {
    let mut source = LongSource { speech: audio("audio/en-1.wav"), largest_read: 0 };
    let length = source.len();
    let found = vad::speech_chunks(&mut source, &mut model(), &VadOptions::default(), &mut || true).unwrap();

    assert_eq!(found.len(), 6, "{found:?}");

    let map = ChunkMap::new(found, length);
    let engine = engine(Precision::Int8);
    let mut kept = CollectedTranscript::default();
    let options = TranscribeOptions { vad: None, ..filtered("en") };

    engine.transcribe(&mut map.spoken_source(&mut source), &options, &mut map.restoring_sink(&mut kept)).unwrap();
    assert!(source.largest_read <= 16_000 * 31);

    let last = kept.segments.last().unwrap();
    assert!(last.end_seconds > 590.0, "{last:?}");
}

#[test]
fn detection_stops_when_the_request_is_cancelled() {
    let mut source = LongSource { speech: vec![], largest_read: 0 };
    let mut calls = 0;
    let mut twice = || {
        calls += 1;
        calls < 3
    };
    let result = vad::speech_chunks(&mut source, &mut model(), &VadOptions::default(), &mut twice);
    assert!(matches!(result, Err(VadError::Cancelled)));
}
