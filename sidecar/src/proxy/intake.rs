//! Reads the body of a request: the beginning into memory, more into a spool, and what is not read yet straight through
//! to the app once the request may go on.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body_util::BodyExt;
use hush_listener::open_files::{FileBudget, FilePermit};
use hush_listener::spool::{Spool, SpoolError, SpoolOptions, Spooled};
use hyper::body::{Body as _, Incoming};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::attribution::{BodyScanError, BodyScanner, kept_bytes, kept_slices};

/// What is read at once from a spool.
const READ_BYTES: u64 = 256 << 10;

/// Limits for the bodies of requests.
#[derive(Clone, Debug)]
pub struct IntakeSettings {
    /// A body is held in plain memory up to this size, and in the spool beyond it.
    pub attribution_bytes: usize,
    pub spool: SpoolOptions,
    /// A body from which nothing comes for this long is given up.
    pub stall: Duration,
    /// Where the file of a spool comes from.
    pub files: FileBudget,
}

/// Why the body of a request cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    #[error(transparent)]
    Scan(#[from] BodyScanError),
    #[error("the body is larger than this server's limit of {limit_bytes} bytes")]
    TooLarge { limit_bytes: u64 },
    #[error("no byte of the body came for {seconds} s")]
    Stalled { seconds: u64 },
    #[error("storing the body failed: {0}")]
    Spool(#[source] SpoolError),
    #[error("this server has no file left to store the body in; try again later")]
    NoFile,
    /// The client closed the connection, or sent something that is no body.
    #[error("the body broke off: {0}")]
    ClientGone(#[source] hyper::Error),
    #[error("the stored body could not be read")]
    Read(#[source] io::Error),
    /// A defect of this program.
    #[error("a task that stored the body failed")]
    Task(#[source] tokio::task::JoinError),
}

impl From<SpoolError> for IntakeError {
    fn from(error: SpoolError) -> Self {
        match error {
            SpoolError::TooLarge { limit_bytes } => Self::TooLarge { limit_bytes },
            error => Self::Spool(error),
        }
    }
}

/// Where the bytes are that were read.
enum BodyStore {
    /// One buffer, because a client may send a byte at a time.
    Memory(BytesMut),
    Spool(Spool),
    /// A thread writes to the disk.
    Writing(JoinHandle<(Spool, Result<(), SpoolError>)>),
    /// After an error.
    Lost,
}

/// The body of a request while it is read.
pub struct BodyIntake {
    body: Incoming,
    settings: Arc<IntakeSettings>,
    scanner: BodyScanner,
    store: BodyStore,
    /// That of the spool.
    file: Option<FilePermit>,
    stored_bytes: u64,
    declared_bytes: Option<u64>,
    is_complete: bool,
}

impl fmt::Debug for BodyIntake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyIntake").field("stored_bytes", &self.stored_bytes).finish_non_exhaustive()
    }
}

impl BodyIntake {
    /// # Errors
    /// If the head declares a body beyond the limit.
    pub fn new(
        body: Incoming,
        headers: &HeaderMap,
        scanner: BodyScanner,
        settings: Arc<IntakeSettings>,
    ) -> Result<Self, IntakeError> {
        let declared_bytes = content_length(headers);
        if let (Some(declared), Some(limit_bytes)) = (declared_bytes, settings.spool.limit_bytes)
            && declared > limit_bytes
        {
            return Err(IntakeError::TooLarge { limit_bytes });
        }

        let store = BodyStore::Memory(BytesMut::new());
        Ok(Self { body, settings, scanner, store, file: None, stored_bytes: 0, declared_bytes, is_complete: false })
    }

    pub const fn is_complete(&self) -> bool {
        self.is_complete
    }

    pub const fn scanner(&self) -> &BodyScanner {
        &self.scanner
    }

    /// Reads until the scanner knows enough.
    ///
    /// # Errors
    /// If the body cannot be used.
    pub async fn read_until_decided(&mut self) -> Result<(), IntakeError> {
        if self.body.is_end_stream() {
            self.read_piece().await?;
        }
        while !self.scanner.is_decided() {
            self.read_piece().await?;
        }
        Ok(())
    }

    /// # Errors
    /// If the body cannot be used.
    pub async fn read_to_end(&mut self) -> Result<(), IntakeError> {
        while !self.is_complete {
            self.read_piece().await?;
        }
        Ok(())
    }

    /// Reads one piece, or finds the end. May be dropped at any time and called again.
    ///
    /// # Errors
    /// If the body cannot be used; then it must not be called again.
    pub async fn read_piece(&mut self) -> Result<(), IntakeError> {
        self.finish_write().await?;
        if self.is_complete {
            return Ok(());
        }

        match next_piece(&mut self.body, self.settings.stall).await? {
            Some(piece) => {
                self.scanner.push(&piece)?;
                self.keep(piece)?;
                self.finish_write().await
            }
            None => {
                self.is_complete = true;
                self.scanner.finish()?;
                Ok(())
            }
        }
    }

    /// Waits for the thread that writes, if there is one.
    async fn finish_write(&mut self) -> Result<(), IntakeError> {
        let BodyStore::Writing(writing) = &mut self.store else { return Ok(()) };

        let written = writing.await;
        self.store = BodyStore::Lost;
        let (spool, result) = written.map_err(IntakeError::Task)?;
        result?;
        self.store = BodyStore::Spool(spool);
        Ok(())
    }

    /// Keeps a piece; a write to the disk goes to a thread.
    fn keep(&mut self, piece: Bytes) -> Result<(), IntakeError> {
        self.stored_bytes += piece.len() as u64;
        if let Some(limit_bytes) = self.settings.spool.limit_bytes
            && self.stored_bytes > limit_bytes
        {
            return Err(IntakeError::TooLarge { limit_bytes });
        }

        let (mut spool, pieces) = match std::mem::replace(&mut self.store, BodyStore::Lost) {
            BodyStore::Memory(mut memory) if self.stored_bytes <= self.settings.attribution_bytes as u64 => {
                memory.extend_from_slice(&piece);
                self.store = BodyStore::Memory(memory);
                return Ok(());
            }
            BodyStore::Memory(memory) => {
                self.file = Some(self.settings.files.try_take().ok_or(IntakeError::NoFile)?);
                (Spool::new(self.settings.spool.clone()), vec![memory.freeze(), piece])
            }
            BodyStore::Spool(spool) => (spool, vec![piece]),
            BodyStore::Writing(_) | BodyStore::Lost => return Err(IntakeError::Read(io::ErrorKind::Other.into())),
        };

        let len: usize = pieces.iter().map(Bytes::len).sum();
        let write = move |mut spool: Spool| {
            let written = pieces.iter().try_for_each(|piece| spool.write(piece));
            (spool, written)
        };
        if spool.stays_in_memory(len) {
            let (spool, written) = write(spool);
            written?;
            self.store = BodyStore::Spool(spool);
        } else {
            self.store = BodyStore::Writing(tokio::task::spawn_blocking(move || write(spool)));
        }
        Ok(())
    }

    /// The body as it goes to the app: what is stored, then what still comes. What was cut out is missing, which is
    /// possible only with a complete body. Returns its length, where it is known, and where a failure is found.
    ///
    /// # Errors
    /// If a write to the disk failed.
    pub async fn into_outgoing(mut self) -> Result<OutgoingBody, IntakeError> {
        self.finish_write().await?;
        let failure = BodyFailure::default();

        let cuts = self.scanner.take_cuts();
        let len_bytes = match self.is_complete {
            true => Some(kept_bytes(&cuts, self.stored_bytes)),
            false => self.declared_bytes,
        };
        let stored = match self.store {
            BodyStore::Memory(memory) => StoredBody::Memory(Some(memory.freeze()).filter(|memory| !memory.is_empty())),
            BodyStore::Spool(spool) => StoredBody::Spooled(spool.finish()),
            BodyStore::Writing(_) | BodyStore::Lost => return Err(IntakeError::Read(io::ErrorKind::Other.into())),
        };
        if self.is_complete && self.stored_bytes == 0 {
            return Ok(OutgoingBody { body: Body::empty(), len_bytes, failure });
        }

        let rest = (!self.is_complete).then_some(LiveBody {
            body: self.body,
            scanner: self.scanner,
            received_bytes: self.stored_bytes,
            limit_bytes: self.settings.spool.limit_bytes,
            stall: self.settings.stall,
        });
        let source = OutgoingSource { stored, offset: 0, cuts, ready: Vec::new(), rest, _file: self.file };
        Ok(OutgoingBody { body: source.into_body(failure.clone()), len_bytes, failure })
    }
}

/// A body on its way to the app.
#[derive(Debug)]
pub struct OutgoingBody {
    pub body: Body,
    /// `None`: sent in chunks.
    pub len_bytes: Option<u64>,
    pub failure: BodyFailure,
}

impl OutgoingBody {
    /// A body of which nothing is looked at and nothing is kept, of any size.
    pub fn pass_through(body: Incoming, headers: &HeaderMap, stall: Duration) -> Self {
        let failure = BodyFailure::default();
        if body.is_end_stream() {
            return Self { body: Body::empty(), len_bytes: content_length(headers), failure };
        }

        let rest = LiveBody { body, scanner: BodyScanner::opaque(), received_bytes: 0, limit_bytes: None, stall };
        let stored = StoredBody::Memory(None);
        let source =
            OutgoingSource { stored, offset: 0, cuts: Vec::new(), ready: Vec::new(), rest: Some(rest), _file: None };
        Self { body: source.into_body(failure.clone()), len_bytes: content_length(headers), failure }
    }
}

/// Why a body broke off on its way to the app. The connection to the app only knows that it did.
#[derive(Clone, Debug, Default)]
pub struct BodyFailure(Arc<Mutex<Option<IntakeError>>>);

impl BodyFailure {
    pub fn take(&self) -> Option<IntakeError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, error: IntakeError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

/// The body of the client's request broke off; the cause is in [`BodyFailure`].
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the body of the request broke off")]
struct BrokenBody;

enum StoredBody {
    Memory(Option<Bytes>),
    Spooled(Spooled),
}

/// The part of a body that is not read yet.
struct LiveBody {
    body: Incoming,
    scanner: BodyScanner,
    received_bytes: u64,
    limit_bytes: Option<u64>,
    stall: Duration,
}

struct OutgoingSource {
    stored: StoredBody,
    /// The bytes of the stored part that were taken.
    offset: u64,
    cuts: Vec<Range<u64>>,
    /// Slices of the last piece, in reverse.
    ready: Vec<Bytes>,
    rest: Option<LiveBody>,
    _file: Option<FilePermit>,
}

impl OutgoingSource {
    fn into_body(self, failure: BodyFailure) -> Body {
        let next = move |mut source: Self| {
            let failure = failure.clone();
            async move {
                match source.next().await {
                    Ok(Some(piece)) => Some((Ok(piece), source)),
                    Ok(None) => None,
                    Err(error) => {
                        failure.set(error);
                        Some((Err(BrokenBody), source))
                    }
                }
            }
        };
        Body::from_stream(stream::unfold(self, next))
    }

    async fn next(&mut self) -> Result<Option<Bytes>, IntakeError> {
        loop {
            if let Some(slice) = self.ready.pop() {
                return Ok(Some(slice));
            }
            let Some(piece) = self.next_stored().await? else { break };

            let len = piece.len() as u64;
            self.ready = kept_slices(&self.cuts, self.offset, piece);
            self.ready.reverse();
            self.offset += len;
        }

        match &mut self.rest {
            Some(rest) => rest.next().await,
            None => Ok(None),
        }
    }

    async fn next_stored(&mut self) -> Result<Option<Bytes>, IntakeError> {
        match &mut self.stored {
            StoredBody::Memory(memory) => Ok(memory.take()),
            StoredBody::Spooled(spooled) => {
                let len = READ_BYTES.min(spooled.len_bytes() - self.offset) as usize;
                if len == 0 {
                    return Ok(None);
                }
                read_spooled(spooled.clone(), self.offset, len).await.map(Some)
            }
        }
    }
}

async fn read_spooled(spooled: Spooled, offset: u64, len: usize) -> Result<Bytes, IntakeError> {
    let is_in_memory = spooled.is_in_memory();
    let read = move || {
        let mut piece = vec![0; len];
        spooled.read_exact_at(&mut piece, offset).map(|()| Bytes::from(piece))
    };

    if is_in_memory {
        return read().map_err(IntakeError::Read);
    }
    tokio::task::spawn_blocking(read).await.map_err(IntakeError::Task)?.map_err(IntakeError::Read)
}

impl LiveBody {
    async fn next(&mut self) -> Result<Option<Bytes>, IntakeError> {
        let Some(piece) = next_piece(&mut self.body, self.stall).await? else {
            self.scanner.finish()?;
            return Ok(None);
        };

        self.received_bytes += piece.len() as u64;
        if let Some(limit_bytes) = self.limit_bytes
            && self.received_bytes > limit_bytes
        {
            return Err(IntakeError::TooLarge { limit_bytes });
        }

        // A second name of a model ends the request before the app has all of it.
        self.scanner.push(&piece)?;
        Ok(Some(piece))
    }
}

/// The next bytes of a body; trailers are dropped. `None`: the end.
async fn next_piece(body: &mut Incoming, stall: Duration) -> Result<Option<Bytes>, IntakeError> {
    loop {
        let framed = timeout(stall, body.frame()).await;
        let Some(frame) = framed.map_err(|_| IntakeError::Stalled { seconds: stall.as_secs() })? else {
            return Ok(None);
        };

        if let Ok(data) = frame.map_err(IntakeError::ClientGone)?.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
