//! Records every request: an id, a line in the log, an observation of its duration, and a trace.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::FutureExt;
use hush_listener::{REQUEST_ID, request_id};
use hyper::body::{Frame, SizeHint};
use tracing::Instrument;

use crate::metrics::ServerMetrics;
use crate::request;

/// The status of a request whose client is gone before the answer is ready, as nginx records it.
const CLIENT_GONE: u16 = 499;

/// State of [`record`], for one listener.
#[derive(Clone)]
pub struct Recorder {
    pub metrics: Arc<ServerMetrics>,
    /// The answer to a request for a path whose handler has panicked.
    pub panicked: fn(&str) -> Response,
}

/// Middleware for [`axum::Router::layer`]: gives the request an id, answers if the handler panics, and records the request
/// when the last byte of the answer is sent or the client is gone.
pub async fn record(
    State(recorder): State<Recorder>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let Recorder { metrics, panicked } = recorder;

    let route = matched.map_or_else(|| "other".to_owned(), |matched| route(matched.as_str()));
    let id = request_id(request.headers());
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default(), route);
    let path = request.uri().path().to_owned();
    let facts = request::RequestContext::new(id.to_str().unwrap_or_default());
    let mut record = RequestRecord {
        metrics,
        span: span.clone(),
        route,
        method: request.method().clone(),
        started: Instant::now(),
        code: CLIENT_GONE,
        sent_bytes: 0,
        is_complete: false,
        facts: facts.clone(),
        #[cfg(feature = "otel")]
        parent: super::trace::TraceParent::of(request.headers()),
    };

    let answered = AssertUnwindSafe(facts.scope(next.run(request)).instrument(span)).catch_unwind().await;
    let mut response = answered.unwrap_or_else(|panic| {
        record.span.in_scope(|| tracing::error!(message = panic_message(&*panic), "a handler panicked"));
        panicked(&path)
    });

    record.code = response.status().as_u16();
    response.headers_mut().insert(REQUEST_ID, id);
    response.map(|body| {
        record.is_complete = body.is_end_stream();
        Body::new(RecordedBody { body, record })
    })
}

/// Routes that differ only in slashes are one route.
fn route(matched: &str) -> String {
    format!("/{}", matched.trim_matches('/'))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// The record of a request, written when it is dropped: the request is answered, its client is gone, or its handler has
/// panicked.
struct RequestRecord {
    metrics: Arc<ServerMetrics>,
    span: tracing::Span,
    route: String,
    method: Method,
    started: Instant,
    code: u16,
    sent_bytes: u64,
    /// The last byte of the answer is sent.
    is_complete: bool,
    facts: request::RequestContext,
    #[cfg(feature = "otel")]
    parent: super::trace::TraceParent,
}

impl RequestRecord {
    /// Exports a trace if a collector is configured, and returns the id of the trace.
    #[cfg(feature = "otel")]
    fn export_trace(&self, facts: &request::RequestFacts) -> Option<String> {
        use super::trace::{ServedRequest, export};

        let request = ServedRequest {
            method: self.method.as_str(),
            route: self.route.as_str(),
            request_id: self.facts.id(),
            status: self.code,
            started: self.started,
            facts,
        };
        export(&self.parent, &request)
    }

    #[cfg(not(feature = "otel"))]
    fn export_trace(&self, _: &request::RequestFacts) -> Option<String> {
        None
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let code = self.code.to_string();
        self.metrics.request_duration_seconds.with_label_values(&[self.route.as_str(), &code]).observe(seconds);

        let _entered = self.span.enter();
        let method = self.method.as_str();
        let status = self.code;
        let bytes = self.sent_bytes;
        // Probes and scrapes come every few seconds and would fill the log.
        if matches!(self.route.as_str(), "/healthz" | "/readyz" | "/metrics") {
            tracing::debug!(method, status, seconds, bytes, "answered");
            return;
        }

        let known = self.facts.facts();
        let trace_id = self.export_trace(&known);
        tracing::info!(
            method,
            status,
            bytes,
            seconds = to_microseconds(seconds),
            client_gone = !self.is_complete,
            trace_id,
            key = known.key,
            model = known.model,
            generation = known.generation,
            audio_seconds = known.audio_seconds.map(to_microseconds),
            upload_seconds = known.upload_seconds.map(to_microseconds),
            audio_decode_seconds = known.audio_decode_seconds.map(to_microseconds),
            queue_seconds = known.queue_seconds.map(to_microseconds),
            cold_start_seconds = known.cold_start_seconds.map(to_microseconds),
            mel_seconds = known.mel_seconds.map(to_microseconds),
            encode_seconds = known.encode_seconds.map(to_microseconds),
            prefill_seconds = known.prefill_seconds.map(to_microseconds),
            first_token_seconds = known.first_token_seconds.map(to_microseconds),
            decode_seconds = known.decode_seconds.map(to_microseconds),
            retries = known.retries,
            "answered"
        );
    }
}

/// Rounds to the microsecond, so that people can read the line.
fn to_microseconds(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

/// The body of an answer, which holds the record of its request.
struct RecordedBody {
    body: Body,
    record: RequestRecord,
}

impl HttpBody for RecordedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // The handler of a stream works while the body is polled, so its log lines and facts belong to this request.
        let Self { body, record } = &mut *self;
        let polled = record.span.in_scope(|| record.facts.within(|| Pin::new(&mut *body).poll_frame(context)));

        record.is_complete |= matches!(polled, Poll::Ready(None)) || body.is_end_stream();
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.record.sent_bytes += data.len() as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_one_route() {
        assert_eq!(["//asr", "/asr/", "/asr", "/"].map(route), ["/asr", "/asr", "/asr", "/"]);
    }
}
