//! `serve --check-config`: what the settings come to, as JSON.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::fleet::Plan;
use super::settings::ServeSettings;
use super::values::CorsOrigin;
use crate::residency::Residency;

pub fn print(settings: &ServeSettings, plans: &[Plan]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &effective(settings, plans))?;
    writeln!(out)
}

/// Keys as in the configuration file; durations in seconds.
fn effective(settings: &ServeSettings, plans: &[Plan]) -> Value {
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
        "models": plans.iter().map(model).collect::<Vec<_>>(),
    })
}

fn model(plan: &Plan) -> Value {
    let policy = &plan.settings.policy;
    let (residency, idle) = match policy.residency {
        Residency::Resident => ("resident", None),
        Residency::Idle(timeout) => ("idle", Some(timeout.map_or(0.0, |timeout| timeout.as_secs_f64()))),
        Residency::OnDemand => ("on-demand", None),
    };
    json!({
        "name": plan.settings.name,
        "path": plan.settings.spec.model_dir,
        "installed": plan.settings.spec.model_dir.is_dir(),
        "aliases": plan.aliases,
        "residency": residency,
        "idleTimeoutSeconds": idle,
        "device": plan.settings.spec.device,
        // Why `auto` is the CPU.
        "deviceReason": plan.site.placement.reason,
        "precision": plan.settings.precision,
        "threads": plan.settings.spec.threads.unwrap_or(0),
        "maxQueue": policy.queue_limit,
        "defaults": {
            "language": plan.defaults.language,
            "prompt": plan.defaults.initial_prompt,
            "vadFilter": plan.defaults.vad.is_some(),
            "vadParallel": plan.defaults.vad.as_ref().is_some_and(|vad| vad.parallel),
            "beamSize": plan.defaults.beam_size,
            "bestOf": plan.defaults.best_of,
        },
    })
}
