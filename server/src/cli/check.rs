//! `serve --check-config`: the settings that would be in effect, as JSON.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::settings::ServeSettings;
use super::values::CorsOrigin;
use crate::app::served_model_spec::ServedModelSpec;
use crate::residency::ResidencyRule;

pub fn print(settings: &ServeSettings, models: &[ServedModelSpec]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &effective_settings(settings, models))?;
    writeln!(out)
}

/// The keys are those of the configuration file; durations are in seconds.
fn effective_settings(settings: &ServeSettings, models: &[ServedModelSpec]) -> Value {
    json!({
        "listen": settings.listen,
        "opsListen": settings.ops_listen,
        "corsOrigins": settings.cors_origins.iter().map(CorsOrigin::as_str).collect::<Vec<_>>(),
        "modelsDir": settings.store.models_dir,
        "installMissing": settings.install_missing,
        "serveInstalled": settings.serve_installed,
        "defaultAliases": settings.default_aliases,
        "maxLoaded": settings.max_loaded,
        "spareRunner": settings.spare_runner,
        "loadTimeoutSeconds": settings.load_timeout.as_secs_f64(),
        "stallTimeoutSeconds": settings.stall_timeout.as_secs_f64(),
        "drainTimeoutSeconds": settings.drain_timeout.as_secs_f64(),
        "maxUploadBytes": settings.max_upload_bytes,
        "maxAudioSeconds": settings.limits.max_audio.as_secs_f64(),
        "maxDecodedBytes": settings.limits.max_decoded_bytes,
        "maxSpoolBytes": settings.limits.max_spool_bytes,
        "minUploadBytesPerSecond": settings.limits.least_upload_bytes_per_second,
        "maxConnections": settings.limits.max_connections,
        "spoolDir": settings.spool_dir,
        "spoolMemoryBytes": settings.spool_memory_bytes,
        "spoolMemoryTotalBytes": settings.limits.spool_memory_total_bytes,
        "asrEngine": settings.asr_engine.to_string(),
        "logFormat": settings.log.format.to_string(),
        "logLevel": settings.log.level,
        "models": models.iter().map(effective_model).collect::<Vec<_>>(),
    })
}

fn effective_model(model: &ServedModelSpec) -> Value {
    let lifecycle = &model.settings.lifecycle;
    let (residency, idle) = match lifecycle.residency {
        ResidencyRule::Resident => ("resident", None),
        ResidencyRule::Idle(timeout) => ("idle", Some(timeout.map_or(0.0, |timeout| timeout.as_secs_f64()))),
        ResidencyRule::OnDemand => ("on-demand", None),
    };

    json!({
        "name": model.settings.name,
        "path": model.settings.spec.model_dir,
        "installed": model.settings.spec.model_dir.is_dir(),
        "aliases": model.aliases,
        "residency": residency,
        "idleTimeoutSeconds": idle,
        "device": model.settings.spec.device,
        // Why `auto` is the CPU.
        "deviceReason": model.device.placement.reason,
        "precision": model.settings.precision,
        "threads": model.settings.spec.threads.unwrap_or(0),
        "maxQueue": lifecycle.queue_limit,
        "defaults": {
            "language": model.defaults.language,
            "prompt": model.defaults.initial_prompt,
            "vadFilter": model.defaults.vad.is_some(),
            "vadParallel": model.defaults.vad.as_ref().is_some_and(|vad| vad.parallel),
            "beamSize": model.defaults.beam_size,
            "bestOf": model.defaults.best_of,
        },
    })
}
