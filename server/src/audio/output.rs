//! Converts decoded buffers of any form to one mono 16 kHz stream.

use symphonia::core::audio::{AudioSpec, GenericAudioBufferRef};

use super::AudioError;
use super::cuts::{CutAction, CutFrames};
use super::headers::EditCut;
use super::mix::Mixer;
use super::pcm::{Pcm, PcmWriter};
use super::resample::Resampler;

/// Limit for changes of rate, channels or track within a file. Real files have a few; each needs a new filter.
pub(super) const MAX_CHANGES: usize = 256;
/// A damaged packet is replaced by silence of its length, so that the times after it stay correct, up to this length.
const MAX_CONCEALED_SECONDS: f64 = 1.0;
/// Silence is written in pieces of this many frames.
const SILENCE_FRAMES: usize = 16_384;

pub(super) fn too_many_changes() -> AudioError {
    AudioError::Malformed { reason: format!("the audio changes its format more than {MAX_CHANGES} times") }
}

/// Converts decoded buffers to mono 16 kHz samples.
pub(super) struct MonoOutput {
    writer: PcmWriter,
    /// The form of the current buffers, with the stages that convert it.
    form: Option<(AudioSpec, Mixer, Resampler)>,
    changes: usize,
    seconds_before: f64,
    frames: u64,
    /// The cuts of the edit list, until the sample rate is known.
    pending_cuts: Vec<EditCut>,
    cuts: CutFrames,
    interleaved: Vec<f32>,
    mono: Vec<f32>,
}

impl MonoOutput {
    pub(super) fn new(writer: PcmWriter) -> Self {
        Self {
            writer,
            form: None,
            changes: 0,
            seconds_before: 0.0,
            frames: 0,
            pending_cuts: Vec::new(),
            cuts: CutFrames::none(),
            interleaved: Vec::new(),
            mono: Vec::new(),
        }
    }

    /// Sets the cuts of the next stream.
    pub(super) fn set_cuts(&mut self, cuts: Vec<EditCut>) {
        self.pending_cuts = cuts;
    }

    /// Whether the writer needs no more samples.
    pub(super) fn is_full(&self) -> bool {
        self.writer.is_full()
    }

    /// The seconds that were pushed so far, including hidden ones.
    pub(super) fn position_seconds(&self) -> f64 {
        let here = self.form.as_ref().map_or(0.0, |(spec, ..)| self.frames as f64 / f64::from(spec.rate()));
        self.seconds_before + here
    }

    /// Appends a buffer. `silence_seconds`: the gap before it on the container's clock.
    pub(super) fn push(
        &mut self,
        buffer: &GenericAudioBufferRef<'_>,
        is_float_pcm: bool,
        silence_seconds: f64,
    ) -> Result<(), AudioError> {
        self.adapt(buffer.spec())?;
        self.push_silence(silence_seconds)?;

        let Some((spec, mix, _)) = &mut self.form else { return Ok(()) };
        let channels = spec.channels().count();
        buffer.copy_to_vec_interleaved::<f32>(&mut self.interleaved);

        // This check has no early exit, so that the compiler can vectorise it.
        let any_wrong = self.interleaved.iter().fold(false, |wrong, sample| wrong | !sample.is_finite());
        if any_wrong && let Some(at) = self.interleaved.iter().position(|sample| !sample.is_finite()) {
            if is_float_pcm {
                let frames = self.frames + (at / channels) as u64;
                let seconds = self.seconds_before + frames as f64 / f64::from(spec.rate());
                return Err(AudioError::NonFinite { seconds });
            }
            // A lossy decoder overflowed on a damaged packet.
            self.interleaved.iter_mut().filter(|sample| !sample.is_finite()).for_each(|sample| *sample = 0.0);
        }

        self.frames += (self.interleaved.len() / channels) as u64;
        self.mono.clear();
        mix.mix(&self.interleaved, &mut self.mono);
        self.push_mono()
    }

    /// Resamples and writes what is in `mono`, as far as the cuts show it.
    fn push_mono(&mut self) -> Result<(), AudioError> {
        let Some((_, _, resampler)) = &mut self.form else { return Ok(()) };
        let mut write = |samples: &[f32]| self.writer.write_f32(samples);

        let mut rest = self.mono.as_slice();
        while let Some(action) = self.cuts.next(rest.len() as u64) {
            match action {
                // `next` returns at most as many frames as there are.
                CutAction::Hide(frames) => rest = &rest[frames as usize..],
                CutAction::Show(frames) => {
                    let (now, later) = rest.split_at(frames as usize);
                    resampler.push(now, &mut write)?;
                    rest = later;
                }
                CutAction::Silence(frames) => resample_silence(resampler, frames, &mut write)?,
            }
        }
        Ok(())
    }

    /// Writes silence in place of a damaged packet. Before the first good packet the container's clock shows how much is missing.
    pub(super) fn conceal(&mut self, seconds: f64) -> Result<(), AudioError> {
        self.push_silence(seconds.clamp(0.0, MAX_CONCEALED_SECONDS))
    }

    fn push_silence(&mut self, seconds: f64) -> Result<(), AudioError> {
        let Some((_, _, resampler)) = &self.form else { return Ok(()) };
        let mut frames = (seconds.max(0.0) * f64::from(resampler.hertz())).round() as u64;
        self.frames += frames;

        while frames > 0 {
            let now = frames.min(SILENCE_FRAMES as u64);
            self.mono.clear();
            self.mono.resize(now as usize, 0.0);
            self.push_mono()?;
            frames -= now;
        }
        Ok(())
    }

    /// Adapts to a new rate or new channels. The audio before the change is finished at its own rate.
    fn adapt(&mut self, spec: &AudioSpec) -> Result<(), AudioError> {
        if self.form.as_ref().is_some_and(|(current, _, _)| current == spec) {
            return Ok(());
        }

        self.changes += 1;
        if self.changes > MAX_CHANGES {
            return Err(too_many_changes());
        }

        if !self.pending_cuts.is_empty() {
            self.cuts = CutFrames::new(std::mem::take(&mut self.pending_cuts), spec.rate());
        }

        let mix = Mixer::new(spec.channels(), spec.rate()).ok_or(AudioError::ZeroChannels)?;
        let resampler = match self.form.take() {
            Some((before, _, resampler)) if before.rate() == spec.rate() => resampler,
            before => {
                if let Some((before, _, resampler)) = before {
                    self.seconds_before += self.frames as f64 / f64::from(before.rate());
                    self.frames = 0;
                    resampler.finish(|samples| self.writer.write_f32(samples))?;
                }
                Resampler::new(spec.rate())?
            }
        };

        self.form = Some((spec.clone(), mix, resampler));
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Pcm, AudioError> {
        if let Some((_, _, resampler)) = self.form.take() {
            resampler.finish(|samples| self.writer.write_f32(samples))?;
        }

        if self.writer.len_samples() == 0 {
            return Err(AudioError::NoSamples);
        }
        self.writer.finish()
    }
}

fn resample_silence(
    resampler: &mut Resampler,
    mut frames: u64,
    write: &mut dyn FnMut(&[f32]) -> Result<(), AudioError>,
) -> Result<(), AudioError> {
    while frames > 0 {
        let now = frames.min(SILENCE_FRAMES as u64);
        resampler.push(&[0.0; SILENCE_FRAMES][..now as usize], &mut *write)?;
        frames -= now;
    }
    Ok(())
}
