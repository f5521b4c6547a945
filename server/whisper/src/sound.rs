//! Whether there is anything to hear in a window at all. A model that is given silence writes what it saw most often in its
//! training ("you", "Thank you."), so it is not asked.

use crate::mel::HOP;

/// As loud as the last two bits of 16: what a decoder or a dither leaves of digital silence.
const QUIET: f32 = 3.0 / 32_768.0;
/// Frames of sound without which nothing is said: 0.2 s.
const LEAST_FRAMES: usize = 20;
/// Sound that stops so many frames before the end of a window does not go on behind it.
const PAUSE_FRAMES: usize = 50;

/// The first time of a window's text is at most a second behind its start, whatever silence there is: a window that begins
/// with so much more is begun later, so near to the sound.
const LATE_FRAMES: usize = 150;
const LEAD_FRAMES: usize = 10;

/// What to do with a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hearing {
    Worthwhile,
    /// There is nothing in these frames from its start on.
    Skip(usize),
}

/// Looks at the samples of a window. `is_last`: nothing comes behind it.
pub(crate) fn look(samples: &[f32], is_last: bool) -> Hearing {
    let sounding: Vec<usize> = samples
        .chunks(HOP)
        .enumerate()
        .filter(|(_, frame)| frame.iter().any(|sample| sample.abs() > QUIET))
        .map(|(index, _)| index)
        .collect();

    if sounding.len() >= LEAST_FRAMES {
        return match sounding.first() {
            Some(first) if *first >= LATE_FRAMES => Hearing::Skip(first - LEAD_FRAMES),
            _ => Hearing::Worthwhile,
        };
    }

    let frames = samples.len().div_ceil(HOP);

    // A word that has just begun is heard with the next window.
    let run = sounding.windows(2).rposition(|two| two[1] - two[0] > PAUSE_FRAMES).map_or(0, |at| at + 1);
    let goes_on = sounding.last().is_some_and(|last| last + PAUSE_FRAMES >= frames);

    match sounding.get(run) {
        Some(start) if !is_last && goes_on && *start > 0 => Hearing::Skip(*start),
        _ => Hearing::Skip(frames),
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
        assert_eq!(look(&window([]), false), Hearing::Skip(3_000));
        assert_eq!(look(&[], true), Hearing::Skip(0));
        assert_eq!(look(&[0.5; 3 * HOP], true), Hearing::Skip(3));
    }

    #[test]
    fn some_sound_is_heard() {
        assert_eq!(look(&window(140..160), false), Hearing::Worthwhile);
        assert_eq!(look(&window(150..170), false), Hearing::Skip(140));
        assert_eq!(look(&[0.5; 20 * HOP], true), Hearing::Worthwhile);

        // A click, or two.
        assert_eq!(look(&window([5, 6, 1_500]), false), Hearing::Skip(3_000));
    }

    #[test]
    fn a_word_that_begins_at_the_end_is_left_to_the_next_window() {
        assert_eq!(look(&window(2_990..3_000), false), Hearing::Skip(2_990));
        assert_eq!(look(&window([3, 4].into_iter().chain(2_985..2_999)), false), Hearing::Skip(2_985));
        assert_eq!(look(&window(2_990..3_000), true), Hearing::Skip(3_000));
    }
}
