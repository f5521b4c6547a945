//! Words with times, and the segments that contain them: `find_alignment` and `add_word_timestamps`.

use super::{AlignmentAttention, FRAMES_PER_SECOND, dtw, hundredths, punctuation, split};
use crate::{
    task::{Segment, Word},
    tokenizer::{Tokenizer, strip, whole_characters},
};

/// Limit of the median duration of words, seconds.
const MAX_MEDIAN_SECONDS: f64 = 0.7;
const SENTENCE_ENDS: &str = ".。!！?？";
/// If a segment's own time differs from that of its words by more than this, it is used instead, seconds.
const MAX_DEVIATION_SECONDS: f64 = 0.5;

/// The output of the `align` graph for one row: the prompt (without timestamps), the text, the end token.
pub struct AlignedRow<'a> {
    pub attention: &'a AlignmentAttention,
    /// The logarithm of the probability of each token after the one before it, one fewer than tokens.
    pub logprobs: &'a [f32],
    /// Encoder frames with audio.
    pub frames: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
}

/// A word of a window: its text, how many tokens it has, and its times, in seconds from the start of the window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WordTiming {
    pub text: String,
    pub tokens: usize,
    pub start: f64,
    pub end: f64,
    pub probability: f64,
}

/// The words of `tokens`, all of which are text. `language` is a Whisper code; `None` for a model that knows only English.
pub fn align(
    aligned: &AlignedRow<'_>,
    tokenizer: &Tokenizer,
    tokens: &[u32],
    eot: u32,
    language: Option<&str>,
) -> Vec<WordTiming> {
    let frames = aligned.frames.min(aligned.attention.frames);

    // The last token of the prompt predicts the first token of the text, so that its frames are the start of the text.
    let first = aligned.prompt.saturating_sub(1);
    let rows = tokens.len() + 1;
    if tokens.is_empty() || frames == 0 || aligned.attention.tokens < first + rows {
        return Vec::new();
    }

    let matrix = aligned.attention.matrix(frames);
    let costs: Vec<f32> = matrix[first * frames..(first + rows) * frames].iter().map(|weight| -weight).collect();
    let entries = dtw::entry_columns(&costs, rows, frames);
    let seconds = |token: usize| entries.get(token).map_or(0.0, |frame| *frame as f64 / FRAMES_PER_SECOND);

    let ended: Vec<u32> = tokens.iter().copied().chain([eot]).collect();
    let mut words = split::split(tokenizer, &ended, eot, language);
    // The last word is the end token.
    words.pop();
    let mut from = 0;
    let timed = words.into_iter().map(|(text, length)| {
        let to = from + length;
        let logprobs = aligned.logprobs.get(first + from..first + to).unwrap_or_default();
        let total: f64 = logprobs.iter().map(|logprob| f64::from(*logprob).exp()).sum();
        let timing = WordTiming {
            text,
            tokens: length,
            start: seconds(from),
            end: seconds(to),
            probability: total / logprobs.len().max(1) as f64,
        };
        from = to;
        timing
    });
    timed.collect()
}

/// The durations of a window's words.
struct WordDurations {
    median: f64,
    longest: f64,
}

impl WordDurations {
    fn of(words: &[WordTiming]) -> Option<Self> {
        let mut durations: Vec<f64> =
            words.iter().map(|word| word.end - word.start).filter(|duration| *duration != 0.0).collect();
        if durations.is_empty() {
            return None;
        }

        durations.sort_unstable_by(f64::total_cmp);
        let middle = durations.len() / 2;
        let median = match durations.len() % 2 {
            0 => (durations[middle - 1] + durations[middle]) / 2.0,
            _ => durations[middle],
        };

        let median = median.min(MAX_MEDIAN_SECONDS);

        Some(Self { median, longest: 2.0 * median })
    }
}

/// Adds words to the segments of one window, and adjusts the times of both. `offset` is the start of the window and
/// `last_speech` the end of the last word before it, in seconds of the recording.
pub fn add_words(
    segments: &mut [Segment],
    mut timings: Vec<WordTiming>,
    eot: u32,
    [prepended, appended]: [&str; 2],
    offset: f64,
    mut last_speech: f64,
) {
    let durations = WordDurations::of(&timings);
    if let Some(durations) = &durations {
        shorten_at_sentence_ends(&mut timings, durations.longest);
    }

    let durations = durations.unwrap_or(WordDurations { median: 0.0, longest: 0.0 });
    punctuation::merge(&mut timings, prepended, appended);
    let mut rest = timings.into_iter();

    for segment in segments {
        let text_tokens = segment.tokens.iter().filter(|token| **token < eot).count();
        let mut taken = 0;
        let mut words = Vec::new();

        while taken < text_tokens {
            let Some(timing) = rest.next() else { break };
            taken += timing.tokens;
            let text = whole_characters(&timing.text);
            if !strip(&text).is_empty() {
                words.push(Word {
                    text,
                    start_seconds: hundredths(offset + timing.start),
                    end_seconds: hundredths(offset + timing.end),
                    probability: timing.probability as f32,
                });
            }
        }

        if !words.is_empty() {
            adjust_times(segment, &mut words, &durations, last_speech);
            last_speech = segment.end_seconds;
        }

        segment.words = words;
    }
}

/// Limits marks that end a sentence, and words after them, to `longest`: their times include the pause after the sentence.
fn shorten_at_sentence_ends(timings: &mut [WordTiming], longest: f64) {
    for at in 1..timings.len() {
        if timings[at].end - timings[at].start <= longest {
            continue;
        }

        if SENTENCE_ENDS.contains(&timings[at].text) {
            timings[at].end = timings[at].start + longest;
        } else if SENTENCE_ENDS.contains(&timings[at - 1].text) {
            timings[at].start = timings[at].end - longest;
        }
    }
}

/// Adjusts the first and the last words and the segment's own times to each other.
fn adjust_times(
    segment: &mut Segment,
    words: &mut [Word],
    WordDurations { median, longest }: &WordDurations,
    last_speech: f64,
) {
    let duration = |word: &Word| word.end_seconds - word.start_seconds;
    let first_two = words.get(1).is_some_and(|second| second.end_seconds - words[0].start_seconds > longest * 2.0);

    if words[0].end_seconds - last_speech > median * 4.0 && (duration(&words[0]) > *longest || first_two) {
        if let [first, second, ..] = words
            && duration(second) > *longest
        {
            let boundary = (second.end_seconds / 2.0).max(second.end_seconds - longest);
            first.end_seconds = boundary;
            second.start_seconds = boundary;
        }

        words[0].start_seconds = (words[0].end_seconds - longest).max(0.0);
    }

    if let [first, ..] = words {
        if segment.start_seconds < first.end_seconds
            && segment.start_seconds - MAX_DEVIATION_SECONDS > first.start_seconds
        {
            first.start_seconds = (first.end_seconds - median).min(segment.start_seconds).max(0.0);
        } else {
            segment.start_seconds = first.start_seconds;
        }
    }

    if let [.., last] = words {
        if segment.end_seconds > last.start_seconds && segment.end_seconds + MAX_DEVIATION_SECONDS < last.end_seconds {
            last.end_seconds = (last.start_seconds + median).max(segment.end_seconds);
        } else {
            segment.end_seconds = last.end_seconds;
        }
    }
}

/// The end of the last word, or of the last segment if there are no words.
pub fn last_end(segments: &[Segment]) -> Option<f64> {
    let word = segments.iter().rev().find_map(|segment| segment.words.last());
    word.map(|word| word.end_seconds).or_else(|| segments.last().map(|segment| segment.end_seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EOT: u32 = 1000;

    fn timing(text: &str, start: f64, end: f64) -> WordTiming {
        WordTiming { text: text.to_owned(), tokens: 1, start, end, probability: 0.5 }
    }

    fn segment(tokens: usize, start_seconds: f64, end_seconds: f64) -> Segment {
        // With timestamps around the text, which do not count.
        let tokens = [EOT + 1].into_iter().chain(1..=tokens as u32).chain([EOT + 2]).collect();
        Segment { tokens, start_seconds, end_seconds, ..Segment::default() }
    }

    fn add(segments: &mut [Segment], timings: Vec<WordTiming>, offset: f64, last_speech: f64) {
        let marks = [punctuation::PREPEND_PUNCTUATIONS, punctuation::APPEND_PUNCTUATIONS];
        add_words(segments, timings, EOT, marks, offset, last_speech);
    }

    fn times(segment: &Segment) -> Vec<(&str, f64, f64)> {
        segment.words.iter().map(|word| (word.text.as_str(), word.start_seconds, word.end_seconds)).collect()
    }

    #[test]
    fn words_go_to_the_segments_whose_tokens_they_are() {
        let mut segments = [segment(2, 30.0, 31.0), segment(1, 31.0, 32.0)];
        let timings = vec![timing(" a", 0.0, 0.4), timing(".", 0.4, 0.6), timing(" b", 1.0, 1.4)];
        add(&mut segments, timings, 30.0, 29.8);
        assert_eq!(times(&segments[0]), [(" a.", 30.0, 30.4)]);
        assert_eq!(times(&segments[1]), [(" b", 31.0, 31.4)]);
        assert_eq!((segments[0].start_seconds, segments[0].end_seconds), (30.0, 30.4));
        assert_eq!(last_end(&segments), Some(31.4));
    }

    #[test]
    fn the_pause_behind_a_sentence_is_no_part_of_it() {
        let mut timings: Vec<WordTiming> =
            (0..6).map(|at| timing(" x", f64::from(at) * 0.2, f64::from(at + 1) * 0.2)).collect();
        timings.extend([timing("?", 1.2, 4.0), timing(" y", 4.0, 6.0)]);
        let mut cut = timings.clone();
        shorten_at_sentence_ends(&mut cut, WordDurations::of(&timings).unwrap().longest);
        assert!((cut[6].end - 1.6).abs() < 1e-9, "{cut:?}");
        assert!((cut[7].start - 5.6).abs() < 1e-9, "{cut:?}");
    }

    #[test]
    fn a_first_word_that_takes_the_silence_before_it_is_cut() {
        let mut segments = [segment(3, 0.0, 5.0)];
        let timings = vec![timing(" a", 0.0, 4.0), timing(" b", 4.0, 4.2), timing(" c", 4.2, 4.4)];
        add(&mut segments, timings, 0.0, 0.0);

        // The median is 0.2 s.
        let (_, start, end) = times(&segments[0])[0];
        assert!((start - 3.6).abs() < 1e-9 && end == 4.0, "{start} {end}");
        assert_eq!(segments[0].start_seconds, start);
        assert_eq!(segments[0].end_seconds, 4.4);
    }

    #[test]
    fn two_long_words_at_the_start_share_a_boundary() {
        let mut segments = [segment(4, 0.0, 10.0)];
        let timings =
            vec![timing(" a", 0.0, 4.0), timing(" b", 4.0, 9.0), timing(" c", 9.0, 9.2), timing(" d", 9.2, 9.4)];
        add(&mut segments, timings, 0.0, 0.0);

        // The median of 4, 5, 0.2 and 0.2 is 2.1, taken as 0.7; no word is longer than 1.4.
        let expected = [(" a", 6.2, 7.6), (" b", 7.6, 9.0)];

        for ((word, start, end), expected) in times(&segments[0]).into_iter().zip(expected) {
            assert_eq!(word, expected.0);
            assert!((start - expected.1).abs() < 1e-9 && (end - expected.2).abs() < 1e-9, "{word} {start} {end}");
        }
    }

    #[test]
    fn a_segment_s_own_times_win_where_a_word_is_too_long() {
        let mut segments = [segment(2, 2.0, 3.0)];
        add(&mut segments, vec![timing(" a", 0.4, 2.2), timing(" b", 2.2, 4.0)], 0.0, 0.4);

        // The median is taken as 0.7.
        let words = times(&segments[0]);
        assert_eq!((words[0].1, words[1].2), (1.5000000000000002, 3.0));
        assert_eq!((segments[0].start_seconds, segments[0].end_seconds), (2.0, 3.0));
    }

    #[test]
    fn without_words_nothing_moves() {
        let mut segments = [segment(0, 1.0, 2.0)];
        add(&mut segments, Vec::new(), 0.0, 0.0);
        assert_eq!(last_end(&segments), Some(2.0));
        assert!(segments[0].words.is_empty());
        assert_eq!(last_end(&[]), None);
    }
}
