//! Records every request when it has ended: one line in the log, and an observation of its duration.

use std::time::{Duration, Instant};

use http::{HeaderValue, Method};
use hush_listener::PROBE_PATHS;

use super::client_stall::ClientStallLimit;
use super::metrics::ProxyMetrics;
use super::models::HeldLease;

/// The status of a request whose client is gone before the answer is ready, as nginx records it.
const CLIENT_GONE: u16 = 499;

/// The record of a request, written when it is dropped: the request is answered, or its client is gone.
pub struct ProxyRequestRecord {
    metrics: ProxyMetrics,
    span: tracing::Span,
    route: String,
    method: Method,
    started: Instant,
    /// The status of the answer.
    pub code: u16,
    pub sent_bytes: u64,
    /// The last byte of the answer is sent.
    pub is_complete: bool,
    /// Why the answer broke off, or what the proxy refused the request with.
    pub failure: Option<String>,
    /// The answer was kept from an earlier request.
    pub is_kept: bool,
    pub model: Option<String>,
    /// That of the client's connection.
    pub stall: Option<ClientStallLimit>,
    lease: Option<LeaseFacts>,
}

/// What is logged of a lease.
struct LeaseFacts {
    generation: u64,
    waited: Duration,
    was_cold: bool,
}

impl ProxyRequestRecord {
    /// `route`: a template.
    pub fn new(metrics: ProxyMetrics, id: &HeaderValue, route: String, method: Method) -> Self {
        let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default(), route);

        Self {
            metrics,
            span,
            route,
            method,
            started: Instant::now(),
            code: CLIENT_GONE,
            sent_bytes: 0,
            is_complete: false,
            failure: None,
            is_kept: false,
            model: None,
            stall: None,
            lease: None,
        }
    }

    pub const fn span(&self) -> &tracing::Span {
        &self.span
    }

    /// The app gave no answer, or not all of it. `label`: the value of the label `cause`.
    pub fn note_upstream_failure(&mut self, label: &str, cause: String) {
        self.metrics.upstream_failures_total.with_label_values(&[label]).inc();
        self.failure = Some(cause);
    }

    pub fn note_lease(&mut self, lease: &HeldLease) {
        let HeldLease { generation, waited, was_cold, .. } = *lease;
        self.lease = Some(LeaseFacts { generation, waited, was_cold });
    }
}

impl Drop for ProxyRequestRecord {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let code = self.code.to_string();
        self.metrics.request_duration_seconds.with_label_values(&[self.route.as_str(), &code]).observe(seconds);

        let _entered = self.span.enter();
        let (method, status, bytes) = (self.method.as_str(), self.code, self.sent_bytes);
        // Probes come every few seconds and would fill the log.
        if PROBE_PATHS.contains(&self.route.as_str()) {
            tracing::debug!(method, status, seconds, bytes, "answered");
            return;
        }

        let has_stalled = self.stall.as_ref().is_some_and(ClientStallLimit::has_stalled) && !self.is_complete;
        let lease = self.lease.as_ref();
        let waited = |is_cold: bool| {
            lease.filter(|lease| lease.was_cold == is_cold).map(|lease| to_microseconds(lease.waited.as_secs_f64()))
        };
        tracing::info!(
            method,
            status,
            bytes,
            seconds = to_microseconds(seconds),
            client_gone = !self.is_complete && self.failure.is_none(),
            client_stalled = has_stalled.then_some(true),
            model = self.model,
            generation = lease.map(|lease| lease.generation),
            queue_seconds = waited(false),
            cold_start_seconds = waited(true),
            kept = self.is_kept.then_some(true),
            error = self.failure,
            "answered"
        );
    }
}

/// Rounds to the microsecond, so that people can read the line.
fn to_microseconds(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}
