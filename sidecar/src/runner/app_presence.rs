//! A connection to the app on which nothing is sent. Its end tells at once that the app may have ended, where the next look
//! at the app would come late: an app that is started again at once would have lost its models unnoticed.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::process::listening_sockets;
use crate::upstream::Upstream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Apps close a silent connection after seconds. One that closes it sooner is not asked again at once.
const SHORTEST_LIFE: Duration = Duration::from_millis(500);

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

pub(super) struct AppPresence {
    host: String,
    port: u16,
    connection: Option<TcpStream>,
    opened: Instant,
    /// The app's listening sockets; none where they are not visible from here.
    listeners: Vec<u64>,
}

impl AppPresence {
    pub(super) fn new(upstream: &Upstream) -> Self {
        let settings = upstream.settings();

        Self {
            host: settings.host.clone(),
            port: settings.port,
            connection: None,
            opened: Instant::now(),
            listeners: Vec::new(),
        }
    }

    /// Returns when the app has ended, or is there again. Cancel safe.
    pub(super) async fn changed(&mut self) -> PresenceChange {
        let Some(connection) = &mut self.connection else {
            loop {
                sleep(RECONNECT_PAUSE).await;
                if self.connect().await {
                    // That the app was away is known.
                    self.is_another_listener().await;
                    return PresenceChange::Back;
                }
            }
        };

        // Nothing was asked, so that whatever comes is an end: an error of the app, or the end itself.
        let _ = connection.read(&mut [0; 256]).await;
        let closed_at_once = self.opened.elapsed() < SHORTEST_LIFE;
        self.connection = None;

        if !self.connect().await {
            return PresenceChange::Gone;
        }
        if self.is_another_listener().await {
            return PresenceChange::Restarted;
        }
        if closed_at_once {
            sleep(SHORTEST_LIFE).await;
        }
        PresenceChange::Back
    }

    async fn connect(&mut self) -> bool {
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        self.connection = timeout(CONNECT_TIMEOUT, connecting).await.ok().and_then(Result::ok);
        self.opened = Instant::now();
        self.connection.is_some()
    }

    /// Whether another program listens than before.
    async fn is_another_listener(&mut self) -> bool {
        let port = self.port;
        let found = tokio::task::spawn_blocking(move || listening_sockets(port)).await;
        let Ok(Ok(found)) = found else { return false };
        if found.is_empty() {
            return false;
        }

        let before = std::mem::replace(&mut self.listeners, found);
        !before.is_empty() && !before.iter().any(|socket| self.listeners.contains(socket))
    }
}
