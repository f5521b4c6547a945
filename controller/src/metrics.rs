//! The controller's own metrics. Those that show state are set after each step.

mod registrar;

use std::time::Duration;

use hush_contract::metrics::FamilySpec;
use hush_core::{Decision, GpuReason, Plan, PressureLevel, SkipReason};
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};

pub use crate::api_server::{RESOURCES, RESULTS};
use registrar::MetricRegistrar;

/// In seconds: from a scrape over loopback to a server that hangs until its timeout.
const SCRAPE_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// In seconds: an unload takes tens of milliseconds; a drain takes as long as the longest request.
const COMMAND_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// In seconds.
const STEP_BUCKETS: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];

/// The number of entries that wait in each queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLengths {
    pub commands: usize,
    pub requests: usize,
    pub events: usize,
}

/// Declares the metrics: each entry is a field, and how [`MetricRegistrar`] creates it.
macro_rules! metrics {
    (pub struct $name:ident {
        $($(#[$meta:meta])* $visibility:vis $field:ident: $type:ty = $create:ident($($argument:expr),+ $(,)?),)+
    }) => {
        pub struct $name {
            registry: Registry,
            families: Vec<FamilySpec>,
            $($(#[$meta])* $visibility $field: $type,)+
        }

        impl $name {
            pub fn new() -> prometheus::Result<Self> {
                let registrar = MetricRegistrar::default();
                $(let $field = registrar.$create($($argument),+)?;)+
                let (registry, families) = registrar.finish()?;

                Ok(Self { registry, families, $($field),+ })
            }
        }
    };
}

metrics! {
    pub struct ControllerMetrics {
        decisions_total: IntCounterVec = counters(
            "hush_controller_decisions_total",
            "Decisions by action and reason, those of dry runs included.",
            &["action", "reason", "dry_run"],
        ),
        commands_total: IntCounterVec = counters(
            "hush_controller_commands_total",
            "Commands that were sent to servers, by outcome.",
            &["action", "outcome"],
        ),
        command_duration_seconds: HistogramVec = histograms(
            "hush_controller_command_duration_seconds",
            "Seconds from sending a command to its result.",
            COMMAND_BUCKETS,
            &["action"],
        ),
        scrape_duration_seconds: HistogramVec = histograms(
            "hush_controller_scrape_duration_seconds",
            "Seconds that a scrape of a server took.",
            SCRAPE_BUCKETS,
            &["result"],
        ),
        step_duration_seconds: Histogram = histogram(
            "hush_controller_step_duration_seconds",
            "Seconds that a step of the control loop took.",
            STEP_BUCKETS,
        ),
        skipped_models: IntGaugeVec = gauges(
            "hush_controller_skipped_models",
            "Models for which the last step decided nothing, by reason.",
            &["reason"],
        ),
        gpus: IntGaugeVec = gauges(
            "hush_controller_gpus",
            "GPUs by their pressure.",
            &["pressure"],
        ),
        gpus_foreign: IntGauge = gauge(
            "hush_controller_gpus_under_foreign_pressure",
            "GPUs on which unloading every governed model would not meet the target.",
        ),
        gpu_sample_age_seconds: GaugeVec = float_gauges(
            "hush_controller_gpu_sample_age_seconds",
            "Age of a GPU's sample in the last step.",
            &["gpu_uuid"],
        ),
        gpu_available_bytes: IntGaugeVec = gauges(
            "hush_controller_gpu_available_bytes",
            "Free memory of a GPU in the last step.",
            &["gpu_uuid"],
        ),
        gpu_target_bytes: IntGaugeVec = gauges(
            "hush_controller_gpu_target_bytes",
            "The memory that is to be available on a GPU while memory is reclaimed; 0 otherwise.",
            &["gpu_uuid"],
        ),
        pub reclaimed_bytes_total: IntCounterVec = counters(
            "hush_controller_reclaimed_bytes_total",
            "Device memory that unload commands returned, by their reason.",
            &["reason"],
        ),
        pub audit_failures_total: IntCounter = counter(
            "hush_controller_audit_failures_total",
            "Lines of the audit log that could not be written.",
        ),
        /// `state` is `answering`, `failing` or `unknown`.
        pub targets: IntGaugeVec = gauges(
            "hush_controller_targets",
            "Servers by state: `answering`, `failing` or `unknown`.",
            &["state"],
        ),
        pub targets_refusing: IntGauge = gauge(
            "hush_controller_targets_refusing",
            "Servers that refuse this controller's credential, or that it has no token for.",
        ),
        pub source_valid: IntGaugeVec = gauges(
            "hush_controller_source_valid",
            "1 when the source was valid the last time it was read, 0 while an older version is in force.",
            &["source"],
        ),
        pub server_token_requests_total: IntCounterVec = counters(
            "hush_controller_server_token_requests_total",
            "Requests to the API server for tokens for servers, by result.",
            &["result"],
        ),
        pub commands_without_effect_total: IntCounter = counter(
            "hush_controller_commands_without_effect_total",
            "Unloads that a server reported and that its next sample does not show.",
        ),
        pub commands_limited_total: IntCounterVec = counters(
            "hush_controller_commands_limited_total",
            "Commands that were not sent because there were too many, for one server or for all.",
            &["limit"],
        ),
        pub events_dropped_total: IntCounter = counter(
            "hush_controller_events_dropped_total",
            "Results of commands that have no Event, because too many were waiting to be written.",
        ),
        pub policies: IntGauge = gauge("hush_controller_policies", "Policies in force."),
        /// Only in a cluster, where each policy is an object of its own.
        pub policies_invalid: IntGauge = gauge(
            "hush_controller_policies_invalid",
            "Policies in the cluster whose last edit is not valid; their last valid version is in force.",
        ),
        pub policies_paused: IntGauge = gauge(
            "hush_controller_policies_paused",
            "Policies that a person has paused: they only show what they would do.",
        ),
        pub acting: IntGauge = gauge(
            "hush_controller_acting",
            "1 while this controller may act, 0 while it only observes.",
        ),
        pub leader_transitions_total: IntCounter = counter(
            "hush_controller_leader_transitions_total",
            "How often this controller has seen the holder of the lease change, to itself included.",
        ),
        pub api_requests_total: IntCounterVec = counters(
            "hush_controller_api_requests_total",
            "Requests to the API server of Kubernetes, by result; `no_answer`: there was no answer in time.",
            &["verb", "resource", "result"],
        ),
        /// A watch that the API server ends after its time is continued and not counted.
        pub watch_restarts_total: IntCounterVec = counters(
            "hush_controller_watch_restarts_total",
            "Watches of the API server that were restarted after an error.",
            &["resource"],
        ),
        pub status_write_failures_total: IntCounterVec = counters(
            "hush_controller_status_write_failures_total",
            "Writes of a policy's status that failed, by result; they are tried again.",
            &["result"],
        ),
        queue_length: IntGaugeVec = gauges(
            "hush_controller_queue_length",
            "The number of waiting items in the last step: `commands` that are in progress or wait, `requests` of users, `events` \
             that are not written yet.",
            &["queue"],
        ),
    }
}

impl ControllerMetrics {
    /// All families in the order in which they are declared.
    pub fn families(&self) -> &[FamilySpec] {
        &self.families
    }

    pub fn record_scrape(&self, result: &str, took: Duration) {
        self.scrape_duration_seconds.with_label_values(&[result]).observe(took.as_secs_f64());
    }

    pub fn record_command(&self, action: &str, outcome: &str, took: Duration) {
        self.commands_total.with_label_values(&[action, outcome]).inc();
        self.command_duration_seconds.with_label_values(&[action]).observe(took.as_secs_f64());
    }

    /// Records a step: `new_decisions` are those that the step before did not make, `gpu_ages` the age of the figures of
    /// each GPU by UUID.
    pub fn record_step<'a>(
        &self,
        plan: &Plan,
        new_decisions: impl Iterator<Item = &'a Decision>,
        gpu_ages: impl Iterator<Item = (&'a str, Duration)>,
        took: Duration,
    ) {
        self.step_duration_seconds.observe(took.as_secs_f64());
        for decision in new_decisions {
            let dry_run = if decision.dry_run { "true" } else { "false" };
            let labels = [decision.action.as_str(), decision.reason.as_str(), dry_run];
            self.decisions_total.with_label_values(&labels).inc();
        }

        for reason in SkipReason::ALL {
            let count = plan.skips.iter().filter(|skip| skip.reason == *reason).count();
            self.skipped_models.with_label_values(&[reason.as_str()]).set(count as i64);
        }
        for pressure in PressureLevel::ALL {
            let count = plan.gpus.iter().filter(|gpu| gpu.pressure == *pressure).count();
            self.gpus.with_label_values(&[pressure.as_str()]).set(count as i64);
        }
        let foreign = plan.gpus.iter().filter(|gpu| gpu.reason == Some(GpuReason::ForeignPressure)).count();
        self.gpus_foreign.set(foreign as i64);

        self.set_gpus(plan, gpu_ages);
    }

    /// Sets the metrics of each GPU, and removes those of GPUs that are gone.
    fn set_gpus<'a>(&self, plan: &Plan, gpu_ages: impl Iterator<Item = (&'a str, Duration)>) {
        self.gpu_sample_age_seconds.reset();
        for (uuid, age) in gpu_ages {
            self.gpu_sample_age_seconds.with_label_values(&[uuid]).set(age.as_secs_f64());
        }

        self.gpu_available_bytes.reset();
        self.gpu_target_bytes.reset();
        for gpu in &plan.gpus {
            let uuid = [gpu.uuid.as_str()];
            self.gpu_available_bytes.with_label_values(&uuid).set(saturating_i64(gpu.available));
            self.gpu_target_bytes.with_label_values(&uuid).set(saturating_i64(gpu.target.unwrap_or(0)));
        }
    }

    pub fn record_queues(&self, queues: QueueLengths) {
        let QueueLengths { commands, requests, events } = queues;
        for (queue, length) in [("commands", commands), ("requests", requests), ("events", events)] {
            self.queue_length.with_label_values(&[queue]).set(i64::try_from(length).unwrap_or(i64::MAX));
        }
    }

    /// All metrics in the text exposition format, version 0.0.4.
    pub fn encode(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn saturating_i64(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
