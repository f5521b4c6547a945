//! The byte stream of one connection, below hyper. A head that does not arrive in time is answered with 408, and the
//! answers that hyper writes by itself, which have no body, get one.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::refusal::{ErrorFormat, ListenerRefusal, code, default_message};
use super::service::RequestPhase;

/// Bytes of a head that are kept, enough to find the path.
const KEPT_BYTES: usize = 512;
/// A refused client may still be sending. Its data is read for this long and up to this size, because its system would
/// drop an answer that is followed by a reset.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 1 << 20;

/// A head whose first bytes have arrived.
struct PartialHead {
    /// Number of requests before it.
    number: u64,
    deadline: Pin<Box<Sleep>>,
    start: Vec<u8>,
}

/// An answer that is written in place of hyper's.
struct Replacement {
    bytes: Vec<u8>,
    written: usize,
    /// Length of the part of hyper's output that it replaces.
    replaced_bytes: usize,
}

/// The stream of a connection, with a timeout for request heads.
pub struct GuardedIo<S> {
    io: S,
    phase: RequestPhase,
    format_error: ErrorFormat,
    head_timeout: Duration,
    head: Option<PartialHead>,
    replacement: Option<Replacement>,
    is_late: bool,
    linger: Option<LingerState>,
}

struct LingerState {
    deadline: Pin<Box<Sleep>>,
    read_bytes: usize,
}

impl<S> GuardedIo<S> {
    pub fn new(io: S, phase: RequestPhase, format_error: ErrorFormat, head_timeout: Duration) -> Self {
        let (head, replacement, linger) = (None, None, None);
        Self { io, phase, format_error, head_timeout, head, replacement, is_late: false, linger }
    }

    /// The stream below, for a connection that has changed its protocol.
    pub fn into_inner(self) -> S {
        self.io
    }

    /// Drops a head that has become a request. Returns the number of requests while none is served.
    fn drop_complete_head(&mut self) -> Option<u64> {
        let idle = self.phase.idle_since();
        if self.head.as_ref().is_some_and(|head| Some(head.number) != idle) {
            self.head = None;
        }

        idle
    }

    fn note_head_bytes(&mut self, number: u64, bytes: &[u8]) {
        // Empty lines before a head do not belong to it: some clients send one after a body.
        let is_line_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let bytes = match self.head {
            Some(_) => bytes,
            None => &bytes[bytes.iter().take_while(|byte| is_line_end(byte)).count()..],
        };

        if bytes.is_empty() {
            return;
        }

        let timeout = self.head_timeout;
        let head = self.head.get_or_insert_with(|| PartialHead {
            number,
            deadline: Box::pin(sleep(timeout)),
            start: Vec::new(),
        });

        let room = KEPT_BYTES.saturating_sub(head.start.len());
        head.start.extend_from_slice(&bytes[..room.min(bytes.len())]);
    }

    /// The answer that replaces hyper's own; `None` where the router wrote the answer.
    fn replacement_for(&self, written: &[u8]) -> Option<Vec<u8>> {
        self.phase.idle_since()?;
        let status = bare_refusal(written)?;

        let path = self.head.as_ref().and_then(|head| path_of(&head.start));
        let (code, message) = default_message(status);
        Some(ListenerRefusal { status, code, message, path }.to_wire(self.format_error))
    }
}

/// The path of the request line.
fn path_of(head: &[u8]) -> Option<&str> {
    let target = head.split(|byte| *byte == b' ').nth(1)?;
    let path = target.split(|byte| matches!(byte, b'?' | b'\r' | b'\n')).next()?;
    std::str::from_utf8(path).ok().filter(|path| path.starts_with('/'))
}

/// The status of an answer that hyper wrote because it could not parse a head. The router's answers have a
/// `Content-Type`.
fn bare_refusal(written: &[u8]) -> Option<StatusCode> {
    let rest = written.strip_prefix(b"HTTP/1.1 4").or_else(|| written.strip_prefix(b"HTTP/1.0 4"))?;
    let [tens, ones, ..] = *rest else { return None };

    let digits = [b'4', tens, ones];
    let head = std::str::from_utf8(written).ok()?.to_ascii_lowercase();
    let is_bare = head.ends_with("\r\n\r\n") && head.contains("\r\ncontent-length: 0\r\n");
    (is_bare && !head.contains("\r\ncontent-type:")).then(|| StatusCode::from_bytes(&digits).ok())?
}

impl<S: AsyncWrite + Unpin> GuardedIo<S> {
    /// Writes the replacement. Returns the length of hyper's output that it replaces.
    fn poll_replacement(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(replacement) = &mut self.replacement else { return Poll::Ready(Ok(0)) };
        while replacement.written < replacement.bytes.len() {
            let rest = &replacement.bytes[replacement.written..];
            match ready!(Pin::new(&mut self.io).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => replacement.written += written,
            }
        }

        let replaced_bytes = replacement.replaced_bytes;
        self.replacement = None;
        Poll::Ready(Ok(replaced_bytes))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuardedIo<S> {
    /// Reads what a refused client still sends.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let linger =
            self.linger.get_or_insert_with(|| LingerState { deadline: Box::pin(sleep(LINGER)), read_bytes: 0 });

        let mut scratch = [0; 8 << 10];
        while linger.read_bytes < LINGER_BYTES && linger.deadline.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.io).poll_read(context, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => linger.read_bytes += buffer.filled().len(),
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(())
    }

    /// Writes the 408, and then reports a broken connection to hyper.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_replacement(context))?;
        ready!(Pin::new(&mut self.io).poll_flush(context))?;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for GuardedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.is_late {
            return this.poll_late(context);
        }

        let idle = this.drop_complete_head();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.io).poll_read(context, buffer);
        if let (Poll::Ready(Ok(())), Some(number)) = (&read, idle)
            && let bytes = &buffer.filled()[before..]
            && !bytes.is_empty()
        {
            this.note_head_bytes(number, bytes);
        }

        let is_due = match (&mut this.head, &read) {
            // A complete head has become a request before hyper reads again.
            (Some(head), Poll::Pending) => head.deadline.as_mut().poll(context).is_ready(),
            (Some(head), Poll::Ready(Ok(()))) => head.deadline.is_elapsed(),
            _ => false,
        };

        if !is_due {
            return read;
        }

        let path = this.head.as_ref().and_then(|head| path_of(&head.start));
        let message = format!("the head of the request did not come within {} s", this.head_timeout.as_secs());
        let refusal = ListenerRefusal {
            status: StatusCode::REQUEST_TIMEOUT,
            code: code::REQUEST_TIMEOUT,
            message: &message,
            path,
        };

        this.replacement =
            Some(Replacement { bytes: refusal.to_wire(this.format_error), written: 0, replaced_bytes: 0 });
        this.is_late = true;
        this.phase.set_refused(true);
        this.poll_late(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for GuardedIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.replacement.is_some() {
            return this.poll_replacement(context);
        }

        match this.replacement_for(bytes) {
            None => Pin::new(&mut this.io).poll_write(context, bytes),
            Some(replacement) => {
                this.phase.set_refused(true);
                this.replacement = Some(Replacement { bytes: replacement, written: 0, replaced_bytes: bytes.len() });
                this.poll_replacement(context)
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let is_between_requests = self.replacement.is_some() || self.phase.idle_since().is_some();
        if is_between_requests {
            let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
            return self.poll_write(context, first);
        }
        Pin::new(&mut self.get_mut().io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(context))?;
        }

        if this.phase.is_refused() {
            ready!(this.poll_linger(context));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refusals_without_a_body_get_one() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        assert_eq!(bare_refusal(bare), Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
        for other in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            b"HTTP/1.1 4",
            b"",
        ] {
            assert_eq!(bare_refusal(other), None);
        }
    }

    #[test]
    fn the_path_is_found_in_a_head() {
        assert_eq!(path_of(b"GET /v1/models?x=1 HTTP/1.1\r\n"), Some("/v1/models"));
        assert_eq!(path_of(b"GET /asr"), Some("/asr"));
        for head in [&b"GET"[..], b"GET \xff\xff x", b"GET http://a/ HTTP/1.1", b""] {
            assert_eq!(path_of(head), None);
        }
    }
}
