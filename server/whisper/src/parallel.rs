//! One long recording as many short ones: packs of chunks where somebody speaks, transcribed side by side. Their rows
//! share the decoder's steps with each other and with other requests.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use crate::{
    engine::Engine,
    mel::{HOP, WINDOW_SAMPLES},
    task::{FirstToken, PcmSource, Segment, Sink, TranscribeOptions, Transcript},
    transcribe::TranscribeError,
    vad::{Chunk, ChunkMap, packs},
};

/// The longest chunk and the longest pack: one window.
pub const LONGEST_SECONDS: f32 = WINDOW_SAMPLES as f32 / crate::SAMPLE_RATE as f32;
/// How often the caller is asked whether to go on.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// A pack's samples; at most one pack for each worker is in memory.
type Task = (usize, Vec<f32>);

/// What came of a pack.
struct Done {
    pack: usize,
    result: Result<(Transcript, Vec<Segment>), TranscribeError>,
}

/// Writes what is said in `chunks`, of which there is one at least; segments go to `sink` in the order of the recording.
pub fn transcribe(
    engine: &Engine,
    source: &mut dyn PcmSource,
    chunks: Vec<Chunk>,
    options: &TranscribeOptions,
    sink: &mut dyn Sink,
) -> Result<Transcript, TranscribeError> {
    let length = source.len();
    let mut options = TranscribeOptions { vad: None, ..options.clone() };
    let mut language_probability = None;
    if options.language.is_none() && engine.special().multilingual {
        // One language for all, heard where the first words are.
        let map = ChunkMap::new(chunks.clone(), length);
        let first = engine.detect_language(&mut map.spoken(source))?.into_iter().next();
        language_probability = first.as_ref().map(|language| language.probability);
        options.language = first.map(|language| language.code);
    }
    let packs = packs(chunks, WINDOW_SAMPLES as u64);
    let maps: Vec<ChunkMap> = packs.into_iter().map(|pack| ChunkMap::new(pack, length)).collect();
    let shared = Shared { engine, options: &options, stop: AtomicBool::new(false), first: Mutex::new(None) };
    let (tasks, todo) = mpsc::channel();
    let (done, results) = mpsc::channel();
    let todo = Mutex::new(todo);
    let transcript = thread::scope(|scope| {
        let workers = engine.max_batch().min(maps.len());
        let transcript = (0..workers)
            .try_for_each(|number| {
                let (shared, todo, done) = (&shared, &todo, done.clone());
                let named = thread::Builder::new().name(format!("pack-{number}"));
                named.spawn_scoped(scope, move || shared.work(todo, &done)).map(drop)
            })
            .map_err(TranscribeError::Source)
            .and_then(|()| {
                drop(done);
                shared.hand_out(&maps, workers, source, &tasks, &results, sink)
            });
        shared.stop.store(true, Ordering::Relaxed);
        // The workers wait for more until nobody can send any.
        drop(tasks);
        transcript
    })?;
    let duration_seconds = length as f64 / f64::from(crate::SAMPLE_RATE);
    Ok(Transcript { language_probability, duration_seconds, ..transcript })
}

/// What all threads see.
struct Shared<'a> {
    engine: &'a Engine,
    options: &'a TranscribeOptions,
    stop: AtomicBool,
    /// Of the pack that was first; until it was told.
    first: Mutex<Option<FirstToken>>,
}

impl Shared<'_> {
    /// A worker: pack after pack, until there are no more.
    fn work(&self, todo: &Mutex<Receiver<Task>>, done: &Sender<Done>) {
        loop {
            let task = lock(todo).recv();
            let Ok((pack, mut samples)) = task else { return };
            let mut sink = PackSink { shared: self, segments: Vec::new() };
            let result = self.engine.transcribe_all(&mut samples, self.options, &mut sink);
            let result = result.map(|transcript| (transcript, sink.segments));
            if done.send(Done { pack, result }).is_err() {
                return;
            }
        }
    }

    /// On the caller's thread, which alone reads the source and reports: keeps every worker busy, and sends on what is
    /// done in the order of the recording.
    fn hand_out(
        &self,
        maps: &[ChunkMap],
        workers: usize,
        source: &mut dyn PcmSource,
        tasks: &Sender<Task>,
        results: &Receiver<Done>,
        sink: &mut dyn Sink,
    ) -> Result<Transcript, TranscribeError> {
        let ended = || TranscribeError::Source(std::io::Error::other("the threads of this recording have ended"));
        let mut waiting = BTreeMap::new();
        let (mut next, mut told, mut under_way) = (0, 0, 0);
        let mut report = Report { sink, segments: 0, spoken: 0, has_first: false };
        let mut transcript = None;
        while told < maps.len() {
            while under_way < workers && next < maps.len() {
                let mut spoken = maps[next].spoken(source);
                let mut samples = vec![0.0; usize::try_from(spoken.len()).unwrap_or_default()];
                spoken.read(0, &mut samples)?;
                tasks.send((next, samples)).map_err(|_| ended())?;
                next += 1;
                under_way += 1;
            }
            if !report.sink.keep_going() {
                return Err(TranscribeError::Cancelled);
            }
            report.first_token(&self.first);
            match results.recv_timeout(ASK_EVERY) {
                Ok(Done { pack, result }) => {
                    under_way -= 1;
                    waiting.insert(pack, result?);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(ended()),
            }
            while let Some((of_pack, segments)) = waiting.remove(&told) {
                report.first_token(&self.first);
                report.pack(&maps[told], segments);
                transcript.get_or_insert(of_pack);
                told += 1;
            }
        }
        transcript.ok_or_else(ended)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the caller hears.
struct Report<'a> {
    sink: &'a mut dyn Sink,
    segments: usize,
    /// Samples of the packs so far.
    spoken: u64,
    has_first: bool,
}

impl Report<'_> {
    fn first_token(&mut self, first: &Mutex<Option<FirstToken>>) {
        if !self.has_first
            && let Some(timings) = lock(first).take()
        {
            self.has_first = true;
            self.sink.first_token(timings);
        }
    }

    fn pack(&mut self, map: &ChunkMap, segments: Vec<Segment>) {
        let mut restored = map.restored(self.sink);
        for mut segment in segments {
            segment.id = self.segments;
            self.segments += 1;

            // As if all packs lay end to end.
            segment.seek += (self.spoken / HOP as u64) as usize;
            restored.segment(segment);
        }

        self.spoken += map.length_spoken();
        let (done, whole) = map.progress();
        self.sink.progress(done, whole);
    }
}

/// Keeps the segments of a pack until it is its turn.
struct PackSink<'a> {
    shared: &'a Shared<'a>,
    segments: Vec<Segment>,
}

impl Sink for PackSink<'_> {
    fn segment(&mut self, segment: Segment) {
        self.segments.push(segment);
    }

    fn first_token(&mut self, timings: FirstToken) {
        lock(&self.shared.first).get_or_insert(timings);
    }

    fn keep_going(&mut self) -> bool {
        !self.shared.stop.load(Ordering::Relaxed)
    }
}
