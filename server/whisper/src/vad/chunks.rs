//! Transcribing only the chunks with speech, with times of the whole recording: `collect_chunks` and
//! `restore_speech_timestamps` of faster-whisper, without holding the audio in memory.

use std::io;

use super::{SpeechDetector, SpeechModel, VadError, VadOptions, WINDOW_SAMPLES};
use crate::task::{FirstToken, PcmSource, Segment, TranscriptSink};

const RATE: f64 = crate::SAMPLE_RATE as f64;
/// Samples of one call of the model: 8 s.
const BLOCK_SAMPLES: usize = 256 * WINDOW_SAMPLES;

/// A part of a recording with speech, in samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpeechChunk {
    pub start: u64,
    pub end: u64,
}

impl SpeechChunk {
    /// Length in samples.
    pub fn length(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// Groups consecutive chunks into packs of at most `max_samples`. A longer chunk is a pack of its own.
pub fn pack_chunks(chunks: Vec<SpeechChunk>, max_samples: u64) -> Vec<Vec<SpeechChunk>> {
    let mut packs: Vec<Vec<SpeechChunk>> = Vec::new();
    let mut length = 0;

    for chunk in chunks {
        length += chunk.length();

        match packs.last_mut() {
            Some(pack) if length <= max_samples => pack.push(chunk),
            _ => {
                length = chunk.length();
                packs.push(vec![chunk]);
            }
        }
    }

    packs
}

/// Finds the chunks with speech. `keep_going` is called some twenty times per second of work.
pub fn speech_chunks(
    source: &mut dyn PcmSource,
    model: &mut SpeechModel,
    options: &VadOptions,
    keep_going: &mut dyn FnMut() -> bool,
) -> Result<Vec<SpeechChunk>, VadError> {
    let length = source.len();
    let mut detector = SpeechDetector::new(options);
    let mut block = Vec::with_capacity(BLOCK_SAMPLES);
    let mut at = 0;

    model.reset();
    // Like the reference, at least one sample of silence after the end is included.
    while at <= length {
        if !keep_going() {
            return Err(VadError::Cancelled);
        }

        let count = (length - at).min(BLOCK_SAMPLES as u64) as usize;
        block.resize(count, 0.0);
        source.read(at, &mut block)?;

        // A shorter block is filled with silence to whole windows.
        let filled = if count < BLOCK_SAMPLES { (count / WINDOW_SAMPLES + 1) * WINDOW_SAMPLES } else { count };
        block.resize(filled, 0.0);

        for probability in model.probabilities(&block)? {
            detector.push(probability);
        }
        at += filled as u64;
    }

    Ok(detector.finish(length))
}

/// Maps times in the joined chunks to times in the recording.
pub struct ChunkMap {
    chunks: Vec<SpeechChunk>,
    /// The end of each chunk among the joined chunks, samples.
    ends: Vec<u64>,
    /// Length of the whole recording, samples.
    length: u64,
}

impl ChunkMap {
    /// `chunks` in order, without overlaps; `length` of the recording in samples.
    pub fn new(chunks: Vec<SpeechChunk>, length: u64) -> Self {
        let ends = chunks
            .iter()
            .scan(0, |end, chunk| {
                *end += chunk.length();
                Some(*end)
            })
            .collect();

        Self { chunks, ends, length }
    }

    /// The chunks of `source`, joined.
    pub fn spoken_source<'a>(&'a self, source: &'a mut dyn PcmSource) -> SpokenSource<'a> {
        SpokenSource { map: self, source }
    }

    /// Length of all chunks together, samples.
    pub fn spoken_length(&self) -> u64 {
        self.ends.last().copied().unwrap_or_default()
    }

    /// The end of the last chunk and the length of the recording, seconds.
    pub(crate) fn progress(&self) -> (f64, f64) {
        let end = self.chunks.last().map_or(self.length, |chunk| chunk.end);
        (end as f64 / RATE, self.length as f64 / RATE)
    }

    /// A sink for the transcript of [`Self::spoken_source`]; passes it on to `sink` with the times of the recording.
    pub fn restoring_sink<'a>(&'a self, sink: &'a mut dyn TranscriptSink) -> RestoringSink<'a> {
        RestoringSink { map: self, sink }
    }

    /// The time in the recording of a time in the joined chunks, in seconds and rounded to hundredths. Where two chunks
    /// meet, `is_end` selects the first one.
    pub fn original_time(&self, seconds: f64, is_end: bool) -> f64 {
        self.time_in_chunk(self.chunk_at(seconds, is_end), seconds)
    }

    fn chunk_at(&self, seconds: f64, is_end: bool) -> usize {
        let sample = (seconds * RATE) as u64;
        let chunk = match self.ends.binary_search(&sample) {
            Ok(boundary) if is_end => boundary,
            Ok(boundary) => boundary + 1,
            Err(inside) => inside,
        };
        chunk.min(self.ends.len().saturating_sub(1))
    }

    fn time_in_chunk(&self, chunk: usize, seconds: f64) -> f64 {
        let (Some(chunk), Some(end)) = (self.chunks.get(chunk), self.ends.get(chunk)) else { return seconds };
        let silence = chunk.end - end;
        crate::timing::hundredths(silence as f64 / RATE + seconds)
    }

    /// Replaces the times in the joined chunks by times in the recording.
    pub(crate) fn restore(&self, segment: &mut Segment) {
        for word in &mut segment.words {
            // Both ends of a word are in the same chunk.
            let chunk = self.chunk_at(f64::midpoint(word.start_seconds, word.end_seconds), false);
            word.start_seconds = self.time_in_chunk(chunk, word.start_seconds);
            word.end_seconds = self.time_in_chunk(chunk, word.end_seconds);
        }

        if let [first, ..] = segment.words.as_slice() {
            segment.start_seconds = first.start_seconds;
        } else {
            segment.start_seconds = self.original_time(segment.start_seconds, false);
        }

        if let [.., last] = segment.words.as_slice() {
            segment.end_seconds = last.end_seconds;
        } else {
            segment.end_seconds = self.original_time(segment.end_seconds, true);
        }
    }
}

/// Created by [`ChunkMap::spoken_source`].
pub struct SpokenSource<'a> {
    map: &'a ChunkMap,
    source: &'a mut dyn PcmSource,
}

impl PcmSource for SpokenSource<'_> {
    fn len(&self) -> u64 {
        self.map.spoken_length()
    }

    fn read(&mut self, offset: u64, out: &mut [f32]) -> io::Result<()> {
        let mut chunk = self.map.ends.partition_point(|end| *end <= offset);
        let (mut at, mut rest) = (offset, out);
        while !rest.is_empty() {
            let (Some(here), Some(end)) = (self.map.chunks.get(chunk), self.map.ends.get(chunk)) else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };

            let left = end - at;
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            self.source.read(here.end - left, now)?;
            rest = later;
            at += count as u64;
            chunk += 1;
        }

        Ok(())
    }
}

/// Created by [`ChunkMap::restoring_sink`].
pub struct RestoringSink<'a> {
    map: &'a ChunkMap,
    sink: &'a mut dyn TranscriptSink,
}

impl TranscriptSink for RestoringSink<'_> {
    fn segment(&mut self, mut segment: Segment) {
        self.map.restore(&mut segment);
        self.sink.segment(segment);
    }

    fn first_token(&mut self, timings: FirstToken) {
        self.sink.first_token(timings);
    }

    fn progress(&mut self, done_seconds: f64, total_seconds: f64) {
        let total = self.map.length as f64 / RATE;
        // The recording is done after its last chunk.
        let done =
            if done_seconds < total_seconds { self.map.original_time(done_seconds, true).min(total) } else { total };
        self.sink.progress(done, total);
    }

    fn keep_going(&mut self) -> bool {
        self.sink.keep_going()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::task::Word;

    fn map() -> ChunkMap {
        // 1 s to 3 s, 10 s to 11 s, 11 s to 12.5 s.
        let chunks = [(16_000, 48_000), (160_000, 176_000), (176_000, 200_000)];
        ChunkMap::new(chunks.map(|(start, end)| SpeechChunk { start, end }).to_vec(), 320_000)
    }

    #[derive(Default)]
    struct CollectingSink {
        segments: Vec<Segment>,
        progress: Vec<(f64, f64)>,
    }

    impl TranscriptSink for CollectingSink {
        fn segment(&mut self, segment: Segment) {
            self.segments.push(segment);
        }

        fn progress(&mut self, done: f64, total: f64) {
            self.progress.push((done, total));
        }
    }

    #[test]
    fn times_lead_back() {
        let map = map();

        for (seconds, start, end) in [
            (0.0, 1.0, 1.0),
            (1.5, 2.5, 2.5),
            (2.0, 10.0, 3.0),
            (2.5, 10.5, 10.5),
            (4.5, 12.5, 12.5),
            (9.0, 17.0, 17.0),
        ] {
            assert_eq!(map.original_time(seconds, false), start, "{seconds}");
            assert_eq!(map.original_time(seconds, true), end, "{seconds}");
        }
    }

    #[test]
    fn a_word_is_in_one_chunk_and_a_segment_follows_its_words() {
        let map = map();
        let mut collected = CollectingSink::default();
        let word = |start_seconds, end_seconds| Word { start_seconds, end_seconds, ..Word::default() };
        let mut sink = map.restoring_sink(&mut collected);

        sink.segment(Segment {
            start_seconds: 0.1,
            end_seconds: 3.0,
            words: vec![word(0.5, 1.0), word(1.5, 2.1), word(1.9, 2.5)],
            ..Segment::default()
        });

        sink.segment(Segment { start_seconds: 2.0, end_seconds: 3.0, ..Segment::default() });
        sink.progress(2.0, 4.5);
        sink.progress(4.5, 4.5);

        let words = &collected.segments[0].words;
        assert_eq!(words.iter().map(|word| word.start_seconds).collect::<Vec<_>>(), [1.5, 2.5, 9.9]);
        assert_eq!(words.iter().map(|word| word.end_seconds).collect::<Vec<_>>(), [2.0, 3.1, 10.5]);

        let times = |index: usize| (collected.segments[index].start_seconds, collected.segments[index].end_seconds);
        assert_eq!(times(0), (1.5, 10.5));
        assert_eq!(times(1), (10.0, 11.0));
        assert_eq!(collected.progress, [(3.0, 20.0), (20.0, 20.0)]);
    }

    #[test]
    fn neighbours_are_packed_up_to_a_length() {
        let chunks: Vec<SpeechChunk> =
            [(0, 10), (20, 25), (30, 36), (40, 90), (100, 101)].map(|(start, end)| SpeechChunk { start, end }).to_vec();
        let lengths =
            |max_samples| -> Vec<usize> { pack_chunks(chunks.clone(), max_samples).iter().map(Vec::len).collect() };
        assert_eq!(lengths(20), [2, 1, 1, 1]);
        assert_eq!(lengths(1000), [5]);
        assert_eq!(lengths(0), [1, 1, 1, 1, 1]);
        assert!(pack_chunks(Vec::new(), 20).is_empty());
    }

    #[test]
    fn without_chunks_there_are_no_samples() {
        let map = ChunkMap::new(Vec::new(), 32_000);
        let mut silence = vec![0.0; 32_000];
        let mut spoken = map.spoken_source(&mut silence);
        assert!(spoken.is_empty());
        spoken.read(0, &mut []).unwrap();
        assert!(spoken.read(0, &mut [0.0]).is_err());
    }

    proptest! {
        #[test]
        fn the_chunks_are_read_end_to_end(
            lengths in prop::collection::vec((0_u64..40, 1_u64..60), 0..12),
            offset in 0_u64..600,
            count in 0_usize..600,
        ) {
            let mut at = 0;
            let mut chunks = Vec::new();
            for (pause, length) in lengths {
                chunks.push(SpeechChunk { start: at + pause, end: at + pause + length });
                at += pause + length;
            }

            let mut whole: Vec<f32> = (0..at).map(|sample| sample as f32).collect();
            let expected: Vec<f32> =
                chunks.iter().flat_map(|chunk| &whole[chunk.start as usize..chunk.end as usize]).copied().collect();
            let map = ChunkMap::new(chunks, at);
            let mut spoken = map.spoken_source(&mut whole);

            prop_assert_eq!(spoken.len(), expected.len() as u64);

            let offset = offset.min(spoken.len());
            let mut out = vec![-1.0; count.min(expected.len() - offset as usize)];
            spoken.read(offset, &mut out).unwrap();

            prop_assert_eq!(&out[..], &expected[offset as usize..][..out.len()]);
        }
    }
}
