use std::fs::File;
use std::io;

use hush_whisper::{PcmSource, SAMPLE_RATE};
use serde::{Deserialize, Serialize};

use super::AudioError;
use hush_listener::spool::{Spool, SpoolOptions, Spooled};

const BYTES_PER_SAMPLE: u64 = 2;

/// Mono 16 kHz samples of 16 bits, the precision of the reference (which decodes everything with ffmpeg's `s16le`).
/// Cheap to clone. In memory or in a file without a name, as its spool decides.
#[derive(Clone, Debug)]
pub struct Pcm {
    bytes: Spooled,
    span: PcmSpan,
}

/// The range of a file that holds samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PcmSpan {
    pub start_bytes: u64,
    pub len_samples: u64,
}

impl Pcm {
    /// All of `bytes` as samples, without an incomplete sample at the end.
    fn whole(bytes: Spooled) -> Self {
        let span = PcmSpan { start_bytes: 0, len_samples: bytes.len_bytes() / BYTES_PER_SAMPLE };
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

    /// A reader for the engine. Several readers may be in use at a time.
    pub fn source(&self) -> PcmReader {
        PcmReader { pcm: self.clone(), scratch: Vec::new() }
    }

    /// Opens what [`Self::to_file`] of another process passed on.
    pub(crate) fn from_file(file: File, span: PcmSpan) -> io::Result<Self> {
        Ok(Self { bytes: Spooled::from_file(file)?, span })
    }

    /// Whether the samples are a range of the upload itself, so that nothing was copied.
    pub(super) fn lies_in(&self, input: &Spooled) -> bool {
        self.bytes.is_same(input)
    }

    /// The file and the range of its samples, for another process.
    pub fn to_file(&self) -> io::Result<(File, PcmSpan)> {
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
        let PcmSpan { start_bytes, len_samples } = self.pcm.span;
        let inside = offset.checked_add(out.len() as u64).filter(|end| *end <= len_samples).map(|_| offset);
        let at = inside.and_then(|offset| offset.checked_mul(BYTES_PER_SAMPLE)?.checked_add(start_bytes));
        let at = at.ok_or(io::ErrorKind::UnexpectedEof)?;

        self.scratch.resize(out.len() * BYTES_PER_SAMPLE as usize, 0);
        self.pcm.bytes.read_exact_at(&mut self.scratch, at)?;
        from_s16le(&self.scratch, out);
        Ok(())
    }
}

/// Converts little-endian 16-bit samples to floats from -1 to 1.
fn from_s16le(bytes: &[u8], out: &mut [f32]) {
    let (pairs, _) = bytes.as_chunks();
    for (sample, pair) in out.iter_mut().zip(pairs) {
        *sample = f32::from(i16::from_le_bytes(*pair)) / 32_768.0;
    }
}

/// Takes a body of headerless 16-bit little-endian mono 16 kHz samples (`encode=false`): the spool of the upload holds
/// the samples, and nothing is copied. An odd length is refused, as in the reference (`numpy.frombuffer`).
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

/// Rounds (halves to even) and clips as ffmpeg does. `round_ties_even` is not used, because it is a call for each
/// sample where the baseline of the processor has no such instruction: floats in this range are whole numbers, so the
/// addition rounds, and the low bits are the result.
fn to_i16(sample: f32) -> i16 {
    const WHOLE: f32 = 12_582_912.0; // 1.5 * 2^23

    let scaled = (sample * 32_768.0).clamp(-32_768.0, 32_767.0);
    (scaled + WHOLE).to_bits() as i16
}

fn refuse_longer(samples: u64, limit_seconds: u64) -> Result<(), AudioError> {
    let limit = limit_seconds.saturating_mul(u64::from(SAMPLE_RATE));
    if samples > limit { Err(AudioError::TooLong { limit_seconds }) } else { Ok(()) }
}

/// Collects the samples of a file while it is decoded.
pub(super) struct PcmWriter {
    spool: Spool,
    buffer: Vec<u8>,
    len_samples: u64,
    limit_seconds: u64,
    /// Only this many samples are kept; the others are counted.
    kept_samples: u64,
}

impl PcmWriter {
    const FLUSH_BYTES: usize = 64 << 10;

    pub(super) fn new(spool: SpoolOptions, limit_seconds: u64) -> Self {
        let (spool, buffer) = (Spool::new(spool), Vec::with_capacity(Self::FLUSH_BYTES));
        Self { spool, buffer, len_samples: 0, limit_seconds, kept_samples: u64::MAX }
    }

    /// Keeps only the first samples.
    pub(super) fn keeping(self, kept_samples: u64) -> Self {
        Self { kept_samples, ..self }
    }

    /// Whether all samples that are to be kept have been written.
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
        self.add_to_length(samples.len() as u64)?;

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

    /// Takes samples of the right kind that `input` has at a position, without a copy: `declared` samples, or as many
    /// as there are. `None`: there are none.
    pub(super) fn sample_range(
        &self,
        input: &Spooled,
        start_bytes: u64,
        declared: Option<u64>,
    ) -> Result<Option<Pcm>, AudioError> {
        let there = input.len_bytes().saturating_sub(start_bytes) / BYTES_PER_SAMPLE;

        let len_samples = declared.map_or(there, |declared| declared.min(there));
        refuse_longer(len_samples, self.limit_seconds)?;
        let span = PcmSpan { start_bytes, len_samples };
        Ok((len_samples > 0).then(|| Pcm { bytes: input.clone(), span }))
    }

    fn add_to_length(&mut self, samples: u64) -> Result<(), AudioError> {
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
        fn samples_are_rounded_and_clipped_as_by_the_slow_way(sample in proptest::prelude::any::<f32>(), whole in -70_000..70_000_i32) {
            // Halves too, which random values hardly contain.
            for sample in [sample, whole as f32 / 65_536.0] {
                let expected = (sample * 32_768.0).round_ties_even() as i16;
                proptest::prop_assert_eq!(to_i16(sample), expected, "{}", sample);
            }
        }
    }
}
