//! Bytes that mean harm, or were cut on their way: an error or some samples, soon, in little memory, never a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod audio_support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use audio_support::*;
use hush_listener::budget::ByteBudget;
use hush_listener::spool::SpoolError;
use hush_server::audio::{self, AudioError, DecodeOptions, DecodedHead, HEAD_SECONDS, Pcm};

/// A minute is more than any of these files holds.
fn bounded() -> DecodeOptions {
    DecodeOptions { limit_seconds: 60, ..built_in() }
}

/// Decodes, and fails if that takes too long.
fn soon(bytes: Vec<u8>) -> Result<Pcm, AudioError> {
    let start = Instant::now();
    let result = decode_with(bytes, &bounded());
    assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
    if let Ok(pcm) = &result {
        assert!(pcm.len_samples() > 0);
        assert!(samples(pcm).iter().all(|sample| sample.is_finite()));
    }
    result
}

fn header() -> Header {
    Header { format: 1, channels: 1, hertz: 16_000, bits: 16, data_bytes: 1_000 }
}

#[test]
fn nothing_and_nonsense_are_told_apart() {
    assert!(matches!(soon(Vec::new()), Err(AudioError::Empty)));
    for bytes in [b"x".to_vec(), b"{\"not\": \"audio\"}".to_vec(), vec![0; 1 << 20], vec![0xff; 1 << 20]] {
        let error = soon(bytes).unwrap_err();
        assert!(error.is_client_fault(), "{error:?}");
    }
    let error = soon(b"{\"not\": \"audio\"}".to_vec()).unwrap_err();
    assert!(matches!(&error, AudioError::Unrecognised { hint } if hint.contains("7b 22")), "{error:?}");
    let error = soon(wav_with_header(Header { data_bytes: 0, ..header() }, &[])).unwrap_err();
    assert!(matches!(error, AudioError::NoSamples), "{error:?}");
}

#[test]
fn wild_wav_headers() {
    let data = vec![1; 4_000];
    for hertz in [0, 1, 7, 1_999, 384_001, 4_000_000, u32::MAX] {
        let error = soon(wav_with_header(Header { hertz, data_bytes: 4_000, ..header() }, &data)).unwrap_err();
        assert!(error.is_client_fault(), "{hertz}: {error:?}");
        if (1..u32::MAX).contains(&hertz) {
            assert!(matches!(error, AudioError::SampleRate { .. }), "{hertz}: {error:?}");
        }
    }
    for channels in [0, 3, 7, 8, 9, 18, 19, 26, 27, 32, 33, 64, 255, 256, 4_096, u16::MAX] {
        for bits in [0, 1, 8, 12, 16, 20, 24, 32, 64, 255, u16::MAX] {
            for format in [0, 1, 2, 3, 6, 7, 0x11, 0x55, 0xfffe, 0xffff] {
                let _ = soon(wav_with_header(Header { format, channels, bits, data_bytes: 4_000, ..header() }, &data));
            }
        }
    }
    let error = soon(wav_with_header(Header { channels: 0, ..header() }, &data)).unwrap_err();
    assert!(error.is_client_fault(), "{error:?}");
}

#[test]
fn many_channels_are_heard() {
    for channels in [8, 16, 18] {
        let heard = decoded(wav(16_000, channels, Width::S16, 1_000, |_, _| 0.25));
        assert_eq!(heard.len(), 1_000, "{channels}");
        assert!(heard.iter().all(|sample| (sample - 0.25).abs() < 1e-3), "{channels}");
    }
}

#[test]
fn a_header_may_promise_more_than_there_is() {
    // Streams of unknown length say 4 GB, or nothing.
    let data: Vec<u8> = (0..32_000).map(|i| (i % 7) as u8).collect();
    for data_bytes in [u32::MAX, u32::MAX - 36, 0x7fff_ffff, 64_000, 32_001] {
        let before = peak_rss_kib();
        let pcm = soon(wav_with_header(Header { data_bytes, ..header() }, &data)).unwrap();
        assert_eq!(pcm.len_samples(), 16_000, "{data_bytes}");
        assert!(peak_rss_kib() - before < 200_000);
    }
}

#[test]
fn every_beginning_of_a_file() {
    for name in FILES {
        let bytes = fixture(name);
        for part in 0..64 {
            let _ = soon(bytes[..bytes.len() * part / 64].to_vec());
        }
        for n in 0..64.min(bytes.len()) {
            let _ = soon(bytes[..n].to_vec());
        }
    }
}

#[test]
fn a_truncated_file_gives_what_there_is() {
    for name in ["speech.flac", "speech.mp3", "speech-opus.webm", "speech-mulaw.wav", "speech-flac.mkv"] {
        let bytes = fixture(&format!("formats/{name}"));
        let half = soon(bytes[..bytes.len() / 2].to_vec()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!((4_000..16_000).contains(&half.len_samples()), "{name}: {}", half.len_samples());
    }
}

/// Joined without being encoded again: the numbers of the frames start anew, and symphonia drops a part of them.
#[test]
fn a_joined_flac_is_left_to_ffmpeg() {
    const JOINED: u64 = 4;
    let once = fixture("formats/speech.flac");
    let mut at = 4;
    loop {
        let is_last = once[at] & 0x80 != 0;
        at += 4 + u32::from_be_bytes([0, once[at + 1], once[at + 2], once[at + 3]]) as usize;
        if is_last {
            break;
        }
    }
    let mut bytes = once.clone();
    for _ in 1..JOINED {
        bytes.extend_from_slice(&once[at..]);
    }
    // The length in STREAMINFO: as the first piece has it, or as it is now. The checksum is unknown.
    let field = u64::from_be_bytes(bytes[18..26].try_into().unwrap());
    let samples = (field & ((1 << 36) - 1)) * JOINED;
    bytes[26..42].fill(0);
    for declared in [field, field >> 36 << 36 | samples] {
        bytes[18..26].copy_from_slice(&declared.to_be_bytes());
        let alone = soon(bytes.clone()).unwrap().len_samples();
        if has_ffmpeg() {
            let options = DecodeOptions { limit_seconds: 60, ..DecodeOptions::default() };
            let both = decode_with(bytes.clone(), &options).unwrap();
            println!("alone {alone} of {samples}, with ffmpeg {}", both.len_samples());
            assert_eq!(both.len_samples(), samples);
        }
    }
}

fn damaged_in_the_middle(name: &str) -> Vec<u8> {
    let mut bytes = fixture(&format!("formats/{name}"));
    let (at, n) = (bytes.len() * 2 / 5, bytes.len() / 20);
    for (i, byte) in bytes[at..at + n].iter_mut().enumerate() {
        *byte ^= (i * 37 + 11) as u8;
    }
    bytes
}

#[test]
fn damage_in_the_middle_spares_the_end() {
    let original = decoded(fixture("audio/en-3.wav"));
    // Frames of MP3 that cannot be found leave a gap, as with ffmpeg; lost blocks of FLAC as well; AAC keeps its time.
    for (name, most) in [("speech.mp3", 2_000), ("speech.flac", 4_700), ("speech-aac.m4a", 16)] {
        let heard = samples(&soon(damaged_in_the_middle(name)).unwrap_or_else(|error| panic!("{name}: {error}")));
        let tail = &original[original.len() * 2 / 3..original.len() - 1_000];
        let from_end = original.len() - original.len() * 2 / 3;
        let ending = &heard[heard.len() - from_end..];
        let (shift, like) = best_shift(tail, ending, 700);
        println!("{name}: {} of {} samples, the end is like {like:.3} at {shift}", heard.len(), original.len());
        assert!(like > 0.9, "{name}: {like}");
        assert!(heard.len().abs_diff(original.len()) <= most, "{name}");
    }
}

#[test]
fn what_symphonia_gives_up_on_is_left_to_ffmpeg() {
    let bytes = damaged_in_the_middle("speech-flac.mkv");
    let alone = soon(bytes.clone()).unwrap().len_samples();
    assert!(alone < 10_000, "{alone}");
    if has_ffmpeg() {
        let both = decode_with(bytes, &DecodeOptions { limit_seconds: 60, ..DecodeOptions::default() }).unwrap();
        println!("alone {alone}, with ffmpeg {}", both.len_samples());
        assert!(both.len_samples() >= alone);
    }
}

#[test]
fn a_client_that_left_stops_the_work() {
    let bytes = wav(48_000, 1, Width::S16, 2_000_000, |i, _| tone(300.0, 48_000.0, i));
    let asked = AtomicUsize::new(0);
    let input = spooled(&bytes);
    let result = audio::decode(&input, None, &built_in(), &|| asked.fetch_add(1, Ordering::Relaxed) < 20);
    assert!(matches!(result, Err(AudioError::Cancelled)), "{result:?}");
    assert!(asked.into_inner() < 25);
    let result = audio::decode(&input, None, &built_in(), &|| false);
    assert!(matches!(result, Err(AudioError::Cancelled)), "{result:?}");
}

/// The peak resident memory of this process since its start.
fn peak_rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// 14 bytes become 131 kB of samples: the limits are kept while they are made.
#[test]
fn hostile_flac_that_grows_is_cut_off() {
    let bomb = flac_of_silence(40_000);
    assert!(bomb.len() < 80_000);
    let budget = ByteBudget::new("decoded", 3_000_000);
    let options = DecodeOptions { budget: Some(budget.clone()), ..built_in() };
    let start = Instant::now();
    let error = decode_with(bomb.clone(), &options).unwrap_err();
    assert!(matches!(&error, AudioError::Spool(SpoolError::Spent(_))) && !error.is_client_fault(), "{error:?}");
    assert_eq!(budget.used_bytes(), 0, "given back");
    let error = soon(bomb.clone()).unwrap_err();
    assert!(matches!(error, AudioError::TooLong { limit_seconds: 60 }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // What the header says is believed where it is too much.
    let mut declared = bomb;
    declared[21..26].copy_from_slice(&[0x70 | 0x0f, 0xff, 0xff, 0xff, 0xff]);
    let options = DecodeOptions { limit_seconds: 39_000, ..built_in() };
    assert!(matches!(decode_with(declared, &options), Err(AudioError::TooLong { .. })));
}

/// Only the beginning is decoded to see whether it is audio.
#[test]
fn hostile_flac_is_looked_into_for_little() {
    let budget = ByteBudget::new("decoded", 1_100_000);
    let options = DecodeOptions { budget: Some(budget.clone()), ..built_in() };
    let input = spooled(&flac_of_silence(40_000));
    let head = audio::decode_head(&input, None, &options, &|| true).unwrap();
    let DecodedHead::Beginning(pcm) = head else { panic!("{head:?}") };
    assert_eq!(pcm.len_samples(), HEAD_SECONDS * 16_000);
    assert!(budget.used_bytes() <= 1_000_000, "{}", budget.used_bytes());
    drop(pcm);
    let head = audio::decode_head(&spooled(&flac_of_silence(10)), None, &options, &|| true).unwrap();
    assert!(matches!(&head, DecodedHead::Whole(pcm) if pcm.len_samples().abs_diff(160_000) < 10), "{head:?}");
    // Samples that lie in the upload as they are wanted are the whole, however many.
    let long = spooled(&wav(16_000, 1, Width::S16, 2_000_000, |_, _| 0.25));
    let head = audio::decode_head(&long, None, &options, &|| true).unwrap();
    assert!(matches!(&head, DecodedHead::Whole(pcm) if pcm.len_samples() == 2_000_000), "{head:?}");
}

/// Megabytes in which a decoder could search for hours.
#[test]
fn hostile_noise_is_refused_early() {
    let noise = |seed: u64| {
        let mut state = seed;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
    };
    let text: Vec<u8> = b"\r\n--Bx".repeat(2_000_000);
    // The beginnings of MP3 frames all over.
    let frames: Vec<u8> = noise(1)
        .take(8 << 20)
        .enumerate()
        .map(|(at, byte)| match at % 417 {
            0 => 0xff,
            1 => 0xfb,
            2 => 0x90,
            3 => 0x64,
            _ => byte,
        })
        .collect();
    for (name, bytes, seconds) in [("text", text, 1), ("frames", frames, 20)] {
        let start = Instant::now();
        let error = decode_with(bytes, &built_in()).unwrap_err();
        println!("{name}: {:?}, {error}", start.elapsed());
        assert!(error.is_client_fault(), "{name}: {error:?}");
        assert!(start.elapsed() < Duration::from_secs(seconds), "{name}: {:?}", start.elapsed());
    }
}
