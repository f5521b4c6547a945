//! A connection to the app on which nothing is sent. Its end tells at once that the app may have ended, where the next look
//! at the app would come late: an app that is started again at once would have lost its models unnoticed.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use crate::process::app_processes;
use crate::upstream::Upstream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Apps close a silent connection after seconds; one that closes it at once is not asked again at once.
const SHORTEST_LIFE: Duration = Duration::from_millis(500);

pub(super) struct AppPresence {
    host: String,
    port: u16,
    connection: Option<TcpStream>,
    opened: Instant,
    /// The process that listens; `None`: it is not visible from here.
    listener: Option<u32>,
}

impl AppPresence {
    pub(super) fn new(upstream: &Upstream) -> Self {
        let settings = upstream.settings();

        Self {
            host: settings.host.clone(),
            port: settings.port,
            connection: None,
            opened: Instant::now(),
            listener: None,
        }
    }

    /// Returns when the connection has ended; never, while there is none.
    pub(super) async fn lost(&mut self) {
        let Some(connection) = &mut self.connection else { return std::future::pending().await };

        // Nothing was asked, so that whatever comes is an end: an error of the app, or the end itself.
        let _ = connection.read(&mut [0; 256]).await;
        self.connection = None;
        sleep_until(self.opened + SHORTEST_LIFE).await;
    }

    /// Opens the connection again where it has ended; returns whether another process listens than before.
    pub(super) async fn renew(&mut self) -> bool {
        if self.connection.is_some() {
            return false;
        }

        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        self.connection = timeout(CONNECT_TIMEOUT, connecting).await.ok().and_then(Result::ok);
        self.opened = Instant::now();
        if self.connection.is_none() {
            return false;
        }

        let port = self.port;
        let found = tokio::task::spawn_blocking(move || app_processes(port).first().copied()).await.ok().flatten();
        let before = self.listener;
        self.listener = found.or(before);
        before.is_some() && self.listener != before
    }
}
