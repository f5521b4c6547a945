//! `GET /v1/hush/models` and `GET /v1/hush/events`: what the page shows of the models, now and as it changes. Read only,
//! and only what everybody may know: no paths, no process ids, no causes of failures.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use hush_contract::ModelState;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa::openapi::{Object, ObjectBuilder, Type};

use super::ApiState;
use super::error::{detail, json_response};
use super::openai::error::NoKey;
use crate::residency::{Models, Residency, Snapshot};

/// How soon a change is seen. Looking is a lock and a copy; the feed of changes that the admin API has does not tell
/// of every request that joins a queue, and the page does.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Keeps proxies from ending a connection on which nothing happens.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Each open page holds one stream.
const STREAMS_MAX: usize = 256;
const STREAMS_RETRY_SECONDS: u64 = 30;

/// Where the state of the models can be read.
pub trait Show: Send + Sync + 'static {
    /// The default model first.
    fn models(&self) -> Vec<Snapshot>;
}

impl Show for Models {
    fn models(&self) -> Vec<Snapshot> {
        let default = self.default_model().clone();
        let others: Vec<_> = self.iter().filter(|model| model.name() != default.name()).collect();
        std::iter::once(default).chain(others).map(|model| model.snapshot()).collect()
    }
}

/// No model at all.
struct Nothing;

impl Show for Nothing {
    fn models(&self) -> Vec<Snapshot> {
        Vec::new()
    }
}

/// What both routes need; cheap to clone.
#[derive(Clone)]
pub struct Live {
    models: Arc<dyn Show>,
    streams: Arc<Semaphore>,
    /// Streams have no end of their own.
    shutdown: CancellationToken,
}

impl Live {
    pub fn new(models: Arc<dyn Show>, shutdown: CancellationToken) -> Self {
        Self { models, streams: Arc::new(Semaphore::new(STREAMS_MAX)), shutdown }
    }
}

impl Default for Live {
    fn default() -> Self {
        Self::new(Arc::new(Nothing), CancellationToken::new())
    }
}

/// The models of this server as a page may show them.
#[derive(Serialize, ToSchema)]
#[schema(as = LiveModels)]
pub struct View {
    /// The default model first.
    models: Vec<ModelView>,
    /// A larger upload is refused.
    max_upload_bytes: u64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = LiveModel)]
struct ModelView {
    name: String,
    #[schema(schema_with = model_state)]
    state: ModelState,
    #[schema(schema_with = residency)]
    residency: &'static str,
    /// Since the last request or the load ended; 0 while busy or not in memory.
    idle_seconds: f64,
    /// The model leaves when `idle_seconds` reaches this; null: it does not leave by itself.
    idle_timeout_seconds: Option<f64>,
    /// Requests that hold the model.
    inflight_requests: usize,
    /// Requests that wait for it.
    queued_requests: usize,
    /// After a failed load: until the next try.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    retry_after_seconds: Option<f64>,
}

impl From<&Snapshot> for ModelView {
    fn from(model: &Snapshot) -> Self {
        let (residency, idle_timeout) = match model.residency {
            Residency::Resident => ("resident", None),
            Residency::Idle(timeout) => ("idle", timeout),
            Residency::OnDemand => ("on-demand", Some(Duration::ZERO)),
        };
        Self {
            name: model.model.clone(),
            state: model.state,
            residency,
            idle_seconds: milliseconds(model.idle),
            idle_timeout_seconds: idle_timeout.map(milliseconds),
            inflight_requests: model.inflight,
            queued_requests: model.queued,
            retry_after_seconds: model.failure.as_ref().map(|failure| milliseconds(failure.retry_after)),
        }
    }
}

/// As seconds with three decimals.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}

pub fn model_state() -> Object {
    let words = ModelState::ALL.map(ModelState::as_str);
    let about = "`waiting_for_memory`: wants to load and the device has no room. `failed`: loading failed, and is tried \
                 again after a while.";
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).description(Some(about)).build()
}

fn residency() -> Object {
    let words = Some(["resident", "idle", "on-demand"]);
    let about = "When the model leaves the memory: never, after a time without requests, as soon as nobody waits.";
    ObjectBuilder::new().schema_type(Type::String).enum_values(words).description(Some(about)).build()
}

fn view(state: &ApiState, models: &[Snapshot]) -> View {
    View {
        models: models.iter().map(ModelView::from).collect(),
        max_upload_bytes: state.config.upload.max_upload_bytes,
    }
}

/// The models and their state.
#[utoipa::path(
    get,
    path = "/v1/hush/models",
    tag = "Models",
    responses((status = 200, description = "Every model that this server has.", body = View), NoKey),
)]
pub async fn models(State(state): State<ApiState>) -> Response {
    json_response(StatusCode::OK, &view(&state, &state.live.models.models()))
}

/// The models and their state, again with each change.
///
/// Server-sent events named `models`; the data of each is what `/v1/hush/models` answers. What grows with time is not
/// a change: a clock can run on where it is shown.
#[utoipa::path(
    get,
    path = "/v1/hush/events",
    tag = "Models",
    responses(
        (status = 200, description = "One event at once, then one for each change.", body = String,
            content_type = "text/event-stream"),
        NoKey,
        (status = 503, description = "Too many streams are open.", body = super::error::Refusal),
    ),
)]
pub async fn events(State(state): State<ApiState>) -> Response {
    let Ok(permit) = Arc::clone(&state.live.streams).try_acquire_owned() else {
        let mut refused = detail(StatusCode::SERVICE_UNAVAILABLE, "too many streams of events are open");
        refused.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(STREAMS_RETRY_SECONDS));
        return refused;
    };
    let shutdown = state.live.shutdown.clone();
    let events = changes(state, permit).take_until(shutdown.cancelled_owned());
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // nginx would gather them.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn changes(state: ApiState, permit: OwnedSemaphorePermit) -> impl Stream<Item = Result<Event, Infallible>> {
    let look = tokio::time::interval(LOOK_EVERY);
    stream::unfold((state, permit, look, None::<Vec<Snapshot>>), async |(state, permit, mut look, seen)| {
        loop {
            look.tick().await;
            let now = state.live.models.models();
            if seen.as_ref().is_none_or(|seen| differ(seen, &now)) {
                // A view has nothing that JSON has not.
                let event = Event::default().event("models").json_data(view(&state, &now)).unwrap_or_default();
                return Some((Ok(event), (state, permit, look, Some(now))));
            }
        }
    })
}

/// Whether anything happened but time.
fn differ(seen: &[Snapshot], now: &[Snapshot]) -> bool {
    let facts = |model: &Snapshot| (model.state, model.generation, model.inflight, model.queued, model.residency);
    seen.len() != now.len()
        || seen
            .iter()
            .zip(now)
            .any(|(seen, now)| seen.model != now.model || facts(seen) != facts(now) || now.idle < seen.idle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            model: "tiny".to_owned(),
            device: "cuda:0".to_owned(),
            precision: Some("fp16".to_owned()),
            state: ModelState::Ready,
            generation: 1,
            inflight: 0,
            queued: 0,
            idle: Duration::from_millis(61_500),
            loaded_for: Duration::from_secs(70),
            hold: None,
            last_load: None,
            runner_pid: Some(7),
            residency: Residency::Idle(Some(Duration::from_secs(300))),
            failure: None,
            demand_bytes: None,
            memory: None,
        }
    }

    #[test]
    fn a_view_holds_what_everybody_may_see() {
        let view = serde_json::to_value(ModelView::from(&snapshot())).unwrap();
        let expected = serde_json::json!({
            "name": "tiny", "state": "ready", "residency": "idle", "idle_seconds": 61.5, "idle_timeout_seconds": 300.0,
            "inflight_requests": 0, "queued_requests": 0,
        });
        assert_eq!(view, expected);
    }

    #[test]
    fn time_alone_is_not_a_change() {
        let before = [snapshot()];
        let later = Snapshot { idle: Duration::from_secs(62), loaded_for: Duration::from_secs(71), ..snapshot() };
        assert!(!differ(&before, &[later]));
        // A request came and went between two looks.
        assert!(differ(&before, &[Snapshot { idle: Duration::ZERO, ..snapshot() }]));
        assert!(differ(&before, &[Snapshot { queued: 1, ..snapshot() }]));
        assert!(differ(&before, &[Snapshot { state: ModelState::Unloading, ..snapshot() }]));
        assert!(differ(&before, &[]));
    }
}
