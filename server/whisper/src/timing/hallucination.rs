//! Decides by the words of a window where the next one begins, and which text was hallucinated in silence:
//! `hallucination_silence_threshold` of the reference (`whisper/transcribe.py`).

use super::last_end;
use crate::task::{Segment, Word};

const FRAMES_PER_SECOND: f64 = crate::mel::FRAMES_PER_SECOND;
const WINDOW_SECONDS: f64 = crate::mel::WINDOW_FRAMES as f64 / FRAMES_PER_SECOND;
/// Words that are contained in this are ignored.
const MARKS: &str = "\"'“¿([{-\"'.。,，!！?？:：”)]}、";
/// How many words of a segment are judged.
const MAX_JUDGED_WORDS: usize = 8;
/// A segment that begins or ends this close to the edge of its window counts as next to silence, in seconds.
const EDGE_SECONDS: f64 = 2.0;

/// A window and its surroundings. Frames are mel frames of the recording, 10 ms each.
#[derive(Clone, Copy, Debug)]
pub struct JudgedWindow {
    pub seek: u64,
    pub size: u64,
    pub content_frames: u64,
    /// Whether the text ends with a single timestamp, after which nothing is said.
    pub is_finished: bool,
    /// The frame where the next window begins according to the timestamps.
    pub next: u64,
    /// End of the last word before this window, seconds.
    pub last_speech: f64,
    /// A suspicious segment next to more silence than this, in seconds, is a hallucination. `None`: all segments are kept.
    pub threshold: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowVerdict {
    /// The frame where the next window begins.
    pub next: u64,
    /// How many of the segments are kept; `None`: the window is discarded and decoding continues at `next`.
    pub kept: Option<usize>,
}

/// Judges the segments of a window, whose words must be known.
pub fn judge(segments: &[Segment], window: &JudgedWindow) -> WindowVerdict {
    let &JudgedWindow { seek, size, content_frames, is_finished, mut next, last_speech, threshold } = window;
    let offset = seek as f64 / FRAMES_PER_SECOND;
    let window_end = offset + WINDOW_SECONDS;
    let last_word = last_end(segments).filter(|end| !is_finished && *end > offset);

    if let Some(end) = last_word {
        let rest_is_short = threshold.is_some_and(|threshold| window_end - end <= threshold);
        next = if rest_is_short { seek + size } else { frame(end) };
    }

    let Some(threshold) = threshold else { return WindowVerdict { next, kept: Some(segments.len()) } };

    if let Some(first) = segments.iter().find(|segment| !segment.words.is_empty())
        && is_anomalous(first)
    {
        let gap = first.start_seconds - offset;
        if gap > threshold {
            return WindowVerdict { next: seek + frame(gap), kept: None };
        }
    }

    let mut last_end = last_speech;

    for (index, segment) in segments.iter().enumerate().filter(|(_, segment)| !segment.words.is_empty()) {
        if is_anomalous(segment) {
            let following = segments[index + 1..].iter().find(|segment| !segment.words.is_empty());
            let next_start = following
                .and_then(|following| following.words.first())
                .map_or(offset + size as f64 / FRAMES_PER_SECOND, |word| word.start_seconds);
            let silence_before = segment.start_seconds - last_end > threshold
                || segment.start_seconds < threshold
                || segment.start_seconds - offset < EDGE_SECONDS;
            let silence_after = next_start - segment.end_seconds > threshold
                || following.is_some_and(is_anomalous)
                || window_end - segment.end_seconds < EDGE_SECONDS;

            if silence_before && silence_after {
                let content_seconds = content_frames as f64 / FRAMES_PER_SECOND;
                let next = if content_seconds - segment.end_seconds < threshold {
                    content_frames
                } else {
                    frame(segment.start_seconds.max(offset + 1.0))
                };
                return WindowVerdict { next, kept: Some(index) };
            }
        }

        last_end = segment.end_seconds;
    }

    WindowVerdict { next, kept: Some(segments.len()) }
}

/// The frame of a time; halves are rounded to even, and negative times to 0.
fn frame(seconds: f64) -> u64 {
    (seconds * FRAMES_PER_SECOND).round_ties_even() as u64
}

/// Whether most of the segment's words are improbable, very short or very long.
fn is_anomalous(segment: &Segment) -> bool {
    let words: Vec<&Word> =
        segment.words.iter().filter(|word| !MARKS.contains(&word.text)).take(MAX_JUDGED_WORDS).collect();
    let score: f64 = words.iter().map(|word| anomaly_score(word)).sum();
    !segment.words.is_empty() && (score >= 3.0 || score + 0.01 >= words.len() as f64)
}

fn anomaly_score(word: &Word) -> f64 {
    let duration = word.end_seconds - word.start_seconds;
    let mut score = 0.0;
    if word.probability < 0.15 {
        score += 1.0;
    }

    if duration < 0.133 {
        score += (0.133 - duration) * 15.0;
    }

    if duration > 2.0 {
        score += duration - 2.0;
    }

    score
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(words: &[(f64, f64, f32)]) -> Segment {
        let words: Vec<Word> = words
            .iter()
            .map(|&(start_seconds, end_seconds, probability)| Word {
                text: " x".to_owned(),
                start_seconds,
                end_seconds,
                probability,
            })
            .collect();

        Segment {
            start_seconds: words.first().map_or(0.0, |word| word.start_seconds),
            end_seconds: words.last().map_or(0.0, |word| word.end_seconds),
            words,
            ..Segment::default()
        }
    }

    fn good(from: f64) -> Segment {
        segment(&[(from, from + 0.3, 0.9), (from + 0.3, from + 0.6, 0.9), (from + 0.6, from + 1.0, 0.9)])
    }

    fn strange(from: f64) -> Segment {
        segment(&[(from, from + 0.02, 0.1), (from + 0.02, from + 0.04, 0.1), (from + 0.04, from + 0.06, 0.05)])
    }

    fn window() -> JudgedWindow {
        JudgedWindow {
            seek: 3000,
            size: 3000,
            content_frames: 30_000,
            is_finished: true,
            next: 6000,
            last_speech: 29.0,
            threshold: Some(2.0),
        }
    }

    #[test]
    fn good_text_is_believed() {
        let segments = [good(31.0), good(34.0)];
        assert_eq!(judge(&segments, &window()), WindowVerdict { next: 6000, kept: Some(2) });

        // An unfinished text far from the end of the window: the next window begins at the last word.
        let unfinished = JudgedWindow { is_finished: false, ..window() };
        assert_eq!(judge(&segments, &unfinished), WindowVerdict { next: 3500, kept: Some(2) });

        // Near the end of the window the rest is skipped.
        let near_end = JudgedWindow { threshold: Some(26.0), ..unfinished };
        assert_eq!(judge(&segments, &near_end).next, 6000);
    }

    #[test]
    fn without_a_threshold_all_is_believed() {
        let segments = [strange(40.0)];
        let window = JudgedWindow { threshold: None, ..window() };
        assert_eq!(judge(&segments, &window), WindowVerdict { next: 6000, kept: Some(1) });
        assert_eq!(
            judge(&segments, &JudgedWindow { is_finished: false, ..window }),
            WindowVerdict { next: 4006, kept: Some(1) }
        );
    }

    #[test]
    fn silence_before_a_strange_first_segment_is_skipped() {
        let segments = [strange(40.0), good(45.0)];
        assert_eq!(judge(&segments, &window()), WindowVerdict { next: 4000, kept: None });
    }

    #[test]
    fn strange_text_between_silences_is_dropped() {
        let segments = [good(30.5), strange(40.0), good(50.0)];
        assert_eq!(judge(&segments, &window()), WindowVerdict { next: 4000, kept: Some(1) });
        // A window that begins with the segment, without a gap before it: at least a second is skipped.
        assert_eq!(judge(&[strange(30.5)], &window()), WindowVerdict { next: 3100, kept: Some(0) });
    }

    #[test]
    fn strange_text_beside_speech_stays() {
        let segments = [good(38.0), strange(39.2), good(40.0)];
        assert_eq!(judge(&segments, &window()), WindowVerdict { next: 6000, kept: Some(3) });
    }

    #[test]
    fn strange_text_at_the_end_ends_the_recording() {
        let end = JudgedWindow { content_frames: 6050, ..window() };
        assert_eq!(judge(&[good(30.5), strange(59.5)], &end), WindowVerdict { next: 6050, kept: Some(1) });
    }

    #[test]
    fn marks_alone_are_strange() {
        let mut marks = good(31.0);
        marks.words.iter_mut().for_each(|word| word.text = ".".to_owned());
        assert!(is_anomalous(&marks));
        assert!(!is_anomalous(&Segment::default()));
        assert!(!is_anomalous(&good(0.0)));
    }
}
