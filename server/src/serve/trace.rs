//! Exports requests as traces to a collector of OpenTelemetry (feature `otel`), over OTLP with protobuf and HTTP.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use axum::http::HeaderMap;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span, SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use ureq::Agent;

use crate::request::RequestFacts;

/// The default of the specification for one export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Empty: no traces are exported.
static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// The export of traces; sends the last spans when it is dropped.
pub struct TraceExport(SdkTracerProvider);

impl Drop for TraceExport {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Starts the export, once per process, to the collector that the environment names. It connects when there are traces.
///
/// # Errors
/// If the variables of the environment cannot be used.
pub fn start_export() -> Result<TraceExport, ExporterBuildError> {
    let exporter = SpanExporter::builder().with_http().with_http_client(TraceExportClient::new()).build()?;
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none_or(|name| name.is_empty()) {
        resource = resource.with_service_name("hush-server");
    }
    let resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let provider = PROVIDER.get_or_init(|| provider).clone();
    Ok(TraceExport(provider))
}

/// The trace of the client that the header `traceparent` names.
#[derive(Default)]
pub struct TraceParent(Context);

impl TraceParent {
    pub fn of(headers: &HeaderMap) -> Self {
        if PROVIDER.get().is_none() {
            return Self::default();
        }
        Self(TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers)))
    }
}

/// A request that is answered.
pub struct ServedRequest<'a> {
    pub method: &'a str,
    pub route: &'a str,
    pub request_id: &'a str,
    pub status: u16,
    pub started: Instant,
    pub facts: &'a RequestFacts,
}

/// Exports a span for the request and one for each of its phases, and returns the id of the trace.
pub fn export(parent: &TraceParent, request: &ServedRequest<'_>) -> Option<String> {
    let tracer = PROVIDER.get()?.tracer("hush-server");
    let clock = ClockPair { instant: Instant::now(), system: SystemTime::now() };
    let ServedRequest { method, route, status, facts, .. } = request;

    let mut span = tracer
        .span_builder(format!("{method} {route}"))
        .with_kind(SpanKind::Server)
        .with_start_time(clock.to_system_time(request.started))
        .with_attributes(attributes(request))
        .start_with_context(&tracer, &parent.0);
    if *status >= 500 {
        span.set_status(Status::error(""));
    }
    let trace_id = span.span_context().trace_id().to_string();
    let context = Context::new().with_span(span);

    for phase in &facts.phases {
        let end = clock.to_system_time(phase.ended);
        let start = end.checked_sub(Duration::from_secs_f64(phase.seconds.max(0.0))).unwrap_or(end);
        let mut child = tracer.span_builder(phase.name).with_start_time(start).start_with_context(&tracer, &context);
        child.end_with_timestamp(end);
    }

    context.span().end_with_timestamp(clock.system);
    Some(trace_id)
}

/// The names are those of the semantic conventions for HTTP, and of Hush.
fn attributes(request: &ServedRequest<'_>) -> Vec<KeyValue> {
    let ServedRequest { method, route, request_id, status, facts, .. } = request;
    let mut attributes = vec![
        KeyValue::new("http.request.method", (*method).to_owned()),
        KeyValue::new("http.route", (*route).to_owned()),
        KeyValue::new("http.response.status_code", i64::from(*status)),
        KeyValue::new("hush.request_id", (*request_id).to_owned()),
    ];

    attributes.extend(facts.model.clone().map(|model| KeyValue::new("hush.model", model)));
    let count = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok());
    attributes.extend(count(facts.generation).map(|value| KeyValue::new("hush.generation", value)));
    attributes.extend(count(facts.retries).map(|value| KeyValue::new("hush.retries", value)));
    attributes.extend(facts.audio_seconds.map(|seconds| KeyValue::new("hush.audio_seconds", seconds)));
    attributes
}

/// The same moment on the monotonic clock and on the clock of the system.
struct ClockPair {
    instant: Instant,
    system: SystemTime,
}

impl ClockPair {
    fn to_system_time(&self, instant: Instant) -> SystemTime {
        let ago = self.instant.saturating_duration_since(instant);
        self.system.checked_sub(ago).unwrap_or(self.system)
    }
}

/// The HTTP client that also downloads models. It blocks the thread that exports.
#[derive(Debug)]
struct TraceExportClient(Agent);

impl TraceExportClient {
    fn new() -> Self {
        let agent = Agent::config_builder()
            .tls_config(crate::trust::tls())
            .http_status_as_error(false)
            .timeout_global(Some(EXPORT_TIMEOUT))
            .build()
            .new_agent();
        Self(agent)
    }
}

#[async_trait::async_trait]
impl HttpClient for TraceExportClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, mut body) = self.0.run(request.map(|bytes| bytes.to_vec()))?.into_parts();
        Ok(Response::from_parts(head, Bytes::from(body.read_to_vec()?)))
    }
}
