//! Idle connections to the app, the last used first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::connection::UpstreamConnection;

/// More idle connections than this are closed at once.
pub const IDLE_UPSTREAM_MAX: usize = 128;

/// Cheap to clone; clones are the same pool.
#[derive(Clone)]
pub(super) struct UpstreamPool {
    idle_timeout: Duration,
    state: Arc<Mutex<UpstreamPoolState>>,
}

#[derive(Default)]
struct UpstreamPoolState {
    /// In the order in which they became idle.
    idle: Vec<IdleConnection>,
    /// A task closes the connections that become too old.
    is_swept: bool,
}

struct IdleConnection {
    connection: UpstreamConnection,
    until: Instant,
}

impl UpstreamPool {
    pub(super) fn new(idle_timeout: Duration) -> Self {
        Self { idle_timeout, state: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, UpstreamPoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that became idle last, unless it is too old or closed.
    pub(super) fn take(&self) -> Option<UpstreamConnection> {
        let mut state = self.lock();

        let now = Instant::now();
        while let Some(IdleConnection { connection, until }) = state.idle.pop() {
            if until > now && connection.is_usable() {
                return Some(connection);
            }
        }
        None
    }

    pub(super) fn put(&self, connection: UpstreamConnection) {
        let mut state = self.lock();
        if state.idle.len() >= IDLE_UPSTREAM_MAX {
            return;
        }

        state.idle.push(IdleConnection { connection, until: Instant::now() + self.idle_timeout });
        if !std::mem::replace(&mut state.is_swept, true) {
            tokio::spawn(self.clone().sweep());
        }
    }

    /// Closes connections as they become too old, until none is left.
    async fn sweep(self) {
        loop {
            let next = {
                let mut state = self.lock();
                let now = Instant::now();
                state.idle.retain(|idle| idle.until > now && idle.connection.is_usable());

                match state.idle.first() {
                    Some(oldest) => oldest.until,
                    None => {
                        state.is_swept = false;
                        return;
                    }
                }
            };
            sleep_until(next).await;
        }
    }
}
