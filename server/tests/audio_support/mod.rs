//! Shared by the audio tests: WAV files written by hand, tones, and measures.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::f64::consts::TAU;
use std::path::PathBuf;

use hush_server::audio::{self, AudioError, DecodeOptions, Ffmpeg, Pcm};
use hush_server::spool::{Spool, SpoolOptions, Spooled};
use hush_whisper::PcmSource;

/// Without ffmpeg, so that nothing depends on what is installed.
pub fn built_in() -> DecodeOptions {
    DecodeOptions { ffmpeg: Ffmpeg::Off, ..DecodeOptions::default() }
}

pub fn decode_with(bytes: Vec<u8>, options: &DecodeOptions) -> Result<Pcm, AudioError> {
    audio::decode(&spooled(&bytes), None, options, &|| true)
}

pub fn spooled(bytes: &[u8]) -> Spooled {
    let mut spool = Spool::new(SpoolOptions::default());
    spool.write(bytes).unwrap();
    spool.finish()
}

pub fn decode(bytes: Vec<u8>) -> Result<Pcm, AudioError> {
    decode_with(bytes, &built_in())
}

pub fn samples(pcm: &Pcm) -> Vec<f32> {
    let mut out = vec![0.0; pcm.len_samples() as usize];
    pcm.source().read(0, &mut out).unwrap();
    out
}

pub fn decoded(bytes: Vec<u8>) -> Vec<f32> {
    samples(&decode(bytes).unwrap())
}

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

pub fn fixture(path: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(path)).unwrap()
}

/// Whether the checks that need ffmpeg can run here; says so when not.
pub fn has_ffmpeg() -> bool {
    let found = std::process::Command::new("ffmpeg").arg("-version").output().is_ok();
    if !found {
        println!("skipped: ffmpeg is not installed");
    }
    found
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Width {
    U8,
    S16,
    S24,
    S32,
    F32,
    F64,
}

impl Width {
    pub const ALL: [Self; 6] = [Self::U8, Self::S16, Self::S24, Self::S32, Self::F32, Self::F64];

    pub fn bits(self) -> u16 {
        match self {
            Self::U8 => 8,
            Self::S16 => 16,
            Self::S24 => 24,
            Self::S32 | Self::F32 => 32,
            Self::F64 => 64,
        }
    }

    pub fn write(self, sample: f64, out: &mut Vec<u8>) {
        let scaled = |bits: u32| {
            let full = f64::from(1_u32 << (bits - 1));
            (sample * full).round().clamp(-full, full - 1.0) as i64
        };
        match self {
            Self::U8 => out.push((scaled(8) + 128) as u8),
            Self::S16 => out.extend_from_slice(&(scaled(16) as i16).to_le_bytes()),
            Self::S24 => out.extend_from_slice(&(scaled(24) as i32).to_le_bytes()[..3]),
            Self::S32 => out.extend_from_slice(&(scaled(32) as i32).to_le_bytes()),
            Self::F32 => out.extend_from_slice(&(sample as f32).to_le_bytes()),
            Self::F64 => out.extend_from_slice(&sample.to_le_bytes()),
        }
    }
}

/// What a header says, true or not.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub format: u16,
    pub channels: u16,
    pub hertz: u32,
    pub bits: u16,
    pub data_bytes: u32,
}

pub fn wav_with_header(header: Header, data: &[u8]) -> Vec<u8> {
    let Header { format, channels, hertz, bits, data_bytes } = header;
    let frame_bytes = channels.wrapping_mul(bits.div_ceil(8));
    let mut out = Vec::with_capacity(44 + data.len());
    out.extend_from_slice(b"RIFF");
    out.extend_from_slice(&data_bytes.saturating_add(36).to_le_bytes());
    out.extend_from_slice(b"WAVEfmt ");
    out.extend_from_slice(&16_u32.to_le_bytes());
    out.extend_from_slice(&format.to_le_bytes());
    out.extend_from_slice(&channels.to_le_bytes());
    out.extend_from_slice(&hertz.to_le_bytes());
    out.extend_from_slice(&hertz.wrapping_mul(u32::from(frame_bytes)).to_le_bytes());
    out.extend_from_slice(&frame_bytes.to_le_bytes());
    out.extend_from_slice(&bits.to_le_bytes());
    out.extend_from_slice(b"data");
    out.extend_from_slice(&data_bytes.to_le_bytes());
    out.extend_from_slice(data);
    out
}

/// `frame` gives the samples of one moment, one per channel.
pub fn wav(
    hertz: u32,
    channels: u16,
    width: Width,
    frames: usize,
    mut frame: impl FnMut(usize, u16) -> f64,
) -> Vec<u8> {
    let mut data = Vec::new();
    for i in 0..frames {
        for channel in 0..channels {
            width.write(frame(i, channel), &mut data);
        }
    }
    let format = if matches!(width, Width::F32 | Width::F64) { 3 } else { 1 };
    let data_bytes = u32::try_from(data.len()).unwrap();
    wav_with_header(Header { format, channels, hertz, bits: width.bits(), data_bytes }, &data)
}

pub fn tone(frequency: f64, hertz: f64, i: usize) -> f64 {
    (TAU * frequency * i as f64 / hertz).sin()
}

/// A tone that swells and fades over a second at each end of `seconds`, so that it has no sound beside its own.
pub fn soft_tone(frequency: f64, seconds: f64, at: f64) -> f64 {
    let ramp = (at.min(seconds - at) / 1.0).clamp(0.0, 1.0);
    0.9 * (0.5 - 0.5 * (ramp * TAU / 2.0).cos()) * (TAU * frequency * at).sin()
}

pub fn rms(samples: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut n) = (0.0, 0.0);
    for sample in samples {
        sum += sample * sample;
        n += 1.0;
    }
    f64::sqrt(sum / n)
}

pub fn decibels(ratio: f64) -> f64 {
    20.0 * ratio.log10()
}

/// Correlation of `a` with `b` shifted by `shift` samples (positive: `b` is late).
pub fn correlation(a: &[f32], b: &[f32], shift: isize) -> f64 {
    let pairs: Vec<(f64, f64)> = (0..a.len())
        .filter_map(|i| Some((f64::from(a[i]), f64::from(*b.get(i.checked_add_signed(shift)?)?))))
        .collect();
    let (aa, bb, ab) = pairs.iter().fold((0.0, 0.0, 0.0), |(aa, bb, ab), (x, y)| (aa + x * x, bb + y * y, ab + x * y));
    ab / (aa * bb).sqrt()
}

/// The shift at which `b` looks most like `a`, and how much it does then.
pub fn best_shift(a: &[f32], b: &[f32], most: isize) -> (isize, f64) {
    (-most..=most).map(|shift| (shift, correlation(a, b, shift))).max_by(|x, y| x.1.total_cmp(&y.1)).unwrap()
}

/// One of each kind.
pub const FILES: &[&str] = &[
    "formats/speech.flac",
    "formats/speech-flac.mkv",
    "formats/speech-alac.m4a",
    "formats/speech.caf",
    "formats/speech.aiff",
    "formats/speech-mulaw.wav",
    "formats/speech-adpcm-ima.wav",
    "formats/speech-adpcm-ms.wav",
    "formats/speech.mp3",
    "formats/speech-cover.mp3",
    "formats/speech-aac.m4a",
    "formats/speech.aac",
    "formats/speech-vorbis.ogg",
    "formats/speech-vorbis.webm",
    "formats/speech-opus.ogg",
    "formats/speech-opus.webm",
    "formats/speech-opus-live.webm",
    "formats/two-tracks.mkv",
    "formats/speech-ac3.mkv",
    "formats/speech.wma",
    "audio/en-1.wav",
];
