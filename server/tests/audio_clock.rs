//! What is heard stands where the container's clock has it: audio that starts later than the pictures, or has a hole.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod audio_support;

use audio_support::*;
use hush_server::audio::DecodeOptions;

const RATE: usize = 16_000;
/// How far from its place audio may be.
const TOLERANCE: usize = RATE / 10;

/// Copies of `original` where they are expected, in samples, and silence before each.
fn assert_heard_at(name: &str, heard: &[f32], original: &[f32], places: &[usize]) {
    let mut quiet_from = 0;
    for at in places.iter().copied() {
        assert!(heard.len() > at, "{name}: only {} samples", heard.len());
        let quiet = heard.get(quiet_from..at.saturating_sub(TOLERANCE)).unwrap_or_default();
        let loudest = quiet.iter().fold(0.0_f32, |most, sample| most.max(sample.abs()));
        assert!(loudest < 0.01, "{name}: {loudest} in the silence before sample {at}");
        let (late, like) = shift_near(original, heard, at, TOLERANCE);
        println!("{name}: at {at} like {like:.4}, late {late}");
        assert!(like > 0.9, "{name}: at {at} like {like:.4}, late {late}");
        quiet_from = at + original.len() + TOLERANCE;
    }
    let end = places.last().unwrap() + original.len();
    assert!(heard.len().abs_diff(end) <= TOLERANCE, "{name}: {} samples, expected {end}", heard.len());
}

/// The fixtures begin three seconds late, or hold the original twice with three seconds between.
fn assert_fixtures(kinds: &[&str], options: &DecodeOptions) {
    let original = decoded(fixture("audio/en-3.wav"));
    for kind in kinds {
        for (what, places) in [("late", vec![3 * RATE]), ("hole", vec![0, original.len() + 3 * RATE])] {
            let name = format!("{what}{kind}");
            let pcm = decode_with(fixture(&format!("formats/{name}")), options).unwrap();
            assert_heard_at(&name, &samples(&pcm), &original, &places);
        }
    }
}

#[test]
fn files_keep_the_times_of_their_container_with_the_built_in_decoders() {
    assert_fixtures(&[".mp4", "-frag.mp4", ".webm"], &built_in());
}

#[test]
fn files_keep_the_times_of_their_container_with_ffmpeg() {
    if has_ffmpeg() {
        assert_fixtures(&[".ts", "-ac3.mkv"], &DecodeOptions::default());
    }
}

/// The same file through both decoders.
fn both(film: impl Fn(&Matroska) -> Vec<u8>) -> Vec<(&'static str, Vec<f32>)> {
    let mut all = vec![("built-in", decoded(film(&Matroska::BUILT_IN)))];
    if has_ffmpeg() {
        let pcm = decode_with(film(&Matroska::FFMPEG), &DecodeOptions::default()).unwrap();
        all.push(("ffmpeg", samples(&pcm)));
    }
    all
}

#[test]
fn audio_that_starts_late_and_has_a_hole() {
    let original = decoded(fixture("audio/en-3.wav"));
    // The hole is longer than what ffmpeg takes for a new beginning by itself.
    for (name, heard) in both(|file| file.film(30, &[(5.0, &original), (20.0, &original)])) {
        assert_heard_at(name, &heard, &original, &[5 * RATE, 20 * RATE]);
    }
    // Further off than ffmpeg looks by itself.
    for (name, heard) in both(|file| file.film(70, &[(60.0, &original)])) {
        assert_heard_at(name, &heard, &original, &[60 * RATE]);
    }
}

#[test]
fn audio_without_pictures_begins_where_its_file_begins() {
    let original = decoded(fixture("audio/en-3.wav"));
    // A recording that was cut out of a longer one.
    for (name, heard) in both(|file| file.film(0, &[(3000.0, &original)])) {
        assert_heard_at(name, &heard, &original, &[0]);
    }
}

#[test]
fn times_that_waver_or_go_back_lose_nothing() {
    let original = decoded(fixture("audio/en-3.wav"));
    let block = |time: u64, samples: &[f32]| {
        let bytes = samples.iter().flat_map(|sample| ((sample * 32_768.0) as i16).to_le_bytes());
        (1, time, bytes.collect::<Vec<u8>>())
    };
    let waver = [0_u64, 60, 10, 35, 80, 0, 20];
    let wavering: Vec<Block> = (original.chunks(320).enumerate())
        .map(|(index, piece)| block(100 + index as u64 * 20 + waver[index % waver.len()], piece))
        .collect();
    let heard = decoded(Matroska::BUILT_IN.write(&wavering));
    assert_eq!(heard.len(), original.len());
    assert!(correlation(&original, &heard, 0) > 0.999);
    // Two recordings one behind the other, both with times from zero.
    let once: Vec<Block> =
        original.chunks(320).enumerate().map(|(index, piece)| block(index as u64 * 20, piece)).collect();
    let long = [original.repeat(10), original.clone()];
    let joined: Vec<Block> =
        (long[0].chunks(320).enumerate()).map(|(index, piece)| block(index as u64 * 20, piece)).chain(once).collect();
    let heard = decoded(Matroska::BUILT_IN.write(&joined));
    assert_eq!(heard.len(), 11 * original.len());
}
