//! What happens to a model, in metrics and in the log.

use super::machine::{Count, Reclaimed};
use crate::metrics::Metrics;
use crate::runner::LoadTimings;

pub(super) fn count(metrics: &Metrics, model: &str, count: Count) {
    match count {
        Count::Loaded { .. } => metrics.loads_total.with_label_values(&[model, "success"]).inc(),
        Count::LoadFailed => metrics.loads_total.with_label_values(&[model, "failure"]).inc(),
        Count::Unloaded { reason, total } => {
            metrics.unloads_total.with_label_values(&[model, reason.as_str()]).inc();
            metrics.unload_duration_seconds.with_label_values(&[model]).observe(total.as_secs_f64());
            tracing::info!(model, reason = reason.as_str(), reaped_seconds = total.as_secs_f64(), "unloaded");
        }
        Count::Reclaimed { memory, took } => {
            metrics.reclaimed_bytes_total.with_label_values(&[model]).inc_by(memory.reclaimed_bytes);
            metrics.reclaim_duration_seconds.with_label_values(&[model]).observe(took.as_secs_f64());
            let Reclaimed { vram_before_bytes, reclaimed_bytes, residual_bytes, taken_bytes, verdict } = memory;
            tracing::info!(
                model,
                vram_before_bytes,
                reclaimed_bytes,
                residual_bytes,
                taken_bytes,
                verdict = verdict.as_str(),
                settle_seconds = took.as_secs_f64(),
                "device memory after the unload"
            );
        }
        Count::OutOfMemory => metrics.out_of_memory_total.with_label_values(&[model]).inc(),
        Count::UnloadRefused(refusal) => {
            metrics.unload_refused_total.with_label_values(&[model, refusal.as_str()]).inc();
        }
        Count::RunnerLost(cause) => {
            metrics.runner_restarts_total.with_label_values(&[model, cause.as_str()]).inc();
        }
        Count::Interarrival(gap) => {
            metrics.interarrival_seconds.with_label_values(&[model]).observe(gap.as_secs_f64());
        }
        Count::ColdStart(wait) => {
            metrics.cold_start_wait_seconds.with_label_values(&[model]).observe(wait.as_secs_f64());
        }
    }
}

pub(super) fn load(metrics: &Metrics, model: &str, generation: u64, timings: LoadTimings) {
    let LoadTimings { spawn, libraries, sessions, total } = timings;
    for (phase, took) in [("spawn", spawn), ("libraries", libraries), ("sessions", sessions), ("total", total)] {
        metrics.load_duration_seconds.with_label_values(&[model, phase]).observe(took.as_secs_f64());
    }
    tracing::info!(
        model,
        generation,
        spawn_seconds = spawn.as_secs_f64(),
        libraries_seconds = libraries.as_secs_f64(),
        sessions_seconds = sessions.as_secs_f64(),
        total_seconds = total.as_secs_f64(),
        "loaded"
    );
}
