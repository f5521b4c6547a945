//! What goes to the server, and the audio that is asked of it.

use std::io::{self, Write};
use std::mem;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use hush_whisper::{FirstToken, PcmSource, Segment, Sink};

use super::reader::Samples;
use super::{WorkFailure, leave, lock};
use crate::audio::from_s16le;
use crate::runner::wire::{BYTES_PER_SAMPLE, FromRunner, JobId, MAX_SAMPLES, Message};

/// Signs of life are not sent more often than this.
const BEAT: Duration = Duration::from_millis(250);

/// Asked for at once, however little the engine wants: 5 s.
const BLOCK_SAMPLES: usize = 80_000;

/// What all jobs tell the server.
pub(super) struct Voice {
    writer: Mutex<Writer>,
}

struct Writer {
    socket: UnixStream,
    /// Or the beginning of work.
    last_frame: Instant,
}

impl Writer {
    fn say(&mut self, message: &FromRunner) {
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
        Self { writer: Mutex::new(Writer { socket, last_frame: Instant::now() }) }
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

/// Audio that is in the server: a block of it is here.
pub(super) struct RemotePcm<'a> {
    voice: &'a Voice,
    incoming: mpsc::Receiver<Samples>,
    cancelled: &'a AtomicBool,
    id: JobId,
    len_samples: u64,
    /// Under way without having been asked for: so much of the beginning.
    first_samples: usize,
    block_offset: u64,
    /// Little-endian samples of 16 bits.
    block: Vec<u8>,
}

impl<'a> RemotePcm<'a> {
    pub(super) fn new(
        voice: &'a Voice,
        incoming: mpsc::Receiver<Samples>,
        cancelled: &'a AtomicBool,
        id: JobId,
        len_samples: u64,
        first_samples: usize,
    ) -> Self {
        Self { voice, incoming, cancelled, id, len_samples, first_samples, block_offset: 0, block: Vec::new() }
    }

    /// Takes the block that begins at `offset`: the one that comes unasked, or else at least `wanted` samples if they fit
    /// a frame.
    fn fetch(&mut self, offset: u64, wanted: usize) -> io::Result<()> {
        let first = mem::take(&mut self.first_samples);
        let count = if offset == 0 && first > 0 { first } else { self.ask(offset, wanted)? };
        self.wait_for(offset, count)
    }

    /// Has the server send it; how many samples it will be.
    fn ask(&self, offset: u64, wanted: usize) -> io::Result<usize> {
        let rest = usize::try_from(self.len_samples.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = wanted.clamp(BLOCK_SAMPLES, MAX_SAMPLES).min(rest);
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.voice.say(&FromRunner::NeedAudio { id: self.id, offset, samples: count });
        Ok(count)
    }

    fn wait_for(&mut self, offset: u64, count: usize) -> io::Result<()> {
        loop {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(io::Error::other("cancelled"));
            }
            match self.incoming.recv() {
                Ok(Samples::Here { offset: at, s16le }) if at == offset => {
                    if s16le.len() != count * BYTES_PER_SAMPLE {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    self.block_offset = offset;
                    self.block = s16le;
                    return Ok(());
                }
                Ok(Samples::Here { .. } | Samples::Look) => {}
                Err(mpsc::RecvError) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }

    /// Copies what the block holds from `offset` on; how much that was.
    fn copy(&self, offset: u64, out: &mut [f32]) -> usize {
        let start = offset.checked_sub(self.block_offset).and_then(|start| usize::try_from(start).ok());
        let start = start.and_then(|start| start.checked_mul(BYTES_PER_SAMPLE));
        let Some(here) = start.and_then(|start| self.block.get(start..)) else { return 0 };
        let count = (here.len() / BYTES_PER_SAMPLE).min(out.len());
        from_s16le(here, &mut out[..count]);
        count
    }
}

impl PcmSource for RemotePcm<'_> {
    fn len(&self) -> u64 {
        self.len_samples
    }

    fn read(&mut self, offset: u64, out: &mut [f32]) -> io::Result<()> {
        let mut done = self.copy(offset, out);
        while done < out.len() {
            let at = offset + done as u64;
            self.fetch(at, out.len() - done)?;
            done += self.copy(at, &mut out[done..]);
        }
        Ok(())
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
