//! What is said of every request: an id, a line in the log, an observation.

use std::collections::hash_map::RandomState;
use std::fmt::Write;
use std::hash::{BuildHasher, Hasher};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::FutureExt;
use hyper::body::{Frame, SizeHint};
use tracing::Instrument;

use crate::metrics::Metrics;
use crate::request;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_LIMIT_BYTES: usize = 128;
/// The client left before there was an answer (nginx's word for it).
const CLIENT_GONE: u16 = 499;

/// State of [`record`], for one listener.
#[derive(Clone)]
pub struct Recorder {
    pub metrics: Arc<Metrics>,
    /// What the client of a path is told when its handler has panicked.
    pub panicked: fn(&str) -> Response,
}

/// Middleware for [`axum::Router::layer`]: gives the request an id, answers where a handler panics, and records how it
/// went once the last byte of the answer is out or the client is gone.
pub async fn record(
    State(recorder): State<Recorder>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let Recorder { metrics, panicked } = recorder;
    let route = matched.map_or_else(|| "other".to_owned(), |matched| route(matched.as_str()));
    let id = request.headers().get(REQUEST_ID).filter(|id| is_sane(id)).cloned().unwrap_or_else(new_id);
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default(), route);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let facts = request::Request::new(id.to_str().unwrap_or_default());
    let mut record = Record {
        metrics,
        span: span.clone(),
        route,
        method,
        started: Instant::now(),
        code: CLIENT_GONE,
        sent_bytes: 0,
        whole: false,
        facts: facts.clone(),
        #[cfg(feature = "otel")]
        parent: super::trace::TraceParent::of(request.headers()),
    };
    let answered = AssertUnwindSafe(facts.scope(next.run(request)).instrument(span)).catch_unwind().await;
    let mut response = answered.unwrap_or_else(|panic| {
        record.span.in_scope(|| tracing::error!(message = message(&*panic), "a handler panicked"));
        panicked(&path)
    });
    record.code = response.status().as_u16();
    response.headers_mut().insert(REQUEST_ID, id);
    response.map(|body| {
        record.whole = body.is_end_stream();
        Body::new(Recorded { body, record })
    })
}

/// Aliases with extra slashes are one route.
fn route(matched: &str) -> String {
    format!("/{}", matched.trim_matches('/'))
}

fn is_sane(id: &HeaderValue) -> bool {
    (1..=REQUEST_ID_LIMIT_BYTES).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

fn new_id() -> HeaderValue {
    // Each `RandomState` has keys of its own.
    let mut id = String::with_capacity(32);
    for _ in 0..2 {
        // Writing to a String cannot fail.
        let _ = write!(id, "{:016x}", RandomState::new().build_hasher().finish());
    }
    HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("-"))
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Its drop is the end of the request, however that came.
struct Record {
    metrics: Arc<Metrics>,
    span: tracing::Span,
    route: String,
    method: Method,
    started: Instant,
    code: u16,
    sent_bytes: u64,
    /// The last byte is out.
    whole: bool,
    facts: request::Request,
    #[cfg(feature = "otel")]
    parent: super::trace::TraceParent,
}

impl Record {
    /// Tells the collector of traces, if there is one; gives the trace's id.
    #[cfg(feature = "otel")]
    fn trace(&self, facts: &request::Facts) -> Option<String> {
        use super::trace::{ServedRequest, report};
        let (method, route, request_id) = (self.method.as_str(), self.route.as_str(), self.facts.id());
        let served = ServedRequest { method, route, request_id, status: self.code, began: self.started, facts };
        report(&self.parent, &served)
    }

    #[cfg(not(feature = "otel"))]
    fn trace(&self, _: &request::Facts) -> Option<String> {
        None
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let code = self.code.to_string();
        self.metrics.request_duration_seconds.with_label_values(&[self.route.as_str(), &code]).observe(seconds);
        let _entered = self.span.enter();
        let (method, status, bytes) = (self.method.as_str(), self.code, self.sent_bytes);
        // Probes and scrapes come every few seconds.
        if matches!(self.route.as_str(), "/healthz" | "/readyz" | "/metrics") {
            tracing::debug!(method, status, seconds, bytes, "answered");
            return;
        }
        let known = self.facts.facts();
        let trace_id = self.trace(&known);
        tracing::info!(
            method,
            status,
            bytes,
            seconds = brief(seconds),
            client_gone = !self.whole,
            trace_id,
            key = known.key,
            model = known.model,
            generation = known.generation,
            audio_seconds = known.audio_seconds.map(brief),
            upload_seconds = known.upload_seconds.map(brief),
            audio_decode_seconds = known.audio_decode_seconds.map(brief),
            queue_seconds = known.queue_seconds.map(brief),
            cold_start_seconds = known.cold_start_seconds.map(brief),
            mel_seconds = known.mel_seconds.map(brief),
            encode_seconds = known.encode_seconds.map(brief),
            prefill_seconds = known.prefill_seconds.map(brief),
            first_token_seconds = known.first_token_seconds.map(brief),
            decode_seconds = known.decode_seconds.map(brief),
            retries = known.retries,
            "answered"
        );
    }
}

/// To the microsecond: a line is for people too.
fn brief(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

/// The body of an answer that takes its record along.
struct Recorded {
    body: Body,
    record: Record,
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // A stream works while it is read.
        let Self { body, record } = &mut *self;
        let polled = record.span.in_scope(|| record.facts.within(|| Pin::new(&mut *body).poll_frame(context)));
        record.whole |= matches!(polled, Poll::Ready(None)) || body.is_end_stream();
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
    fn ids_differ_and_are_sane() {
        let (one, other) = (new_id(), new_id());
        assert!(is_sane(&one) && one.len() == 32, "{one:?}");
        assert_ne!(one, other);
        assert!(!is_sane(&HeaderValue::from_static("")));
        assert!(!is_sane(&HeaderValue::from_static("a b")));
    }

    #[test]
    fn aliases_are_one_route() {
        assert_eq!(["//asr", "/asr/", "/asr", "/"].map(route), ["/asr", "/asr", "/asr", "/"]);
    }
}
