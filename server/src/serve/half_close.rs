//! Clients that close their sending side behind a whole request, and clients that are gone.
//!
//! Both look alike at first: the connection has no more to be read. Only a client that still listens may have its answer,
//! and the work for one that is gone should end soon. So while a whole request waits for its answer, the connection is
//! looked at, and one that is closed on its other side is sent `100 Continue`, which every client skips (RFC 9110, 15.2):
//! where the other end has closed the connection, its system answers with a reset.
//!
//! hyper by itself either takes every such client for gone or never looks.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::Version;
use axum::response::Response;
use hush_listener::HoldingBody;
use hyper::body::{Frame, Incoming, SizeHint};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Between two looks at a connection whose request waits for its answer.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Most answers are there by then, and their clients never see the interim response.
const PROBE_AFTER: Duration = Duration::from_secs(1);

const PROBE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What one read takes at most.
const READ_BYTES: usize = 64 << 10;

/// How far the one request of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is none.
    Idle,
    /// Its body is not whole.
    Receiving(Client),
    /// It is whole, and nothing of the answer is sent.
    Waiting(Client),
    /// The head of the answer is on its way.
    Answering,
}

/// Whether the client of a request knows interim responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// HTTP/1.0: where it is gone, keep-alive probes of TCP find that out, after a minute or two.
    Old,
    Current,
}

/// What the service of a connection tells the watch over it.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    phase: Arc<watch::Sender<Phase>>,
}

impl Exchange {
    pub(super) fn new() -> Self {
        Self { phase: Arc::new(watch::Sender::new(Phase::Idle)) }
    }

    fn set(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// A request begins; the body is to be read in place of the given one.
    pub(super) fn begin(&self, version: Version, body: Incoming) -> (RequestBody, InFlight) {
        let client = if version < Version::HTTP_11 { Client::Old } else { Client::Current };
        self.set(if body.is_end_stream() { Phase::Waiting(client) } else { Phase::Receiving(client) });
        (RequestBody { body, exchange: self.clone() }, InFlight { exchange: self.clone() })
    }
}

/// Its drop is the end of the request.
#[derive(Debug)]
pub(super) struct InFlight {
    exchange: Exchange,
}

impl InFlight {
    /// The head of the answer is there; the request ends with the body.
    pub(super) fn answer(self, response: Result<Response, Infallible>) -> Result<Response, Infallible> {
        self.exchange.set(Phase::Answering);
        response.map(|response| response.map(|body| Body::new(HoldingBody::new(body, self))))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.exchange.set(Phase::Idle);
    }
}

/// The body of a request, which says when it is whole.
#[derive(Debug)]
pub(super) struct RequestBody {
    body: Incoming,
    exchange: Exchange,
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None))
            || matches!(polled, Poll::Ready(Some(Ok(_)))) && self.body.is_end_stream()
        {
            self.exchange.phase.send_if_modified(|phase| {
                let Phase::Receiving(client) = *phase else { return false };
                *phase = Phase::Waiting(client);
                true
            });
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Ends when the client of a request that waits for its answer is gone. Must be polled by the task that serves the
/// connection, so that nothing else is written at the same time.
///
/// `may_probe`: whether bytes of HTTP can be written to the socket as it is. Over TLS they cannot; there a client that
/// closes its sending side is taken for gone, as its library takes the connection for closed.
pub(super) async fn client_gone(socket: &TcpStream, exchange: &Exchange, may_probe: bool) {
    let mut phases = exchange.phase.subscribe();
    loop {
        let waits = |phase: &Phase| matches!(phase, Phase::Waiting(_) | Phase::Answering);
        if phases.wait_for(waits).await.is_err() {
            // The service is gone, and so is the connection.
            return std::future::pending().await;
        }
        let mut closed_since = None;
        let mut is_probed = false;
        while waits(&phases.borrow_and_update()) {
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                _ = phases.changed() => continue,
            }
            match look(socket) {
                Look::Listens => closed_since = None,
                Look::Gone => return,
                Look::SendsNoMore if !may_probe => return,
                Look::SendsNoMore => {
                    let since = *closed_since.get_or_insert_with(Instant::now);
                    let is_due = *phases.borrow() == Phase::Waiting(Client::Current) && since.elapsed() >= PROBE_AFTER;
                    if is_due && !is_probed {
                        match socket.try_write(PROBE) {
                            Ok(written) if written == PROBE.len() => is_probed = true,
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                            // A part of a response would spoil the next one.
                            Ok(_) | Err(_) => return,
                        }
                    }
                }
            }
        }
    }
}

/// What is seen of a client.
enum Look {
    Listens,
    /// Its side is closed for sending, or altogether.
    SendsNoMore,
    Gone,
}

fn look(socket: &TcpStream) -> Look {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    // What cannot be looked at now is looked at the next time.
    if !poll(&mut polled, Some(&at_once)).is_ok_and(|ready| ready > 0) {
        return Look::Listens;
    }
    let found = polled[0].revents();
    if found.intersects(PollFlags::ERR | PollFlags::HUP) {
        Look::Gone
    } else if found.contains(PollFlags::RDHUP) {
        Look::SendsNoMore
    } else {
        Look::Listens
    }
}

/// A connection that is read and written by one and looked at by another.
#[derive(Clone, Debug)]
pub(super) struct SharedStream(Arc<TcpStream>);

impl SharedStream {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.0
    }
}

impl AsyncRead for SharedStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let length = buffer.remaining().min(READ_BYTES);
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled_to(length)) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for SharedStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write_vectored(pieces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write).map_err(io::Error::from))
    }
}
