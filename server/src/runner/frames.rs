//! The server's end of a runner's socket.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::wire::{Decoder, FromRunner};

pub(super) async fn write_frames(mut socket: OwnedWriteHalf, mut outbox: mpsc::UnboundedReceiver<Bytes>) {
    while let Some(frame) = outbox.recv().await {
        // The reading side sees the end of the runner too, and knows what to do.
        if socket.write_all(&frame).await.is_err() {
            return;
        }
    }
}

pub(super) struct FrameReader {
    socket: OwnedReadHalf,
    decoder: Decoder,
}

impl FrameReader {
    pub(super) fn new(socket: OwnedReadHalf) -> Self {
        Self { socket, decoder: Decoder::default() }
    }

    /// The next message; `None` at the end. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> io::Result<Option<FromRunner>> {
        loop {
            if let Some(message) = self.decoder.message().map_err(io::Error::other)? {
                return Ok(Some(message));
            }
            if self.socket.read_buf(self.decoder.buffer()).await? == 0 {
                return Ok(None);
            }
        }
    }
}
