//! `GET /admin/v1/events`: server-sent events, a snapshot first and then each change.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use hush_contract::admin::Event;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::AdminState;
use super::error::AdminError;
use super::status::status;
use crate::residency::{Change, Following};

/// Below the minute after which proxies drop a silent connection.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// After which a client that lost the connection should come back.
const RETRY: Duration = Duration::from_secs(2);

/// Each controller that governs this server has one, and each look of a person another.
pub const READERS_MAX: usize = 64;
const READERS_RETRY_SECONDS: u64 = 30;

pub async fn events(State(state): State<AdminState>) -> Response {
    let Ok(place) = Arc::clone(&state.event_readers).try_acquire_owned() else {
        return AdminError::too_many_readers(READERS_MAX, READERS_RETRY_SECONDS).into_response();
    };
    let stop = state.stop.clone();
    let events = stream::unfold((Follower::new(state), place), |(mut follower, place)| async {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), (follower, place)))
    });
    let heartbeat = KeepAlive::new().interval(HEARTBEAT).text("heartbeat");
    Sse::new(events.take_until(stop.cancelled_owned())).keep_alive(heartbeat).into_response()
}

/// One reader and what it has not read yet.
struct Follower {
    state: AdminState,
    changes: broadcast::Receiver<Change>,
    pending: VecDeque<sse::Event>,
    _following: Following,
}

impl Follower {
    fn new(state: AdminState) -> Self {
        let (_, changes) = state.models.feed().subscribe();
        let following = state.governor.follow();
        let mut follower = Self { state, changes, pending: VecDeque::new(), _following: following };
        follower.begin();
        follower
    }

    /// Takes up the changes of now, and says how everything stands.
    fn begin(&mut self) {
        let (last_id, changes) = self.state.models.feed().subscribe();
        self.changes = changes;
        self.push(last_id, &Event::Snapshot { models: self.state.listing() });
    }

    async fn next(&mut self) -> Option<sse::Event> {
        while self.pending.is_empty() {
            match self.changes.recv().await {
                Ok(change) => {
                    self.push(change.id, &Event::Model { from: change.from, model: Box::new(status(change.now)) });
                }
                Err(RecvError::Lagged(count)) => {
                    let last_id = self.state.models.feed().last_id();
                    self.push(last_id, &Event::Lost { count });
                    self.begin();
                }
                Err(RecvError::Closed) => return None,
            }
        }
        self.pending.pop_front()
    }

    fn push(&mut self, id: u64, event: &Event) {
        let frame = sse::Event::default().id(id.to_string()).event(event.name()).retry(RETRY);
        match frame.json_data(event) {
            Ok(frame) => self.pending.push_back(frame),
            Err(error) => tracing::error!(%error, "an event could not be printed"),
        }
    }
}
