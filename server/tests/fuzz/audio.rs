//! Audio files that are malicious or damaged.

use std::time::Duration;

use hush_server::audio::DecodeOptions;
use proptest::prelude::*;

use crate::audio_support::{FILES, built_in, decode_with, fixture, samples};
use crate::damage::damages;
use crate::harness::{FuzzLimits, fuzz};

/// No file here is longer than the limit of a minute after decoding: 4 MB of samples, and the memory of the decoders. Most
/// of it is the filter for a rate of nearly 384 kHz that has no factor in common with 16 kHz, some 75 MB.
const LIMITS: FuzzLimits = FuzzLimits { bytes: 128 << 20, time: Duration::from_secs(60) };

const MAGIC: &[&[u8]] = &[
    b"RIFF\xff\xff\xff\xffWAVEfmt ",
    b"fLaC",
    b"OggS",
    b"ID3\x04",
    b"\xff\xfb\x90",
    b"\xff\xf1\x50",
    b"\0\0\0\x20ftypM4A ",
    b"\x1a\x45\xdf\xa3",
    b"FORM\0\0\xff\xffAIFF",
    b"caff\0\x01\0\0",
    b"",
];

fn decode(bytes: Vec<u8>) {
    let options = DecodeOptions { limit_seconds: 60, ..built_in() };
    if let Ok(pcm) = decode_with(bytes, &options) {
        assert!(pcm.len_samples() > 0);
        assert!(samples(&pcm).iter().all(|sample| sample.is_finite()));
    }
}

#[test]
fn damaged_files() {
    let strategy = (prop::sample::select(FILES), damages());
    fuzz("damaged_files", 300, LIMITS, strategy, |(file, damages)| {
        let mut bytes = fixture(file);
        damages.apply(&mut bytes);
        decode(bytes);
    });
}

#[test]
fn any_bytes_after_any_magic() {
    let strategy = (prop::sample::select(MAGIC), prop::collection::vec(any::<u8>(), 0..4_000));
    fuzz("any_bytes_after_any_magic", 300, LIMITS, strategy, |(magic, rest)| {
        decode([magic, rest.as_slice()].concat());
    });
}
