//! Mixes channels to mono as `ffmpeg -ac 1` does it (libswresample's `auto_matrix`).

use std::f32::consts::FRAC_1_SQRT_2;

use symphonia::core::audio::{ChannelLabel, Channels, Position};

/// One weight for each channel, in the order of the interleaved samples. The weights add up to one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct DownMix {
    weights: Vec<f32>,
}

impl DownMix {
    /// `None` without channels.
    pub(super) fn new(channels: &Channels) -> Option<Self> {
        let count = channels.count();
        let mut weights: Vec<f32> = match channels {
            Channels::Positioned(positions) => positions.iter().map(weight_of).collect(),
            Channels::Custom(labels) => labels
                .iter()
                .map(|label| match label {
                    ChannelLabel::Positioned(position) => weight_of(*position),
                    _ => 1.0,
                })
                .collect(),
            // Channels without positions have equal weights.
            _ => vec![1.0; count],
        };

        let sum: f32 = weights.iter().sum();
        if sum == 0.0 {
            // There is only a subwoofer.
            weights = vec![1.0; count];
        }

        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        (count > 0).then_some(Self { weights })
    }
}

/// Channels count as cancelling each other where the mix is quieter than its loudest channel by this ratio: -8 dB, which two
/// channels reach only where one is nearly the other one inverted. Uncorrelated channels stay above 0 dB.
const CANCELLED: f64 = 0.4;
/// Above this ratio the channels are mixed again.
const UNCANCELLED: f64 = 0.6;
/// Time constant of the levels.
const MEMORY_SECONDS: f64 = 0.25;
/// Below this level the relation of the channels is not evaluated.
const QUIET: f64 = 1e-4;
/// The levels are updated once for this many frames.
const UPDATE_FRAMES: usize = 1_024;
/// Length of the cross-fade between the mix and a single channel.
const FADE_SECONDS: f32 = 0.01;

/// Mixes, unless the channels cancel each other (one was recorded with swapped wires): then the loudest channel is the output.
#[derive(Clone, Debug)]
pub(super) struct Mixer {
    mix: DownMix,
    /// Logarithm of the share that the previous mean keeps per frame.
    decay: f64,
    /// Mean squares of the mix and of each channel with its weight.
    mixed: f64,
    channels: Vec<f64>,
    /// The channel that is the output instead of the mix.
    selected: Option<usize>,
    previous: Option<usize>,
    /// Share of the previous output during a cross-fade, and by how much it shrinks with each frame.
    fading: f32,
    fade_step: f32,
}

impl Mixer {
    /// `None` without channels.
    pub(super) fn new(channels: &Channels, hertz: u32) -> Option<Self> {
        let mix = DownMix::new(channels)?;
        let channels = vec![0.0; mix.weights.len()];
        let decay = -1.0 / (MEMORY_SECONDS * f64::from(hertz.max(1)));
        let fade_step = 1.0 / (FADE_SECONDS * hertz.max(1) as f32);
        Some(Self { mix, decay, mixed: 0.0, channels, selected: None, previous: None, fading: 0.0, fade_step })
    }

    /// Appends one sample per frame of `interleaved`.
    pub(super) fn mix(&mut self, interleaved: &[f32], mono: &mut Vec<f32>) {
        let count = self.channels.len();

        if count == 1 {
            // Mono is not changed, so it stays bit-exact.
            mono.extend_from_slice(interleaved);
            return;
        }

        for frames in interleaved.chunks(UPDATE_FRAMES * count) {
            let at = mono.len();
            match self.mix.weights.as_slice() {
                [left, right] => {
                    let (frames, _) = frames.as_chunks::<2>();
                    mono.extend(frames.iter().map(|frame| frame[0] * left + frame[1] * right));
                }
                weights => mono.extend(
                    frames
                        .chunks_exact(count)
                        .map(|frame| frame.iter().zip(weights).map(|(sample, weight)| sample * weight).sum::<f32>()),
                ),
            }

            self.update_levels(frames, &mono[at..]);
            if self.selected.is_some() || self.fading > 0.0 {
                self.apply_selection(frames, &mut mono[at..]);
            }
        }
    }

    /// Updates the levels, and selects the output.
    fn update_levels(&mut self, frames: &[f32], mixed: &[f32]) {
        if mixed.is_empty() {
            return;
        }
        let keep = (self.decay * mixed.len() as f64).exp();
        let mean = |square: f64| square / mixed.len() as f64;
        let square = |sample: f32| f64::from(sample * sample);
        self.mixed = keep * self.mixed + (1.0 - keep) * mean(mixed.iter().copied().map(square).sum());

        let count = self.channels.len();
        for (channel, (level, weight)) in self.channels.iter_mut().zip(&self.mix.weights).enumerate() {
            let sum: f64 = frames.chunks_exact(count).map(|frame| square(frame[channel] * weight)).sum();
            *level = keep * *level + (1.0 - keep) * mean(sum);
        }

        let Some((loudest, level)) = self.channels.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1))
        else {
            return;
        };

        if level.sqrt() < QUIET {
            return;
        }

        let ratio = (self.mixed / level).sqrt();
        let selected = match self.selected {
            None if ratio < CANCELLED => Some(loudest),
            // The selection does not alternate between channels of similar level.
            Some(current) if ratio < UNCANCELLED && self.channels[current] * 4.0 >= level => Some(current),
            Some(_) if ratio < UNCANCELLED => Some(loudest),
            _ => None,
        };

        if selected != self.selected {
            self.fading = 1.0;
            self.previous = self.selected;
            self.selected = selected;
        }
    }

    /// Replaces the mix by the selected channel, with cross-fades.
    fn apply_selection(&mut self, frames: &[f32], mono: &mut [f32]) {
        let count = self.channels.len();

        for (frame, sample) in frames.chunks_exact(count).zip(mono) {
            let value = |channel: Option<usize>| channel.map_or(*sample, |channel| frame[channel]);
            let selected = value(self.selected);
            *sample = if self.fading > 0.0 {
                let faded = selected + (value(self.previous) - selected) * self.fading;
                self.fading -= self.fade_step;
                faded
            } else {
                selected
            };
        }
    }
}

fn weight_of(position: Position) -> f32 {
    if position == Position::FRONT_CENTER {
        1.0
    } else if position == Position::LFE1 || position == Position::LFE2 {
        0.0
    } else if (Position::FRONT_LEFT
        | Position::FRONT_RIGHT
        | Position::FRONT_LEFT_CENTER
        | Position::FRONT_RIGHT_CENTER
        | Position::REAR_CENTER)
        .contains(position)
    {
        FRAC_1_SQRT_2
    } else {
        0.5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(channels: &Channels) -> Vec<f32> {
        DownMix::new(channels).unwrap().weights
    }

    #[test]

    fn weights_are_those_of_ffmpeg() {
        assert_eq!(weights(&Channels::Positioned(Position::FRONT_CENTER)), [1.0]);
        assert_eq!(weights(&Channels::Positioned(Position::FRONT_LEFT)), [1.0]);
        assert_eq!(weights(&Channels::Positioned(Position::LFE1)), [1.0]);
        assert_eq!(weights(&Channels::Positioned(Position::FRONT_LEFT | Position::FRONT_RIGHT)), [0.5, 0.5]);
        assert_eq!(weights(&Channels::Discrete(4)), [0.25; 4]);

        let surround = Position::FRONT_LEFT
            | Position::FRONT_RIGHT
            | Position::FRONT_CENTER
            | Position::LFE1
            | Position::SIDE_LEFT
            | Position::SIDE_RIGHT;
        // `ffmpeg -v debug -ac 1` prints these for 5.1(side): 0.207107 0.207107 0.292893 0 0.146447 0.146447.
        let expected = [0.207_107, 0.207_107, 0.292_893, 0.0, 0.146_447, 0.146_447];
        for (weight, expected) in weights(&Channels::Positioned(surround)).iter().zip(expected) {
            assert!((weight - expected).abs() < 1e-5, "{weight} {expected}");
        }

        assert_eq!(DownMix::new(&Channels::None), None);
        assert_eq!(DownMix::new(&Channels::Discrete(0)), None);
    }

    const HERTZ: u32 = 16_000;

    fn sine(at: usize, frequency: f32) -> f32 {
        (at as f32 * frequency * std::f32::consts::TAU / HERTZ as f32).sin()
    }

    /// The mix of two seconds of two channels.
    fn mixed(frame: impl Fn(usize) -> [f32; 2]) -> (Vec<f32>, Vec<f32>) {
        let stereo = Channels::Positioned(Position::FRONT_LEFT | Position::FRONT_RIGHT);
        let mut mixer = Mixer::new(&stereo, HERTZ).unwrap();
        let interleaved: Vec<f32> = (0..2 * HERTZ as usize).flat_map(frame).collect();

        let mut mono = Vec::new();
        // The pieces have odd lengths, as packets have.
        for piece in interleaved.chunks(2 * 777) {
            mixer.mix(piece, &mut mono);
        }

        (interleaved, mono)
    }

    fn rms(samples: &[f32]) -> f32 {
        (samples.iter().map(|sample| sample * sample).sum::<f32>() / samples.len() as f32).sqrt()
    }

    #[test]
    fn channels_that_cancel_out_leave_the_louder_one() {
        let (stereo, mono) = mixed(|at| [0.3 * sine(at, 440.0), -0.32 * sine(at, 440.0)]);
        let expected: Vec<f32> = stereo.chunks_exact(2).map(|frame| frame[1]).collect();
        assert_eq!(mono[HERTZ as usize..], expected[HERTZ as usize..]);
        assert!(rms(&mono[..1_000]) > 0.15, "from the start");
    }

    #[test]
    fn channels_that_differ_are_mixed_to_the_bit() {
        let frames: [fn(usize) -> [f32; 2]; 5] = [
            |at| [0.3 * sine(at, 440.0), 0.0],
            |at| [0.3 * sine(at, 440.0), 0.3 * sine(at, 440.0)],
            |at| [0.3 * sine(at, 440.0), 0.3 * sine(at, 523.0)],
            // Wide stereo, as in music.
            |at| [0.3 * sine(at, 440.0), -0.3 * sine(at, 440.0) + 0.3 * sine(at, 523.0)],
            |at| [1e-5 * sine(at, 440.0), -1e-5 * sine(at, 440.0)],
        ];
        for frame in frames {
            let (stereo, mono) = mixed(frame);
            let expected: Vec<f32> = stereo.chunks_exact(2).map(|frame| frame[0] * 0.5 + frame[1] * 0.5).collect();
            assert_eq!(mono, expected);
        }
    }

    #[test]
    fn the_output_changes_without_a_click() {
        // The second half is in phase again.
        let (_, mono) = mixed(|at| {
            let sign = if at < HERTZ as usize { -1.0 } else { 1.0 };
            [0.3 * sine(at, 100.0), sign * 0.3 * sine(at, 100.0)]
        });
        for half in mono.chunks_exact(HERTZ as usize) {
            assert!(rms(half) > 0.19, "{}", rms(half));
        }

        let step = mono.windows(2).map(|two| (two[1] - two[0]).abs()).fold(0.0, f32::max);
        // A sine of 100 Hz changes by 0.012 from one sample to the next.
        assert!(step < 0.025, "{step}");
    }
}
