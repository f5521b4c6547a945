//! The signals that end the server or make it read its configuration again.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerSignal {
    /// SIGHUP.
    Reload,
    /// SIGTERM or SIGINT.
    End(&'static str),
}

pub struct ServerSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl ServerSignals {
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub async fn next(&mut self) -> ServerSignal {
        tokio::select! {
            _ = self.terminate.recv() => ServerSignal::End("SIGTERM"),
            _ = self.interrupt.recv() => ServerSignal::End("SIGINT"),
            _ = self.hangup.recv() => ServerSignal::Reload,
        }
    }

    /// Returns the name of the next signal that ends the server, without a reload for those before it.
    pub async fn next_end(&mut self) -> &'static str {
        loop {
            if let ServerSignal::End(name) = self.next().await {
                return name;
            }
        }
    }
}
