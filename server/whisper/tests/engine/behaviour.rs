//! Behaviour without reference values: fallback, cancelling, streaming, unusual input.

use std::os::unix::fs::symlink;
use std::{fs, io};

use hush_whisper::{
    Engine, EngineDevice, EngineOptions, ModelDir, PcmSource, Precision, TranscribeError, TranscribeOptions,
};
use tempfile::TempDir;

use crate::support::{CollectedTranscript, audio, batched, engine, model, on_device, start_runtime};

/// A folder with links to the files of a model, which a test may replace.
pub fn linked_copy(model: &ModelDir) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(model.path()).unwrap() {
        let entry = entry.unwrap();
        symlink(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

pub fn cpu_options() -> EngineOptions {
    EngineOptions {
        device: EngineDevice::Cpu,
        threads: 1,
        prepack: false,
        max_batch: 1,
        memory_limit_bytes: None,
        cuda_graphs: false,
    }
}

/// The engine lays out memory by the manifest: that of another model is refused first.
#[test]
fn a_manifest_that_does_not_fit_the_graphs_is_refused_with_the_field() {
    start_runtime();
    let model = model(on_device(Precision::Fp32));
    let folder = linked_copy(&model);

    let manifest = folder.path().join("model.json");
    let good: serde_json::Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();

    for (field, wrong) in [
        ("d_model", 256),
        ("num_mel_bins", 128),
        ("num_mel_bins", 1 << 24),
        ("max_source_positions", 1 << 24),
        ("decoder_layers", 1000),
        ("decoder_attention_heads", 4),
        ("max_target_positions", 10_000_000),
        ("vocab_size", 52_865),
    ] {
        let mut changed = good.clone();
        changed["config"][field] = wrong.into();
        fs::remove_file(&manifest).unwrap();
        fs::write(&manifest, changed.to_string()).unwrap();

        let opened = ModelDir::open(folder.path()).unwrap();
        let Err(error) = Engine::load(&opened, &cpu_options()) else { panic!("{field} {wrong} was accepted") };

        assert!(error.to_string().contains(&format!("`config.{field}` is {wrong}")), "{error}");
    }
}

/// The error is found on another thread while the first window is encoded.
#[test]
fn a_tokenizer_of_another_model_is_an_error_of_the_load() {
    start_runtime();
    let model = model(Precision::Fp32);
    let folder = linked_copy(&model);

    let (tokenizer, manifest) = (folder.path().join("tokenizer.json"), folder.path().join("model.json"));
    let mut changed: serde_json::Value = serde_json::from_slice(&fs::read(&tokenizer).unwrap()).unwrap();
    changed["added_tokens"][0]["id"] = 4_294_967_295_u32.into();
    let changed = changed.to_string();
    let mut manifest_json: serde_json::Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    manifest_json["files"]["tokenizer.json"]["bytes"] = changed.len().into();

    for (path, text) in [(tokenizer, changed), (manifest, manifest_json.to_string())] {
        fs::remove_file(&path).unwrap();
        fs::write(&path, text).unwrap();
    }

    let engine = Engine::load(&ModelDir::open(folder.path()).unwrap(), &cpu_options()).unwrap();
    let error = engine.wait_until_loaded().unwrap_err().to_string();

    assert!(error.contains("id 4294967295") && error.contains("`vocab_size`"), "{error}");
}

fn english() -> TranscribeOptions {
    TranscribeOptions { language: Some("en".into()), fallback_seconds: None, ..TranscribeOptions::default() }
}

/// Options whose thresholds no attempt meets.
fn never_satisfied() -> TranscribeOptions {
    TranscribeOptions {
        logprob_threshold: Some(0.0),
        no_speech_threshold: None,
        temperatures: vec![0.0, 0.4, 0.8],
        best_of: 3,
        // The tests share the machine with others, so that time is no limit.
        fallback_seconds: None,
        ..english()
    }
}

#[test]
fn falls_back_to_the_last_temperature_and_repeats_itself_by_seed() {
    let engine = engine(Precision::Fp32);
    let transcribe = |options: &TranscribeOptions| {
        let mut kept = CollectedTranscript::default();
        engine.transcribe(&mut audio("audio/noisy-fr.flac"), options, &mut kept).unwrap();
        assert!(!kept.segments.is_empty());
        kept.segments
    };

    let options = never_satisfied();
    let first = transcribe(&options);

    assert!(first.iter().all(|segment| segment.temperature == 0.8));
    assert_eq!(transcribe(&options), first);

    let with_other_seeds = (1..6).map(|seed| transcribe(&TranscribeOptions { seed, ..options.clone() }));
    assert!(with_other_seeds.into_iter().any(|segments| segments != first), "the seed changes nothing");

    // A draw at a very low temperature is the greedy choice.
    let cold = transcribe(&TranscribeOptions { temperatures: vec![0.0, 1e-5], ..options.clone() });
    let greedy = transcribe(&TranscribeOptions { temperatures: vec![0.0], ..options });
    let texts = |segments: &[hush_whisper::Segment]| segments.iter().map(|s| s.text.clone()).collect::<Vec<_>>();

    assert_eq!(texts(&cold), texts(&greedy));
}

#[test]
fn stops_at_the_first_temperature_that_is_good_enough() {
    let mut kept = CollectedTranscript::default();
    engine(Precision::Fp32).transcribe(&mut audio("audio/en-1.wav"), &english(), &mut kept).unwrap();
    assert!(kept.segments.iter().all(|segment| segment.temperature == 0.0));
}

#[test]
fn cancels_at_every_call_of_keep_going() {
    let engine = engine(Precision::Fp32);
    let mut samples = audio("audio/long-de.flac");
    let options = TranscribeOptions { language: None, ..never_satisfied() };
    let mut kept = CollectedTranscript::default();

    engine.transcribe(&mut samples, &options, &mut kept).unwrap();

    // Called for each window, and regularly while tokens are decoded.
    assert!(kept.keep_going_calls > 10, "called {} times", kept.keep_going_calls);

    for stop in [1, 2, 3, 4, 5, 8] {
        let mut stopping = CollectedTranscript { stop_at: Some(stop), ..CollectedTranscript::default() };
        let result = engine.transcribe(&mut samples, &options, &mut stopping);
        assert!(matches!(result, Err(TranscribeError::Cancelled)), "{stop}: {result:?}");
        assert_eq!(stopping.keep_going_calls, stop);
        assert!(stopping.segments.is_empty());
    }

    let mut again = CollectedTranscript::default();
    engine.transcribe(&mut samples, &options, &mut again).unwrap();

    assert_eq!(again.segments, kept.segments, "a cancelled request left something behind");
}

#[test]
fn segments_stream_out_window_by_window() {
    let mut kept = CollectedTranscript::default();
    let mut samples = audio("audio/long-en.flac");
    let seconds = samples.len() as f64 / 16_000.0;
    let options = TranscribeOptions { language: None, ..english() };
    let transcript = engine(Precision::Fp32).transcribe(&mut samples, &options, &mut kept).unwrap();

    assert_eq!(transcript.language, "en");
    assert!(transcript.language_probability.is_some_and(|probability| probability > 0.5));
    assert_eq!(transcript.duration_seconds, seconds);
    assert_eq!(kept.first_tokens, 1);
    assert!(kept.progress.len() >= 3);
    assert!(kept.progress.is_sorted_by(|a, b| a.0 < b.0), "{:?}", kept.progress);

    let (done, total) = *kept.progress.last().unwrap();
    assert_eq!(done, total);
    assert!((total - seconds).abs() < 0.01);
    assert!(kept.segments_at_progress[0] > 0 && kept.segments_at_progress[0] < kept.segments.len());
    assert!(kept.segments.iter().enumerate().all(|(index, segment)| segment.id == index));
    assert!(kept.segments.is_sorted_by_key(|segment| segment.seek));
}

#[test]
fn nothing_is_written_for_audio_without_a_window() {
    let engine = engine(Precision::Fp32);
    for samples in [0, 1, 159] {
        let mut kept = CollectedTranscript::default();
        let transcript = engine.transcribe(&mut vec![0.1; samples], &english(), &mut kept).unwrap();
        assert!(kept.segments.is_empty(), "{samples}");
        assert_eq!(transcript.language, "en");
    }

    for samples in [160, 161, 480_000, 480_001] {
        engine.transcribe(&mut vec![0.0; samples], &english(), &mut CollectedTranscript::default()).unwrap();
    }
}

#[test]
fn samples_that_are_no_numbers_do_no_harm() {
    let engine = engine(Precision::Fp32);
    let mut wild = [f32::NAN, f32::INFINITY, f32::MAX, f32::NEG_INFINITY].repeat(20_000);
    engine.transcribe(&mut wild, &english(), &mut CollectedTranscript::default()).unwrap();
    let languages = engine.detect_language(&mut wild).unwrap();
    assert!(languages.iter().all(|language| language.probability.is_finite()));
}

#[test]
fn requests_share_the_engine_and_a_cancelled_one_does_not_disturb_others() {
    let engine = batched(Precision::Fp32, 4);
    let options = TranscribeOptions { language: None, ..english() };
    let mut alone = CollectedTranscript::default();

    engine.transcribe(&mut audio("audio/long-en.flac"), &options, &mut alone).unwrap();

    // There are more requests than windows. Some are cancelled, and some search over several rows.
    std::thread::scope(|scope| {
        let completed = [0, 1, 2].map(|_| {
            scope.spawn(|| {
                let mut kept = CollectedTranscript::default();
                engine.transcribe(&mut audio("audio/long-en.flac"), &options, &mut kept).unwrap();
                kept.segments
            })
        });

        for stop in [1, 5, 9, 30] {
            let engine = engine.clone();
            let options = if stop % 2 == 0 { never_satisfied() } else { options.clone() };
            scope.spawn(move || {
                for stop in [stop, stop + 3, stop + 20] {
                    let mut kept = CollectedTranscript { stop_at: Some(stop), ..CollectedTranscript::default() };
                    let result = engine.transcribe(&mut audio("audio/noisy-fr.flac"), &options, &mut kept);
                    assert!(matches!(result, Err(TranscribeError::Cancelled)), "{stop}: {result:?}");
                }
            });
        }

        for request in completed {
            let texts =
                |segments: &[hush_whisper::Segment]| segments.iter().map(|s| s.tokens.clone()).collect::<Vec<_>>();
            assert_eq!(texts(&request.join().unwrap()), texts(&alone.segments));
        }
    });
}

#[test]
fn a_full_engine_makes_other_requests_wait() {
    let engine = batched(Precision::Fp32, 1);
    let held = engine.encode(&mut vec![0.0; 80 * 3000]).unwrap();
    std::thread::scope(|scope| {
        let (sender, done) = std::sync::mpsc::channel();
        let engine = &engine;
        scope.spawn(move || {
            engine.transcribe(&mut audio("audio/en-1.wav"), &english(), &mut CollectedTranscript::default()).unwrap();
            sender.send(()).unwrap();
        });

        // Other commands are executed meanwhile; only the second window waits for the first.
        engine.hidden(vec![0.0; 80 * 3000]).unwrap();
        assert!(done.try_recv().is_err());

        drop(held);
        done.recv().unwrap();
    });
}

struct BrokenSource;

impl PcmSource for BrokenSource {
    fn len(&self) -> u64 {
        160_000
    }

    fn read(&mut self, _: u64, _: &mut [f32]) -> io::Result<()> {
        Err(io::Error::other("the disk is gone"))
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let engine = engine(Precision::Fp32);
    let error = engine.transcribe(&mut BrokenSource, &english(), &mut CollectedTranscript::default()).unwrap_err();

    assert!(matches!(error, TranscribeError::Source(_)) && error.to_string().contains("the disk is gone"));

    let with = |options: TranscribeOptions| {
        engine.transcribe(&mut vec![0.0; 1600], &options, &mut CollectedTranscript::default()).unwrap_err().to_string()
    };

    assert!(with(TranscribeOptions { language: Some("xx".into()), ..english() }).contains("`xx`"));

    // The model has 99 languages: Cantonese was added as the hundredth.
    assert!(with(TranscribeOptions { language: Some("cantonese".into()), ..english() }).contains("not trained"));
    assert!(with(TranscribeOptions { best_of: 0, ..english() }).contains("best_of"));
}

/// A long recording that is never in memory.
struct LoopingSource {
    piece: Vec<f32>,
    length: u64,
    largest_read: usize,
}

impl PcmSource for LoopingSource {
    fn len(&self) -> u64 {
        self.length
    }

    fn read(&mut self, offset: u64, out: &mut [f32]) -> io::Result<()> {
        self.largest_read = self.largest_read.max(out.len());
        for (index, sample) in out.iter_mut().enumerate() {
            *sample = self.piece[((offset + index as u64) % self.piece.len() as u64) as usize];
        }
        Ok(())
    }
}

#[test]
fn a_long_recording_is_read_a_window_at_a_time() {
    let mut source = LoopingSource { piece: audio("audio/long-en.flac"), length: 16_000 * 60 * 60, largest_read: 0 };
    let mut kept = CollectedTranscript { stop_at: Some(1000), ..CollectedTranscript::default() };
    let result = engine(Precision::Int8).transcribe(&mut source, &english(), &mut kept);
    assert!(matches!(result, Err(TranscribeError::Cancelled)));
    assert!(!kept.segments.is_empty());
    assert!(source.largest_read <= 16_000 * 31);
}

#[test]
fn a_long_prompt_is_cut_as_the_reference_cuts_it() {
    let mut kept = CollectedTranscript::default();
    let options = TranscribeOptions { initial_prompt: Some("The server is open. ".repeat(200)), ..english() };

    // The small model adds nothing to the prompt.
    engine(Precision::Fp32).transcribe(&mut audio("audio/en-1.wav"), &options, &mut kept).unwrap();
    assert_eq!((kept.text().as_str(), kept.segments.len()), ("", 0));
}

/// The words of a recording, with silence before and after them.
fn padded(before: usize, behind: usize) -> Vec<f32> {
    [vec![0.0; before], audio("audio/en-1.wav"), vec![0.0; behind]].concat()
}

#[test]
fn nothing_is_written_for_silence_and_no_time_is_behind_the_end() {
    let engine = engine(Precision::Fp32);
    for words in [false, true] {
        let options = TranscribeOptions { word_timestamps: words, ..english() };
        let transcribe = |mut samples: Vec<f32>| {
            let end = samples.len() as f64 / 16_000.0;
            let mut kept = CollectedTranscript::default();
            engine.transcribe(&mut samples, &options, &mut kept).unwrap();

            for segment in &kept.segments {
                assert!(segment.start_seconds <= segment.end_seconds && segment.end_seconds <= end, "{segment:?}");
                assert!(!segment.text.trim().is_empty());
                for word in &segment.words {
                    assert!(segment.start_seconds <= word.start_seconds && word.end_seconds <= end, "{segment:?}");
                }
            }

            assert!(kept.segments.iter().enumerate().all(|(index, segment)| segment.id == index));
            assert!(kept.progress.last().is_none_or(|(done, total)| done == total));

            kept
        };

        // A minute of digital silence, and a minute in which only the last bit changes.
        assert_eq!(transcribe(vec![0.0; 960_000]).text(), "");
        assert_eq!(transcribe((0..960_000).map(|i| (i % 3) as f32 / 32_768.0).collect()).text(), "");

        // Audio that is too short for speech, whatever it contains.
        assert_eq!(transcribe(vec![0.3; 3_000]).text(), "");

        // A window of three frames, and silent windows before and after.
        for (before, behind) in
            [(0, 480_480 - 11_761), (79_040, 0), (480_000, 0), (960_000, 960_000), (479_000, 480_000)]
        {
            let kept = transcribe(padded(before, behind));
            assert!(kept.text().starts_with(" Clean"), "{before} {behind}: {}", kept.text());
            assert!(
                kept.segments.iter().all(|s| s.start_seconds < (before + 16_000) as f64 / 16_000.0),
                "{before} {behind}"
            );
        }
    }
}

#[test]
fn the_fallback_of_a_window_is_bounded() {
    let engine = engine(Precision::Fp32);
    let temperatures_of = |options: &TranscribeOptions| {
        let mut kept = CollectedTranscript::default();
        engine.transcribe(&mut audio("audio/noisy-fr.flac"), options, &mut kept).unwrap();
        let temperatures: Vec<f32> = kept.segments.iter().map(|segment| segment.temperature).collect();
        assert!(!temperatures.is_empty());
        temperatures
    };

    let unlimited = TranscribeOptions { fallback_tokens: None, fallback_seconds: None, ..never_satisfied() };
    assert!(temperatures_of(&unlimited).iter().all(|temperature| *temperature == 0.8));

    // Without tokens or time for another attempt the first one is used.
    for limited in [
        TranscribeOptions { fallback_tokens: Some(0), ..unlimited.clone() },
        TranscribeOptions { fallback_seconds: Some(0.0), ..unlimited.clone() },
        TranscribeOptions { fallback_tokens: Some(10), ..unlimited.clone() },
    ] {
        assert!(temperatures_of(&limited).iter().all(|temperature| *temperature == 0.0), "{limited:?}");
    }

    // With a larger budget the best of several attempts is used, and always the same one.
    let some = TranscribeOptions { fallback_tokens: Some(400), ..unlimited };
    assert_eq!(temperatures_of(&some), temperatures_of(&some));
}
