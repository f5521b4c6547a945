//! A websocket between a client and the app, after its handshake. Idle sockets have no buffers.
//!
//! A socket that displays is copied both ways until either side closes. A socket that works has a lease while messages
//! went either way recently; pings count as nothing. A message that arrives without a lease waits in the sidecar until the
//! model is there again, while pings and pongs pass it, so that the app does not take the client for dead.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hush_listener::open_files::FilePermit;
use hush_listener::{GuardedIo, InRequest};
use hush_residency::AcquireError;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::client_stall::{ClientStallLimit, StallLimitedStream};
use super::client_stream::DuplexStream;
use super::frames::{FrameKind, FrameScanner, close_code, close_frame};
use super::models::{HeldLease, LeasedModel};
use super::record::ProxyRequestRecord;
use crate::process::AppActivity;

/// Messages that wait for a model; beyond this nothing is read from the client.
const HELD_MAX_BYTES: usize = 1 << 20;
/// How long the last frame to a client may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks at the lease of a socket that works, during a shutdown.
const SHUTDOWN_POLL: Duration = Duration::from_millis(250);

/// What a socket is for.
pub enum SocketUse {
    Display,
    Work(SocketWork),
}

/// The model of a socket that works.
pub struct SocketWork {
    pub model: Arc<dyn LeasedModel>,
    /// Taken before the handshake.
    pub lease: Option<HeldLease>,
    /// How long a message waits for a model that is away.
    pub cold_hold: Option<Duration>,
    /// Without a message for this long, the lease ends.
    pub socket_idle: Duration,
}

/// A socket whose handshake both sides have agreed to.
pub struct Tunnel {
    pub client: OnUpgrade,
    pub app: OnUpgrade,
    pub socket_use: SocketUse,
    pub record: ProxyRequestRecord,
    pub open: OpenSocket,
    /// The connection is in use.
    pub in_request: InRequest,
    pub shutdown: CancellationToken,
    pub activity: AppActivity,
    /// That of the connection to the app.
    pub file: Option<FilePermit>,
}

/// Counts an open socket until it is dropped.
pub struct OpenSocket(IntGauge);

impl OpenSocket {
    pub fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Why a socket ended.
enum SocketEnd {
    ClientClosed,
    AppClosed,
    Unavailable(AcquireError),
    Shutdown,
}

impl SocketEnd {
    /// What the client is told, if the app has not told it anything.
    const fn close_code(&self) -> Option<u16> {
        match self {
            Self::ClientClosed => None,
            Self::AppClosed => Some(close_code::SERVICE_RESTART),
            Self::Unavailable(_) => Some(close_code::TRY_AGAIN_LATER),
            Self::Shutdown => Some(close_code::GOING_AWAY),
        }
    }
}

/// One side of the socket, and what it sent with its handshake.
struct SocketSide {
    stream: DuplexStream,
    early: Bytes,
}

fn client_side(upgraded: Upgraded) -> Option<(SocketSide, ClientStallLimit)> {
    let parts = upgraded.downcast::<TokioIo<GuardedIo<StallLimitedStream>>>().ok()?;
    let (stream, stall) = parts.io.into_inner().into_inner().into_parts();
    Some((SocketSide { stream: stream.into(), early: parts.read_buf }, stall))
}

fn app_side(upgraded: Upgraded) -> Option<SocketSide> {
    let parts = upgraded.downcast::<TokioIo<TcpStream>>().ok()?;
    Some(SocketSide { stream: DuplexStream::Plain(parts.io.into_inner()), early: parts.read_buf })
}

impl Tunnel {
    /// Copies until either side closes, the model cannot be had, or the shutdown comes.
    pub async fn run(self) {
        let Self { client, app, socket_use, mut record, open, in_request, shutdown, activity, file } = self;

        let sides = match (client.await, app.await) {
            (Ok(client), Ok(app)) => client_side(client).zip(app_side(app)),
            (Err(error), _) | (_, Err(error)) => {
                record.failure = Some(format!("the handshake failed: {error}"));
                return;
            }
        };
        let Some(((client, stall), app)) = sides else {
            record.failure = Some("a socket is not of the expected kind".to_owned());
            return;
        };

        let (end, state) = match socket_use {
            SocketUse::Display => join_display(client, app, &stall, &shutdown, &activity).await,
            SocketUse::Work(work) => join_work(client, app, work, &stall, &shutdown, &activity).await,
        };

        record.is_complete = !matches!(end, SocketEnd::ClientClosed);
        record.sent_bytes = state.sent_bytes;
        if let SocketEnd::Unavailable(error) = end {
            record.failure = Some(error.to_string());
        }
        drop((open, in_request, record, file));
    }
}

/// What both directions share.
#[derive(Default)]
struct SocketState {
    from_app: FrameScanner,
    from_client: FrameScanner,
    /// The last piece to the client is not written whole.
    is_writing: bool,
    sent_bytes: u64,
    lease: Option<HeldLease>,
    last_message: Option<Instant>,
    /// The client waits for a lease, and not only the app has sent something.
    client_waits: bool,
}

#[derive(Default)]
struct SharedState(Mutex<SocketState>);

impl SharedState {
    fn lock(&self) -> MutexGuard<'_, SocketState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn into_inner(self) -> SocketState {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn join_display(
    client: SocketSide,
    app: SocketSide,
    stall: &ClientStallLimit,
    shutdown: &CancellationToken,
    activity: &AppActivity,
) -> (SocketEnd, SocketState) {
    let state = SharedState::default();

    let end = tokio::select! {
        end = copy_to_client(&app, &client.stream, stall, &state, || activity.record(), || {}) => end,
        () = copy_to_app(&client, &app.stream) => SocketEnd::ClientClosed,
        () = shutdown.cancelled() => SocketEnd::Shutdown,
    };
    close(client.stream, &end, state.into_inner()).await
}

async fn join_work(
    client: SocketSide,
    app: SocketSide,
    mut work: SocketWork,
    stall: &ClientStallLimit,
    shutdown: &CancellationToken,
    activity: &AppActivity,
) -> (SocketEnd, SocketState) {
    let state = SharedState::default();
    state.lock().lease = work.lease.take();
    state.lock().last_message = Some(Instant::now());
    let leases = LeaseSignals { wanted: Notify::new(), arrived: Notify::new() };

    let end = tokio::select! {
        end = copy_to_client(&app, &client.stream, stall, &state, || activity.record(), || leases.wanted.notify_one()) => end,
        () = copy_messages(&client, &app.stream, &state, &leases) => SocketEnd::ClientClosed,
        error = renew_lease(&work, &state, &leases) => SocketEnd::Unavailable(error),
        () = expire_lease(&state, work.socket_idle) => SocketEnd::ClientClosed,
        () = shut_down_when_idle(&state, shutdown) => SocketEnd::Shutdown,
    };
    close(client.stream, &end, state.into_inner()).await
}

struct LeaseSignals {
    /// A message needs a lease.
    wanted: Notify,
    /// There is a lease.
    arrived: Notify,
}

/// Tells the client why its socket ends, where that does not cut a frame in two, and closes both.
async fn close(client: DuplexStream, end: &SocketEnd, state: SocketState) -> (SocketEnd, SocketState) {
    let can_tell = state.from_app.is_at_boundary() && !state.from_app.has_close() && !state.is_writing;

    if let Some(code) = end.close_code().filter(|_| can_tell) {
        // The client may be gone already.
        let _ = timeout(CLOSE_TIMEOUT, client.write_all(&close_frame(code))).await;
    }
    // As above.
    let _ = timeout(CLOSE_TIMEOUT, client.shut_down()).await;
    let end = match end {
        SocketEnd::ClientClosed => SocketEnd::ClientClosed,
        SocketEnd::AppClosed => SocketEnd::AppClosed,
        SocketEnd::Unavailable(error) => SocketEnd::Unavailable(error.clone()),
        SocketEnd::Shutdown => SocketEnd::Shutdown,
    };
    (end, state)
}

/// Returns when the app or the client is gone. `on_piece` is called for all that the app sends, `on_message` when a
/// message goes by without a lease.
async fn copy_to_client(
    app: &SocketSide,
    client: &DuplexStream,
    stall: &ClientStallLimit,
    state: &SharedState,
    on_piece: impl Fn(),
    on_message: impl Fn(),
) -> SocketEnd {
    let mut piece = app.early.clone();

    loop {
        if !piece.is_empty() {
            on_piece();
            let has_message = {
                let mut state = state.lock();
                let has_message = state.from_app.split(&piece).iter().any(|(_, kind)| *kind == FrameKind::Data);
                state.is_writing = true;
                if has_message {
                    state.last_message = Some(Instant::now());
                }
                has_message && state.lease.is_none()
            };
            if has_message {
                on_message();
            }

            let written = stall.watch_write(client.write_all(&piece), || client.unacknowledged_bytes()).await;
            if written.is_err() {
                if stall.has_stalled() {
                    client.reset_at_close();
                }
                return SocketEnd::ClientClosed;
            }
            let mut state = state.lock();
            state.is_writing = false;
            state.sent_bytes += piece.len() as u64;
        }

        piece = match app.stream.read_some().await {
            Ok(piece) if !piece.is_empty() => piece,
            _ => return SocketEnd::AppClosed,
        };
    }
}

/// Returns when the client or the app is gone.
async fn copy_to_app(client: &SocketSide, app: &DuplexStream) {
    let mut piece = client.early.clone();

    loop {
        if app.write_all(&piece).await.is_err() {
            return;
        }
        piece = match client.stream.read_some().await {
            Ok(piece) if !piece.is_empty() => piece,
            _ => return,
        };
    }
}

/// Returns when the client or the app is gone. Messages wait until there is a lease.
async fn copy_messages(client: &SocketSide, app: &DuplexStream, state: &SharedState, leases: &LeaseSignals) {
    let mut held = BytesMut::new();
    let mut piece = client.early.clone();

    loop {
        let out = sort_frames(&piece, &mut held, state, leases);
        if app.write_all(&out).await.is_err() {
            return;
        }

        tokio::select! {
            read = client.stream.read_some(), if held.len() < HELD_MAX_BYTES => match read {
                Ok(read) if !read.is_empty() => piece = read,
                _ => return,
            },
            () = leases.arrived.notified() => piece = Bytes::new(),
        }
    }
}

/// What of the held frames and of the new piece goes to the app now.
fn sort_frames(piece: &[u8], held: &mut BytesMut, state: &SharedState, leases: &LeaseSignals) -> Bytes {
    let mut state = state.lock();
    let mut out = BytesMut::new();

    // Held frames do not go into the middle of a control frame that passed them.
    let can_release = |state: &SocketState| state.lease.is_some() && !state.from_client.is_within_control();
    if can_release(&state) {
        out.unsplit(held.split());
        state.client_waits = false;
    }

    for (range, kind) in state.from_client.split(piece) {
        let passes = match kind {
            FrameKind::Control => true,
            FrameKind::Close => held.is_empty(),
            FrameKind::Data => {
                state.last_message = Some(Instant::now());
                held.is_empty() && state.lease.is_some()
            }
        };
        if passes { out.extend_from_slice(&piece[range]) } else { held.extend_from_slice(&piece[range]) }
    }

    if !held.is_empty() && can_release(&state) {
        out.unsplit(held.split());
        state.client_waits = false;
    }
    if !held.is_empty() && state.lease.is_none() {
        state.client_waits = true;
        leases.wanted.notify_one();
    }
    out.freeze()
}

/// Gets a lease whenever one is wanted. What the app sends by itself does not load the model. Returns when a message of
/// the client cannot have the model.
async fn renew_lease(work: &SocketWork, state: &SharedState, leases: &LeaseSignals) -> AcquireError {
    loop {
        leases.wanted.notified().await;

        loop {
            let (has_lease, client_waits) = {
                let state = state.lock();
                (state.lease.is_some(), state.client_waits)
            };
            if has_lease || !client_waits && !work.model.is_ready() {
                break;
            }

            let limit = if client_waits { work.cold_hold } else { Some(Duration::ZERO) };
            match work.model.acquire(limit).await {
                Ok(lease) => {
                    let mut state = state.lock();
                    state.lease = Some(lease);
                    state.last_message = Some(Instant::now());
                    leases.arrived.notify_one();
                }
                Err(error) if client_waits => return error,
                Err(_) if !state.lock().client_waits => break,
                Err(_) => {}
            }
        }
    }
}

/// Ends the lease when no message went either way for a while. Never returns.
async fn expire_lease(state: &SharedState, socket_idle: Duration) {
    loop {
        let until = {
            let mut state = state.lock();
            let until = state.last_message.unwrap_or_else(Instant::now) + socket_idle;

            let is_within_message = state.from_client.is_within_data() || state.from_app.is_within_data();
            if until <= Instant::now() {
                if !is_within_message {
                    state.lease = None;
                }
                Instant::now() + socket_idle
            } else {
                until
            }
        };
        sleep_until(until).await;
    }
}

/// Returns during a shutdown, when no message went either way for a while.
async fn shut_down_when_idle(state: &SharedState, shutdown: &CancellationToken) {
    shutdown.cancelled().await;

    while state.lock().lease.is_some() {
        sleep(SHUTDOWN_POLL).await;
    }
}
