use std::fs::File;
use std::io;

use hush_whisper::{PcmSource, SAMPLE_RATE};
use serde::{Deserialize, Serialize};

use super::AudioError;
use crate::spool::{Spool, SpoolOptions, Spooled};

const BYTES_PER_SAMPLE: u64 = 2;

/// Mono 16 kHz samples, 16 bits each as in the reference (which hears everything through ffmpeg's `s16le`).
/// Cheap to clone; in memory or in a file without a name, as its spool decides.
#[derive(Clone, Debug)]
pub struct Pcm {
    bytes: Spooled,
    span: Span,
}

/// The part of a file that is samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub start_bytes: u64,
    pub len_samples: u64,
}

impl Pcm {
    /// All of `bytes`, but for half a sample at the end.
    fn whole(bytes: Spooled) -> Self {
        let span = Span { start_bytes: 0, len_samples: bytes.len_bytes() / BYTES_PER_SAMPLE };
        Self { bytes, span }
    }

    pub fn len_samples(&self) -> u64 {
        self.span.len_samples
    }

    pub fn duration_seconds(&self) -> f64 {
        self.len_samples() as f64 / f64::from(SAMPLE_RATE)
    }

    pub fn is_in_memory(&self) -> bool {
        self.bytes.is_in_memory()
    }

    /// A reader for the engine; any number of them work at once.
    pub fn source(&self) -> PcmReader {
        PcmReader { pcm: self.clone(), scratch: Vec::new() }
    }

    /// What [`Self::to_file`] gave to this process.
    pub(crate) fn from_file(file: File, span: Span) -> io::Result<Self> {
        Ok(Self { bytes: Spooled::from_file(file)?, span })
    }

    /// Whether these are samples of the upload itself, of which nothing was copied.
    pub(super) fn lies_in(&self, input: &Spooled) -> bool {
        self.bytes.is_same(input)
    }

    /// For another process: the file, and where in it the samples lie.
    pub fn to_file(&self) -> io::Result<(File, Span)> {
        Ok((self.bytes.to_file()?, self.span))
    }
}

/// Created by [`Pcm::source`].
#[derive(Debug)]
pub struct PcmReader {
    pcm: Pcm,
    scratch: Vec<u8>,
}

impl PcmSource for PcmReader {
    fn len(&self) -> u64 {
        self.pcm.len_samples()
    }

    fn read(&mut self, offset: u64, out: &mut [f32]) -> io::Result<()> {
        let Span { start_bytes, len_samples } = self.pcm.span;
        let inside = offset.checked_add(out.len() as u64).filter(|end| *end <= len_samples).map(|_| offset);
        let at = inside.and_then(|offset| offset.checked_mul(BYTES_PER_SAMPLE)?.checked_add(start_bytes));
        let at = at.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.scratch.resize(out.len() * BYTES_PER_SAMPLE as usize, 0);
        self.pcm.bytes.read_exact_at(&mut self.scratch, at)?;
        from_s16le(&self.scratch, out);
        Ok(())
    }
}

/// Little-endian 16-bit samples as the engine hears them, -1 to 1.
fn from_s16le(bytes: &[u8], out: &mut [f32]) {
    let (pairs, _) = bytes.as_chunks();
    for (sample, pair) in out.iter_mut().zip(pairs) {
        *sample = f32::from(i16::from_le_bytes(*pair)) / 32_768.0;
    }
}

/// A body of headerless 16-bit little-endian mono 16 kHz samples (`encode=false`): the upload's own spool becomes the
/// samples, nothing is copied. An odd length is refused, as by the reference (`numpy.frombuffer`).
pub fn decode_raw_s16le(body: Spooled, limit_seconds: u64) -> Result<Pcm, AudioError> {
    let bytes = body.len_bytes();
    if bytes == 0 {
        return Err(AudioError::Empty);
    }
    if !bytes.is_multiple_of(BYTES_PER_SAMPLE) {
        return Err(AudioError::OddRawLength { bytes });
    }
    refuse_longer(bytes / BYTES_PER_SAMPLE, limit_seconds)?;
    Ok(Pcm::whole(body))
}

/// As ffmpeg rounds (halves to even) and clips. Without `round_ties_even`, which is a call per sample where the
/// processor's baseline has no such instruction: in this range floats are whole numbers, so the addition rounds, and the
/// low bits are the number.
fn to_i16(sample: f32) -> i16 {
    const WHOLE: f32 = 12_582_912.0; // 1.5 * 2^23
    let scaled = (sample * 32_768.0).clamp(-32_768.0, 32_767.0);
    (scaled + WHOLE).to_bits() as i16
}

fn refuse_longer(samples: u64, limit_seconds: u64) -> Result<(), AudioError> {
    let limit = limit_seconds.saturating_mul(u64::from(SAMPLE_RATE));
    if samples > limit { Err(AudioError::TooLong { limit_seconds }) } else { Ok(()) }
}

/// Where samples go while a file is decoded.
pub(super) struct PcmWriter {
    spool: Spool,
    buffer: Vec<u8>,
    len_samples: u64,
    limit_seconds: u64,
    /// No more than so many are kept; the others are counted.
    kept_samples: u64,
}

impl PcmWriter {
    const FLUSH_BYTES: usize = 64 << 10;

    pub(super) fn new(spool: SpoolOptions, limit_seconds: u64) -> Self {
        let (spool, buffer) = (Spool::new(spool), Vec::with_capacity(Self::FLUSH_BYTES));
        Self { spool, buffer, len_samples: 0, limit_seconds, kept_samples: u64::MAX }
    }

    /// Keeps the beginning alone.
    pub(super) fn keeping(self, kept_samples: u64) -> Self {
        Self { kept_samples, ..self }
    }

    /// Whether it has as much as it keeps: what follows need not be decoded.
    pub(super) fn is_full(&self) -> bool {
        self.len_samples >= self.kept_samples
    }

    pub(super) fn limit_seconds(&self) -> u64 {
        self.limit_seconds
    }

    pub(super) fn len_samples(&self) -> u64 {
        self.len_samples
    }

    pub(super) fn write_f32(&mut self, samples: &[f32]) -> Result<(), AudioError> {
        let room = self.kept_samples.saturating_sub(self.len_samples);
        self.count(samples.len() as u64)?;
        let kept = usize::try_from(room).map_or(samples, |room| &samples[..room.min(samples.len())]);
        for piece in kept.chunks(Self::FLUSH_BYTES / BYTES_PER_SAMPLE as usize) {
            let start = self.buffer.len();
            self.buffer.resize(start + piece.len() * BYTES_PER_SAMPLE as usize, 0);
            let (pairs, _) = self.buffer[start..].as_chunks_mut();
            for (pair, sample) in pairs.iter_mut().zip(piece) {
                *pair = to_i16(*sample).to_le_bytes();
            }
            if self.buffer.len() >= Self::FLUSH_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Pcm, AudioError> {
        self.flush()?;
        Ok(Pcm::whole(self.spool.finish()))
    }

    /// Samples that lie in `input` as they are wanted: `declared` of them from a place on, or as many as there are. Nothing
    /// is copied. `None`: there are none.
    pub(super) fn found(
        &self,
        input: &Spooled,
        start_bytes: u64,
        declared: Option<u64>,
    ) -> Result<Option<Pcm>, AudioError> {
        let there = input.len_bytes().saturating_sub(start_bytes) / BYTES_PER_SAMPLE;
        let len_samples = declared.map_or(there, |declared| declared.min(there));
        refuse_longer(len_samples, self.limit_seconds)?;
        let span = Span { start_bytes, len_samples };
        Ok((len_samples > 0).then(|| Pcm { bytes: input.clone(), span }))
    }

    fn count(&mut self, samples: u64) -> Result<(), AudioError> {
        self.len_samples += samples;
        refuse_longer(self.len_samples, self.limit_seconds)
    }

    fn flush(&mut self) -> Result<(), AudioError> {
        self.spool.write(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn rounds_and_clips_as_the_slow_way(sample in proptest::prelude::any::<f32>(), whole in -70_000..70_000_i32) {
            // Also the halves, which chance does not find.
            for sample in [sample, whole as f32 / 65_536.0] {
                let expected = (sample * 32_768.0).round_ties_even() as i16;
                proptest::prop_assert_eq!(to_i16(sample), expected, "{}", sample);
            }
        }
    }
}
