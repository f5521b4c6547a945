//! Resamples any rate to 16 kHz in blocks. The delay of the filter is removed, and the number of samples is exact.

use hush_whisper::SAMPLE_RATE;
use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Indexing, Resampler as _, WindowFunction};

use super::AudioError;

/// Lower rates cannot carry speech, and each byte of a file would become thousands of samples.
const MIN_HERTZ: u32 = 2_000;
/// The highest rate of real converters; the limit also bounds the length of the filter.
const MAX_HERTZ: u32 = 384_000;
/// The smallest block on either side. The filter is as long as the block at the input rate, so that its transition band ends
/// about 100 Hz below 8 kHz.
const MIN_BLOCK: usize = 1_024;

/// Resamples audio of one rate.
pub(super) struct Resampler {
    hertz: u32,
    /// `None` at 16 kHz, where samples are passed on unchanged.
    filter: Option<ResampleFilter>,
    /// Numbers of samples that were pushed and that were returned.
    pushed: u64,
    returned: u64,
}

struct ResampleFilter {
    fft: Fft<f32>,
    /// Samples that wait for a full block.
    input: Vec<f32>,
    block_in: usize,
    output: Vec<f32>,
    /// Output samples of the filter's delay that are still to be dropped.
    skip: usize,
}

impl Resampler {
    pub(super) fn new(hertz: u32) -> Result<Self, AudioError> {
        if !(MIN_HERTZ..=MAX_HERTZ).contains(&hertz) {
            return Err(AudioError::SampleRate { hertz });
        }

        let filter = if hertz == SAMPLE_RATE { None } else { Some(ResampleFilter::new(hertz as usize)?) };
        Ok(Self { hertz, filter, pushed: 0, returned: 0 })
    }

    pub(super) fn hertz(&self) -> u32 {
        self.hertz
    }

    /// Resamples `samples` and passes complete blocks to `write`.
    pub(super) fn push(
        &mut self,
        samples: &[f32],
        mut write: impl FnMut(&[f32]) -> Result<(), AudioError>,
    ) -> Result<(), AudioError> {
        self.pushed += samples.len() as u64;
        let Some(filter) = &mut self.filter else {
            self.returned += samples.len() as u64;
            return write(samples);
        };

        let mut rest = samples;
        while !rest.is_empty() {
            let n = rest.len().min(filter.block_in - filter.input.len());
            let (head, tail) = rest.split_at(n);
            filter.input.extend_from_slice(head);
            rest = tail;
            if filter.input.len() == filter.block_in {
                let out = filter.run()?;
                self.returned += out.len() as u64;
                write(out)?;
            }
        }
        Ok(())
    }

    /// Passes on the remaining samples, so that the total is `round(pushed * 16000 / hertz)`.
    pub(super) fn finish(mut self, mut write: impl FnMut(&[f32]) -> Result<(), AudioError>) -> Result<(), AudioError> {
        let Some(filter) = &mut self.filter else { return Ok(()) };
        let (pushed, hertz) = (u128::from(self.pushed), u128::from(self.hertz));

        let total = ((2 * pushed * u128::from(SAMPLE_RATE) + hertz) / (2 * hertz)) as u64;
        while self.returned < total {
            let out = filter.run()?;
            let n = usize::try_from(total - self.returned).map_or(out.len(), |missing| missing.min(out.len()));
            self.returned += n as u64;
            write(&out[..n])?;
        }
        Ok(())
    }
}

impl ResampleFilter {
    fn new(hertz: usize) -> Result<Self, AudioError> {
        let rate_out = SAMPLE_RATE as usize;
        let common = gcd(hertz, rate_out);
        let (step_in, step_out) = (hertz / common, rate_out / common);

        // With an even number of steps the middle of the filter is at a whole sample of both rates.
        let steps = MIN_BLOCK.div_ceil(step_in.min(step_out)).next_multiple_of(2);
        let fft =
            Fft::new_custom(hertz, rate_out, steps * step_in, 1, 1, WindowFunction::BlackmanHarris2, FixedSync::Both)
                .map_err(|error| AudioError::Malformed { reason: error.to_string() })?;

        let block_in = fft.input_frames_next();
        let skip = fft.output_delay();
        let output = vec![0.0; fft.output_frames_max()];
        Ok(Self { fft, input: Vec::with_capacity(block_in), block_in, output, skip })
    }

    /// Filters the waiting samples, padded with silence, and returns the new output without the delay.
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
