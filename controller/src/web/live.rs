//! `GET /api/v1/events`: the state, and again after each change.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::WebState;
use super::error::ApiRefusal;

/// A stream gets at most four states a second.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// The pause after a state lasts this many times as long as building the state took, so that it takes at most a twentieth of
/// the time.
const PAUSE_FACTOR: u32 = 20;
/// Tells clients, and proxies on the way, that the connection is alive while nothing changes.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Each open page holds a stream.
const STREAMS_MAX: usize = 64;
const STREAMS_RETRY_SECONDS: u64 = 30;

/// The states that all streams send. Each is serialized once; cheap to clone.
#[derive(Clone)]
pub struct StateFeed {
    states: watch::Sender<Arc<str>>,
    streams: Arc<Semaphore>,
}

impl Default for StateFeed {
    fn default() -> Self {
        Self { states: watch::Sender::new("".into()), streams: Arc::new(Semaphore::new(STREAMS_MAX)) }
    }
}

/// Serializes the state after each change while a stream is open. Returns when the control loop has ended.
pub async fn publish(web: WebState) {
    let mut snapshots = web.snapshots.clone();
    let mut last = None;

    while snapshots.changed().await.is_ok() {
        if web.feed.states.receiver_count() == 0 {
            last = None;
            continue;
        }

        let started = Instant::now();
        let snapshot = snapshots.borrow_and_update().clone();
        let view = web.view(&snapshot);
        if last.as_ref() == Some(&view) {
            continue;
        }

        match serde_json::to_string(&view) {
            Ok(text) => drop(web.feed.states.send_replace(text.into())),
            Err(error) => tracing::error!("the state cannot be written: {error}"),
        }
        last = Some(view);
        tokio::time::sleep(PAUSE_MIN.max(started.elapsed() * PAUSE_FACTOR)).await;
    }
}

/// The stream ends when the client closes it, or with the process.
pub async fn events(State(web): State<WebState>) -> Response {
    let Ok(permit) = Arc::clone(&web.feed.streams).try_acquire_owned() else {
        let message = format!("{STREAMS_MAX} streams of events are open already; close a page");
        let refusal = ApiRefusal::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_streams", message);
        let mut response = refusal.into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(STREAMS_RETRY_SECONDS));
        return response;
    };

    let mut response = Sse::new(state_events(web, permit)).into_response();
    // Without it, nginx would buffer the events.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn state_events(web: WebState, permit: OwnedSemaphorePermit) -> impl Stream<Item = Result<Event, Infallible>> {
    let mut states = web.feed.states.subscribe();
    states.mark_unchanged();
    let heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);

    stream::unfold((web, permit, states, heartbeat, true), async |(web, permit, mut states, mut heartbeat, first)| {
        let event = if first {
            // A view always serializes: it has no maps with keys that are no text.
            Event::default().event("state").json_data(web.view(&web.snapshot())).unwrap_or_default()
        } else {
            tokio::select! {
                changed = states.changed() => {
                    changed.ok()?;
                    Event::default().event("state").data(&*states.borrow_and_update().clone())
                }
                _ = heartbeat.tick() => {
                    let at = serde_json::json!({"at": Timestamp::now(), "steppedAt": web.snapshot().at});
                    Event::default().event("heartbeat").data(at.to_string())
                }
            }
        };

        Some((Ok(event), (web, permit, states, heartbeat, false)))
    })
}
