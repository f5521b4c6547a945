//! The server's end of the socket to a runner.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::wire::{FrameDecoder, FromRunner, send};

/// Sends as much as the socket takes at once, and keeps the rest in order.
pub(super) struct FrameWriter {
    socket: OwnedWriteHalf,
    waiting: VecDeque<OutgoingFrame>,
}

struct OutgoingFrame {
    bytes: Bytes,
    /// Sent with the first byte.
    file: Option<File>,
}

impl FrameWriter {
    pub(super) fn new(socket: OwnedWriteHalf) -> Self {
        Self { socket, waiting: VecDeque::new() }
    }

    pub(super) fn push(&mut self, bytes: Bytes, file: Option<File>) {
        self.waiting.push_back(OutgoingFrame { bytes, file });
        self.send_waiting();
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Returns when all frames are sent. Dropping the future loses nothing.
    pub(super) async fn flush(&mut self) {
        while self.is_waiting() {
            match self.socket.writable().await {
                Ok(()) => self.send_waiting(),
                Err(_) => self.waiting.clear(),
            }
        }
    }

    fn send_waiting(&mut self) {
        let socket: &UnixStream = self.socket.as_ref();
        while let Some(frame) = self.waiting.front_mut() {
            let file = frame.file.as_ref().map(AsFd::as_fd);
            match socket.try_io(Interest::WRITABLE, || send(socket, &frame.bytes, file)) {
                Ok(sent) => {
                    frame.file = None;
                    frame.bytes.advance(sent);
                    if frame.bytes.is_empty() {
                        self.waiting.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The reader sees the end of the runner too, and reports it.
                Err(_) => self.waiting.clear(),
            }
        }
    }
}

pub(super) struct FrameReader {
    socket: OwnedReadHalf,
    decoder: FrameDecoder,
}

impl FrameReader {
    pub(super) fn new(socket: OwnedReadHalf) -> Self {
        Self { socket, decoder: FrameDecoder::default() }
    }

    /// The next message; `None` when the runner has closed the socket. Dropping the future loses nothing.
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
