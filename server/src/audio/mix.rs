//! Channels to mono, as `ffmpeg -ac 1` does it (libswresample's `auto_matrix`).

use std::f32::consts::FRAC_1_SQRT_2;

use symphonia::core::audio::{ChannelLabel, Channels, Position};

/// One weight per channel, in the order of the interleaved samples; they add up to one.
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
            // Nobody says where these are: all alike.
            _ => vec![1.0; count],
        };
        let sum: f32 = weights.iter().sum();
        if sum == 0.0 {
            // Nothing but a subwoofer.
            weights = vec![1.0; count];
        }
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        (count > 0).then_some(Self { weights })
    }

    /// Appends one sample per frame of `interleaved`.
    pub(super) fn mix(&self, interleaved: &[f32], mono: &mut Vec<f32>) {
        match self.weights.as_slice() {
            // Mono stays as it is, to the bit.
            [_] => mono.extend_from_slice(interleaved),
            [left, right] => {
                let (frames, _) = interleaved.as_chunks::<2>();
                mono.extend(frames.iter().map(|frame| frame[0] * left + frame[1] * right));
            }
            weights => mono.extend(
                interleaved
                    .chunks_exact(weights.len())
                    .map(|frame| frame.iter().zip(weights).map(|(sample, weight)| sample * weight).sum::<f32>()),
            ),
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
}
