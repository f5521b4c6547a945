//! `GET /api/v1/events`: the state, again with each change.

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

use super::Web;
use super::error::Refusal;

/// No reader gets more than four a second.
const PAUSE: Duration = Duration::from_millis(250);
/// Making a state may take this part of the time at most.
const SHARE: u32 = 20;
/// Tells readers, and proxies on the way, that there is nothing new.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Each open page holds one.
const STREAMS_MAX: usize = 64;
const STREAMS_RETRY_SECONDS: u64 = 30;

/// Written once, read by every stream; cheap to clone.
#[derive(Clone)]
pub struct Feed {
    states: watch::Sender<Arc<str>>,
    places: Arc<Semaphore>,
}

impl Default for Feed {
    fn default() -> Self {
        Self { states: watch::Sender::new("".into()), places: Arc::new(Semaphore::new(STREAMS_MAX)) }
    }
}

/// Writes each change down, as long as somebody reads.
pub async fn publish(web: Web) {
    let mut snapshots = web.snapshots.clone();
    let mut last = None;
    while snapshots.changed().await.is_ok() {
        if web.feed.states.receiver_count() == 0 {
            last = None;
            continue;
        }
        let begun = Instant::now();
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
        tokio::time::sleep(PAUSE.max(begun.elapsed() * SHARE)).await;
    }
}

/// Ends with the reader, or with the process.
pub async fn events(State(web): State<Web>) -> Response {
    let Ok(place) = Arc::clone(&web.feed.places).try_acquire_owned() else {
        let message = format!("{STREAMS_MAX} streams of events are open already; close a page");
        let mut refused = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_streams", message).into_response();
        refused.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(STREAMS_RETRY_SECONDS));
        return refused;
    };
    let mut response = Sse::new(changes(web, place)).into_response();
    // nginx would gather them.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn changes(web: Web, place: OwnedSemaphorePermit) -> impl Stream<Item = Result<Event, Infallible>> {
    let mut states = web.feed.states.subscribe();
    states.mark_unchanged();
    let beat = tokio::time::interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
    stream::unfold((web, place, states, beat, true), async |(web, place, mut states, mut beat, first)| {
        let event = if first {
            // A view has nothing that JSON has not.
            Event::default().event("state").json_data(web.view(&web.snapshot())).unwrap_or_default()
        } else {
            tokio::select! {
                changed = states.changed() => {
                    changed.ok()?;
                    Event::default().event("state").data(&*states.borrow_and_update().clone())
                }
                _ = beat.tick() => {
                    let at = serde_json::json!({"at": Timestamp::now(), "steppedAt": web.snapshot().at});
                    Event::default().event("heartbeat").data(at.to_string())
                }
            }
        };
        Some((Ok(event), (web, place, states, beat, false)))
    })
}
