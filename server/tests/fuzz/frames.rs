//! The messages between server and runner, damaged in transit.

use std::time::Duration;

use hush_server::audio::PcmSpan;
use hush_server::job::{JobOutcome, JobTask};
use hush_server::runner::wire::{
    FailureKind, FrameDecoder, FromRunner, LoadSpec, MAX_FRAME, ToRunner, VERSION, WireMessage,
};
use hush_whisper::{LanguageProbability, Segment, TranscribeOptions, Transcript};
use proptest::prelude::*;

use crate::damage::{Damages, damages};
use crate::harness::{FuzzLimits, fuzz};

/// A whole frame, the bytes after it, and the decoded message: a text of two bytes may become a larger field.
const LIMITS: FuzzLimits = FuzzLimits { bytes: 16 * MAX_FRAME, time: Duration::from_secs(30) };

fn bytes_of(messages: &[impl WireMessage]) -> Vec<u8> {
    messages.iter().flat_map(|message| message.encode().unwrap()).collect()
}

/// One message of each kind, as bytes.
fn good() -> [Vec<u8>; 2] {
    let spec = LoadSpec {
        model_dir: "/models/base/int8".into(),
        device: "cuda:1".to_owned(),
        threads: Some(2),
        prepack: true,
        max_batch: 8,
        memory_limit_bytes: Some(1 << 33),
    };

    let options = TranscribeOptions { language: Some("de".to_owned()), ..TranscribeOptions::default() };
    let work = JobTask::Transcribe(options);
    let to = [
        ToRunner::Load(spec),
        ToRunner::Work {
            id: 1,
            work,
            audio: PcmSpan { start_bytes: 44, len_samples: 160_000 },
            request: Some("r".to_owned()),
        },
        ToRunner::Cancel { id: 1 },
        ToRunner::LogLevel { filter: "info".to_owned() },
        ToRunner::Exit,
    ];

    let segment = Segment { text: " Hello.".to_owned(), tokens: vec![1, 2, 3], ..Segment::default() };
    let transcript = Transcript {
        language: "de".to_owned(),
        language_probability: None,
        duration_seconds: 9.5,
        ..Transcript::default()
    };
    let languages = vec![LanguageProbability { code: "en".to_owned(), probability: 0.5 }];
    let from = [
        FromRunner::Hello { version: VERSION, pid: 7, runtime: Some("x".to_owned()), libraries_seconds: 0.04 },
        FromRunner::Loaded { sessions_seconds: 0.02 },
        FromRunner::FullyLoaded { seconds: 0.2 },
        FromRunner::Segment { id: 1, segment },
        FromRunner::Progress { id: 1, done_seconds: 1.0, total_seconds: 2.0 },
        FromRunner::Beat,
        FromRunner::Done { id: 1, outcome: JobOutcome::Transcribed(transcript) },
        FromRunner::Done { id: 2, outcome: JobOutcome::Languages(languages) },
        FromRunner::Failed { id: 3, kind: FailureKind::Engine, message: "m".to_owned() },
    ];

    [bytes_of(&to), bytes_of(&from)]
}

/// Decodes all messages in `bytes` up to the first error.
fn decode<M: WireMessage>(bytes: &[u8], piece: usize) {
    let mut decoder = FrameDecoder::default();

    for piece in bytes.chunks(piece) {
        decoder.buffer().extend_from_slice(piece);

        loop {
            match decoder.message::<M>() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

fn damaged() -> impl Strategy<Value = (bool, Damages, usize)> {
    (any::<bool>(), damages(), 1_usize..5000)
}

#[test]
fn damaged_frames() {
    let good = good();
    fuzz("damaged_frames", 2000, LIMITS, damaged(), |(from_runner, damages, piece)| {
        let mut bytes = good[usize::from(from_runner)].clone();
        damages.apply(&mut bytes);
        decode::<ToRunner>(&bytes, piece);
        decode::<FromRunner>(&bytes, piece);
    });
}

/// Frames of the right length around JSON that is large, deep, or of another kind.
#[test]
fn wild_json() {
    let piece = prop::sample::select(vec![
        "[",
        "{\"a\":",
        "1,",
        "\"x\",",
        "{},",
        "\\u0000",
        "{\"segment\":{\"id\":1,\"segment\":{\"tokens\":[",
        "\u{1f600}",
    ]);

    let start = prop::sample::select(vec![
        "",
        "{\"segment\":{\"id\":1,\"segment\":{\"tokens\":[",
        "{\"segment\":{\"id\":1,\"segment\":{\"words\":[",
        "{\"done\":{\"id\":1,\"outcome\":{\"languages\":[",
        "{\"work\":{\"id\":1,\"work\":{\"transcribe\":{\"temperatures\":[",
        "{\"load_failed\":{\"kind\":\"engine\",\"message\":\"",
    ]);

    fuzz("wild_json", 200, LIMITS, (start, piece, 0_usize..400_000), |(start, piece, times)| {
        let mut json = start.as_bytes().to_vec();
        json.extend(piece.as_bytes().iter().copied().cycle().take((piece.len() * times).min(MAX_FRAME - json.len())));
        let length = u32::try_from(json.len()).unwrap();
        let frame = [&length.to_le_bytes()[..], &json].concat();
        decode::<ToRunner>(&frame, 64 << 10);
        decode::<FromRunner>(&frame, 64 << 10);
    });
}
