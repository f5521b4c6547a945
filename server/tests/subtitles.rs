//! Subtitles from words against the writers of openai/whisper (`scripts/golden_subtitles.py`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

use std::fs;
use std::path::{Path, PathBuf};

use hush_server::format::{JsonShape, SubtitleLayout, TranscriptFormat, TranscriptWriter, WordOutput};
use hush_whisper::{Segment, Transcript, Word};
use serde_json::Value;

fn fixture(name: &str) -> Value {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    serde_json::from_slice(&fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

fn segments(result: &Value) -> Vec<Segment> {
    let seconds = |value: &Value| value.as_f64().unwrap();
    let word = |word: &Value| Word {
        text: word["word"].as_str().unwrap().to_owned(),
        start_seconds: seconds(&word["start"]),
        end_seconds: seconds(&word["end"]),
        probability: 0.5,
    };
    let segment = |segment: &Value| Segment {
        start_seconds: seconds(&segment["start"]),
        end_seconds: seconds(&segment["end"]),
        text: segment["text"].as_str().unwrap().to_owned(),
        words: segment["words"].as_array().unwrap().iter().map(word).collect(),
        ..Segment::default()
    };
    result["segments"].as_array().unwrap().iter().map(segment).collect()
}

fn write(format: TranscriptFormat, words: WordOutput, segments: &[Segment]) -> String {
    let mut writer = TranscriptWriter::with_words(format, words, Vec::new()).unwrap();
    for segment in segments {
        writer.segment(segment.clone()).unwrap();
    }
    let transcript = Transcript {
        language: "en".to_owned(),
        language_probability: None,
        duration_seconds: 1.0,
        ..Transcript::default()
    };
    String::from_utf8(writer.finish(&transcript).unwrap()).unwrap()
}

fn layout(options: &Value) -> SubtitleLayout {
    let number = |name: &str| options[name].as_u64().map(|number| usize::try_from(number).unwrap());
    SubtitleLayout {
        highlight_words: options["highlight_words"] == true,
        max_line_width: number("max_line_width"),
        max_line_count: number("max_line_count"),
        max_words_per_line: number("max_words_per_line"),
    }
}

#[test]
fn every_layout_is_the_reference_s() {
    let golden = fixture("subtitles.json");
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 60);
    for case in cases {
        let name = case["recording"].as_str().unwrap();
        let segments = match name {
            "odd" => segments(&golden["odd"]),
            name => segments(&fixture(&format!("parity/{name}.json"))["words"]),
        };
        let words = WordOutput::LaidOut(layout(&case["options"]));
        for (format, expected) in [(TranscriptFormat::Srt, &case["srt"]), (TranscriptFormat::Vtt, &case["vtt"])] {
            let found = write(format, words, &segments);
            assert_eq!(found, expected.as_str().unwrap(), "{name}, {}", case["options"]);
        }
    }
}

fn two_words() -> Vec<Segment> {
    let word = |text: &str, start_seconds, end_seconds| Word {
        text: text.to_owned(),
        start_seconds,
        end_seconds,
        probability: 0.75,
    };
    let (text, end_seconds) = (" One --> two".to_owned(), 1.0);
    let words = vec![word(" One", 0.0, 0.5), word(" -->", 0.5, 0.75), word(" two", 0.75, 1.0)];
    vec![Segment { text, end_seconds, words, ..Segment::default() }]
}

/// The reference's word writer leaves the arrow, and breaks its own subtitles with it.
#[test]
fn an_arrow_in_a_word_does_not_end_the_times() {
    let expected = "1\n00:00:00,000 --> 00:00:01,000\nOne -> two\n\n";
    assert_eq!(
        write(TranscriptFormat::Srt, WordOutput::LaidOut(SubtitleLayout::WHISPER_ASR_WEBSERVICE), &two_words()),
        expected
    );
    assert_eq!(write(TranscriptFormat::Srt, WordOutput::Plain, &two_words()), expected);
    let lit = write(
        TranscriptFormat::Srt,
        WordOutput::LaidOut(SubtitleLayout { highlight_words: true, ..SubtitleLayout::default() }),
        &two_words(),
    );
    assert!(lit.contains("One <u>-></u> two"), "{lit}");
}

#[test]
fn json_holds_the_words_in_both_shapes() {
    let openai = write(TranscriptFormat::Json(JsonShape::OpenAiWhisper), WordOutput::Plain, &two_words());
    let expected = "\"no_speech_prob\": 0.0, \"words\": [{\"word\": \" One\", \"start\": 0.0, \"end\": 0.5, \
                    \"probability\": 0.75}, ";
    assert!(openai.contains(expected), "{openai}");
    let faster = write(
        TranscriptFormat::Json(JsonShape::FasterWhisper),
        WordOutput::LaidOut(SubtitleLayout::WHISPER_ASR_WEBSERVICE),
        &two_words(),
    );
    let expected = "\"words\": [{\"start\": 0.0, \"end\": 0.5, \"word\": \" One\", \"probability\": 0.75}, ";
    assert!(faster.contains(expected), "{faster}");
    // Asked for, and there are none.
    let silent = vec![Segment::default()];
    assert!(
        write(TranscriptFormat::Json(JsonShape::OpenAiWhisper), WordOutput::Plain, &silent).contains("\"words\": []}")
    );
    assert!(!write(TranscriptFormat::Json(JsonShape::OpenAiWhisper), WordOutput::Without, &silent).contains("words"));
    assert!(
        write(TranscriptFormat::Json(JsonShape::FasterWhisper), WordOutput::Without, &silent)
            .contains("\"words\": null")
    );
}

#[test]
fn text_and_tables_follow_the_segments() {
    assert_eq!(
        write(TranscriptFormat::Txt, WordOutput::LaidOut(SubtitleLayout::WHISPER_ASR_WEBSERVICE), &two_words()),
        "One --> two\n"
    );
    let table = write(TranscriptFormat::Tsv, WordOutput::LaidOut(SubtitleLayout::WHISPER_ASR_WEBSERVICE), &two_words());
    assert_eq!(table, "start\tend\ttext\n0\t1000\tOne --> two\n");
}
