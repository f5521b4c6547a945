//! What goes to the server.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hush_whisper::{FirstToken, Segment, Sink};

use super::{WorkFailure, leave, lock};
use crate::runner::wire::{FromRunner, JobId, Message};

/// Signs of life are not sent more often than this.
const BEAT: Duration = Duration::from_millis(250);

/// What all jobs tell the server.
pub(super) struct Voice {
    writer: Mutex<Writer>,
}

struct Writer {
    socket: UnixStream,
    /// Or the beginning of work.
    last_frame: Instant,
    /// Log lines that were dropped, as far as the server knows.
    dropped_lines: u64,
}

impl Writer {
    fn say(&mut self, message: &FromRunner) {
        let dropped_lines = hush_log::dropped_lines();
        if dropped_lines > self.dropped_lines {
            let count = dropped_lines - self.dropped_lines;
            self.dropped_lines = dropped_lines;
            self.send(&FromRunner::LogLinesDropped { count });
        }
        self.send(message);
    }

    fn send(&mut self, message: &FromRunner) {
        let sent = message.encode().map_err(io::Error::other).and_then(|frame| self.socket.write_all(&frame));
        if let Err(error) = sent {
            // The server is gone, or a frame that cannot be sent would leave a job waiting for ever.
            tracing::error!("runner: telling the server failed: {error}");
            leave();
        }
        self.last_frame = Instant::now();
    }
}

impl Voice {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { writer: Mutex::new(Writer { socket, last_frame: Instant::now(), dropped_lines: 0 }) }
    }

    pub(super) fn say(&self, message: &FromRunner) {
        lock(&self.writer).say(message);
    }

    pub(super) fn fail(&self, id: JobId, failure: WorkFailure) {
        let (kind, message) = failure.into_parts();
        self.say(&FromRunner::Failed { id, kind, message });
    }

    pub(super) fn fail_load(&self, message: String) {
        let (kind, message) = WorkFailure::of_engine(message).into_parts();
        self.say(&FromRunner::LoadFailed { kind, message });
    }

    /// Work begins, of which the server knows: no sign of life is due yet, in the moment that counts.
    pub(super) fn begin(&self) {
        lock(&self.writer).last_frame = Instant::now();
    }

    /// A sign of life, where the last frame was long ago.
    fn beat(&self) {
        let mut writer = lock(&self.writer);
        if writer.last_frame.elapsed() >= BEAT {
            writer.say(&FromRunner::Beat);
        }
    }
}

pub(super) struct Report<'a> {
    pub(super) voice: &'a Voice,
    pub(super) cancelled: &'a AtomicBool,
    pub(super) id: JobId,
}

impl Sink for Report<'_> {
    fn segment(&mut self, mut segment: Segment) {
        // JSON has no word for these.
        for number in [&mut segment.avg_logprob, &mut segment.compression_ratio, &mut segment.no_speech_prob] {
            if !number.is_finite() {
                *number = if number.is_nan() { 0.0 } else { number.clamp(f64::MIN, f64::MAX) };
            }
        }
        self.voice.say(&FromRunner::Segment { id: self.id, segment });
    }

    fn first_token(&mut self, timings: FirstToken) {
        self.voice.say(&FromRunner::FirstToken { id: self.id, timings });
    }

    fn progress(&mut self, done_seconds: f64, total_seconds: f64) {
        self.voice.say(&FromRunner::Progress { id: self.id, done_seconds, total_seconds });
    }

    fn keep_going(&mut self) -> bool {
        self.voice.beat();
        !self.cancelled.load(Ordering::Relaxed)
    }
}
