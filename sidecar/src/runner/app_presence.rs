//! A connection to the app on which nothing is sent. Its end tells at once that the app may have ended, where the next look
//! at the app would come late: an app that is started again at once would have lost its models unnoticed.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::app_runs::AppRuns;
use crate::upstream::Upstream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Apps close a silent connection after seconds.
const SHORTEST_LIFE: Duration = Duration::from_millis(500);

/// The pauses before a connection that was closed sooner is looked at again. They begin short, because a process that is
/// killed still accepts connections for a moment after it has closed the others.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The pause between two attempts while the app does not accept connections.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// What the connection tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PresenceChange {
    /// The app does not accept connections any more.
    Gone,
    /// The app accepts connections again, for the first time, or after it had closed the silent one.
    Back,
    /// Another program listens than before.
    Restarted,
}

/// Keeps [`AppRuns`] up to date.
pub(super) struct AppPresence {
    host: String,
    port: u16,
    runs: AppRuns,
    connection: Option<Arc<TcpStream>>,
    opened: Instant,
    /// Before the next look at a connection that is closed at once.
    pause: Duration,
}

impl AppPresence {
    pub(super) fn new(upstream: &Upstream, runs: AppRuns) -> Self {
        let settings = upstream.settings();

        Self {
            host: settings.host.clone(),
            port: settings.port,
            runs,
            connection: None,
            opened: Instant::now(),
            pause: FIRST_PAUSE,
        }
    }

    /// Returns when the app has ended, or is there again. Must not be cancelled.
    pub(super) async fn changed(&mut self) -> PresenceChange {
        let Some(connection) = self.connection.take() else {
            loop {
                if let Some(change) = self.connect().await {
                    return change;
                }
                self.runs.note_absence();
                sleep(RECONNECT_PAUSE).await;
            }
        };

        wait_for_end(&connection).await;
        tracing::debug!("the app has closed the silent connection");
        let closed_at_once = self.opened.elapsed() < SHORTEST_LIFE;

        let run = self.runs.current();
        let Some(change) = self.connect().await else {
            self.runs.end(run.number);
            return PresenceChange::Gone;
        };
        if closed_at_once {
            sleep(self.pause).await;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        } else {
            self.pause = FIRST_PAUSE;
        }
        change
    }

    /// `None`: the app does not accept connections.
    async fn connect(&mut self) -> Option<PresenceChange> {
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let connection = Arc::new(timeout(CONNECT_TIMEOUT, connecting).await.ok()?.ok()?);
        self.opened = Instant::now();
        self.connection = Some(Arc::clone(&connection));

        let is_other = self.runs.note_connection(connection).await;
        Some(if is_other { PresenceChange::Restarted } else { PresenceChange::Back })
    }
}

/// Nothing was asked, so that whatever comes is an end: an error of the app, or the end itself.
async fn wait_for_end(connection: &TcpStream) {
    loop {
        if connection.readable().await.is_err() {
            return;
        }
        match connection.try_read(&mut [0; 256]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return,
        }
    }
}
