use std::io;

use hush_listener::spool::SpoolError;

/// Why an upload could not be decoded to samples.
#[derive(Debug, thiserror::Error)]
pub enum AudioError {
    #[error("the upload is empty")]
    Empty,
    #[error("the upload is not audio in a format known here ({hint})")]
    Unrecognised { hint: String },
    #[error("the file has no audio track")]
    NoAudioTrack,
    #[error("the audio track has no channels")]
    ZeroChannels,
    #[error("a sample rate of {hertz} Hz is not supported (2,000 to 384,000 Hz are)")]
    SampleRate { hertz: u32 },
    #[error("the audio is {codec}, which is not supported here: {fix}")]
    UnsupportedCodec { codec: String, fix: &'static str },
    #[error("the file is damaged: {reason}")]
    Malformed { reason: String },
    /// The headers were read, but no packet could be decoded.
    #[error("no audio could be decoded from the file")]
    NoSamples,
    /// The engine answers NaN with NaN, so a search on it would not end.
    #[error("the audio has a sample that is not a finite number, {seconds:.3} s from its start")]
    NonFinite { seconds: f64 },
    #[error("raw 16-bit audio must have an even number of bytes, and {bytes} is odd")]
    OddRawLength { bytes: u64 },
    #[error("the audio is longer than the limit of {limit_seconds} s")]
    TooLong { limit_seconds: u64 },
    /// The built-in decoders could not read the file and ffmpeg failed too. `stderr` has the last lines of ffmpeg.
    #[error("the audio could not be decoded ({hint}); ffmpeg says: {stderr}")]
    Ffmpeg { hint: String, stderr: String },
    #[error("ffmpeg did not finish within {seconds} s")]
    FfmpegTimeout { seconds: u64 },
    /// ffmpeg was stopped at a limit of its sandbox.
    #[error("decoding the audio with ffmpeg takes more than the limit of {limit}")]
    FfmpegLimit { limit: String },
    #[error("ffmpeg could not be run: {0}")]
    FfmpegSpawn(#[source] io::Error),
    /// A defect of this server.
    #[error("decoding failed: {reason}")]
    Failed { reason: String },
    /// `keep_going` returned `false`.
    #[error("the client is gone")]
    Cancelled,
    /// The temporary files of the server failed.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl AudioError {
    /// A short name for metrics and machine-readable answers, which never changes.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Unrecognised { .. } => "unrecognised",
            Self::NoAudioTrack => "no_audio_track",
            Self::ZeroChannels => "zero_channels",
            Self::SampleRate { .. } => "sample_rate",
            Self::UnsupportedCodec { .. } => "unsupported_codec",
            Self::Malformed { .. } => "malformed",
            Self::NoSamples => "no_samples",
            Self::NonFinite { .. } => "non_finite",
            Self::OddRawLength { .. } => "odd_raw_length",
            Self::TooLong { .. } => "too_long",
            Self::Ffmpeg { .. } => "ffmpeg",
            Self::FfmpegTimeout { .. } => "ffmpeg_timeout",
            Self::FfmpegLimit { .. } => "ffmpeg_limit",
            Self::FfmpegSpawn(_) => "ffmpeg_spawn",
            Self::Failed { .. } => "failed",
            Self::Cancelled => "cancelled",
            Self::Spool(_) => "spool",
        }
    }

    /// Whether the upload is at fault; `false` for failures of the server.
    pub fn is_client_fault(&self) -> bool {
        !matches!(
            self,
            Self::FfmpegTimeout { .. } | Self::FfmpegSpawn(_) | Self::Failed { .. } | Self::Cancelled | Self::Spool(_)
        )
    }

    /// Whether ffmpeg may be able to decode what the built-in decoders could not.
    pub(super) fn is_worth_ffmpeg(&self) -> bool {
        matches!(
            self,
            Self::Unrecognised { .. }
                | Self::NoAudioTrack
                | Self::UnsupportedCodec { .. }
                | Self::Malformed { .. }
                | Self::NoSamples
        )
    }
}

impl From<io::Error> for AudioError {
    fn from(error: io::Error) -> Self {
        Self::Spool(SpoolError::Disk(error))
    }
}
