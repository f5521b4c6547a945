//! What all requests together may cost.

use std::time::Duration;

use super::super::args::LimitArgs;
use super::super::values::ByteSize;
use super::SettingError;
use super::sources::{Count, Sources};

/// The longest films last four and a half hours, and half a day of meetings is not longer than this.
const DEFAULT_MAX_AUDIO: Duration = Duration::from_secs(6 * 3600);

/// 37 hours of audio.
const DEFAULT_MAX_DECODED_BYTES: u64 = 4 << 30;

/// Four of the largest uploads, or some two hundred of an hour each.
const DEFAULT_MAX_SPOOL_BYTES: u64 = 16 << 30;

/// As many small uploads as are likely to wait.
const DEFAULT_SPOOL_MEMORY_TOTAL_BYTES: u64 = 128 << 20;

/// Half of what a live recording of speech at 16 kbit/s sends.
const DEFAULT_LEAST_UPLOAD_RATE: u64 = 1 << 10;

/// Four times as many as wait for one model.
const DEFAULT_MAX_CONNECTIONS: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitSettings {
    /// Of one request.
    pub max_audio: Duration,
    /// Of the decoded audio of all requests together.
    pub max_decoded_bytes: u64,
    /// Of the uploads of all requests together.
    pub max_spool_bytes: u64,
    /// Of uploads and decoded audio together.
    pub spool_memory_total_bytes: u64,
    /// Zero: no limit.
    pub least_upload_bytes_per_second: u64,
    pub max_connections: usize,
}

impl Sources<'_> {
    /// `max_upload_bytes`: the largest upload must fit.
    pub(super) fn limits(&self, args: LimitArgs, max_upload_bytes: u64) -> Result<LimitSettings, SettingError> {
        let bytes = |option: &str, flag: Option<ByteSize>| {
            self.value(option, flag).map(|size| size.map(|ByteSize(bytes)| bytes))
        };
        let max_connections = self.value("max-connections", args.max_connections.map(Count))?;
        let max_connections = max_connections.map_or(DEFAULT_MAX_CONNECTIONS, |count| count.0);
        if max_connections == 0 {
            return Err(SettingError::Combination("--max-connections must be at least 1".to_owned()));
        }
        let max_spool_bytes = match bytes("max-spool", args.max_spool)? {
            Some(bytes) if bytes < max_upload_bytes => {
                let problem = format!(
                    "--max-spool ({bytes} bytes) must be at least --max-upload ({max_upload_bytes} bytes), or the largest \
                     upload never fits"
                );
                return Err(SettingError::Combination(problem));
            }
            Some(bytes) => bytes,
            None => DEFAULT_MAX_SPOOL_BYTES.max(max_upload_bytes),
        };
        let total = bytes("spool-memory-total", args.spool_memory_total)?;
        let least_rate = bytes("min-upload-rate", args.min_upload_rate)?;
        Ok(LimitSettings {
            max_audio: self.positive("max-audio-duration", args.max_audio_duration, DEFAULT_MAX_AUDIO)?,
            max_decoded_bytes: bytes("max-decoded", args.max_decoded)?.unwrap_or(DEFAULT_MAX_DECODED_BYTES),
            max_spool_bytes,
            spool_memory_total_bytes: total.unwrap_or(DEFAULT_SPOOL_MEMORY_TOTAL_BYTES),
            least_upload_bytes_per_second: least_rate.unwrap_or(DEFAULT_LEAST_UPLOAD_RATE),
            max_connections,
        })
    }
}
