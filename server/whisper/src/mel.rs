//! Log-mel spectrograms as openai/whisper computes them (`whisper/audio.py`), one window at a time.
//!
//! The reference limits the spectrogram of the **whole** recording to its loudest cell minus 8 before it splits it into
//! windows. To get the same values without holding the recording, [`Spectrogram::scan`] reads the samples once for that
//! maximum, and [`Spectrogram::window`] computes the frames of a window on demand.

use std::{io, sync::Arc};

use realfft::{RealFftPlanner, RealToComplex, num_complex::Complex};

use crate::task::PcmSource;

const N_FFT: usize = 400;
const HALF_FFT: usize = N_FFT / 2;
/// Samples per frame.
pub const HOP: usize = 160;
/// Frames in one window of 30 s.
pub const WINDOW_FRAMES: usize = 3000;
/// Samples in one window of 30 s.
pub const WINDOW_SAMPLES: usize = WINDOW_FRAMES * HOP;
pub const FRAMES_PER_SECOND: f64 = 100.0;
const FREQUENCIES: usize = HALF_FFT + 1;
/// Power below which a cell counts as silence.
const FLOOR: f32 = 1e-10;
/// Frames that are read and transformed at a time: limits the memory of the scan.
const CHUNK_FRAMES: usize = WINDOW_FRAMES;

/// One filter of the mel filter bank, without its zeros.
struct MelFilter {
    first: usize,
    weights: Vec<f32>,
}

/// Transforms samples to frames of `bins` logarithmic mel energies, not yet normalised. A clone can be used on another
/// thread; it shares the tables, which take as long to compute as the transform of a second of audio.
#[derive(Clone)]
pub struct LogMel {
    bins: usize,
    filters: Arc<[MelFilter]>,
    hann: Arc<[f32]>,
    fft: Arc<dyn RealToComplex<f32>>,
    input: Vec<f32>,
    spectrum: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
    power: Vec<f32>,
}

impl LogMel {
    pub fn new(bins: usize) -> Self {
        let fft = RealFftPlanner::<f32>::new().plan_fft_forward(N_FFT);
        let hann = (0..N_FFT)
            .map(|i| (0.5 - 0.5 * (2.0 * std::f64::consts::PI * i as f64 / N_FFT as f64).cos()) as f32)
            .collect();

        Self {
            bins,
            filters: mel_filters(bins).into(),
            hann,
            input: fft.make_input_vec(),
            spectrum: fft.make_output_vec(),
            scratch: fft.make_scratch_vec(),
            power: vec![0.0; FREQUENCIES],
            fft,
        }
    }

    pub fn bins(&self) -> usize {
        self.bins
    }

    /// Frame `i` covers `samples[i * HOP..][..N_FFT]`; `out` contains frame after frame.
    fn frames(&mut self, samples: &[f32], out: &mut [f32]) {
        for (frame, cells) in out.chunks_exact_mut(self.bins).enumerate() {
            let covered = &samples[frame * HOP..][..N_FFT];
            for ((into, sample), weight) in self.input.iter_mut().zip(covered).zip(&*self.hann) {
                *into = sample * weight;
            }

            // The transform checks only the lengths, which are those of its plan.
            let transformed =
                self.fft.process_with_scratch(&mut self.input, &mut self.spectrum, &mut self.scratch).is_ok();
            debug_assert!(transformed);
            for (power, value) in self.power.iter_mut().zip(&self.spectrum) {
                *power = value.norm_sqr();
            }

            for (cell, filter) in cells.iter_mut().zip(&*self.filters) {
                let powers = &self.power[filter.first..][..filter.weights.len()];
                let energy: f32 = powers.iter().zip(&filter.weights).map(|(power, weight)| power * weight).sum();
                *cell = energy.clamp(FLOOR, f32::MAX).log10();
            }
        }
    }
}

/// The filter bank of `librosa.filters.mel(sr=16000, n_fft=400, n_mels=bins)`: triangles that are evenly spaced on the
/// Slaney mel scale, each of the same area.
fn mel_filters(bins: usize) -> Vec<MelFilter> {
    let top = hz_to_mel(f64::from(crate::SAMPLE_RATE) / 2.0);
    let edges: Vec<f64> = (0..bins + 2).map(|i| mel_to_hz(top * i as f64 / (bins + 1) as f64)).collect();
    let hz = |k: usize| k as f64 * f64::from(crate::SAMPLE_RATE) / N_FFT as f64;

    edges
        .windows(3)
        .map(|edge| {
            let weight = |k: usize| {
                let rising = (hz(k) - edge[0]) / (edge[1] - edge[0]);
                let falling = (edge[2] - hz(k)) / (edge[2] - edge[1]);
                let triangle = rising.min(falling).max(0.0) as f32;
                (f64::from(triangle) * 2.0 / (edge[2] - edge[0])) as f32
            };
            let first = (0..FREQUENCIES).find(|k| weight(*k) > 0.0).unwrap_or(0);
            let weights = (first..FREQUENCIES).map(weight).take_while(|w| *w > 0.0).collect();
            MelFilter { first, weights }
        })
        .collect()
}

const MEL_HZ: f64 = 200.0 / 3.0;
const LOG_START_HZ: f64 = 1000.0;
const LOG_START_MEL: f64 = LOG_START_HZ / MEL_HZ;

fn log_step() -> f64 {
    6.4_f64.ln() / 27.0
}

fn hz_to_mel(hz: f64) -> f64 {
    if hz < LOG_START_HZ { hz / MEL_HZ } else { LOG_START_MEL + (hz / LOG_START_HZ).ln() / log_step() }
}

fn mel_to_hz(mel: f64) -> f64 {
    if mel < LOG_START_MEL { mel * MEL_HZ } else { LOG_START_HZ * (log_step() * (mel - LOG_START_MEL)).exp() }
}

/// Why a spectrogram could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("reading the audio failed: {0}")]
    Source(#[from] io::Error),
    #[error("cancelled")]
    Cancelled,
}

/// Normalised log-mel windows of a recording.
pub struct Spectrogram<'a> {
    source: &'a mut dyn PcmSource,
    mel: &'a mut LogMel,
    /// Samples with audio; the following samples up to `padded` are silence.
    audible: u64,
    padded: u64,
    /// Loudest cell of the whole recording.
    peak: f32,
    /// Frames from 0, not normalised: the first window is needed right after the scan.
    first_frames: Vec<f32>,
    samples: Vec<f32>,
    frames: Vec<f32>,
}

impl<'a> Spectrogram<'a> {
    /// The whole recording followed by 30 s of silence, like in `transcribe` of the reference.
    pub fn scan(
        source: &'a mut dyn PcmSource,
        mel: &'a mut LogMel,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Self, ScanError> {
        let audible = source.len();
        Self::scan_padded(source, mel, audible, audible + WINDOW_SAMPLES as u64, keep_going)
    }

    /// The first 30 s, cut or filled with silence, like in `log_mel_spectrogram(pad_or_trim(audio))`.
    pub fn scan_start(
        source: &'a mut dyn PcmSource,
        mel: &'a mut LogMel,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Self, ScanError> {
        let audible = source.len().min(WINDOW_SAMPLES as u64);
        Self::scan_padded(source, mel, audible, WINDOW_SAMPLES as u64, keep_going)
    }

    fn scan_padded(
        source: &'a mut dyn PcmSource,
        mel: &'a mut LogMel,
        audible: u64,
        padded: u64,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Self, ScanError> {
        let mut spectrogram = Self {
            source,
            mel,
            audible,
            padded,
            peak: FLOOR.log10(),
            first_frames: Vec::new(),
            samples: Vec::new(),
            frames: Vec::new(),
        };

        // Frames that cover only silence have the floor's energy, with which the peak is initialised.
        let audible_frames = (audible + HALF_FFT as u64).div_ceil(HOP as u64).min(padded / HOP as u64);
        let mut at = 0;

        while at < audible_frames {
            if !keep_going() {
                return Err(ScanError::Cancelled);
            }

            let count = (audible_frames - at).min(CHUNK_FRAMES as u64) as usize;
            let mut frames = std::mem::take(&mut spectrogram.frames);
            spectrogram.raw_frames(at, count, &mut frames)?;
            spectrogram.peak = frames.iter().copied().fold(spectrogram.peak, f32::max);

            if at == 0 {
                spectrogram.first_frames = frames;
            } else {
                spectrogram.frames = frames;
            }

            at += count as u64;
        }

        Ok(spectrogram)
    }

    /// Frames of audio, without the silence after it.
    pub fn content_frames(&self) -> u64 {
        self.audible / HOP as u64
    }

    /// The samples of `count` frames from `seek`; silence after the recording.
    pub fn samples(&mut self, seek: u64, count: usize) -> io::Result<Vec<f32>> {
        let mut samples = vec![0.0; count * HOP];
        self.read(seek * HOP as u64, &mut samples)?;
        Ok(samples)
    }

    /// Fills `out`, `[bins, frames]`: `count` frames from `seek`, then zeros.
    pub fn window(&mut self, seek: u64, count: usize, out: &mut [f32]) -> io::Result<()> {
        let bins = self.mel.bins;
        let width = (out.len() / bins).max(1);
        let available = (self.padded / HOP as u64).saturating_sub(seek).min(count.min(width) as u64) as usize;
        let mut computed = std::mem::take(&mut self.frames);

        if seek > 0 {
            self.raw_frames(seek, available, &mut computed)?;
        }

        // The scan has stored the first window, without the silence after a shorter recording.
        let frames = if seek == 0 { &self.first_frames } else { &computed };
        let stored = (frames.len() / bins).min(available);
        let floor = self.peak - 8.0;
        let silence = (FLOOR.log10().max(floor) + 4.0) / 4.0;

        for (bin, row) in out.chunks_exact_mut(width).enumerate() {
            let cells = frames[..stored * bins].iter().skip(bin).step_by(bins);
            for (into, cell) in row.iter_mut().zip(cells) {
                *into = (cell.max(floor) + 4.0) / 4.0;
            }
            row[stored..available].fill(silence);
            row[available..].fill(0.0);
        }

        self.frames = computed;

        Ok(())
    }

    /// Computes `count` frames from `first`, frame after frame, not normalised.
    fn raw_frames(&mut self, first: u64, count: usize, frames: &mut Vec<f32>) -> io::Result<()> {
        frames.clear();
        frames.resize(count * self.mel.bins, 0.0);
        if count == 0 {
            return Ok(());
        }

        let mut samples = std::mem::take(&mut self.samples);
        samples.clear();
        samples.resize((count - 1) * HOP + N_FFT, 0.0);
        self.fill(first as i64 * HOP as i64 - HALF_FFT as i64, &mut samples)?;
        self.mel.frames(&samples, frames);
        self.samples = samples;

        Ok(())
    }

    /// Reads samples from `start`, which may be before the recording: both ends are mirrored, like in `torch.stft`.
    fn fill(&mut self, start: i64, out: &mut [f32]) -> io::Result<()> {
        let padded = self.padded as i64;
        let before = (-start).clamp(0, out.len() as i64) as usize;
        let inside = (padded - start).clamp(0, out.len() as i64) as usize;
        let (head, rest) = out.split_at_mut(before);
        let (body, tail) = rest.split_at_mut(inside.saturating_sub(before));

        self.read(start.max(0) as u64, body)?;

        if !head.is_empty() {
            // Samples -n..0 are samples n..0.
            self.read((-start) as u64 + 1 - head.len() as u64, head)?;
            head.reverse();
        }

        if !tail.is_empty() {
            let count = tail.len() as u64;
            let first = start + (before + body.len()) as i64;

            // Sample padded + n is sample padded - 2 - n.
            let mirrored = 2 * (padded - 1) - first;
            self.read((mirrored + 1) as u64 - count, tail)?;
            tail.reverse();
        }

        Ok(())
    }

    fn read(&mut self, offset: u64, out: &mut [f32]) -> io::Result<()> {
        let audible = self.audible.saturating_sub(offset).min(out.len() as u64) as usize;
        let (sound, silence) = out.split_at_mut(audible);
        if !sound.is_empty() {
            self.source.read(offset, sound)?;
            for sample in sound.iter_mut().filter(|sample| !sample.is_finite()) {
                *sample = 0.0;
            }
        }

        silence.fill(0.0);

        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(samples: usize) -> Vec<f32> {
        (0..samples).map(|i| 0.3 * (i as f32 * 0.05).sin() * ((i / 7000) % 3) as f32 / 2.0).collect()
    }

    /// The spectrogram implemented in the simplest way: everything in memory.
    fn whole(audio: &[f32], padded: usize, bins: usize) -> (usize, Vec<f32>) {
        let mut signal = audio.to_vec();
        signal.resize(padded, 0.0);
        let mirrored: Vec<f32> = (1..=HALF_FFT)
            .rev()
            .map(|i| signal[i])
            .chain(signal.iter().copied())
            .chain((0..HALF_FFT).map(|i| signal[padded - 2 - i]))
            .collect();

        let count = padded / HOP;
        let mut frames = vec![0.0; count * bins];

        LogMel::new(bins).frames(&mirrored, &mut frames);
        let peak = frames.iter().copied().fold(f32::MIN, f32::max);
        for cell in &mut frames {
            *cell = (cell.max(peak - 8.0) + 4.0) / 4.0;
        }

        (count, frames)
    }

    fn assert_window(spectrogram: &mut Spectrogram, all: &[f32], bins: usize, seek: usize, count: usize) {
        for width in [WINDOW_FRAMES, 1_200] {
            let mut out = vec![f32::NAN; bins * width];
            spectrogram.window(seek as u64, count, &mut out).unwrap();

            for bin in 0..bins {
                for frame in 0..width {
                    let expected = if frame < count { all[(seek + frame) * bins + bin] } else { 0.0 };
                    assert_eq!(out[bin * width + frame], expected, "bin {bin} frame {frame} of {seek}+{count}");
                }
            }
        }
    }

    #[test]
    fn windows_are_cuts_of_the_whole_spectrogram() {
        for samples in [16_000 * 70 + 77, 16_000 * 5 + 3, 200, 161] {
            let mut audio = tone(samples);
            let (_, all) = whole(&audio, samples + WINDOW_SAMPLES, 80);
            let mut mel = LogMel::new(80);
            let mut spectrogram = Spectrogram::scan(&mut audio, &mut mel, &mut || true).unwrap();
            let content = spectrogram.content_frames() as usize;

            assert_eq!(content, samples / HOP);

            for seek in [0, 1, 17, 2999, 3000, 5000, content.saturating_sub(3)] {
                if seek < content {
                    assert_window(&mut spectrogram, &all, 80, seek, (content - seek).min(WINDOW_FRAMES));
                    assert_window(&mut spectrogram, &all, 80, seek, 3000.min(content + 3000 - seek));
                }
            }
        }
    }

    #[test]
    fn the_start_is_mirrored_at_thirty_seconds() {
        for samples in [16_000 * 31, WINDOW_SAMPLES, 16_000 * 3] {
            let mut audio = tone(samples);
            let kept = &audio[..samples.min(WINDOW_SAMPLES)];
            let (count, all) = whole(kept, WINDOW_SAMPLES, 128);
            let mut mel = LogMel::new(128);
            let mut spectrogram = Spectrogram::scan_start(&mut audio, &mut mel, &mut || true).unwrap();
            assert_window(&mut spectrogram, &all, 128, 0, count);
        }
    }

    #[test]
    fn nothing_and_nonsense_do_no_harm() {
        let mut mel = LogMel::new(80);
        let mut out = vec![f32::NAN; 80 * WINDOW_FRAMES];
        let mut nothing: Vec<f32> = Vec::new();
        let mut spectrogram = Spectrogram::scan(&mut nothing, &mut mel, &mut || true).unwrap();

        assert_eq!(spectrogram.content_frames(), 0);

        spectrogram.window(0, 3000, &mut out).unwrap();
        assert!(out.iter().all(|cell| *cell == -1.5));

        let mut wild = [f32::NAN, f32::INFINITY, f32::MAX, -1.0, 0.5, f32::MIN].repeat(1000);
        let mut spectrogram = Spectrogram::scan(&mut wild, &mut mel, &mut || true).unwrap();
        spectrogram.window(0, 37, &mut out).unwrap();

        assert!(out.iter().all(|cell| cell.is_finite()));
    }

    #[test]
    fn a_scan_can_be_stopped() {
        let mut audio = tone(16_000 * 70);
        let mut mel = LogMel::new(80);
        let mut asked = 0;
        let stopped = Spectrogram::scan(&mut audio, &mut mel, &mut || {
            asked += 1;
            asked < 2
        });
        assert!(matches!(stopped, Err(ScanError::Cancelled)));
    }
}
