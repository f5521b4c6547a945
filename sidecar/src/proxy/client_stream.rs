//! The connection of a client: plain, or over TLS.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hush_access::TlsStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

/// What is read at once from a socket that has become a websocket.
const READ_BYTES: usize = 16 << 10;

/// The connection of a client, as hyper reads and writes it.
pub enum ClientStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl ClientStream {
    /// The value of `X-Forwarded-Proto`.
    pub const fn scheme(&self) -> &'static str {
        match self {
            Self::Plain(_) => "http",
            Self::Tls(_) => "https",
        }
    }

    /// Has the connection end by a reset. Without effect on a client that is gone.
    pub fn reset_at_close(&self) {
        // If this fails, the client is gone.
        let _ = self.socket().set_zero_linger();
    }

    /// What was sent and the client's system has not confirmed; `None` if the kernel does not tell.
    pub fn unacknowledged_bytes(&self) -> Option<i32> {
        unacknowledged_bytes(self.socket())
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
fn unacknowledged_bytes(socket: &TcpStream) -> Option<i32> {
    let mut bytes: libc::c_int = 0;

    // For a socket, Linux calls it SIOCOUTQ (tcp(7)).
    // SAFETY: the descriptor is open as long as `socket` is borrowed, and the call writes one `int`.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    (status == 0).then_some(bytes)
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// A connection that two directions of a websocket share. While nothing comes it has no buffer of its own.
pub enum DuplexStream {
    Plain(TcpStream),
    Tls(Mutex<Box<TlsStream<TcpStream>>>),
}

impl From<ClientStream> for DuplexStream {
    fn from(stream: ClientStream) -> Self {
        match stream {
            ClientStream::Plain(stream) => Self::Plain(stream),
            ClientStream::Tls(stream) => Self::Tls(Mutex::new(stream)),
        }
    }
}

impl DuplexStream {
    /// Reads what there is; empty at the end.
    pub async fn read_some(&self) -> io::Result<Bytes> {
        match self {
            Self::Plain(stream) => read_plain(stream).await,
            Self::Tls(stream) => {
                poll_fn(|context| {
                    let mut piece = BytesMut::with_capacity(READ_BYTES);
                    let read = poll_read_buf(Pin::new(&mut **lock(stream)), context, &mut piece);
                    read.map_ok(|_| piece.freeze())
                })
                .await
            }
        }
    }

    pub async fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => write_plain(stream, bytes).await,
            Self::Tls(stream) => write_tls(stream, bytes).await,
        }
    }

    /// As [`ClientStream::reset_at_close`].
    pub fn reset_at_close(&self) {
        // If this fails, the other side is gone.
        let _ = match self {
            Self::Plain(stream) => stream.set_zero_linger(),
            Self::Tls(stream) => lock(stream).get_ref().0.set_zero_linger(),
        };
    }

    /// As [`ClientStream::unacknowledged_bytes`].
    pub fn unacknowledged_bytes(&self) -> Option<i32> {
        match self {
            Self::Plain(stream) => unacknowledged_bytes(stream),
            Self::Tls(stream) => unacknowledged_bytes(lock(stream).get_ref().0),
        }
    }

    /// Tells a client over TLS that no more comes, so that it does not take the end for an attack.
    pub async fn shut_down(&self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(stream) => poll_fn(|context| Pin::new(&mut **lock(stream)).poll_shutdown(context)).await,
        }
    }
}

fn lock(stream: &Mutex<Box<TlsStream<TcpStream>>>) -> MutexGuard<'_, Box<TlsStream<TcpStream>>> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The buffer is made when something has come.
async fn read_plain(stream: &TcpStream) -> io::Result<Bytes> {
    loop {
        stream.readable().await?;

        let mut piece = BytesMut::with_capacity(READ_BYTES);
        match stream.try_read_buf(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(piece.freeze()),
        }
    }
}

async fn write_plain(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;

        match stream.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
            Ok(written) => bytes = &bytes[written..],
        }
    }
    Ok(())
}

async fn write_tls(stream: &Mutex<Box<TlsStream<TcpStream>>>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = poll_fn(|context| Pin::new(&mut **lock(stream)).poll_write(context, bytes)).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
    }

    // What TLS has encrypted may not be with the kernel yet.
    poll_fn(|context| Pin::new(&mut **lock(stream)).poll_flush(context)).await
}
