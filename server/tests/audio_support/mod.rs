//! Shared by the audio tests: WAV files written by hand, tones, and measures.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod stand_in;

use std::f64::consts::TAU;
use std::path::PathBuf;

use hush_listener::spool::{Spool, SpoolOptions, Spooled};
use hush_server::audio::{self, AudioError, DecodeOptions, Ffmpeg, Pcm};
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

/// The shift of `heard`, in samples near to `expected`, at which it is most like `original`, and how much it is then.
/// Faster than [`best_shift`].
pub fn shift_near(original: &[f32], heard: &[f32], expected: usize, most: usize) -> (isize, f64) {
    let like = |shift: usize| {
        let (mut aa, mut bb, mut ab) = (0.0_f32, 0.0_f32, 0.0_f32);
        for (a, b) in original.iter().zip(heard.get(shift..).unwrap_or_default()) {
            aa += a * a;
            bb += b * b;
            ab += a * b;
        }
        f64::from(ab / (aa * bb).sqrt().max(f32::MIN_POSITIVE))
    };
    let best = |shifts: &mut dyn Iterator<Item = usize>| {
        shifts.map(|shift| (shift, like(shift))).max_by(|x, y| x.1.total_cmp(&y.1)).unwrap()
    };
    let (near, _) = best(&mut (expected.saturating_sub(most)..=expected + most).step_by(4));
    let (shift, like) = best(&mut (near.saturating_sub(3)..=near + 3));
    (shift as isize - expected as isize, like)
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

/// A Matroska file of 16-bit samples (track 1) and of pictures that nothing decodes (track 2).
#[derive(Clone, Copy, Debug)]
pub struct Matroska {
    pub hertz: u32,
    pub channels: u8,
    /// `A_PCM/INT/LIT`, or `A_MS/ACM`, which the built-in decoders do not know and ffmpeg does.
    pub codec: &'static str,
}

/// Its track, its time in milliseconds, and what it holds.
pub type Block = (u8, u64, Vec<u8>);

impl Matroska {
    pub const BUILT_IN: Self = Self { hertz: 16_000, channels: 1, codec: "A_PCM/INT/LIT" };
    pub const FFMPEG: Self = Self { codec: "A_MS/ACM", ..Self::BUILT_IN };

    pub fn write(&self, blocks: &[Block]) -> Vec<u8> {
        let Self { hertz, channels, codec } = *self;
        let text = |id: &[u8], text: &str| element(id, text.as_bytes());
        let number = |id: &[u8], number: u64| element(id, &number.to_be_bytes());
        let float = |id: &[u8], number: f64| element(id, &number.to_be_bytes());
        let head = element(&[0x1a, 0x45, 0xdf, 0xa3], &text(&[0x42, 0x82], "matroska"));
        let made_by = [text(&[0x4d, 0x80], "test"), text(&[0x57, 0x41], "test")].concat();
        let info = element(&[0x15, 0x49, 0xa9, 0x66], &[number(&[0x2a, 0xd7, 0xb1], 1_000_000), made_by].concat());
        // WAVEFORMATEX, which only the second codec reads.
        let block_align = u16::from(channels) * 2;
        let format = [
            &1_u16.to_le_bytes()[..],
            &u16::from(channels).to_le_bytes(),
            &hertz.to_le_bytes(),
            &(hertz * u32::from(block_align)).to_le_bytes(),
            &block_align.to_le_bytes(),
            &16_u16.to_le_bytes(),
            &0_u16.to_le_bytes(),
        ]
        .concat();
        let audio =
            [float(&[0xb5], f64::from(hertz)), number(&[0x9f], channels.into()), number(&[0x62, 0x64], 16)].concat();
        let heard = [
            number(&[0xd7], 1),
            number(&[0x73, 0xc5], 1),
            number(&[0x83], 2),
            text(&[0x86], codec),
            if codec == "A_MS/ACM" { element(&[0x63, 0xa2], &format) } else { Vec::new() },
            element(&[0xe1], &audio),
        ]
        .concat();
        let size = [number(&[0xb0], 32), number(&[0xba], 32)].concat();
        let seen = [
            number(&[0xd7], 2),
            number(&[0x73, 0xc5], 2),
            number(&[0x83], 1),
            text(&[0x86], "V_VP8"),
            element(&[0xe0], &size),
        ]
        .concat();
        let tracks = element(&[0x16, 0x54, 0xae, 0x6b], &[element(&[0xae], &heard), element(&[0xae], &seen)].concat());
        let clusters: Vec<u8> = blocks.iter().flat_map(Self::cluster).collect();
        // A segment of unknown length: clusters may be added behind it.
        let segment = [0x18, 0x53, 0x80, 0x67, 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        [head, segment.to_vec(), info, tracks, clusters].concat()
    }

    /// A cluster alone.
    pub fn cluster((track, time, bytes): &Block) -> Vec<u8> {
        let block = [&[0x80 | track, 0, 0, 0x80][..], bytes].concat();
        let time = element(&[0xe7], &time.to_be_bytes());
        element(&[0x1f, 0x43, 0xb6, 0x75], &[time, element(&[0xa3], &block)].concat())
    }

    /// Pictures over `seconds`, and samples from the given seconds on, in blocks of 20 ms, in the order of their times.
    pub fn film(&self, seconds: u64, heard: &[(f64, &[f32])]) -> Vec<u8> {
        let mut blocks: Vec<Block> = (0..seconds * 10).map(|tenth| (2, tenth * 100, vec![0x9d; 10])).collect();
        for (start, samples) in heard {
            for (index, piece) in samples.chunks(self.hertz as usize / 50).enumerate() {
                let time = (start * 1000.0).round() as u64 + index as u64 * 20;
                let samples = piece.iter().map(|sample| (sample * 32_768.0) as i16);
                let bytes = samples.flat_map(|sample| vec![sample; self.channels.into()]).flat_map(i16::to_le_bytes);
                blocks.push((1, time, bytes.collect()));
            }
        }
        blocks.sort_by_key(|(_, time, _)| *time);
        self.write(&blocks)
    }
}

/// An element of EBML with a length of eight bytes.
fn element(id: &[u8], body: &[u8]) -> Vec<u8> {
    let mut length = (body.len() as u64).to_be_bytes();
    length[0] = 1;
    [id, &length, body].concat()
}

/// FLAC at 8 kHz in frames of one constant, 14 bytes for eight seconds. The header says no length.
pub fn flac_of_silence(seconds: u64) -> Vec<u8> {
    const BLOCK: u64 = 65_535;
    let crc8 = |bytes: &[u8]| {
        bytes.iter().fold(0_u8, |crc, byte| {
            (0..8).fold(crc ^ byte, |crc, _| if crc & 0x80 != 0 { crc << 1 ^ 7 } else { crc << 1 })
        })
    };
    let crc16 = |bytes: &[u8]| {
        bytes.iter().fold(0_u16, |crc, byte| {
            let mixed = crc ^ u16::from(*byte) << 8;
            (0..8).fold(mixed, |crc, _| if crc & 0x8000 != 0 { crc << 1 ^ 0x8005 } else { crc << 1 })
        })
    };
    let mut bytes = b"fLaC\x80\0\0\x22\xff\xff\xff\xff\0\0\0\0\0\0".to_vec();
    // 8 kHz, mono, 8 bits, and no number of samples.
    bytes.extend((8_000_u64 << 44 | 7 << 36).to_be_bytes());
    bytes.extend([0; 16]);
    let mut left = seconds * 8_000;
    for number in 0.. {
        let block = left.min(BLOCK);
        if block == 0 {
            break;
        }
        left -= block;
        // A block size of 16 bits, 8 kHz, mono, 8 bits.
        let mut frame = vec![0xff, 0xf8, 0x74, 0x02];
        let number = char::from_u32(number).unwrap();
        frame.extend(number.encode_utf8(&mut [0; 4]).as_bytes());
        frame.extend((block as u16 - 1).to_be_bytes());
        frame.push(crc8(&frame));
        frame.extend([0, 0]);
        frame.extend(crc16(&frame).to_be_bytes());
        bytes.extend(frame);
    }
    bytes
}
