//! What happens to a model, in metrics and in the log.

use crate::machine::{MetricEvent, ReclaimReport};
use crate::metrics::ResidencyMetrics;
use crate::runner::LoadTimings;

pub(crate) fn record_event(metrics: &ResidencyMetrics, model: &str, event: MetricEvent) {
    match event {
        MetricEvent::Loaded { .. } => metrics.loads_total.with_label_values(&[model, "success"]).inc(),
        MetricEvent::Appeared => metrics.appeared_total.with_label_values(&[model]).inc(),
        MetricEvent::LoadFailed => metrics.loads_total.with_label_values(&[model, "failure"]).inc(),
        MetricEvent::Unloaded { reason, total } => {
            metrics.unloads_total.with_label_values(&[model, reason.as_str()]).inc();
            metrics.unload_duration_seconds.with_label_values(&[model]).observe(total.as_secs_f64());
            tracing::info!(model, reason = reason.as_str(), reaped_seconds = total.as_secs_f64(), "unloaded");
        }
        MetricEvent::Reclaimed { memory, took } => {
            metrics.reclaimed_bytes_total.with_label_values(&[model]).inc_by(memory.reclaimed_bytes);
            metrics.reclaim_duration_seconds.with_label_values(&[model]).observe(took.as_secs_f64());

            let ReclaimReport { vram_before_bytes, reclaimed_bytes, residual_bytes, taken_bytes, verdict } = memory;
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
        MetricEvent::OutOfMemory => metrics.out_of_memory_total.with_label_values(&[model]).inc(),
        MetricEvent::UnloadRefused(refusal) => {
            metrics.unload_refused_total.with_label_values(&[model, refusal.as_str()]).inc();
        }
        MetricEvent::RunnerLost(cause) => {
            metrics.runner_restarts_total.with_label_values(&[model, cause.as_str()]).inc();
        }
        MetricEvent::Interarrival(gap) => {
            metrics.interarrival_seconds.with_label_values(&[model]).observe(gap.as_secs_f64());
        }
        MetricEvent::ColdStart(wait) => {
            metrics.cold_start_wait_seconds.with_label_values(&[model]).observe(wait.as_secs_f64());
        }
    }
}

pub(crate) fn record_load(metrics: &ResidencyMetrics, model: &str, generation: u64, timings: LoadTimings) {
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
