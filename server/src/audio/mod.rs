//! Decodes uploads: any file that symphonia, libopus or ffmpeg can read becomes mono 16 kHz [`Pcm`], as a stream, in memory that
//! does not grow with the length of the audio.
//!
//! ```text
//! Spooled -> container (symphonia: packets -> samples) -> mix (mono) -> resample (16 kHz) -> Pcm
//!            (a WAV file of the right kind: nothing is copied)                            -> Pcm
//!         -> ffmpeg (what symphonia cannot read, if it is installed)                      -> Pcm
//!         -> decode_raw_s16le (headerless)                                                -> Pcm
//! ```
//! Everything here blocks, so it must be called from a blocking task.

mod clock;
mod container;
mod cuts;
mod error;
mod ffmpeg;
mod file_kind;
mod headers;
mod media_source;

mod mix;
mod mp4;
mod output;
mod pcm;
mod resample;
mod sandbox;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

pub use error::AudioError;
pub use ffmpeg::Ffmpeg;
pub use pcm::{Pcm, PcmReader, PcmSpan, decode_raw_s16le};
pub use sandbox::{Confinement, FfmpegLimits};

use hush_whisper::SAMPLE_RATE;

use hush_listener::budget::ByteBudget;
use hush_listener::spool::{SpoolOptions, Spooled};
use pcm::PcmWriter;

/// Called many times for each second of audio; `false` ends the work with [`AudioError::Cancelled`].
pub type KeepGoing<'a> = dyn Fn() -> bool + Sync + 'a;

/// Length of the audio that [`decode_head`] decodes: a little more than the window from which the language is detected.
pub const HEAD_SECONDS: u64 = 31;

/// As [`DecodeOptions::ffmpeg_timeout`], for [`decode_head`].
const HEAD_FFMPEG_TIMEOUT: Duration = Duration::from_secs(120);

/// Default of [`DecodeOptions::limit_seconds`]: one day.
pub const DEFAULT_LIMIT_SECONDS: u64 = 24 * 3600;
/// Default of [`DecodeOptions::memory_bytes`]: ten minutes of audio.
pub const DEFAULT_PCM_MEMORY_BYTES: usize = 600 * 16_000 * 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Samples (2 bytes each) are held in memory up to this size, then in a temporary file.
    pub memory_bytes: usize,
    /// The folder of that file; `None`: the system's temporary folder.
    pub dir: Option<PathBuf>,
    /// Limit for the memory of all decoded audio together; beyond it audio goes to files.
    pub memory_budget: Option<ByteBudget>,
    /// Limit for all decoded audio together, in memory and in files; beyond it audio is refused.
    pub budget: Option<ByteBudget>,
    /// Longer audio is refused, which also limits the size to which a small file can unpack.
    pub limit_seconds: u64,
    pub ffmpeg: Ffmpeg,
    pub ffmpeg_timeout: Duration,
    pub ffmpeg_limits: FfmpegLimits,
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
            ffmpeg_limits: FfmpegLimits::default(),
        }
    }
}

/// The first seconds of a file, or all of it where it is shorter.
#[derive(Debug)]
pub enum DecodedHead {
    Whole(Pcm),
    Beginning(Pcm),
}

/// Decodes a whole file. `file_name` is the name that the client sent; it is only a hint.
pub fn decode(
    input: &Spooled,
    file_name: Option<&str>,
    options: &DecodeOptions,
    keep_going: &KeepGoing<'_>,
) -> Result<Pcm, AudioError> {
    decode_samples(input, file_name, options, u64::MAX, keep_going)
}

/// Decodes the first [`HEAD_SECONDS`] of a file, which shows at low cost whether it is audio.
pub fn decode_head(
    input: &Spooled,
    file_name: Option<&str>,
    options: &DecodeOptions,
    keep_going: &KeepGoing<'_>,
) -> Result<DecodedHead, AudioError> {
    let samples = HEAD_SECONDS * u64::from(SAMPLE_RATE);

    let pcm = decode_samples(input, file_name, options, samples, keep_going)?;
    let is_whole = pcm.len_samples() < samples || pcm.lies_in(input);
    Ok(if is_whole { DecodedHead::Whole(pcm) } else { DecodedHead::Beginning(pcm) })
}

/// Decodes up to `kept_samples`.
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

    if file_kind::is_long_text(input) {
        return Err(AudioError::Unrecognised { hint: file_kind::describe(input, file_name) });
    }

    let job = DecodeJob { input, file_name, options, kept_samples, keep_going };
    if file_kind::needs_ffmpeg_first(input) {
        match job.decode_with_ffmpeg() {
            Ok(Some(pcm)) => return Ok(pcm),
            Err(error) if !error.is_client_fault() || matches!(error, AudioError::TooLong { .. }) => return Err(error),
            // Without ffmpeg, or where it fails, the built-in decoders may still find some audio.
            Ok(None) | Err(_) => {}
        }
    }

    match job.decode_built_in() {
        Ok(container::DecodedAudio { pcm, is_whole: true }) => Ok(pcm),
        Ok(container::DecodedAudio { pcm, is_whole: false }) => job.decode_damaged(pcm),
        Err(error) if error.is_worth_ffmpeg() => job.decode_unreadable(error),
        Err(error) => Err(error),
    }
}

/// The arguments of [`decode_samples`], for its steps.
struct DecodeJob<'a> {
    input: &'a Spooled,
    file_name: Option<&'a str>,
    options: &'a DecodeOptions,
    kept_samples: u64,
    keep_going: &'a KeepGoing<'a>,
}

impl DecodeJob<'_> {
    fn writer(&self) -> PcmWriter {
        let DecodeOptions { memory_bytes, dir, memory_budget, budget, limit_seconds, .. } = self.options.clone();
        let spool = SpoolOptions { memory_bytes, limit_bytes: None, dir, memory_budget, budget };
        PcmWriter::new(spool, limit_seconds).keeping(self.kept_samples)
    }

    /// Decodes with the built-in decoders.
    fn decode_built_in(&self) -> Result<container::DecodedAudio, AudioError> {
        // The only place where panics are caught: decoders of untrusted bytes have bugs (indexes, overflows), and one
        // file must not end the server. No state that they changed outlives the call. Needs `panic = "unwind"`.
        let decode = || container::decode(self.input, self.file_name, self.writer(), self.keep_going);
        catch_unwind(AssertUnwindSafe(decode))
            .unwrap_or_else(|_| Err(AudioError::Malformed { reason: "the decoder failed on it".to_owned() }))
    }

    /// Decodes with ffmpeg; `Ok(None)` where there is no ffmpeg.
    fn decode_with_ffmpeg(&self) -> Result<Option<Pcm>, AudioError> {
        let is_head = self.kept_samples < u64::MAX;
        let timeout = self.options.ffmpeg_timeout;
        let timeout = if is_head { timeout.min(HEAD_FFMPEG_TIMEOUT) } else { timeout };
        ffmpeg::decode(self.input, self.writer(), self.options, timeout, self.keep_going)
    }

    /// The built-in decoders lost a part of the audio. ffmpeg may be able to read past the damage.
    fn decode_damaged(&self, pcm: Pcm) -> Result<Pcm, AudioError> {
        match self.decode_with_ffmpeg() {
            Ok(Some(longer)) if longer.len_samples() > pcm.len_samples() => Ok(longer),
            Err(error @ (AudioError::Cancelled | AudioError::Spool(_) | AudioError::TooLong { .. })) => Err(error),
            _ => {
                tracing::warn!(seconds = pcm.duration_seconds(), "a damaged file: some of its audio may be lost");
                Ok(pcm)
            }
        }
    }

    /// The built-in decoders failed with `error`.
    fn decode_unreadable(&self, error: AudioError) -> Result<Pcm, AudioError> {
        match self.decode_with_ffmpeg() {
            Ok(Some(pcm)) => Ok(pcm),
            Ok(None) => Err(match error {
                AudioError::Unrecognised { hint } => {
                    let hint = format!("{hint}; ffmpeg, which reads more formats, is not available");
                    AudioError::Unrecognised { hint }
                }
                error => error,
            }),
            // ffmpeg found no samples, or does not know the format: the first error says more.
            Err(AudioError::NoSamples) => Err(error),
            Err(AudioError::Ffmpeg { stderr, .. }) => {
                Err(AudioError::Ffmpeg { hint: file_kind::describe(self.input, self.file_name), stderr })
            }
            Err(error) => Err(error),
        }
    }
}
