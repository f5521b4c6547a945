//! The settings of the server as the configuration of the public API.

use std::path::Path;

use crate::api::{ApiConfig, UploadOptions};
use crate::audio::{DecodeOptions, Ffmpeg};
use crate::cli::settings::ServeSettings;
use crate::cli::values::{AsrEngine, CorsOrigin};
use crate::format::JsonShape;
use hush_listener::budget::ByteBudget;

/// The configuration without keys, and without voice activity detection.
pub fn api_config(settings: &ServeSettings) -> ApiConfig {
    let limits = &settings.limits;
    let memory_bytes = usize::try_from(settings.spool_memory_bytes).unwrap_or(usize::MAX);

    let memory_full = "the memory for uploads and decoded audio is in use";
    let memory_budget = Some(ByteBudget::new(memory_full, limits.spool_memory_total_bytes));
    let uploads = ByteBudget::new("there is no room for the upload (--max-spool)", limits.max_spool_bytes);
    let decoded = ByteBudget::new("there is no room for the decoded audio (--max-decoded)", limits.max_decoded_bytes);

    let upload = UploadOptions {
        max_upload_bytes: settings.max_upload_bytes,
        memory_bytes,
        dir: settings.spool_dir.clone(),
        least_bytes_per_second: limits.least_upload_bytes_per_second,
        memory_budget: memory_budget.clone(),
        budget: Some(uploads),
        ..UploadOptions::default()
    };
    let decode = DecodeOptions {
        limit_seconds: limits.max_audio.as_secs(),
        memory_budget,
        budget: Some(decoded),
        ..decode_options(settings.engine.ffmpeg.as_deref(), settings.spool_dir.as_deref(), memory_bytes)
    };

    ApiConfig {
        json_shape: json_shape(settings.asr_engine),
        upload,
        decode,
        web_ui: settings.web_ui,
        cold_hold: settings.cold_hold,
        cors_origins: settings.cors_origins.iter().map(|CorsOrigin(origin)| origin.clone()).collect(),
        ..ApiConfig::default()
    }
}

/// The shape of the JSON that `--asr-engine` names.
pub const fn json_shape(engine: AsrEngine) -> JsonShape {
    match engine {
        AsrEngine::OpenaiWhisper => JsonShape::OpenAiWhisper,
        AsrEngine::FasterWhisper => JsonShape::FasterWhisper,
    }
}

/// How audio is decoded by `serve` and by `transcribe`.
pub fn decode_options(ffmpeg: Option<&Path>, spool_dir: Option<&Path>, memory_bytes: usize) -> DecodeOptions {
    DecodeOptions {
        ffmpeg: ffmpeg.map_or(Ffmpeg::OnPath, |program| Ffmpeg::At(program.to_owned())),
        dir: spool_dir.map(ToOwned::to_owned),
        memory_bytes,
        ..DecodeOptions::default()
    }
}
