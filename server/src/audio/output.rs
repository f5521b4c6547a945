//! Decoded buffers, whatever their form, on their way to one stretch of mono 16 kHz.

use symphonia::core::audio::{AudioSpec, GenericAudioBufferRef};

use super::AudioError;
use super::cuts::{CutFrames, Piece};
use super::headers::Cut;
use super::mix::Mixer;
use super::pcm::{Pcm, PcmWriter};
use super::resample::Resampler;

/// Changes of rate, channels or tracks in one file. Real files have a few; each costs a new filter.
pub(super) const MAX_CHANGES: usize = 256;
/// A damaged packet becomes silence of its length, so that what follows keeps its time; not longer than this.
const MAX_CONCEALED_SECONDS: f64 = 1.0;
/// Silence is made in pieces of so many frames.
const SILENCE_FRAMES: usize = 16_384;

pub(super) fn too_many_changes() -> AudioError {
    AudioError::Malformed { reason: format!("the audio changes its format more than {MAX_CHANGES} times") }
}

/// From decoded buffers to 16 kHz.
pub(super) struct Output {
    writer: PcmWriter,
    /// Of the buffers that come now.
    form: Option<(AudioSpec, Mixer, Resampler)>,
    changes: usize,
    seconds_before: f64,
    frames: u64,
    /// What the edit list of an MP4 shows, until the rate is known.
    listed_cuts: Vec<Cut>,
    cuts: CutFrames,
    interleaved: Vec<f32>,
    mono: Vec<f32>,
}

impl Output {
    pub(super) fn new(writer: PcmWriter) -> Self {
        Self {
            writer,
            form: None,
            changes: 0,
            seconds_before: 0.0,
            frames: 0,
            listed_cuts: Vec::new(),
            cuts: CutFrames::none(),
            interleaved: Vec::new(),
            mono: Vec::new(),
        }
    }

    /// For the stream that comes now.
    pub(super) fn show_only(&mut self, cuts: Vec<Cut>) {
        self.listed_cuts = cuts;
    }

    /// Whether what follows need not be decoded.
    pub(super) fn is_full(&self) -> bool {
        self.writer.is_full()
    }

    /// Seconds that were taken so far, hidden ones too.
    pub(super) fn position_seconds(&self) -> f64 {
        let here = self.form.as_ref().map_or(0.0, |(spec, ..)| self.frames as f64 / f64::from(spec.rate()));
        self.seconds_before + here
    }

    /// `silence_seconds`: what the container's clock leaves free before the buffer.
    pub(super) fn take(
        &mut self,
        buffer: &GenericAudioBufferRef<'_>,
        is_float_pcm: bool,
        silence_seconds: f64,
    ) -> Result<(), AudioError> {
        self.adapt(buffer.spec())?;
        self.silence(silence_seconds)?;
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

    /// Sends on what is in `mono`, as far as it is shown.
    fn push_mono(&mut self) -> Result<(), AudioError> {
        let Some((_, _, resampler)) = &mut self.form else { return Ok(()) };
        let mut give = |samples: &[f32]| self.writer.write_f32(samples);
        let mut rest = self.mono.as_slice();
        while let Some(piece) = self.cuts.next(rest.len() as u64) {
            match piece {
                // Both are at most as many as there are.
                Piece::Hidden(frames) => rest = &rest[frames as usize..],
                Piece::Shown(frames) => {
                    let (now, later) = rest.split_at(frames as usize);
                    resampler.push(now, &mut give)?;
                    rest = later;
                }
                Piece::Silence(frames) => push_silence(resampler, frames, &mut give)?,
            }
        }
        Ok(())
    }

    /// Silence in the place of what was lost. Before the first good packet the container's clock tells how much is missing.
    pub(super) fn conceal(&mut self, seconds: f64) -> Result<(), AudioError> {
        self.silence(seconds.clamp(0.0, MAX_CONCEALED_SECONDS))
    }

    fn silence(&mut self, seconds: f64) -> Result<(), AudioError> {
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

    /// Rate and channels may change in mid-stream: what came before is finished at its own rate.
    fn adapt(&mut self, spec: &AudioSpec) -> Result<(), AudioError> {
        if self.form.as_ref().is_some_and(|(current, _, _)| current == spec) {
            return Ok(());
        }
        self.changes += 1;
        if self.changes > MAX_CHANGES {
            return Err(too_many_changes());
        }
        if !self.listed_cuts.is_empty() {
            self.cuts = CutFrames::new(std::mem::take(&mut self.listed_cuts), spec.rate());
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

fn push_silence(
    resampler: &mut Resampler,
    mut frames: u64,
    give: &mut dyn FnMut(&[f32]) -> Result<(), AudioError>,
) -> Result<(), AudioError> {
    while frames > 0 {
        let now = frames.min(SILENCE_FRAMES as u64);
        resampler.push(&[0.0; SILENCE_FRAMES][..now as usize], &mut *give)?;
        frames -= now;
    }
    Ok(())
}
