//! Decoded buffers, whatever their form, on their way to one stretch of mono 16 kHz.

use symphonia::core::audio::{AudioSpec, GenericAudioBufferRef};

use super::AudioError;
use super::headers::Edit;
use super::mix::DownMix;
use super::pcm::{Pcm, PcmWriter};
use super::resample::Resampler;

/// Changes of rate, channels or tracks in one file. Real files have a few; each costs a new filter.
pub(super) const MAX_CHANGES: usize = 256;
/// A damaged packet becomes silence of its length, so that what follows keeps its time; not longer than this.
const MAX_CONCEALED_SECONDS: f64 = 1.0;

pub(super) fn too_many_changes() -> AudioError {
    AudioError::Malformed { reason: format!("the audio changes its format more than {MAX_CHANGES} times") }
}

/// From decoded buffers to 16 kHz.
pub(super) struct Output {
    writer: PcmWriter,
    /// Of the buffers that come now.
    form: Option<(AudioSpec, DownMix, Resampler)>,
    changes: usize,
    seconds_before: f64,
    frames: u64,
    edit: Option<Edit>,
    /// What the edit of an MP4 hides at the start and shows after that, in frames, once the rate is known.
    hidden: u64,
    shown: u64,
    interleaved: Vec<f32>,
    mono: Vec<f32>,
}

impl Output {
    pub(super) fn new(writer: PcmWriter, edit: Option<Edit>) -> Self {
        Self {
            writer,
            form: None,
            changes: 0,
            seconds_before: 0.0,
            frames: 0,
            edit,
            hidden: 0,
            shown: u64::MAX,
            interleaved: Vec::new(),
            mono: Vec::new(),
        }
    }

    pub(super) fn take(&mut self, buffer: &GenericAudioBufferRef<'_>, is_float_pcm: bool) -> Result<(), AudioError> {
        self.adapt(buffer.spec())?;
        let Some((spec, mix, _)) = &mut self.form else { return Ok(()) };
        let channels = spec.channels().count();
        buffer.copy_to_vec_interleaved::<f32>(&mut self.interleaved);
        // All of them are looked at first: without a way out in the middle that is many at a time.
        let any_wrong = self.interleaved.iter().fold(false, |wrong, sample| wrong | !sample.is_finite());
        if any_wrong && let Some(at) = self.interleaved.iter().position(|sample| !sample.is_finite()) {
            if is_float_pcm {
                let frames = self.frames + (at / channels) as u64;
                let seconds = self.seconds_before + frames as f64 / f64::from(spec.rate());
                return Err(AudioError::NonFinite { seconds });
            }
            // A lossy decoder that ran over on a damaged packet.
            self.interleaved.iter_mut().filter(|sample| !sample.is_finite()).for_each(|sample| *sample = 0.0);
        }
        self.frames += (self.interleaved.len() / channels) as u64;
        self.mono.clear();
        mix.mix(&self.interleaved, &mut self.mono);
        self.push_mono()
    }

    /// Sends on what is in `mono`, as far as the edit shows it.
    fn push_mono(&mut self) -> Result<(), AudioError> {
        let Some((_, _, resampler)) = &mut self.form else { return Ok(()) };
        let len = self.mono.len() as u64;
        let hidden = self.hidden.min(len);
        let shown = self.shown.min(len - hidden);
        self.hidden -= hidden;
        self.shown -= shown;
        // Both fit: they are parts of a length.
        let samples = &self.mono[hidden as usize..(hidden + shown) as usize];
        resampler.push(samples, |samples| self.writer.write_f32(samples))
    }

    /// Silence in the place of what was lost. Before the first good packet there is nothing to keep in time.
    pub(super) fn conceal(&mut self, seconds: f64) -> Result<(), AudioError> {
        let Some((_, _, resampler)) = &mut self.form else { return Ok(()) };
        let frames = (seconds.clamp(0.0, MAX_CONCEALED_SECONDS) * f64::from(resampler.hertz())).round() as usize;
        self.frames += frames as u64;
        self.mono.clear();
        self.mono.resize(frames, 0.0);
        self.push_mono()
    }

    /// Rate and channels may change in mid-stream: what came before is finished at its own rate.
    fn adapt(&mut self, spec: &AudioSpec) -> Result<(), AudioError> {
        if self.form.as_ref().is_some_and(|(current, _, _)| current == spec) {
            return Ok(());
        }
        self.changes += 1;
        if self.changes > MAX_CHANGES {
            return Err(too_many_changes());
        }
        if let Some(edit) = self.edit.take() {
            let rate = f64::from(spec.rate());
            self.hidden = (edit.skip_seconds * rate).round() as u64;
            self.shown = edit.keep_seconds.map_or(u64::MAX, |seconds| (seconds * rate).round() as u64);
        }
        let mix = DownMix::new(spec.channels()).ok_or(AudioError::ZeroChannels)?;
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
