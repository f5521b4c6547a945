//! Commands other than `serve`.

use std::path::PathBuf;

use hush_whisper::VadOptions;

use super::*;
use crate::cli::values::{OutputFormat, PrecisionChoice, PrecisionWord, TaskWord};
use crate::format::{SubtitleLayout, WordOutput};

pub(super) fn transcription(argv: &[&str], variables: &[(&str, &str)]) -> Result<TranscribeSettings, SettingError> {
    let cli = parse([&["hush-server", "transcribe", "a.wav"], argv].concat()).expect("arguments parse");
    match resolve(cli, &env(variables))? {
        CommandSettings::Transcribe(settings) => Ok(*settings),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_runner_may_only_be_asked_whether_cuda_works() {
    let asked = |argv: &[&str]| resolve(parse([&["hush-server", "runner"], argv].concat()).unwrap(), &env(&[]));
    let CommandSettings::ProbeCuda { library, index } = asked(&["probe-cuda", "/o.so", "1"]).unwrap() else { panic!() };
    assert_eq!((library, index), (PathBuf::from("/o.so"), 1));

    assert!(asked(&["probe-cuda", "/o.so"]).is_err());
    assert!(matches!(asked(&[]).unwrap(), CommandSettings::Runner(_)));
}

#[test]
fn install_settings() {
    let cli = parse(["hush-server", "install", "tiny", "--precision", "int8,fp32", "--force"]).unwrap();
    let CommandSettings::Install(settings) = resolve(cli, &env(&[("HUSH_KEEP_DOWNLOAD", "yes")])).unwrap() else {
        panic!()
    };

    let exactly = |p| PrecisionChoice::Exactly(p);
    assert_eq!(settings.precisions, [exactly(PrecisionWord::Int8), exactly(PrecisionWord::Fp32)]);
    assert!(settings.force && settings.keep_download);

    let cli = parse(["hush-server", "install", "tiny"]).unwrap();
    let CommandSettings::Install(settings) = resolve(cli, &env(&[("HUSH_PRECISION", "fp16")])).unwrap() else {
        panic!()
    };
    assert_eq!(settings.precisions, [exactly(PrecisionWord::Fp16)]);
}

#[test]
fn transcribe_settings() {
    let cli = parse(["hush-server", "transcribe", "a.wav", "b.wav", "--output", "srt", "--language", "de"]).unwrap();
    let variables = [("ASR_MODEL", "small"), ("HUSH_TASK", "translate"), ("HUSH_INITIAL_PROMPT", "Hush.")];
    let CommandSettings::Transcribe(settings) = resolve(cli, &env(&variables)).unwrap() else { panic!() };

    assert_eq!(settings.files.len(), 2);
    assert_eq!((settings.output, settings.task), (OutputFormat::Srt, TaskWord::Translate));
    assert_eq!(settings.language.as_deref(), Some("de"));
    assert_eq!(settings.model.as_deref(), Some("small"));
    assert_eq!(settings.initial_prompt.as_deref(), Some("Hush."));
    assert_eq!(settings.search, SearchSettings::default());
}

#[test]
fn how_transcribe_searches() {
    let cli = parse(["hush-server", "transcribe", "a.wav", "--beam-size", "5", "--patience=1.5"]).unwrap();
    let variables = [("HUSH_LENGTH_PENALTY", "0.5"), ("HUSH_BEST_OF", "3"), ("HUSH_TEMPERATURE", "0")];
    let CommandSettings::Transcribe(settings) = resolve(cli, &env(&variables)).unwrap() else { panic!() };

    let expected = SearchSettings {
        beam_size: Some(5),
        patience: Some(1.5),
        best_of: Some(3),
        length_penalty: Some(0.5),
        temperature: Some(0.0),
    };
    assert_eq!(settings.search, expected);

    let cli = parse(["hush-server", "transcribe", "a.wav"]).unwrap();
    let error = resolve(cli, &env(&[("HUSH_PATIENCE", "much")])).unwrap_err().to_string();
    assert!(error.contains("HUSH_PATIENCE"), "{error}");
}

#[test]
fn subtitles_are_laid_out_as_asked() {
    let plain = transcription(&[], &[]).unwrap();
    assert_eq!((plain.words, plain.vad, plain.engine.vad_model), (WordOutput::Without, None, None));

    let flags = ["--word-timestamps", "--max-line-width", "42", "--max-line-count", "2", "--vad-filter"];
    let settings = transcription(&flags, &[("HUSH_VAD_MODEL", "/m.onnx"), ("HUSH_HIGHLIGHT_WORDS", "yes")]).unwrap();

    let layout = SubtitleLayout {
        highlight_words: true,
        max_line_width: Some(42),
        max_line_count: Some(2),
        max_words_per_line: None,
    };
    assert_eq!(settings.words, WordOutput::LaidOut(layout));
    assert_eq!(settings.vad, Some(VadOptions::default()));

    let parallel = Some(VadOptions { parallel: true, ..VadOptions::default() });
    assert_eq!(transcription(&["--vad-parallel"], &[]).unwrap().vad, parallel);
    assert_eq!(settings.engine.vad_model, Some("/m.onnx".into()));

    let by_variables =
        transcription(&[], &[("HUSH_WORD_TIMESTAMPS", "true"), ("HUSH_MAX_WORDS_PER_LINE", "3")]).unwrap();
    let layout = SubtitleLayout { max_words_per_line: Some(3), ..SubtitleLayout::default() };
    assert_eq!(by_variables.words, WordOutput::LaidOut(layout));
}

#[test]
fn subtitles_of_words_need_words_and_room() {
    let refused = |argv: &[&str]| transcription(argv, &[]).unwrap_err().to_string();

    assert!(refused(&["--max-line-width", "42"]).contains("--word-timestamps"));
    assert!(refused(&["--highlight-words"]).contains("--word-timestamps"));
    assert!(refused(&["--word-timestamps", "--max-words-per-line", "0"]).contains("--max-words-per-line"));
}
