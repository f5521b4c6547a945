//! `GET /admin/v1/events`: server-sent events, a snapshot first and then each change.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use hush_contract::admin::AdminEvent;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::AdminState;
use super::error::AdminError;
use super::status::model_status;
use crate::change_feed::ModelChange;
use crate::controller_presence::EventStreamGuard;
use crate::runner::RunnerFactory;

/// Less than the minute after which proxies drop a silent connection.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a client that has lost the connection should wait before it comes back.
const RETRY: Duration = Duration::from_secs(2);

/// Each controller that governs this server holds one stream, and each open page of a person another.
pub const READERS_MAX: usize = 64;
const READERS_RETRY_SECONDS: u64 = 30;

pub async fn events<F: RunnerFactory>(State(state): State<AdminState<F>>) -> Response {
    let Ok(permit) = Arc::clone(&state.event_readers).try_acquire_owned() else {
        return AdminError::too_many_readers(READERS_MAX, READERS_RETRY_SECONDS).into_response();
    };

    let stop = state.stop.clone();
    let events = stream::unfold((EventFollower::new(state), permit), |(mut follower, permit)| async {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), (follower, permit)))
    });

    let heartbeat = KeepAlive::new().interval(HEARTBEAT).text("heartbeat");
    Sse::new(events.take_until(stop.cancelled_owned())).keep_alive(heartbeat).into_response()
}

/// One reader, and the events that it has not read yet.
struct EventFollower<F: RunnerFactory> {
    state: AdminState<F>,
    changes: broadcast::Receiver<ModelChange>,
    pending: VecDeque<sse::Event>,
    _guard: EventStreamGuard,
}

impl<F: RunnerFactory> EventFollower<F> {
    fn new(state: AdminState<F>) -> Self {
        let (_, changes) = state.models.feed().subscribe();
        let guard = state.presence.follow();
        let mut follower = Self { state, changes, pending: VecDeque::new(), _guard: guard };

        follower.begin();
        follower
    }

    /// Follows the changes from now on, and sends a snapshot of all models first.
    fn begin(&mut self) {
        let (last_id, changes) = self.state.models.feed().subscribe();
        self.changes = changes;

        let models = self.state.model_statuses();
        self.push(last_id, &AdminEvent::Snapshot { models });
    }

    async fn next(&mut self) -> Option<sse::Event> {
        while self.pending.is_empty() {
            match self.changes.recv().await {
                Ok(change) => {
                    let model = Box::new(model_status(change.now));
                    self.push(change.id, &AdminEvent::Model { from: change.from, model });
                }
                Err(RecvError::Lagged(count)) => {
                    let last_id = self.state.models.feed().last_id();
                    self.push(last_id, &AdminEvent::Lost { count });
                    self.begin();
                }
                Err(RecvError::Closed) => return None,
            }
        }

        self.pending.pop_front()
    }

    fn push(&mut self, id: u64, event: &AdminEvent) {
        let frame = sse::Event::default().id(id.to_string()).event(event.name()).retry(RETRY);

        match frame.json_data(event) {
            Ok(frame) => self.pending.push_back(frame),
            Err(error) => tracing::error!(%error, "an event could not be printed"),
        }
    }
}
