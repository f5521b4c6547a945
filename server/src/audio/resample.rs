//! Any rate to 16 kHz, in blocks, with the delay of the filter taken out and exactly the right number of samples.

use hush_whisper::SAMPLE_RATE;
use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Indexing, Resampler as _, WindowFunction};

use super::AudioError;

/// Lower rates cannot carry speech, and one byte of a file would become thousands of samples.
const MIN_HERTZ: u32 = 2_000;
/// What converters really make; it also bounds the filter.
const MAX_HERTZ: u32 = 384_000;
/// The least block on either side. The filter is as long as the block at the input rate: its transition band is then
/// some 100 Hz below 8 kHz.
const MIN_BLOCK: usize = 1_024;

/// One stretch of audio at one rate.
pub(super) struct Resampler {
    hertz: u32,
    /// `None` at 16 kHz: samples pass as they are.
    filter: Option<Filter>,
    taken: u64,
    given: u64,
}

struct Filter {
    fft: Fft<f32>,
    /// Waiting for a full block.
    input: Vec<f32>,
    block_in: usize,
    output: Vec<f32>,
    /// Output samples of the filter's delay that are still to be thrown away.
    skip: usize,
}

impl Resampler {
    pub(super) fn new(hertz: u32) -> Result<Self, AudioError> {
        if !(MIN_HERTZ..=MAX_HERTZ).contains(&hertz) {
            return Err(AudioError::SampleRate { hertz });
        }
        let filter = if hertz == SAMPLE_RATE { None } else { Some(Filter::new(hertz as usize)?) };
        Ok(Self { hertz, filter, taken: 0, given: 0 })
    }

    pub(super) fn hertz(&self) -> u32 {
        self.hertz
    }

    /// Takes samples in, hands finished ones to `give`.
    pub(super) fn push(
        &mut self,
        samples: &[f32],
        mut give: impl FnMut(&[f32]) -> Result<(), AudioError>,
    ) -> Result<(), AudioError> {
        self.taken += samples.len() as u64;
        let Some(filter) = &mut self.filter else {
            self.given += samples.len() as u64;
            return give(samples);
        };
        let mut rest = samples;
        while !rest.is_empty() {
            let n = rest.len().min(filter.block_in - filter.input.len());
            let (head, tail) = rest.split_at(n);
            filter.input.extend_from_slice(head);
            rest = tail;
            if filter.input.len() == filter.block_in {
                let out = filter.run()?;
                self.given += out.len() as u64;
                give(out)?;
            }
        }
        Ok(())
    }

    /// Hands over what is still inside: in total `round(taken * 16000 / hertz)`.
    pub(super) fn finish(mut self, mut give: impl FnMut(&[f32]) -> Result<(), AudioError>) -> Result<(), AudioError> {
        let Some(filter) = &mut self.filter else { return Ok(()) };
        let (taken, hertz) = (u128::from(self.taken), u128::from(self.hertz));
        let total = ((2 * taken * u128::from(SAMPLE_RATE) + hertz) / (2 * hertz)) as u64;
        while self.given < total {
            let out = filter.run()?;
            let n = usize::try_from(total - self.given).map_or(out.len(), |missing| missing.min(out.len()));
            self.given += n as u64;
            give(&out[..n])?;
        }
        Ok(())
    }
}

impl Filter {
    fn new(hertz: usize) -> Result<Self, AudioError> {
        let rate_out = SAMPLE_RATE as usize;
        let common = gcd(hertz, rate_out);
        let (step_in, step_out) = (hertz / common, rate_out / common);
        // An even number of steps puts the middle of the filter on a whole sample at both rates.
        let steps = MIN_BLOCK.div_ceil(step_in.min(step_out)).next_multiple_of(2);
        let fft =
            Fft::new_custom(hertz, rate_out, steps * step_in, 1, 1, WindowFunction::BlackmanHarris2, FixedSync::Both)
                .map_err(|error| AudioError::Malformed { reason: error.to_string() })?;
        let block_in = fft.input_frames_next();
        let skip = fft.output_delay();
        let output = vec![0.0; fft.output_frames_max()];
        Ok(Self { fft, input: Vec::with_capacity(block_in), block_in, output, skip })
    }

    /// Filters what waits, filled up with silence, and returns the new output without the delay.
    fn run(&mut self) -> Result<&[f32], AudioError> {
        let waiting = self.input.len();
        self.input.resize(self.block_in, 0.0);
        let indexing = Indexing::new().partial_len(waiting);
        let frames_out = self.output.len();
        let written = InterleavedSlice::new(&self.input, 1, self.block_in)
            .and_then(|input| Ok((input, InterleavedSlice::new_mut(&mut self.output, 1, frames_out)?)))
            .map_err(|error| error.to_string())
            .and_then(|(input, mut output)| {
                self.fft.process_into_buffer(&input, &mut output, Some(&indexing)).map_err(|error| error.to_string())
            })
            .map(|(_, written)| written)
            .map_err(|reason| AudioError::Malformed { reason })?;
        self.input.clear();
        let skipped = self.skip.min(written);
        self.skip -= skipped;
        Ok(&self.output[skipped..written])
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
