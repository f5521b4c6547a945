//! What all requests together may cost.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{SettingError, must_be_above_zero, must_be_longer_than_zero};
use crate::cli::values::{ByteSize, DurationArg, WholeNumber};

#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize)]
#[command(next_help_heading = "Requests")]
pub struct LimitSettings {
    /// Longest audio that is transcribed: 6h, 90m; longer is answered with 400.
    ///
    /// Checked while a file is decoded, because its headers may be wrong. An hour is 115 MB when it is decoded.
    // The longest films last four and a half hours, and half a day of meetings is not longer than the default.
    #[arg(
        long = "max-audio-duration",
        value_name = "DURATION",
        value_parser = DurationArg::read,
        default_value = "6h"
    )]
    pub max_audio: Duration,

    /// Limit for the decoded audio of all requests together, in memory and in --spool-dir; above it requests are
    /// answered with 507. The default is 37 hours of audio.
    ///
    /// Audio that waits for a model is not decoded yet, except its beginning and the audio of the next two requests.
    #[arg(long = "max-decoded", value_name = "SIZE", value_parser = ByteSize::read, default_value = "4GiB")]
    pub max_decoded_bytes: u64,

    /// Limit for the uploads of all requests together, in memory and in --spool-dir; above it requests are answered
    /// with 507. Default: 16GiB, or --max-upload where that is more.
    // Four of the largest uploads, or some two hundred of an hour each.
    #[arg(
        long = "max-spool",
        value_name = "SIZE",
        value_parser = ByteSize::read,
        default_value = "16GiB",
        hide_default_value = true
    )]
    pub max_spool_bytes: u64,

    /// Lowest rate of an upload in bytes a second, over each minute; slower uploads are answered with 408. 0 is no
    /// limit.
    // Half of what a live recording of speech at 16 kbit/s sends.
    #[arg(long = "min-upload-rate", value_name = "SIZE", value_parser = ByteSize::read, default_value = "1KiB")]
    pub least_upload_bytes_per_second: u64,

    /// Connections to the public API that are open at the same time; further ones are answered with 503 and
    /// Retry-After, but for /healthz and /readyz. Default: 1024, or what the limit of open files leaves.
    // Four times as many as wait for one model.
    #[arg(
        long,
        value_name = "N",
        value_parser = WholeNumber::read,
        default_value = "1024",
        hide_default_value = true
    )]
    pub max_connections: usize,

    /// How much of the uploads and decoded audio of all requests together is kept in memory; the rest is written to
    /// --spool-dir.
    // As many small uploads as are likely to wait.
    #[arg(long = "spool-memory-total", value_name = "SIZE", value_parser = ByteSize::read, default_value = "128MiB")]
    pub spool_memory_total_bytes: u64,
}

impl LimitSettings {
    /// `is_spool_given`: whether any source has `--max-spool`; its default grows with the largest upload.
    pub(super) fn complete(&mut self, max_upload_bytes: u64, is_spool_given: bool) -> Result<(), SettingError> {
        if self.max_connections == 0 {
            return Err(SettingError::Combination("--max-connections must be at least 1".to_owned()));
        }
        must_be_longer_than_zero("max-audio-duration", self.max_audio)?;
        must_be_above_zero("max-upload", max_upload_bytes)?;
        must_be_above_zero("max-decoded", self.max_decoded_bytes)?;

        let bytes = self.max_spool_bytes;
        if is_spool_given && bytes < max_upload_bytes {
            return Err(SettingError::Combination(format!(
                "--max-spool ({bytes} bytes) must be at least --max-upload ({max_upload_bytes} bytes), or the largest \
                 upload never fits"
            )));
        }
        self.max_spool_bytes = bytes.max(max_upload_bytes);
        Ok(())
    }
}
