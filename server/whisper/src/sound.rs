//! Checks whether a window has any sound. For silence a model writes the most frequent texts of its training ("you",
//! "Thank you."), so that silence is not decoded.

use crate::mel::HOP;

/// The loudness of the last two of 16 bits: what a decoder or a dither leaves of digital silence.
const QUIET: f32 = 3.0 / 32_768.0;
/// A window with fewer frames of sound has no speech: 0.2 s.
const MIN_SOUND_FRAMES: usize = 20;
/// Sound that stops this many frames before the end of a window does not continue in the next one.
const PAUSE_FRAMES: usize = 50;

/// The model places the start of the text at most a second after the start of the window, however long the silence is. A
/// window with at least this many frames of silence first is decoded from shortly before the sound instead.
const LATE_FRAMES: usize = 150;
const LEAD_FRAMES: usize = 10;

/// How to continue with a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WindowSound {
    Audible,
    /// The first so many frames have no sound.
    Skip(usize),
}

/// Looks for sound in the samples of a window. `is_last`: no window follows.
pub(crate) fn classify(samples: &[f32], is_last: bool) -> WindowSound {
    let sounding: Vec<usize> = samples
        .chunks(HOP)
        .enumerate()
        .filter(|(_, frame)| frame.iter().any(|sample| sample.abs() > QUIET))
        .map(|(index, _)| index)
        .collect();

    if sounding.len() >= MIN_SOUND_FRAMES {
        return match sounding.first() {
            Some(first) if *first >= LATE_FRAMES => WindowSound::Skip(first - LEAD_FRAMES),
            _ => WindowSound::Audible,
        };
    }

    let frames = samples.len().div_ceil(HOP);

    // A word that has just begun is decoded with the next window.
    let run = sounding.windows(2).rposition(|two| two[1] - two[0] > PAUSE_FRAMES).map_or(0, |at| at + 1);
    let continues = sounding.last().is_some_and(|last| last + PAUSE_FRAMES >= frames);

    match sounding.get(run) {
        Some(start) if !is_last && continues && *start > 0 => WindowSound::Skip(*start),
        _ => WindowSound::Skip(frames),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A window of 30 s with sound in these frames.
    fn window(sounding: impl IntoIterator<Item = usize>) -> Vec<f32> {
        let mut samples = vec![1.0 / 32_768.0; 3_000 * HOP];
        for frame in sounding {
            samples[frame * HOP + 7] = -0.01;
        }
        samples
    }

    #[test]
    fn silence_is_skipped() {
        assert_eq!(classify(&window([]), false), WindowSound::Skip(3_000));
        assert_eq!(classify(&[], true), WindowSound::Skip(0));
        assert_eq!(classify(&[0.5; 3 * HOP], true), WindowSound::Skip(3));
    }

    #[test]
    fn some_sound_is_audible() {
        assert_eq!(classify(&window(140..160), false), WindowSound::Audible);
        assert_eq!(classify(&window(150..170), false), WindowSound::Skip(140));
        assert_eq!(classify(&[0.5; 20 * HOP], true), WindowSound::Audible);

        // A click, or two.
        assert_eq!(classify(&window([5, 6, 1_500]), false), WindowSound::Skip(3_000));
    }

    #[test]
    fn a_word_that_begins_at_the_end_is_left_to_the_next_window() {
        assert_eq!(classify(&window(2_990..3_000), false), WindowSound::Skip(2_990));
        assert_eq!(classify(&window([3, 4].into_iter().chain(2_985..2_999)), false), WindowSound::Skip(2_985));
        assert_eq!(classify(&window(2_990..3_000), true), WindowSound::Skip(3_000));
    }
}
