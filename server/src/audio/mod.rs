//! Uploads become samples: any file that symphonia, libopus or ffmpeg can read -> mono 16 kHz [`Pcm`], as a stream, in
//! memory that does not grow with the length of the audio.
//!
//! ```text
//! Spooled -> container (symphonia: packets -> samples) -> mix (mono) -> resample (16 kHz) -> Pcm
//!            (a WAV file that holds what is wanted: nothing is copied)                     -> Pcm
//!         -> ffmpeg (what symphonia cannot read, if it is installed)                      -> Pcm
//!         -> decode_raw_s16le (headerless)                                                -> Pcm
//! ```
//! Everything here blocks: call it from a blocking task.

mod clock;
mod container;
mod cuts;
mod error;
mod ffmpeg;
mod headers;
mod likeness;
mod mix;
mod mp4;
mod output;
mod pcm;
mod resample;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

pub use error::AudioError;
pub use ffmpeg::Ffmpeg;
pub use pcm::{Pcm, PcmReader, Span, decode_raw_s16le};

use hush_whisper::SAMPLE_RATE;

use crate::budget::ByteBudget;
use crate::spool::{SpoolOptions, Spooled};
use pcm::PcmWriter;

/// Asked many times per second of audio; `false` ends the work with [`AudioError::Cancelled`].
pub type KeepGoing<'a> = dyn Fn() -> bool + Sync + 'a;

/// What [`decode_head`] decodes: a little more than the window from which a language is detected.
pub const HEAD_SECONDS: u64 = 31;

/// As [`DecodeOptions::ffmpeg_timeout`], for the beginning alone.
const HEAD_FFMPEG_TIMEOUT: Duration = Duration::from_secs(120);

/// Default of [`DecodeOptions::limit_seconds`]: a day.
pub const DEFAULT_LIMIT_SECONDS: u64 = 24 * 3600;
/// Default of [`DecodeOptions::memory_bytes`]: ten minutes.
pub const DEFAULT_PCM_MEMORY_BYTES: usize = 600 * 16_000 * 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Samples (2 bytes each) are held in memory up to here, then in a temporary file.
    pub memory_bytes: usize,
    /// Where that file goes; the system's temporary directory when `None`.
    pub dir: Option<PathBuf>,
    /// What all decoded audio together may hold in memory; then it goes to files.
    pub memory_budget: Option<ByteBudget>,
    /// What all decoded audio together may hold, in memory and in files; what is beyond is refused.
    pub budget: Option<ByteBudget>,
    /// Longer audio is refused; it also bounds what a small file can unpack to.
    pub limit_seconds: u64,
    pub ffmpeg: Ffmpeg,
    pub ffmpeg_timeout: Duration,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            memory_bytes: DEFAULT_PCM_MEMORY_BYTES,
            dir: None,
            memory_budget: None,
            budget: None,
            limit_seconds: DEFAULT_LIMIT_SECONDS,
            ffmpeg: Ffmpeg::default(),
            ffmpeg_timeout: Duration::from_secs(1800),
        }
    }
}

/// The beginning of a file, or all of it.
#[derive(Debug)]
pub enum Head {
    Whole(Pcm),
    Beginning(Pcm),
}

/// Decodes a whole file. `file_name` (as the client calls it) is a hint, never trusted.
pub fn decode(
    input: &Spooled,
    file_name: Option<&str>,
    options: &DecodeOptions,
    keep_going: &KeepGoing<'_>,
) -> Result<Pcm, AudioError> {
    decode_samples(input, file_name, options, u64::MAX, keep_going)
}

/// Decodes the first [`HEAD_SECONDS`] of a file: whether it is audio, for little.
pub fn decode_head(
    input: &Spooled,
    file_name: Option<&str>,
    options: &DecodeOptions,
    keep_going: &KeepGoing<'_>,
) -> Result<Head, AudioError> {
    let samples = HEAD_SECONDS * u64::from(SAMPLE_RATE);
    let pcm = decode_samples(input, file_name, options, samples, keep_going)?;
    let is_whole = pcm.len_samples() < samples || pcm.lies_in(input);
    Ok(if is_whole { Head::Whole(pcm) } else { Head::Beginning(pcm) })
}

/// `kept_samples`: decoding ends there.
fn decode_samples(
    input: &Spooled,
    file_name: Option<&str>,
    options: &DecodeOptions,
    kept_samples: u64,
    keep_going: &KeepGoing<'_>,
) -> Result<Pcm, AudioError> {
    if input.is_empty() {
        return Err(AudioError::Empty);
    }
    if likeness::is_long_text(input) {
        return Err(AudioError::Unrecognised { hint: likeness::describe(input, file_name) });
    }
    let writer = || {
        let DecodeOptions { memory_bytes, dir, memory_budget, budget, limit_seconds, .. } = options.clone();
        let spool = SpoolOptions { memory_bytes, limit_bytes: None, dir, memory_budget, budget };
        PcmWriter::new(spool, limit_seconds).keeping(kept_samples)
    };
    let is_head = kept_samples < u64::MAX;
    let timeout = if is_head { options.ffmpeg_timeout.min(HEAD_FFMPEG_TIMEOUT) } else { options.ffmpeg_timeout };
    let by_ffmpeg = || ffmpeg::decode(&options.ffmpeg, input, writer(), timeout, keep_going);
    if likeness::is_foreign(input) {
        match by_ffmpeg() {
            Ok(Some(pcm)) => return Ok(pcm),
            Err(error) if !error.is_client_fault() || matches!(error, AudioError::TooLong { .. }) => return Err(error),
            // Without ffmpeg, or where it fails, something is better than nothing.
            Ok(None) | Err(_) => {}
        }
    }
    // The one place where panics are caught: decoders of untrusted bytes have bugs (indexes, overflows), and one file
    // must not take the server down. Nothing that they touched outlives the call. Needs `panic = "unwind"`.
    let built_in = catch_unwind(AssertUnwindSafe(|| container::decode(input, file_name, writer(), keep_going)))
        .unwrap_or_else(|_| Err(AudioError::Malformed { reason: "the decoder failed on it".to_owned() }));
    let error = match built_in {
        Ok(container::Decoded { pcm, is_whole: true }) => return Ok(pcm),
        // A part may be lost on symphonia; ffmpeg may find its way past the damage.
        Ok(container::Decoded { pcm, is_whole: false }) => {
            return match by_ffmpeg() {
                Ok(Some(more)) if more.len_samples() > pcm.len_samples() => Ok(more),
                Err(error @ (AudioError::Cancelled | AudioError::Spool(_) | AudioError::TooLong { .. })) => Err(error),
                _ => {
                    tracing::warn!(seconds = pcm.duration_seconds(), "a damaged file: some of its audio may be lost");
                    Ok(pcm)
                }
            };
        }
        Err(error) if error.is_worth_ffmpeg() => error,
        Err(error) => return Err(error),
    };
    match by_ffmpeg() {
        Ok(Some(pcm)) => Ok(pcm),
        Ok(None) => Err(match error {
            AudioError::Unrecognised { hint } => {
                AudioError::Unrecognised { hint: format!("{hint}; ffmpeg, which reads more formats, is not available") }
            }
            error => error,
        }),
        // It found nothing either, or knows no more than that it is none of its formats: the first error says more.
        Err(AudioError::NoSamples) => Err(error),
        Err(AudioError::Ffmpeg { stderr, .. }) => {
            Err(AudioError::Ffmpeg { hint: likeness::describe(input, file_name), stderr })
        }
        Err(error) => Err(error),
    }
}
