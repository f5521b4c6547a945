//! What stands between hyper and the router on one connection.

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
use super::refusal::{Refusal, Shape, code};
use super::{PROBE_PATHS, RETRY_AFTER_SECONDS};

/// Whether a connection is between two requests. Shared by its service and its stream.
#[derive(Clone, Debug, Default)]
pub struct RequestPhase {
    inner: Arc<Phase>,
}

#[derive(Debug)]
struct Phase {
    begun: AtomicU64,
    ended: AtomicU64,
    is_refused: AtomicBool,
    /// The end of the last request, or the beginning of the connection.
    idle_since: Mutex<Instant>,
    is_evicted: AtomicBool,
    evicted: Notify,
}

impl Default for Phase {
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
    /// How many requests there were; `None` while one is served.
    pub(super) fn idle_since(&self) -> Option<u64> {
        let begun = self.inner.begun.load(Ordering::Acquire);
        (begun == self.inner.ended.load(Ordering::Acquire)).then_some(begun)
    }

    /// For how long there has been no request; `None` while one is served.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        self.idle_since()?;
        Some(self.inner.idle_since.lock().unwrap_or_else(PoisonError::into_inner).elapsed())
    }

    /// Takes the place of the connection.
    pub(super) fn evict(&self) {
        self.inner.is_evicted.store(true, Ordering::Release);
        self.inner.evicted.notify_one();
    }

    #[cfg(test)]
    pub(super) fn is_evicted(&self) -> bool {
        self.inner.is_evicted.load(Ordering::Acquire)
    }

    /// Ends when the connection has lost its place and should be closed. A request that has begun meanwhile is served.
    pub async fn evicted(&self) {
        self.inner.evicted.notified().await;
        if self.idle_since().is_none() {
            std::future::pending().await
        }
    }

    pub(super) fn begin(&self) -> InRequest {
        self.inner.begun.fetch_add(1, Ordering::AcqRel);
        InRequest { phase: self.clone() }
    }

    /// Whether the last answer was an error: its client may still be sending what is not read any more.
    pub(super) fn set_refused(&self, is_refused: bool) {
        self.inner.is_refused.store(is_refused, Ordering::Release);
    }

    pub(super) fn is_refused(&self) -> bool {
        self.inner.is_refused.load(Ordering::Acquire)
    }
}

pub(super) struct InRequest {
    phase: RequestPhase,
}

impl Drop for InRequest {
    fn drop(&mut self) {
        *self.phase.inner.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.phase.inner.ended.fetch_add(1, Ordering::AcqRel);
    }
}

/// What a connection may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Everything,
    /// There is no place for the connection: probes are answered, everything else is refused with 503.
    ProbesOnly,
}

/// Checks the head of each request before `inner` sees it.
#[derive(Clone, Debug)]
pub struct GuardedService<S> {
    inner: S,
    shape: Shape,
    route: Route,
    phase: RequestPhase,
}

impl<S> GuardedService<S> {
    pub fn new(inner: S, shape: Shape, route: Route, phase: RequestPhase) -> Self {
        Self { inner, shape, route, phase }
    }

    fn refusal(&self, request: &Request<Incoming>) -> Option<Response> {
        let path = Some(request.uri().path());
        if self.route == Route::ProbesOnly && !is_probe(request) {
            let message = "every connection of this server is in use; try again later";
            let (status, code) = (StatusCode::SERVICE_UNAVAILABLE, code::TOO_MANY_CONNECTIONS);
            let mut response = Refusal { status, code, message, path }.into_response(self.shape);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
            return Some(response);
        }
        let fault = check_head(request.version(), request.uri(), request.headers()).err()?;
        let (status, code, message) = (StatusCode::BAD_REQUEST, code::MALFORMED_REQUEST, fault.message());
        tracing::debug!(%status, message, "request refused");
        Some(Refusal { status, code, message: &message, path }.into_response(self.shape))
    }
}

fn is_probe(request: &Request<Incoming>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD) && PROBE_PATHS.contains(&request.uri().path())
}

type Answer = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

impl<S> Service<Request<Incoming>> for GuardedService<S>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let in_request = self.phase.begin();
        if let Some(mut response) = self.refusal(&request) {
            self.phase.set_refused(true);
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return Box::pin(std::future::ready(Ok(guarded(response, in_request))));
        }
        let is_last = self.route == Route::ProbesOnly;
        let phase = self.phase.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            let status = response.status();
            phase.set_refused(status.is_client_error() || status.is_server_error());
            if is_last {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(guarded(response, in_request))
        })
    }
}

fn guarded(response: Response, in_request: InRequest) -> Response {
    response.map(|body| Body::new(HoldingBody::new(body, in_request)))
}
