//! What the proxy counts.

use hush_contract::metrics as names;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

/// Cheap to clone; clones count into the same metrics.
#[derive(Clone)]
pub struct ProxyMetrics {
    /// `{route, code}`
    pub request_duration_seconds: HistogramVec,
    /// `{cause}`
    pub upstream_failures_total: IntCounterVec,
    /// Without labels.
    pub client_stalls_total: IntCounter,
    /// `{kind}`
    pub open_websockets: IntGaugeVec,
}

impl ProxyMetrics {
    /// Registers the metrics in `registry`.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let options = |name: &str| Opts::new(name, names::help(name));

        let name = names::REQUEST_DURATION_SECONDS;
        let buckets = HistogramOpts::from(options(name)).buckets(names::REQUEST_DURATION_BUCKETS.to_vec());
        let metrics = Self {
            request_duration_seconds: HistogramVec::new(buckets, names::labels(name))?,
            upstream_failures_total: IntCounterVec::new(
                options(names::UPSTREAM_FAILURES_TOTAL),
                names::labels(names::UPSTREAM_FAILURES_TOTAL),
            )?,
            client_stalls_total: IntCounter::with_opts(options(names::CLIENT_STALLS_TOTAL))?,
            open_websockets: IntGaugeVec::new(options(names::OPEN_WEBSOCKETS), names::labels(names::OPEN_WEBSOCKETS))?,
        };

        registry.register(Box::new(metrics.request_duration_seconds.clone()))?;
        registry.register(Box::new(metrics.upstream_failures_total.clone()))?;
        registry.register(Box::new(metrics.client_stalls_total.clone()))?;
        registry.register(Box::new(metrics.open_websockets.clone()))?;
        Ok(metrics)
    }
}
