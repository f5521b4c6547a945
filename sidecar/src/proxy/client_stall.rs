//! A client that does not read what is sent to it would hold its model, and the request in the app, without an end.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::client_stream::ClientStream;

/// While a write is pending, the client is looked at so often within its limit.
const LOOKS_PER_LIMIT: u32 = 8;

/// Why a write to a client has failed.
#[derive(Debug, thiserror::Error)]
#[error("the client has read nothing for {seconds} s")]
pub struct ClientStalled {
    seconds: u64,
}

/// How long a client may leave a write pending and read nothing. Clones are the limit of the same connection.
#[derive(Clone)]
pub struct ClientStallLimit {
    limit: Option<Duration>,
    stalls: IntCounter,
    has_stalled: Arc<AtomicBool>,
}

impl ClientStallLimit {
    /// `limit`: `None` for none. `stalls` counts the connections that are broken off.
    pub fn new(limit: Option<Duration>, stalls: IntCounter) -> Self {
        Self { limit, stalls, has_stalled: Arc::default() }
    }

    /// The connection was broken off, because its client reads nothing.
    pub fn has_stalled(&self) -> bool {
        self.has_stalled.load(Ordering::Acquire)
    }

    /// Awaits a write. `unacknowledged`: the bytes that the client's system has not confirmed, see
    /// [`ClientStream::unacknowledged_bytes`].
    ///
    /// # Errors
    /// That of the write, or [`ClientStalled`].
    pub async fn watch_write(
        &self,
        write: impl Future<Output = io::Result<()>>,
        unacknowledged: impl Fn() -> Option<i32>,
    ) -> io::Result<()> {
        let (mut write, mut pending) = (pin!(write), None);

        std::future::poll_fn(|context| match write.as_mut().poll(context) {
            Poll::Ready(written) => Poll::Ready(written),
            Poll::Pending => self.poll_stalled(&mut pending, context, &unacknowledged).map(Err),
        })
        .await
    }

    /// Must be called whenever a write is pending. Ready when the client has read nothing for too long.
    fn poll_stalled(
        &self,
        pending: &mut Option<Box<PendingWrite>>,
        context: &mut Context<'_>,
        unacknowledged: impl Fn() -> Option<i32>,
    ) -> Poll<io::Error> {
        let Some(limit) = self.limit else { return Poll::Pending };
        let pause = limit / LOOKS_PER_LIMIT;
        let pending = pending.get_or_insert_with(|| {
            let (next_look, since) = (Box::pin(sleep(pause)), Instant::now());
            Box::new(PendingWrite { next_look, since, unacknowledged: unacknowledged() })
        });

        while pending.next_look.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            pending.note(unacknowledged(), now);
            if now - pending.since >= limit {
                self.has_stalled.store(true, Ordering::Release);
                self.stalls.inc();
                let stalled = ClientStalled { seconds: limit.as_secs() };
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, stalled));
            }
            pending.next_look.as_mut().reset(now + pause);
        }
        Poll::Pending
    }
}

/// A write that waits for its client.
struct PendingWrite {
    next_look: Pin<Box<Sleep>>,
    /// When the client last read something, or when the write began.
    since: Instant,
    unacknowledged: Option<i32>,
}

impl PendingWrite {
    /// The kernel has a write go on only when about a third of its buffer is free, which takes a slow client many minutes.
    /// Until then, what the client confirms shows that it reads.
    fn note(&mut self, unacknowledged: Option<i32>, now: Instant) {
        if self.unacknowledged != unacknowledged {
            self.unacknowledged = unacknowledged;
            self.since = now;
        }
    }
}

/// The connection of a client, which ends by a reset when the client reads nothing for too long.
pub struct StallLimitedStream {
    stream: ClientStream,
    limit: ClientStallLimit,
    pending: Option<Box<PendingWrite>>,
}

impl StallLimitedStream {
    pub const fn new(stream: ClientStream, limit: ClientStallLimit) -> Self {
        Self { stream, limit, pending: None }
    }

    pub const fn get_ref(&self) -> &ClientStream {
        &self.stream
    }

    pub fn into_parts(self) -> (ClientStream, ClientStallLimit) {
        (self.stream, self.limit)
    }

    /// Passes the state of a write on, unless it has been pending for too long.
    fn limit<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.pending = None;
            return written;
        }

        let stream = &self.stream;
        let stalled = self.limit.poll_stalled(&mut self.pending, context, || stream.unacknowledged_bytes());
        stalled.map(|error| {
            // Otherwise the kernel would keep what was written for as long as the client is there, and an answer that ends
            // with its connection would look whole.
            self.stream.reset_at_close();
            Err(error)
        })
    }
}

impl AsyncRead for StallLimitedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for StallLimitedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.limit(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.limit(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.limit(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut_down = Pin::new(&mut self.stream).poll_shutdown(context);
        self.limit(shut_down, context)
    }
}
