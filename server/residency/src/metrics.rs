//! What happens to models, as counters and histograms. Their state is computed at scrape time by collectors.

use hush_contract::metrics as names;
use prometheus::core::Collector;
use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

/// In seconds: from a spare runner with a warm page cache to a large model on a slow disk.
const LOAD_BUCKETS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0];
const UNLOAD_BUCKETS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
/// Adaptive residency learns from these: the bounds are the timeouts that it can tell apart.
const INTERARRIVAL_BUCKETS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 240.0, 300.0, 420.0, 600.0, 900.0, 1200.0, 1800.0,
    2700.0, 3600.0, 7200.0, 14400.0, 28800.0, 86400.0,
];
const COLD_START_BUCKETS: &[f64] = &[0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0];

/// Cheap to clone; clones count into the same metrics.
#[derive(Clone)]
pub struct ResidencyMetrics {
    registry: Registry,
    /// `{model}`
    pub cold_start_wait_seconds: HistogramVec,
    /// `{model, result}`
    pub loads_total: IntCounterVec,
    /// `{model}`
    pub appeared_total: IntCounterVec,
    /// `{model, phase}`
    pub load_duration_seconds: HistogramVec,
    /// `{model, reason}`
    pub unloads_total: IntCounterVec,
    /// `{model, reason}`
    pub unload_refused_total: IntCounterVec,
    /// `{model}`
    pub unload_duration_seconds: HistogramVec,
    /// `{model}`
    pub interarrival_seconds: HistogramVec,
    /// `{model, cause}`
    pub runner_restarts_total: IntCounterVec,
    /// `{model}`
    pub reclaimed_bytes_total: IntCounterVec,
    /// `{model}`
    pub reclaim_duration_seconds: HistogramVec,
    /// `{model}`
    pub out_of_memory_total: IntCounterVec,
}

impl ResidencyMetrics {
    /// Registers the metrics in `registry`.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let histogram = |name: &str, buckets: &[f64]| {
            let options = HistogramOpts::from(options(name)).buckets(buckets.to_vec());
            let vec = HistogramVec::new(options, names::labels(name))?;
            registry.register(Box::new(vec.clone()))?;
            prometheus::Result::Ok(vec)
        };
        let counter = |name: &str| {
            let vec = IntCounterVec::new(options(name), names::labels(name))?;
            registry.register(Box::new(vec.clone()))?;
            prometheus::Result::Ok(vec)
        };

        Ok(Self {
            registry: registry.clone(),
            cold_start_wait_seconds: histogram(names::COLD_START_WAIT_SECONDS, COLD_START_BUCKETS)?,
            loads_total: counter(names::MODEL_LOADS_TOTAL)?,
            appeared_total: counter(names::MODEL_APPEARED_TOTAL)?,
            load_duration_seconds: histogram(names::MODEL_LOAD_DURATION_SECONDS, LOAD_BUCKETS)?,
            unloads_total: counter(names::MODEL_UNLOADS_TOTAL)?,
            unload_refused_total: counter(names::MODEL_UNLOAD_REFUSED_TOTAL)?,
            unload_duration_seconds: histogram(names::MODEL_UNLOAD_DURATION_SECONDS, UNLOAD_BUCKETS)?,
            interarrival_seconds: histogram(names::MODEL_INTERARRIVAL_SECONDS, INTERARRIVAL_BUCKETS)?,
            runner_restarts_total: counter(names::RUNNER_RESTARTS_TOTAL)?,
            reclaimed_bytes_total: counter(names::MODEL_RECLAIMED_BYTES_TOTAL)?,
            reclaim_duration_seconds: histogram(names::MODEL_RECLAIM_DURATION_SECONDS, UNLOAD_BUCKETS)?,
            out_of_memory_total: counter(names::MODEL_OUT_OF_MEMORY_TOTAL)?,
        })
    }

    pub(crate) fn register_collector(&self, collector: Box<dyn Collector>) -> prometheus::Result<()> {
        self.registry.register(collector)
    }
}

/// A gauge with the help text and the labels that the contract declares for `name`.
pub(crate) fn gauge(name: &str) -> prometheus::Result<GaugeVec> {
    GaugeVec::new(options(name), names::labels(name))
}

fn options(name: &str) -> Opts {
    Opts::new(name, names::help(name))
}
