//! Real files of every format that clients send.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod audio_support;

use audio_support::*;
use hush_server::audio::{self, AudioError, DecodeOptions};

/// File, least likeness to the original, most samples that its length may differ by, samples that it may be late.
const BUILT_IN: &[(&str, f64, usize, isize)] = &[
    ("speech.flac", 1.0, 0, 0),
    ("speech-flac.mkv", 1.0, 0, 0),
    ("speech-alac.m4a", 1.0, 0, 0),
    ("speech.caf", 1.0, 0, 0),
    ("speech.aiff", 0.98, 1, 0),
    ("speech-mulaw.wav", 0.999, 0, 0),
    ("speech-alaw.wav", 0.999, 0, 0),
    ("speech-adpcm-ima.wav", 0.99, 2048, 0),
    ("speech-adpcm-ms.wav", 0.99, 2048, 0),
    ("speech.mp3", 0.99, 1, 1),
    ("speech-cover.mp3", 0.99, 1, 1),
    ("speech-aac.m4a", 0.99, 16, 0),
    // ADTS cannot say how much its encoder is late.
    ("speech.aac", 0.96, 1200, 400),
    ("speech-vorbis.ogg", 0.98, 1, 1),
    ("speech-vorbis.webm", 0.98, 400, 1),
    ("speech-opus.ogg", 0.97, 1, 8),
    ("speech-opus.webm", 0.97, 400, 8),
    ("speech-opus-live.webm", 0.97, 400, 8),
    ("two-tracks.mkv", 0.97, 500, 1),
];

#[test]
fn every_format_sounds_like_the_original() {
    let original = decoded(fixture("audio/en-3.wav"));
    let mut wrong = Vec::new();
    for &(name, likeness, length, late) in BUILT_IN {
        let pcm = decode(fixture(&format!("formats/{name}"))).unwrap_or_else(|error| panic!("{name}: {error}"));
        let heard = samples(&pcm);
        let (shift, like) = best_shift(&original, &heard, 500);
        let difference = heard.len().abs_diff(original.len());
        let line = format!("{name}: like {like:.5}, late {shift}, length differs by {difference}");
        println!("{line}");
        if like < likeness - 1e-9 || shift.abs() > late || difference > length {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn lossless_formats_give_the_samples_of_the_wav() {
    let original = decoded(fixture("audio/en-3.wav"));
    for name in ["speech.flac", "speech-flac.mkv", "speech-alac.m4a", "speech.caf"] {
        assert!(decoded(fixture(&format!("formats/{name}"))) == original, "{name}");
    }
}

#[test]
fn long_flac_fixtures_have_their_known_lengths() {
    for (name, length) in [("long-de", 729_445), ("noise", 128_000), ("silence", 96_000), ("pauses-es", 983_296)] {
        assert_eq!(decode(fixture(&format!("audio/{name}.flac"))).unwrap().len_samples(), length, "{name}");
    }
}

#[test]
fn names_lie_and_do_not_matter() {
    for name in ["x.mp3", "x.wav", "x", "", "ü.\u{0}", "../../etc/passwd"] {
        let input = spooled(&fixture("formats/speech.flac"));
        let pcm = audio::decode(&input, Some(name), &built_in(), &|| true).unwrap();
        assert_eq!(pcm.len_samples(), 18_494, "{name}");
    }
}

#[test]
fn what_is_not_supported_says_what_to_do() {
    for (name, codec) in [("speech-ac3.mkv", "AC-3"), ("speech-opus-5.1.ogg", "Opus")] {
        let error = decode(fixture(&format!("formats/{name}"))).unwrap_err();
        assert!(matches!(error, AudioError::UnsupportedCodec { .. }), "{name}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(codec) && text.contains("install ffmpeg"), "{text}");
        assert!(error.is_client_fault());
    }
    let error = decode(fixture("formats/speech.wma")).unwrap_err();
    assert!(matches!(error, AudioError::Unrecognised { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("30 26 b2 75") && text.contains("ffmpeg, which reads more formats, is not available"),
        "{text}"
    );
}

#[test]
fn ffmpeg_reads_what_the_built_in_decoders_cannot() {
    if !has_ffmpeg() {
        return;
    }
    let original = decoded(fixture("audio/en-3.wav"));
    for name in ["speech-ac3.mkv", "speech.wma", "speech-opus-5.1.ogg"] {
        let pcm = decode_with(fixture(&format!("formats/{name}")), &DecodeOptions::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let (shift, like) = best_shift(&original, &samples(&pcm), 2500);
        println!("{name}: like {like:.5}, late {shift}");
        assert!(like > 0.95, "{name}: {like}");
    }
}
