//! What the controller counts of itself. State is mirrored after each step.

use std::cell::RefCell;
use std::time::Duration;

use hush_contract::metrics::{Family, Kind};
use hush_core::{Decision, GpuReason, Plan, Pressure, SkipReason};
use hush_log::{DroppedLines, register_program_metrics};
use prometheus::core::Collector;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

pub use crate::api_server::{RESOURCES, RESULTS};

/// From a loopback scrape to a server that hangs until its timeout.
const SCRAPE_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Unloads take tens of milliseconds; a drain takes as long as the longest request.
const COMMAND_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
const STEP_BUCKETS: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];

/// What waits to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLengths {
    pub commands: usize,
    pub requests: usize,
    pub events: usize,
}

pub struct Metrics {
    registry: Registry,
    families: Vec<Family>,
    decisions_total: IntCounterVec,
    commands_total: IntCounterVec,
    command_duration_seconds: HistogramVec,
    scrape_duration_seconds: HistogramVec,
    step_duration_seconds: Histogram,
    skipped_models: IntGaugeVec,
    gpus: IntGaugeVec,
    gpus_foreign: IntGauge,
    gpu_sample_age_seconds: GaugeVec,
    gpu_available_bytes: IntGaugeVec,
    gpu_target_bytes: IntGaugeVec,
    /// `{reason}`
    pub reclaimed_bytes_total: IntCounterVec,
    pub audit_failures_total: IntCounter,
    /// `{state}`: `answering`, `failing`, `unknown`.
    pub targets: IntGaugeVec,
    pub targets_refusing: IntGauge,
    /// `{source}`: 1 when it was good the last time it was read.
    pub source_valid: IntGaugeVec,
    pub server_token_requests_total: IntCounterVec,
    /// Unloads that a server reported and its next sample does not show.
    pub commands_without_effect_total: IntCounter,
    /// `{limit}`: not sent, because there were too many for one server or for all.
    pub commands_limited_total: IntCounterVec,
    pub events_dropped_total: IntCounter,
    pub policies: IntGauge,
    /// In a cluster, where each policy is an object of its own.
    pub policies_invalid: IntGauge,
    /// A person has stopped them for a while.
    pub policies_paused: IntGauge,
    /// 1 while this controller may act.
    pub acting: IntGauge,
    pub leader_transitions_total: IntCounter,
    /// `{verb, resource, result}`
    pub api_requests_total: IntCounterVec,
    /// `{resource}`: after an error; a watch that the API server ends in time goes on and is not counted.
    pub watch_restarts_total: IntCounterVec,
    /// `{result}`
    pub status_write_failures_total: IntCounterVec,
    queue_length: IntGaugeVec,
}

impl Metrics {
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let made = Maker { registry: &registry, families: RefCell::default() };
        Ok(Self {
            decisions_total: made.counters(
                "hush_controller_decisions_total",
                "Decisions by what they do and why; also those of dry runs.",
                &["action", "reason", "dry_run"],
            )?,
            commands_total: made.counters(
                "hush_controller_commands_total",
                "Commands sent to servers, by how they ended.",
                &["action", "outcome"],
            )?,
            command_duration_seconds: made.histograms(
                "hush_controller_command_duration_seconds",
                "Seconds from sending a command to its end.",
                COMMAND_BUCKETS,
                &["action"],
            )?,
            scrape_duration_seconds: made.histograms(
                "hush_controller_scrape_duration_seconds",
                "Seconds that a scrape of a server took.",
                SCRAPE_BUCKETS,
                &["result"],
            )?,
            step_duration_seconds: made.histogram(
                "hush_controller_step_duration_seconds",
                "Seconds per step over the world.",
                STEP_BUCKETS,
            )?,
            skipped_models: made.gauges(
                "hush_controller_skipped_models",
                "Models that the last step left alone, by reason.",
                &["reason"],
            )?,
            gpus: made.gauges("hush_controller_gpus", "GPUs by the pressure that they are under.", &["pressure"])?,
            gpus_foreign: made.gauge(
                "hush_controller_gpus_under_foreign_pressure",
                "GPUs on which everything that is governed would not be enough.",
            )?,
            gpu_sample_age_seconds: made.ages(
                "hush_controller_gpu_sample_age_seconds",
                "Age of a GPU's figures in the last step.",
                &["gpu_uuid"],
            )?,
            gpu_available_bytes: made.gauges(
                "hush_controller_gpu_available_bytes",
                "Memory of a GPU that nobody holds, in the last step.",
                &["gpu_uuid"],
            )?,
            gpu_target_bytes: made.gauges(
                "hush_controller_gpu_target_bytes",
                "What must become available on a GPU while its pressure is relieved; 0 otherwise.",
                &["gpu_uuid"],
            )?,
            reclaimed_bytes_total: made.counters(
                "hush_controller_reclaimed_bytes_total",
                "Device memory that came back after commands, by their reason.",
                &["reason"],
            )?,
            audit_failures_total: made
                .counter("hush_controller_audit_failures_total", "Audit lines that were not written.")?,
            targets: made.gauges("hush_controller_targets", "Servers by whether they answer.", &["state"])?,
            targets_refusing: made.gauge(
                "hush_controller_targets_refusing",
                "Servers that do not take this controller's credential, or that it has no token for.",
            )?,
            source_valid: made.gauges(
                "hush_controller_source_valid",
                "1 when policies or targets were good the last time they were read, 0 while an older version is in force.",
                &["source"],
            )?,
            server_token_requests_total: made.counters(
                "hush_controller_server_token_requests_total",
                "Tokens for servers that the API server was asked for.",
                &["result"],
            )?,
            commands_without_effect_total: made.counter(
                "hush_controller_commands_without_effect_total",
                "Unloads that a server reported and its next sample does not show.",
            )?,
            commands_limited_total: made.counters(
                "hush_controller_commands_limited_total",
                "Commands that were not sent because there were too many, for one server or for all.",
                &["limit"],
            )?,
            events_dropped_total: made.counter(
                "hush_controller_events_dropped_total",
                "Ends of commands that have no Event because too many were waiting to be written.",
            )?,
            policies: made.gauge("hush_controller_policies", "Policies in force.")?,
            policies_invalid: made.gauge(
                "hush_controller_policies_invalid",
                "Policies in the cluster whose last edit is not valid; what was valid before it is in force.",
            )?,
            policies_paused: made.gauge(
                "hush_controller_policies_paused",
                "Policies that a person has paused: they only show what they would do.",
            )?,
            acting: made.gauge("hush_controller_acting", "1 while this controller may act, 0 while it only observes.")?,
            leader_transitions_total: made.counter(
                "hush_controller_leader_transitions_total",
                "How often this controller has seen the lease pass to another holder, itself included.",
            )?,
            api_requests_total: made.counters(
                "hush_controller_api_requests_total",
                "Requests to the API server of Kubernetes, by how they were answered; `no_answer` where none came in time.",
                &["verb", "resource", "result"],
            )?,
            watch_restarts_total: made.counters(
                "hush_controller_watch_restarts_total",
                "Watches of the API server that were begun anew after an error.",
                &["resource"],
            )?,
            status_write_failures_total: made.counters(
                "hush_controller_status_write_failures_total",
                "Writes of a policy's status that failed, by how they were answered; they are tried again.",
                &["result"],
            )?,
            queue_length: made.gauges(
                "hush_controller_queue_length",
                "What waits in the last step: `commands` that are under way or wait for their turn, `requests` of people, `events` that are not written yet.",
                &["queue"],
            )?,
            families: {
                register_program_metrics(made.registry, env!("CARGO_PKG_VERSION"))?;
                made.dropped_lines(
                    "hush_controller_log_lines_dropped_total",
                    "Log lines that could not be written: standard error was closed, full or stuck.",
                )?;
                made.families.into_inner()
            },
            registry,
        })
    }

    /// What there is, in the order of this file.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    pub fn scraped(&self, result: &str, took: Duration) {
        self.scrape_duration_seconds.with_label_values(&[result]).observe(took.as_secs_f64());
    }

    pub fn commanded(&self, action: &str, outcome: &str, took: Duration) {
        self.commands_total.with_label_values(&[action, outcome]).inc();
        self.command_duration_seconds.with_label_values(&[action]).observe(took.as_secs_f64());
    }

    /// `news`: decisions that the step before did not make; `ages`: of the cards in the world of this step.
    pub fn stepped<'a>(
        &self,
        plan: &Plan,
        news: impl Iterator<Item = &'a Decision>,
        ages: impl Iterator<Item = (&'a str, Duration)>,
        took: Duration,
    ) {
        self.step_duration_seconds.observe(took.as_secs_f64());
        for decision in news {
            let dry_run = if decision.dry_run { "true" } else { "false" };
            let labels = [decision.action.as_str(), decision.reason.as_str(), dry_run];
            self.decisions_total.with_label_values(&labels).inc();
        }
        for reason in SkipReason::ALL {
            let count = plan.skips.iter().filter(|skip| skip.reason == *reason).count();
            self.skipped_models.with_label_values(&[reason.as_str()]).set(count as i64);
        }
        for pressure in Pressure::ALL {
            let count = plan.gpus.iter().filter(|gpu| gpu.pressure == *pressure).count();
            self.gpus.with_label_values(&[pressure.as_str()]).set(count as i64);
        }
        let foreign = plan.gpus.iter().filter(|gpu| gpu.reason == Some(GpuReason::ForeignPressure)).count();
        self.gpus_foreign.set(foreign as i64);
        // Of cards that are gone nothing is left.
        self.gpu_sample_age_seconds.reset();
        for (uuid, age) in ages {
            self.gpu_sample_age_seconds.with_label_values(&[uuid]).set(age.as_secs_f64());
        }
        self.gpu_available_bytes.reset();
        self.gpu_target_bytes.reset();
        for gpu in &plan.gpus {
            let uuid = [gpu.uuid.as_str()];
            self.gpu_available_bytes.with_label_values(&uuid).set(signed(gpu.available));
            self.gpu_target_bytes.with_label_values(&uuid).set(signed(gpu.target.unwrap_or(0)));
        }
    }

    pub fn queued(&self, queues: QueueLengths) {
        let QueueLengths { commands, requests, events } = queues;
        for (queue, length) in [("commands", commands), ("requests", requests), ("events", events)] {
            self.queue_length.with_label_values(&[queue]).set(i64::try_from(length).unwrap_or(i64::MAX));
        }
    }

    /// The text exposition format, version 0.0.4.
    pub fn encode(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

type Text = &'static str;

struct Maker<'a> {
    registry: &'a Registry,
    families: RefCell<Vec<Family>>,
}

impl Maker<'_> {
    fn keep<M>(&self, made: M, kind: Kind, name: Text, help: Text, labels: &'static [Text]) -> prometheus::Result<M>
    where
        M: Collector + Clone + 'static,
    {
        self.registry.register(Box::new(made.clone()))?;
        self.families.borrow_mut().push(Family { name, kind, labels, help });
        Ok(made)
    }

    fn counters(&self, name: Text, help: Text, labels: &'static [Text]) -> prometheus::Result<IntCounterVec> {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels)?, Kind::Counter, name, help, labels)
    }

    fn counter(&self, name: Text, help: Text) -> prometheus::Result<IntCounter> {
        self.keep(IntCounter::new(name, help)?, Kind::Counter, name, help, &[])
    }

    fn gauges(&self, name: Text, help: Text, labels: &'static [Text]) -> prometheus::Result<IntGaugeVec> {
        self.keep(IntGaugeVec::new(Opts::new(name, help), labels)?, Kind::Gauge, name, help, labels)
    }

    fn gauge(&self, name: Text, help: Text) -> prometheus::Result<IntGauge> {
        self.keep(IntGauge::new(name, help)?, Kind::Gauge, name, help, &[])
    }

    /// A counter that is read from the log when it is scraped.
    fn dropped_lines(&self, name: Text, help: Text) -> prometheus::Result<()> {
        self.registry.register(Box::new(DroppedLines::new(name, help)?))?;
        self.families.borrow_mut().push(Family { name, kind: Kind::Counter, labels: &[], help });
        Ok(())
    }

    /// Gauges of seconds, which are not whole.
    fn ages(&self, name: Text, help: Text, labels: &'static [Text]) -> prometheus::Result<GaugeVec> {
        self.keep(GaugeVec::new(Opts::new(name, help), labels)?, Kind::Gauge, name, help, labels)
    }

    fn histograms(
        &self,
        name: Text,
        help: Text,
        buckets: &[f64],
        labels: &'static [Text],
    ) -> prometheus::Result<HistogramVec> {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.keep(HistogramVec::new(opts, labels)?, Kind::Histogram, name, help, labels)
    }

    fn histogram(&self, name: Text, help: Text, buckets: &[f64]) -> prometheus::Result<Histogram> {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.keep(Histogram::with_opts(opts)?, Kind::Histogram, name, help, &[])
    }
}
