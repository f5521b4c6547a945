//! An upload as symphonia reads it.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use symphonia::core::io::MediaSource;

use super::headers::ByteSpan;
use super::{AudioError, KeepGoing};
use hush_listener::spool::{SpoolReader, Spooled};

/// The error that ended the reading where the audio was not at fault: symphonia does not pass on the errors of its
/// source.
#[derive(Clone, Default)]
pub(super) struct SourceFailure(Arc<Mutex<Option<AudioError>>>);

impl SourceFailure {
    fn set(&self, error: AudioError) -> io::Error {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        io::Error::other("stopped")
    }

    pub(super) fn check(&self) -> Result<(), AudioError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

/// A range of an upload as symphonia reads it.
pub(super) struct SpoolMediaSource<'a> {
    reader: SpoolReader,
    range: ByteSpan,
    /// Position of the next byte, from the start of the range.
    position: u64,
    is_seekable: bool,
    keep_going: &'a KeepGoing<'a>,
    failure: SourceFailure,
}

impl<'a> SpoolMediaSource<'a> {
    pub(super) fn new(
        input: &Spooled,
        range: ByteSpan,
        is_seekable: bool,
        keep_going: &'a KeepGoing<'a>,
        failure: SourceFailure,
    ) -> Self {
        Self { reader: input.open(), range, position: 0, is_seekable, keep_going, failure }
    }

    fn len_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

impl Read for SpoolMediaSource<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // A demuxer may search the whole file for its next packet.
        if !(self.keep_going)() {
            return Err(self.failure.set(AudioError::Cancelled));
        }

        let left = self.len_bytes().saturating_sub(self.position);
        let most = usize::try_from(left).map_or(out.len(), |left| left.min(out.len()));
        let read = (self.reader.seek(SeekFrom::Start(self.range.start + self.position)))
            .and_then(|_| self.reader.read(&mut out[..most]))
            .map_err(|error| self.failure.set(error.into()))?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for SpoolMediaSource<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(delta) => self.len_bytes().checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };

        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl MediaSource for SpoolMediaSource<'_> {
    fn is_seekable(&self) -> bool {
        self.is_seekable
    }

    fn byte_len(&self) -> Option<u64> {
        self.is_seekable.then(|| self.len_bytes())
    }
}
