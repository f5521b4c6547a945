//! Windows that the encoder hears without most of the silence after the sound.

use std::{
    fs,
    sync::{Arc, Barrier, Mutex},
};

use hush_whisper::{
    EncoderContext, Engine, ModelDir, Precision, Segment, TranscribeOptions, WindowCounts,
    decoding::ForcedSearch,
    mel::{LogMel, Spectrogram},
};

use crate::{
    behaviour::{cpu_options, linked_copy},
    support::{CollectedTranscript, audio, batched, engine, model, start_runtime},
};

const PROMPT: [u32; 4] = [50_258, 50_259, 50_359, 50_363];
const FRAMES: [usize; 3] = [1_200, 2_000, 3_000];

/// The first frames of a recording's spectrogram.
fn mel(file: &str, frames: usize) -> Vec<f32> {
    let mut window = vec![0.0; 80 * frames];
    let (mut samples, mut mel) = (audio(file), LogMel::new(80));
    let mut spectrogram = Spectrogram::scan(&mut samples, &mut mel, &mut || true).unwrap();
    let content = spectrogram.content_frames() as usize;
    spectrogram.window(0, content, &mut window).unwrap();
    window
}

/// The first logits of each step of forced tokens. `ready` holds back the search until all windows are encoded.
fn forced_logits(engine: &Engine, frames: usize, rows: usize, ready: &Barrier) -> Vec<f32> {
    let tokens: Vec<u32> = (0..30).map(|token| 1_000 + token).collect();
    let mut window = engine.encode(&mut mel("audio/en-1.wav", frames)).unwrap();
    window.prefill(&PROMPT, true).unwrap();
    ready.wait();

    let found = Arc::new(Mutex::new(Vec::new()));
    let collected = found.clone();
    let forced = ForcedSearch::new(tokens, rows, move |_, logits| {
        collected.lock().unwrap().extend_from_slice(&logits[..64]);
    });
    window.decode(Box::new(forced), &mut || true).unwrap();

    let logits = found.lock().unwrap();
    logits.clone()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Windows of three lengths step together, in one row and in several; each has the logits that it has alone.
#[test]
fn windows_of_different_lengths_share_steps() {
    for (precision, limit) in [(Precision::Fp32, 1e-3), (Precision::Int8, 0.3), (Precision::Fp16, 0.1)] {
        let (single, shared) = (engine(precision), batched(precision, 4));
        for rows in [1, 3] {
            let alone = FRAMES.map(|frames| forced_logits(&single, frames, rows, &Barrier::new(1)));
            assert!(largest_difference(&alone[0], &alone[2]) > limit, "{precision}: the length changes nothing");

            let ready = Barrier::new(FRAMES.len());
            std::thread::scope(|scope| {
                let (shared, ready) = (&shared, &ready);
                let together = FRAMES.map(|frames| scope.spawn(move || forced_logits(shared, frames, rows, ready)));
                for (together, alone) in together.into_iter().zip(&alone) {
                    let difference = largest_difference(&together.join().unwrap(), alone);
                    assert!(difference < limit, "{precision}, {rows} rows: {difference}");
                }
            });
        }
    }
}

/// The slot of a window is used again by longer and shorter ones.
#[test]
fn a_window_leaves_nothing_behind_for_the_next_one() {
    let engine = batched(Precision::Int8, 1);
    let logits = |frames| forced_logits(&engine, frames, 1, &Barrier::new(1));
    let (short, full) = (logits(1_200), logits(3_000));
    assert_eq!(logits(1_200), short);
    assert_eq!(logits(3_000), full);
}

#[test]
fn lengths_that_the_encoder_does_not_have_are_refused() {
    let engine = engine(Precision::Fp32);
    for frames in [0, 100, 1_210, 1_201, 3_200] {
        assert!(engine.encode(&mut vec![0.0; 80 * frames]).is_err(), "{frames}");
    }
    assert_eq!(engine.hidden(vec![0.0; 80 * 1_400]).unwrap().len(), 700 * 128);
}

/// Options under which a good text raises no doubt.
fn short() -> TranscribeOptions {
    TranscribeOptions {
        language: Some("en".into()),
        encoder_context: EncoderContext::Short,
        fallback_seconds: None,
        // The bundled model was trained on windows of 30 s alone, and is less certain about short ones.
        logprob_threshold: None,
        ..TranscribeOptions::default()
    }
}

fn transcribe(engine: &Engine, file: &str, options: &TranscribeOptions) -> (Vec<Segment>, WindowCounts, String) {
    let mut kept = CollectedTranscript::default();
    let transcript = engine.transcribe(&mut audio(file), options, &mut kept).unwrap();
    assert_eq!(kept.first_tokens, 1);
    (kept.segments, transcript.windows, transcript.language)
}

const ONE_SHORT: WindowCounts = WindowCounts { short: 1, repeated: 0, full: 0 };
const ONE_REPEATED: WindowCounts = WindowCounts { short: 0, repeated: 1, full: 0 };
const ONE_FULL: WindowCounts = WindowCounts { short: 0, repeated: 0, full: 1 };

#[test]
fn a_text_without_doubt_is_that_of_the_short_window() {
    for precision in [Precision::Fp32, Precision::Int8] {
        let engine = engine(precision);
        for words in [false, true] {
            let options = TranscribeOptions { word_timestamps: words, ..short() };
            let (segments, windows, _) = transcribe(&engine, "audio/en-1.wav", &options);
            assert_eq!(windows, ONE_SHORT, "{precision}");
            assert!(segments[0].text.starts_with(" Clean"), "{segments:?}");

            let words: Vec<_> = segments.iter().flat_map(|segment| &segment.words).collect();
            assert_eq!(words.is_empty(), !options.word_timestamps);
            assert!(words.is_sorted_by(|a, b| a.end_seconds <= b.start_seconds + 1e-9), "{words:?}");
        }
    }
}

/// The times of words agree with those that the full window gives: the align graph has the length of the window.
#[test]
fn words_of_a_short_window_are_where_they_are_in_the_full_one() {
    let engine = engine(Precision::Fp32);
    let times = |context| {
        let options = TranscribeOptions { word_timestamps: true, encoder_context: context, ..short() };
        let (segments, ..) = transcribe(&engine, "audio/en-1.wav", &options);
        segments.into_iter().flat_map(|segment| segment.words).map(|word| (word.text, word.end_seconds)).collect()
    };

    let (short, full): (Vec<(String, f64)>, Vec<_>) = (times(EncoderContext::Short), times(EncoderContext::Full));
    assert_eq!(short.len(), full.len());
    for ((text, end), (full_text, full_end)) in short.iter().zip(&full) {
        assert_eq!(text, full_text);
        assert!((end - full_end).abs() <= 0.3, "{text}: {end} and {full_end}");
    }
}

/// A threshold that no text meets: the result is what the full window gives at the same temperatures, no matter how the
/// encoder heard it first.
#[test]
fn a_doubtful_text_is_decoded_again_with_the_full_window() {
    let engine = engine(Precision::Fp32);
    let doubtful = TranscribeOptions {
        logprob_threshold: Some(0.0),
        no_speech_threshold: None,
        temperatures: vec![0.0, 0.4],
        best_of: 2,
        word_timestamps: true,
        ..short()
    };
    let full = TranscribeOptions { encoder_context: EncoderContext::Full, ..doubtful.clone() };

    for language in [Some("en".to_owned()), None] {
        let [doubtful, full] = [&doubtful, &full].map(|options| {
            let options = TranscribeOptions { language: language.clone(), ..options.clone() };
            transcribe(&engine, "audio/en-1.wav", &options)
        });
        assert_eq!((doubtful.1, full.1), (ONE_REPEATED, ONE_FULL));
        assert_eq!(doubtful.0, full.0);
        assert_eq!((doubtful.2.as_str(), full.2.as_str()), ("en", "en"));
        assert!(doubtful.0.iter().all(|segment| segment.temperature == 0.4));
    }
}

#[test]
fn the_language_is_found_in_the_short_window() {
    let options = TranscribeOptions { language: None, ..short() };
    let (segments, windows, language) = transcribe(&engine(Precision::Int8), "audio/en-1.wav", &options);
    assert_eq!((language.as_str(), windows), ("en", ONE_SHORT));
    assert!(segments[0].text.starts_with(" Clean"), "{segments:?}");
}

/// Only the last window of a long recording is mostly silence.
#[test]
fn whole_windows_are_heard_in_full() {
    let (_, windows, _) = transcribe(&engine(Precision::Int8), "audio/long-en.flac", &short());
    assert!(windows.full >= 1 && windows.short + windows.repeated <= 1, "{windows:?}");
}

#[test]
fn a_model_without_proof_hears_whole_windows() {
    let options = TranscribeOptions { encoder_context: EncoderContext::Auto, ..short() };
    let (_, windows, _) = transcribe(&engine(Precision::Int8), "audio/en-1.wav", &options);
    assert_eq!(windows, ONE_FULL);
}

/// Encoders of older installs have a fixed length.
#[test]
fn an_older_install_hears_whole_windows() {
    start_runtime();
    let model = model(Precision::Int8);
    let folder = linked_copy(&model);

    // The dimension `M` of the input, which comes after the nodes, becomes 3000: both take three bytes.
    let path = folder.path().join("encoder.onnx");
    let mut graph = fs::read(&path).unwrap();
    let at = graph.windows(3).rposition(|bytes| bytes == [0x12, 1, b'M']).unwrap();
    graph[at..at + 3].copy_from_slice(&[0x08, 0xb8, 0x17]);
    fs::remove_file(&path).unwrap();
    fs::write(&path, graph).unwrap();

    // ONNX Runtime refuses weights outside of the folder of the graph.
    let weights = folder.path().join("weights.bin");
    fs::remove_file(&weights).unwrap();
    fs::copy(model.file("weights.bin"), weights).unwrap();

    let old = Engine::load(&ModelDir::open(folder.path()).unwrap(), &cpu_options()).unwrap();
    assert!(!old.accepts_short_windows());
    assert!(old.encode(&mut vec![0.0; 80 * 1_200]).is_err());

    let (segments, windows, _) = transcribe(&old, "audio/en-1.wav", &short());
    assert_eq!(windows, ONE_FULL);
    assert!(segments[0].text.starts_with(" Clean"), "{segments:?}");
}
