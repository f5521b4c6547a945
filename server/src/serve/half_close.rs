//! Tells clients that close their sending side after a complete request from clients that are gone.
//!
//! Both look alike at first: nothing more can be read from the connection. A client that still reads must get its answer,
//! and the work for a client that is gone should end soon. So while a complete request waits for its answer, the state of the
//! connection is polled. If the other side is closed, `100 Continue` is sent, which every client skips (RFC 9110, 15.2): if
//! the other end has closed the connection altogether, its system answers with a reset.
//!
//! hyper by itself either treats every such client as gone or never checks.

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

/// Between two checks of a connection whose request waits for its answer.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How long a closed side is waited for before the interim response is sent. Most answers come earlier, so that their clients
/// never see it.
const PROBE_AFTER: Duration = Duration::from_secs(1);

const PROBE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The most bytes of one read.
const READ_BYTES: usize = 64 << 10;

/// How far the current request of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExchangePhase {
    /// There is no request.
    Idle,
    /// The body of the request is not complete.
    Receiving(InterimResponses),
    /// The request is complete, and nothing of the answer is sent.
    Waiting(InterimResponses),
    /// The head of the answer is being sent.
    Answering,
}

/// Whether the client of a request understands interim responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InterimResponses {
    /// HTTP/1.0. If such a client is gone, the keep-alive probes of TCP find that out, after a minute or two.
    Unknown,
    Understood,
}

/// The phase of a connection's request, written by the service of the connection and read by [`client_gone`].
#[derive(Clone, Debug)]
pub(super) struct ExchangeState {
    phase: Arc<watch::Sender<ExchangePhase>>,
}

impl ExchangeState {
    pub(super) fn new() -> Self {
        Self { phase: Arc::new(watch::Sender::new(ExchangePhase::Idle)) }
    }

    fn set(&self, phase: ExchangePhase) {
        self.phase.send_replace(phase);
    }

    /// Begins a request. The returned body must be read in place of the given one.
    pub(super) fn begin(&self, version: Version, body: Incoming) -> (RequestBody, InFlightRequest) {
        let interim = if version < Version::HTTP_11 { InterimResponses::Unknown } else { InterimResponses::Understood };
        let phase =
            if body.is_end_stream() { ExchangePhase::Waiting(interim) } else { ExchangePhase::Receiving(interim) };
        self.set(phase);

        (RequestBody { body, state: self.clone() }, InFlightRequest { state: self.clone() })
    }
}

/// A request that is being answered, until it is dropped.
#[derive(Debug)]
pub(super) struct InFlightRequest {
    state: ExchangeState,
}

impl InFlightRequest {
    /// Puts the request into its answer, whose body then ends it.
    pub(super) fn answer(self, response: Result<Response, Infallible>) -> Result<Response, Infallible> {
        self.state.set(ExchangePhase::Answering);
        response.map(|response| response.map(|body| Body::new(HoldingBody::new(body, self))))
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.state.set(ExchangePhase::Idle);
    }
}

/// The body of a request, which records when it is complete.
#[derive(Debug)]
pub(super) struct RequestBody {
    body: Incoming,
    state: ExchangeState,
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);

        let is_complete = matches!(polled, Poll::Ready(None))
            || matches!(polled, Poll::Ready(Some(Ok(_)))) && self.body.is_end_stream();
        if is_complete {
            self.state.phase.send_if_modified(|phase| {
                let ExchangePhase::Receiving(interim) = *phase else { return false };
                *phase = ExchangePhase::Waiting(interim);
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

/// Returns when the client of a request that waits for its answer is gone. Must be polled by the task that serves the
/// connection, so that nothing else is written at the same time.
///
/// `may_probe`: whether HTTP can be written to the socket as plain text. Over TLS it cannot: there, a client that closes its
/// sending side counts as gone, as TLS libraries treat the connection as closed.
pub(super) async fn client_gone(socket: &TcpStream, state: &ExchangeState, may_probe: bool) {
    let mut phases = state.phase.subscribe();
    loop {
        let waits = |phase: &ExchangePhase| matches!(phase, ExchangePhase::Waiting(_) | ExchangePhase::Answering);
        if phases.wait_for(waits).await.is_err() {
            // The service has ended, and so has the connection.
            return std::future::pending().await;
        }

        let mut closed_since = None;
        let mut is_probed = false;
        while waits(&phases.borrow_and_update()) {
            tokio::select! {
                () = sleep(POLL_INTERVAL) => {}
                _ = phases.changed() => continue,
            }

            match poll_client(socket) {
                ClientState::Reading => closed_since = None,
                ClientState::Gone => return,
                ClientState::SendingClosed if !may_probe => return,
                ClientState::SendingClosed => {
                    let since = *closed_since.get_or_insert_with(Instant::now);
                    let is_due = *phases.borrow() == ExchangePhase::Waiting(InterimResponses::Understood)
                        && since.elapsed() >= PROBE_AFTER;
                    if is_due && !is_probed {
                        match socket.try_write(PROBE) {
                            Ok(written) if written == PROBE.len() => is_probed = true,
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                            // A partial interim response would corrupt the answer.
                            Ok(_) | Err(_) => return,
                        }
                    }
                }
            }
        }
    }
}

/// The state of a client, as the connection shows it.
enum ClientState {
    Reading,
    /// The client has closed its sending side, or the whole connection.
    SendingClosed,
    Gone,
}

fn poll_client(socket: &TcpStream) -> ClientState {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    // If the poll fails, the next one decides.
    if !poll(&mut polled, Some(&at_once)).is_ok_and(|ready| ready > 0) {
        return ClientState::Reading;
    }

    let found = polled[0].revents();
    if found.intersects(PollFlags::ERR | PollFlags::HUP) {
        ClientState::Gone
    } else if found.contains(PollFlags::RDHUP) {
        ClientState::SendingClosed
    } else {
        ClientState::Reading
    }
}

/// A connection that hyper reads and writes while [`client_gone`] polls its state.
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
