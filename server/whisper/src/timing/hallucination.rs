//! What the words of a window say of where the next one begins, and of text that was made up where nobody speaks:
//! `hallucination_silence_threshold` of the reference (`whisper/transcribe.py`).

use super::last_end;
use crate::task::{Segment, Word};

const FRAMES_PER_SECOND: f64 = crate::mel::FRAMES_PER_SECOND;
const WINDOW_SECONDS: f64 = crate::mel::WINDOW_FRAMES as f64 / FRAMES_PER_SECOND;
/// Words that are a part of this are not looked at.
const MARKS: &str = "\"'“¿([{-\"'.。,，!！?？:：”)]}、";
/// Words of a segment that are looked at.
const WORDS_JUDGED: usize = 8;
/// A segment that begins or ends so near to the edge of its window counts as standing beside silence, seconds.
const EDGE_SECONDS: f64 = 2.0;

/// A window and what is around it. Frames are mel frames of the recording, 10 ms each.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    pub seek: u64,
    pub size: u64,
    pub content_frames: u64,
    /// Whether the text ends with a single timestamp: nothing is said behind it.
    pub finished: bool,
    /// Where the next window begins, as far as timestamps say.
    pub next: u64,
    /// Where the last word before this window ended, seconds.
    pub last_speech: f64,
    /// Silence longer than this beside a suspicious segment makes it a hallucination, seconds. `None`: all is believed.
    pub threshold: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Where the next window begins.
    pub next: u64,
    /// How many of the segments are believed; `None`: the window is heard again from `next`, and nothing of it counts.
    pub keep: Option<usize>,
}

/// Judges the segments of a window, which have their words already.
pub fn judge(segments: &[Segment], heard: &Heard) -> Verdict {
    let &Heard { seek, size, content_frames, finished, mut next, last_speech, threshold } = heard;
    let offset = seek as f64 / FRAMES_PER_SECOND;
    let window_end = offset + WINDOW_SECONDS;
    let last_word = last_end(segments).filter(|end| !finished && *end > offset);

    if let Some(end) = last_word {
        let rest_is_short = threshold.is_some_and(|threshold| window_end - end <= threshold);
        next = if rest_is_short { seek + size } else { frame(end) };
    }

    let Some(threshold) = threshold else { return Verdict { next, keep: Some(segments.len()) } };

    if let Some(first) = segments.iter().find(|segment| !segment.words.is_empty())
        && is_anomalous(first)
    {
        let gap = first.start_seconds - offset;
        if gap > threshold {
            return Verdict { next: seek + frame(gap), keep: None };
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
                return Verdict { next, keep: Some(index) };
            }
        }

        last_end = segment.end_seconds;
    }

    Verdict { next, keep: Some(segments.len()) }
}

/// The frame of a time, of two equally near ones the even.
fn frame(seconds: f64) -> u64 {
    // Negative times become 0.
    (seconds * FRAMES_PER_SECOND).round_ties_even() as u64
}

/// Whether most of its words are improbable, very short or very long.
fn is_anomalous(segment: &Segment) -> bool {
    let words: Vec<&Word> =
        segment.words.iter().filter(|word| !MARKS.contains(&word.text)).take(WORDS_JUDGED).collect();
    let score: f64 = words.iter().map(|word| strangeness(word)).sum();
    !segment.words.is_empty() && (score >= 3.0 || score + 0.01 >= words.len() as f64)
}

fn strangeness(word: &Word) -> f64 {
    let lasts = word.end_seconds - word.start_seconds;
    let mut score = 0.0;
    if word.probability < 0.15 {
        score += 1.0;
    }

    if lasts < 0.133 {
        score += (0.133 - lasts) * 15.0;
    }

    if lasts > 2.0 {
        score += lasts - 2.0;
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

    fn heard() -> Heard {
        Heard {
            seek: 3000,
            size: 3000,
            content_frames: 30_000,
            finished: true,
            next: 6000,
            last_speech: 29.0,
            threshold: Some(2.0),
        }
    }

    #[test]
    fn good_text_is_believed() {
        let segments = [good(31.0), good(34.0)];
        assert_eq!(judge(&segments, &heard()), Verdict { next: 6000, keep: Some(2) });

        // Unfinished and far from the end of the window: on from the last word.
        let unfinished = Heard { finished: false, ..heard() };
        assert_eq!(judge(&segments, &unfinished), Verdict { next: 3500, keep: Some(2) });

        // Near the end of the window there is nothing left to hear in it.
        let unfinished = Heard { threshold: Some(26.0), ..unfinished };
        assert_eq!(judge(&segments, &unfinished).next, 6000);
    }

    #[test]
    fn without_a_threshold_all_is_believed() {
        let segments = [strange(40.0)];
        let heard = Heard { threshold: None, ..heard() };
        assert_eq!(judge(&segments, &heard), Verdict { next: 6000, keep: Some(1) });
        assert_eq!(judge(&segments, &Heard { finished: false, ..heard }), Verdict { next: 4006, keep: Some(1) });
    }

    #[test]
    fn silence_before_a_strange_first_segment_is_skipped() {
        let segments = [strange(40.0), good(45.0)];
        assert_eq!(judge(&segments, &heard()), Verdict { next: 4000, keep: None });
    }

    #[test]
    fn strange_text_between_silences_is_dropped() {
        let segments = [good(30.5), strange(40.0), good(50.0)];
        assert_eq!(judge(&segments, &heard()), Verdict { next: 4000, keep: Some(1) });
        // The first segment itself, without a gap before it: at least a second is skipped.
        assert_eq!(judge(&[strange(30.5)], &heard()), Verdict { next: 3100, keep: Some(0) });
    }

    #[test]
    fn strange_text_beside_speech_stays() {
        let segments = [good(38.0), strange(39.2), good(40.0)];
        assert_eq!(judge(&segments, &heard()), Verdict { next: 6000, keep: Some(3) });
    }

    #[test]
    fn strange_text_at_the_end_ends_the_recording() {
        let end = Heard { content_frames: 6050, ..heard() };
        assert_eq!(judge(&[good(30.5), strange(59.5)], &end), Verdict { next: 6050, keep: Some(1) });
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
