//! The checks between hyper and the router of one connection.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::{Method, Request};
use tokio::sync::Notify;

use super::head::check_head;
use super::holding_body::HoldingBody;
use super::refusal::{ErrorFormat, ListenerRefusal, code};
use super::{PROBE_PATHS, RETRY_AFTER_SECONDS};

/// The request phase of a connection: between two requests or within one. Shared by its service and its stream.
#[derive(Clone, Debug, Default)]
pub struct RequestPhase {
    state: Arc<PhaseState>,
}

#[derive(Debug)]
struct PhaseState {
    begun: AtomicU64,
    ended: AtomicU64,
    is_refused: AtomicBool,
    /// When the last request ended, or when the connection began.
    idle_since: Mutex<Instant>,
    is_evicted: AtomicBool,
    evicted: Notify,
}

impl Default for PhaseState {
    fn default() -> Self {
        Self {
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            is_refused: AtomicBool::new(false),
            idle_since: Mutex::new(Instant::now()),
            is_evicted: AtomicBool::new(false),
            evicted: Notify::new(),
        }
    }
}

impl RequestPhase {
    /// The number of requests so far; `None` while a request is served.
    pub(super) fn idle_since(&self) -> Option<u64> {
        let begun = self.state.begun.load(Ordering::Acquire);
        (begun == self.state.ended.load(Ordering::Acquire)).then_some(begun)
    }

    /// The time without a request; `None` while a request is served.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        self.idle_since()?;
        Some(self.state.idle_since.lock().unwrap_or_else(PoisonError::into_inner).elapsed())
    }

    /// Takes the slot of the connection away.
    pub(super) fn evict(&self) {
        self.state.is_evicted.store(true, Ordering::Release);
        self.state.evicted.notify_one();
    }

    #[cfg(test)]
    pub(super) fn is_evicted(&self) -> bool {
        self.state.is_evicted.load(Ordering::Acquire)
    }

    /// Completes when the connection has lost its slot and should be closed. A request that began meanwhile is still
    /// served.
    pub async fn evicted(&self) {
        self.state.evicted.notified().await;

        if self.idle_since().is_none() {
            std::future::pending().await
        }
    }

    /// Begins a request, which ends when the returned value is dropped. A program that keeps a connection for something
    /// else than HTTP, such as a websocket, holds one for as long, so that the connection is not taken for an idle one.
    pub fn begin(&self) -> InRequest {
        self.state.begun.fetch_add(1, Ordering::AcqRel);
        InRequest { phase: self.clone() }
    }

    /// Notes whether the last answer was an error: its client may still be sending data that is not read any more.
    pub(super) fn set_refused(&self, is_refused: bool) {
        self.state.is_refused.store(is_refused, Ordering::Release);
    }

    pub(super) fn is_refused(&self) -> bool {
        self.state.is_refused.load(Ordering::Acquire)
    }
}

/// A request that is being served. Its drop ends the request.
#[derive(Debug)]
pub struct InRequest {
    phase: RequestPhase,
}

impl Drop for InRequest {
    fn drop(&mut self) {
        *self.phase.state.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.phase.state.ended.fetch_add(1, Ordering::AcqRel);
    }
}

/// The routes that a connection may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteScope {
    Everything,
    /// The connection has no slot: probes are answered, every other request is refused with 503.
    ProbesOnly,
}

/// Checks the head of each request before `inner` gets it.
#[derive(Clone, Debug)]
pub struct GuardedService<S> {
    inner: S,
    format_error: ErrorFormat,
    route: RouteScope,
    phase: RequestPhase,
}

impl<S> GuardedService<S> {
    pub fn new(inner: S, format_error: ErrorFormat, route: RouteScope, phase: RequestPhase) -> Self {
        Self { inner, format_error, route, phase }
    }

    fn refusal(&self, request: &Request<Incoming>) -> Option<Response> {
        let path = Some(request.uri().path());
        if self.route == RouteScope::ProbesOnly && !is_probe(request) {
            let message = "every connection of this server is in use; try again later";

            let (status, code) = (StatusCode::SERVICE_UNAVAILABLE, code::TOO_MANY_CONNECTIONS);
            let mut response = ListenerRefusal { status, code, message, path }.into_response(self.format_error);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
            return Some(response);
        }

        let fault = check_head(request.version(), request.uri(), request.headers()).err()?;
        let (status, code, message) = (StatusCode::BAD_REQUEST, code::MALFORMED_REQUEST, fault.message());
        tracing::debug!(%status, message, "request refused");
        Some(ListenerRefusal { status, code, message: &message, path }.into_response(self.format_error))
    }
}

fn is_probe(request: &Request<Incoming>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD) && PROBE_PATHS.contains(&request.uri().path())
}

type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

impl<S> Service<Request<Incoming>> for GuardedService<S>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn call(&self, request: Request<Incoming>) -> ResponseFuture {
        let in_request = self.phase.begin();
        if let Some(mut response) = self.refusal(&request) {
            self.phase.set_refused(true);
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return Box::pin(std::future::ready(Ok(hold_request(response, in_request))));
        }

        let is_last = self.route == RouteScope::ProbesOnly;
        let phase = self.phase.clone();
        let response = self.inner.call(request);
        Box::pin(async move {
            let mut response = response.await?;

            let status = response.status();
            phase.set_refused(status.is_client_error() || status.is_server_error());
            if is_last {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }

            Ok(hold_request(response, in_request))
        })
    }
}

fn hold_request(response: Response, in_request: InRequest) -> Response {
    response.map(|body| Body::new(HoldingBody::new(body, in_request)))
}
