//! The final checks of segments: no time is after the end of the recording, a segment includes the times of its words, and
//! segments without text are left out. Every transcript passes through here, in whatever format it is written later.

use crate::task::{FirstToken, Segment, TranscriptSink};
use crate::tokenizer::strip;

const SAMPLES_PER_MILLISECOND: u64 = crate::SAMPLE_RATE as u64 / 1000;

/// Passes segments on to another sink, limited to the bounds of a recording.
pub(crate) struct BoundedSink<'a> {
    sink: &'a mut dyn TranscriptSink,
    /// In whole milliseconds, rounded down: subtitles have this resolution and must not round up.
    end_seconds: f64,
    segments: usize,
}

impl<'a> BoundedSink<'a> {
    pub(crate) fn new(sink: &'a mut dyn TranscriptSink, samples: u64) -> Self {
        Self { sink, end_seconds: (samples / SAMPLES_PER_MILLISECOND) as f64 / 1000.0, segments: 0 }
    }

    /// `None` if the segment has no text or is after the end of the recording.
    fn bounded(&self, mut segment: Segment) -> Option<Segment> {
        if strip(&segment.text).is_empty() {
            return None;
        }

        let within = |seconds: f64| seconds.clamp(0.0, self.end_seconds);
        for word in &mut segment.words {
            word.start_seconds = within(word.start_seconds);
            word.end_seconds = within(word.end_seconds).max(word.start_seconds);
        }

        if let ([first, ..], [.., last]) = (segment.words.as_slice(), segment.words.as_slice()) {
            segment.start_seconds = segment.start_seconds.min(first.start_seconds);
            segment.end_seconds = segment.end_seconds.max(last.end_seconds);
        }

        if segment.start_seconds >= self.end_seconds {
            tracing::debug!(
                seconds = segment.start_seconds,
                text = segment.text,
                "text behind the end of the recording is left out"
            );
            return None;
        }

        segment.start_seconds = within(segment.start_seconds);
        segment.end_seconds = within(segment.end_seconds).max(segment.start_seconds);

        Some(segment)
    }
}

impl TranscriptSink for BoundedSink<'_> {
    fn segment(&mut self, segment: Segment) {
        if let Some(mut segment) = self.bounded(segment) {
            segment.id = self.segments;
            self.segments += 1;
            self.sink.segment(segment);
        }
    }

    fn first_token(&mut self, timings: FirstToken) {
        self.sink.first_token(timings);
    }

    fn progress(&mut self, done_seconds: f64, total_seconds: f64) {
        self.sink.progress(done_seconds, total_seconds);
    }

    fn keep_going(&mut self) -> bool {
        self.sink.keep_going()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Word;

    #[derive(Default)]
    struct CollectedSegments(Vec<Segment>);

    impl TranscriptSink for CollectedSegments {
        fn segment(&mut self, segment: Segment) {
            self.0.push(segment);
        }
    }

    fn segment(text: &str, start_seconds: f64, end_seconds: f64, words: &[(f64, f64)]) -> Segment {
        let word = |&(start_seconds, end_seconds): &(f64, f64)| Word {
            text: " a".to_owned(),
            start_seconds,
            end_seconds,
            probability: 0.5,
        };
        let words = words.iter().map(word).collect();
        Segment { id: 7, text: text.to_owned(), start_seconds, end_seconds, words, ..Segment::default() }
    }

    /// Id, start, end, and the times of the words.
    type SentSegment = (usize, f64, f64, Vec<(f64, f64)>);

    /// The segments as sent for a recording of 30.0301 s.
    fn sent(segments: impl IntoIterator<Item = Segment>) -> Vec<SentSegment> {
        let mut collected = CollectedSegments::default();
        let mut bounded = BoundedSink::new(&mut collected, 480_482);
        segments.into_iter().for_each(|segment| bounded.segment(segment));
        let times = |segment: &Segment| segment.words.iter().map(|w| (w.start_seconds, w.end_seconds)).collect();
        collected
            .0
            .iter()
            .map(|segment| (segment.id, segment.start_seconds, segment.end_seconds, times(segment)))
            .collect()
    }

    #[test]
    fn no_time_is_behind_the_end() {
        let segments = [
            segment(" a", 29.0, 51.0, &[]),
            segment(" b", 30.0, 31.0, &[(30.0, 30.02), (30.02, 30.5), (30.5, 31.0)]),
            segment(" c", 30.03, 31.0, &[]),
            segment(" d", 51.0, 60.0, &[]),
        ];
        let words = vec![(30.0, 30.02), (30.02, 30.03), (30.03, 30.03)];
        assert_eq!(sent(segments), [(0, 29.0, 30.03, vec![]), (1, 30.0, 30.03, words)]);
    }

    #[test]
    fn a_segment_begins_no_later_than_its_first_word() {
        let segments = [segment(" a", 2.0, 2.5, &[(1.5, 2.2), (2.2, 3.0)])];
        assert_eq!(sent(segments), [(0, 1.5, 3.0, vec![(1.5, 2.2), (2.2, 3.0)])]);
    }

    #[test]
    fn what_says_nothing_is_not_sent() {
        assert_eq!(sent([segment("", 0.0, 1.0, &[]), segment(" \n", 1.0, 2.0, &[])]), []);
    }
}
