//! `GET /v1/hush/models` and `GET /v1/hush/events`: the models as the page shows them, once and with each change. Read
//! only, and without paths, process ids and causes of failures, because every client may read it.

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
use super::openai::error::OpenAiNoKey;
use crate::residency::{ModelSnapshot, ResidencyRule, SpeechModels};

/// How soon a change is seen. A look costs a lock and a copy. The admin API's feed of changes does not report each
/// request that joins a queue, and the page shows these.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// A comment at this interval keeps proxies from closing an idle connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Each open page holds one stream.
const STREAMS_MAX: usize = 256;
const STREAMS_RETRY_SECONDS: u64 = 30;

/// Source of the states of the models.
pub trait ModelSnapshots: Send + Sync + 'static {
    /// One snapshot for each model, the default model first.
    fn snapshots(&self) -> Vec<ModelSnapshot>;
}

impl ModelSnapshots for SpeechModels {
    fn snapshots(&self) -> Vec<ModelSnapshot> {
        let default = self.default_model().clone();
        let others: Vec<_> = self.iter().filter(|model| model.name() != default.name()).collect();
        std::iter::once(default).chain(others).map(|model| model.snapshot()).collect()
    }
}

/// A source without models.
struct NoModels;

impl ModelSnapshots for NoModels {
    fn snapshots(&self) -> Vec<ModelSnapshot> {
        Vec::new()
    }
}

/// State of both routes; cheap to clone.
#[derive(Clone)]
pub struct LiveFeed {
    models: Arc<dyn ModelSnapshots>,
    streams: Arc<Semaphore>,
    /// Ends the streams, which have no end of their own.
    shutdown: CancellationToken,
}

impl LiveFeed {
    pub fn new(models: Arc<dyn ModelSnapshots>, shutdown: CancellationToken) -> Self {
        Self { models, streams: Arc::new(Semaphore::new(STREAMS_MAX)), shutdown }
    }
}

impl Default for LiveFeed {
    fn default() -> Self {
        Self::new(Arc::new(NoModels), CancellationToken::new())
    }
}

/// The models of this server as the page shows them.
#[derive(Serialize, ToSchema)]
#[schema(as = LiveModels)]
pub struct LiveModelsBody {
    /// The default model first.
    models: Vec<LiveModelBody>,
    /// A larger upload is refused.
    max_upload_bytes: u64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = LiveModel)]
struct LiveModelBody {
    name: String,
    #[schema(schema_with = model_state)]
    state: ModelState,
    #[schema(schema_with = residency)]
    residency: &'static str,
    /// Seconds since the last request or the load ended; 0 while the model is busy or not loaded.
    idle_seconds: f64,
    /// The model is unloaded when `idle_seconds` reaches this; null: the model is not unloaded by itself.
    idle_timeout_seconds: Option<f64>,
    /// Requests that hold the model.
    inflight_requests: usize,
    /// Requests that wait for the model.
    queued_requests: usize,
    /// After a failed load: seconds until the next attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    retry_after_seconds: Option<f64>,
}

impl From<&ModelSnapshot> for LiveModelBody {
    fn from(model: &ModelSnapshot) -> Self {
        let (residency, idle_timeout) = match model.residency {
            ResidencyRule::Resident => ("resident", None),
            ResidencyRule::Idle(timeout) => ("idle", timeout),
            ResidencyRule::OnDemand => ("on-demand", Some(Duration::ZERO)),
        };
        Self {
            name: model.model.clone(),
            state: model.state,
            residency,
            idle_seconds: seconds_with_millis(model.idle),
            idle_timeout_seconds: idle_timeout.map(seconds_with_millis),
            inflight_requests: model.inflight,
            queued_requests: model.queued,
            retry_after_seconds: model.failure.as_ref().map(|failure| seconds_with_millis(failure.retry_after)),
        }
    }
}

/// The duration in seconds with three decimals.
fn seconds_with_millis(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}

pub fn model_state() -> Object {
    let words = ModelState::ALL.map(ModelState::as_str);

    let about = "`waiting_for_memory`: the model is to be loaded, and the device has too little memory. `failed`: loading failed, \
             and is tried again after a pause.";
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).description(Some(about)).build()
}

fn residency() -> Object {
    let words = Some(["resident", "idle", "on-demand"]);

    let about = "When the model is unloaded: never, after a time without requests, or as soon as no request waits.";
    ObjectBuilder::new().schema_type(Type::String).enum_values(words).description(Some(about)).build()
}

fn live_models(state: &ApiState, snapshots: &[ModelSnapshot]) -> LiveModelsBody {
    LiveModelsBody {
        models: snapshots.iter().map(LiveModelBody::from).collect(),
        max_upload_bytes: state.config.upload.max_upload_bytes,
    }
}

/// The models and their states.
#[utoipa::path(
    get,
    path = "/v1/hush/models",
    tag = "Models",
    responses((status = 200, description = "All models of this server.", body = LiveModelsBody), OpenAiNoKey),
)]
pub async fn models(State(state): State<ApiState>) -> Response {
    json_response(StatusCode::OK, &live_models(&state, &state.live.models.snapshots()))
}

/// The models and their states, now and after each change.
///
/// Server-sent events named `models`; the data of each is the answer of `/v1/hush/models`. Figures that only grow with
/// time are not a change: the client can count on from the last event.
#[utoipa::path(
    get,
    path = "/v1/hush/events",
    tag = "Models",
    responses(
        (status = 200, description = "One event at once, then one after each change.", body = String,
            content_type = "text/event-stream"),
        OpenAiNoKey,
        (status = 503, description = "Too many streams are open.", body = super::error::DetailBody),
    ),
)]
pub async fn events(State(state): State<ApiState>) -> Response {
    let Ok(permit) = Arc::clone(&state.live.streams).try_acquire_owned() else {
        let mut refused = detail(StatusCode::SERVICE_UNAVAILABLE, "too many streams of events are open");
        refused.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(STREAMS_RETRY_SECONDS));
        return refused;
    };

    let shutdown = state.live.shutdown.clone();
    let events = change_events(state, permit).take_until(shutdown.cancelled_owned());
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();

    // nginx would buffer the events.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn change_events(state: ApiState, permit: OwnedSemaphorePermit) -> impl Stream<Item = Result<Event, Infallible>> {
    let ticks = tokio::time::interval(POLL_INTERVAL);
    stream::unfold((state, permit, ticks, None::<Vec<ModelSnapshot>>), async |(state, permit, mut ticks, sent)| {
        loop {
            ticks.tick().await;

            let current = state.live.models.snapshots();
            if sent.as_ref().is_none_or(|sent| has_changed(sent, &current)) {
                // The body has only values that JSON can represent.
                let event =
                    Event::default().event("models").json_data(live_models(&state, &current)).unwrap_or_default();
                return Some((Ok(event), (state, permit, ticks, Some(current))));
            }
        }
    })
}

/// Whether anything but the passing of time differs.
fn has_changed(before: &[ModelSnapshot], after: &[ModelSnapshot]) -> bool {
    let fields = |model: &ModelSnapshot| (model.state, model.generation, model.inflight, model.queued, model.residency);

    before.len() != after.len()
        || before.iter().zip(after).any(|(before, after)| {
            before.model != after.model || fields(before) != fields(after) || after.idle < before.idle
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> ModelSnapshot {
        ModelSnapshot {
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
            residency: ResidencyRule::Idle(Some(Duration::from_secs(300))),
            failure: None,
            demand_bytes: None,
            memory: None,
        }
    }

    #[test]
    fn a_model_is_shown_without_what_is_private() {
        let body = serde_json::to_value(LiveModelBody::from(&snapshot())).unwrap();

        let expected = serde_json::json!({
            "name": "tiny", "state": "ready", "residency": "idle", "idle_seconds": 61.5, "idle_timeout_seconds": 300.0,
            "inflight_requests": 0, "queued_requests": 0,
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn time_alone_is_not_a_change() {
        let before = [snapshot()];

        let later = ModelSnapshot { idle: Duration::from_secs(62), loaded_for: Duration::from_secs(71), ..snapshot() };
        assert!(!has_changed(&before, &[later]));

        // A request began and ended between two polls.
        assert!(has_changed(&before, &[ModelSnapshot { idle: Duration::ZERO, ..snapshot() }]));
        assert!(has_changed(&before, &[ModelSnapshot { queued: 1, ..snapshot() }]));
        assert!(has_changed(&before, &[ModelSnapshot { state: ModelState::Unloading, ..snapshot() }]));
        assert!(has_changed(&before, &[]));
    }
}
