//! Sends frames to the server.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{WorkFailure, end_process, lock};
use crate::runner::wire::{FromRunner, JobId, WireMessage};

/// The shortest time between two signs of life.
const BEAT_INTERVAL: Duration = Duration::from_millis(250);

/// Sends the messages of all jobs.
pub(super) struct FrameSender {
    state: Mutex<SenderState>,
}

struct SenderState {
    socket: UnixStream,
    /// When the last frame was sent, or when the last job began.
    last_frame_at: Instant,
    /// The dropped log lines that the server knows of.
    reported_dropped_lines: u64,
}

impl SenderState {
    fn send(&mut self, message: &FromRunner) {
        let dropped_lines = hush_log::dropped_lines();
        if dropped_lines > self.reported_dropped_lines {
            let count = dropped_lines - self.reported_dropped_lines;
            self.reported_dropped_lines = dropped_lines;
            self.send_frame(&FromRunner::LogLinesDropped { count });
        }

        self.send_frame(message);
    }

    fn send_frame(&mut self, message: &FromRunner) {
        let sent = message.encode().map_err(io::Error::other).and_then(|frame| self.socket.write_all(&frame));
        if let Err(error) = sent {
            // The server is gone, or the frame cannot be sent, and then its job would wait for ever.
            tracing::error!("runner: telling the server failed: {error}");
            end_process();
        }
        self.last_frame_at = Instant::now();
    }
}

impl FrameSender {
    pub(super) fn new(socket: UnixStream) -> Self {
        let state = SenderState { socket, last_frame_at: Instant::now(), reported_dropped_lines: 0 };
        Self { state: Mutex::new(state) }
    }

    pub(super) fn send(&self, message: &FromRunner) {
        lock(&self.state).send(message);
    }

    pub(super) fn send_failure(&self, id: JobId, failure: WorkFailure) {
        let (kind, message) = failure.into_parts();
        self.send(&FromRunner::Failed { id, kind, message });
    }

    pub(super) fn send_load_failure(&self, message: String) {
        let (kind, message) = WorkFailure::of_engine(message).into_parts();
        self.send(&FromRunner::LoadFailed { kind, message });
    }

    /// Delays the next sign of life when a job begins. The server counts from its own order, so that none is due yet, and
    /// a job should not begin with a write.
    pub(super) fn delay_beat(&self) {
        lock(&self.state).last_frame_at = Instant::now();
    }

    /// Sends a sign of life if the last frame was long ago.
    pub(super) fn send_beat_if_due(&self) {
        let mut state = lock(&self.state);
        if state.last_frame_at.elapsed() >= BEAT_INTERVAL {
            state.send(&FromRunner::Beat);
        }
    }
}
