//! Transcribes one long recording as several short ones: packs of chunks with speech, transcribed in parallel. Their rows
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
    task::{FirstToken, PcmSource, Segment, TranscribeOptions, Transcript, TranscriptSink},
    transcribe::TranscribeError,
    vad::{ChunkMap, SpeechChunk, pack_chunks},
};

/// The longest chunk and the longest pack: one window.
pub const LONGEST_SECONDS: f32 = WINDOW_SAMPLES as f32 / crate::SAMPLE_RATE as f32;
/// How often the caller is asked whether to continue.
const CANCELLATION_INTERVAL: Duration = Duration::from_millis(50);

/// Number and samples of a pack; at most one pack for each worker is in memory.
type PackTask = (usize, Vec<f32>);

/// The result of a pack.
struct PackResult {
    pack: usize,
    result: Result<(Transcript, Vec<Segment>), TranscribeError>,
}

/// Transcribes `chunks`, of which there must be at least one; segments are sent to `sink` in the order of the recording.
pub fn transcribe(
    engine: &Engine,
    source: &mut dyn PcmSource,
    chunks: Vec<SpeechChunk>,
    options: &TranscribeOptions,
    sink: &mut dyn TranscriptSink,
) -> Result<Transcript, TranscribeError> {
    let length = source.len();
    let mut options = TranscribeOptions { vad: None, ..options.clone() };
    let mut language_probability = None;

    if options.language.is_none() && engine.special().multilingual {
        // One language for all packs, detected at the start of the speech.
        let map = ChunkMap::new(chunks.clone(), length);
        let first = engine.detect_language(&mut map.spoken_source(source))?.into_iter().next();
        language_probability = first.as_ref().map(|language| language.probability);
        options.language = first.map(|language| language.code);
    }

    let packs = pack_chunks(chunks, WINDOW_SAMPLES as u64);
    let maps: Vec<ChunkMap> = packs.into_iter().map(|pack| ChunkMap::new(pack, length)).collect();
    let run =
        ParallelRun { engine, options: &options, is_stopped: AtomicBool::new(false), first_token: Mutex::new(None) };

    let (task_sender, task_receiver) = mpsc::channel();
    let (result_sender, results) = mpsc::channel();
    let tasks = Mutex::new(task_receiver);

    let transcript = thread::scope(|scope| {
        let workers = engine.max_batch().min(maps.len());
        let transcript = (0..workers)
            .try_for_each(|number| {
                let (run, tasks, result_sender) = (&run, &tasks, result_sender.clone());
                let thread = thread::Builder::new().name(format!("pack-{number}"));
                thread.spawn_scoped(scope, move || run.work(tasks, &result_sender)).map(drop)
            })
            .map_err(TranscribeError::Source)
            .and_then(|()| {
                drop(result_sender);
                run.distribute(&maps, workers, source, &task_sender, &results, sink)
            });

        run.is_stopped.store(true, Ordering::Relaxed);

        // The workers end when the channel is closed.
        drop(task_sender);
        transcript
    })?;

    let duration_seconds = length as f64 / f64::from(crate::SAMPLE_RATE);

    Ok(Transcript { language_probability, duration_seconds, ..transcript })
}

/// The state that all threads share.
struct ParallelRun<'a> {
    engine: &'a Engine,
    options: &'a TranscribeOptions,
    is_stopped: AtomicBool,
    /// The timings of the pack with the first token; taken when they are reported.
    first_token: Mutex<Option<FirstToken>>,
}

impl ParallelRun<'_> {
    /// A worker: transcribes packs until the channel is closed.
    fn work(&self, tasks: &Mutex<Receiver<PackTask>>, results: &Sender<PackResult>) {
        loop {
            let task = lock(tasks).recv();
            let Ok((pack, mut samples)) = task else { return };

            let mut sink = PackSink { run: self, segments: Vec::new() };
            let transcript = self.engine.transcribe_all(&mut samples, self.options, &mut sink);
            let result = transcript.map(|transcript| (transcript, sink.segments));
            if results.send(PackResult { pack, result }).is_err() {
                return;
            }
        }
    }

    /// Keeps every worker busy, and reports results in the order of the recording. Runs on the caller's thread, which
    /// alone reads the source and uses the sink.
    fn distribute(
        &self,
        maps: &[ChunkMap],
        workers: usize,
        source: &mut dyn PcmSource,
        tasks: &Sender<PackTask>,
        results: &Receiver<PackResult>,
        sink: &mut dyn TranscriptSink,
    ) -> Result<Transcript, TranscribeError> {
        let ended = || TranscribeError::Source(std::io::Error::other("the threads of this recording have ended"));
        let mut waiting = BTreeMap::new();
        let (mut next, mut reported, mut in_progress) = (0, 0, 0);
        let mut reporter = PackReporter { sink, segments: 0, spoken_samples: 0, has_first_token: false };
        let mut transcript: Option<Transcript> = None;

        while reported < maps.len() {
            while in_progress < workers && next < maps.len() {
                let mut spoken = maps[next].spoken_source(source);
                let mut samples = vec![0.0; usize::try_from(spoken.len()).unwrap_or_default()];
                spoken.read(0, &mut samples)?;
                tasks.send((next, samples)).map_err(|_| ended())?;
                next += 1;
                in_progress += 1;
            }

            if !reporter.sink.keep_going() {
                return Err(TranscribeError::Cancelled);
            }

            reporter.first_token(&self.first_token);

            match results.recv_timeout(CANCELLATION_INTERVAL) {
                Ok(PackResult { pack, result }) => {
                    in_progress -= 1;
                    waiting.insert(pack, result?);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(ended()),
            }

            while let Some((pack_transcript, segments)) = waiting.remove(&reported) {
                reporter.first_token(&self.first_token);
                reporter.pack(&maps[reported], segments);
                let windows = pack_transcript.windows;
                match &mut transcript {
                    Some(whole) => whole.windows += windows,
                    none => *none = Some(pack_transcript),
                }
                reported += 1;
            }
        }

        transcript.ok_or_else(ended)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reports the results of packs to the caller's sink.
struct PackReporter<'a> {
    sink: &'a mut dyn TranscriptSink,
    segments: usize,
    /// Samples of the reported packs.
    spoken_samples: u64,
    has_first_token: bool,
}

impl PackReporter<'_> {
    fn first_token(&mut self, first_token: &Mutex<Option<FirstToken>>) {
        if !self.has_first_token
            && let Some(timings) = lock(first_token).take()
        {
            self.has_first_token = true;
            self.sink.first_token(timings);
        }
    }

    fn pack(&mut self, map: &ChunkMap, segments: Vec<Segment>) {
        let mut restoring = map.restoring_sink(self.sink);
        for mut segment in segments {
            segment.id = self.segments;
            self.segments += 1;

            // Seek positions count as if all packs were joined.
            segment.seek += (self.spoken_samples / HOP as u64) as usize;
            restoring.segment(segment);
        }

        self.spoken_samples += map.spoken_length();
        let (done_seconds, total_seconds) = map.progress();
        self.sink.progress(done_seconds, total_seconds);
    }
}

/// Collects the segments of a pack until they are reported.
struct PackSink<'a> {
    run: &'a ParallelRun<'a>,
    segments: Vec<Segment>,
}

impl TranscriptSink for PackSink<'_> {
    fn segment(&mut self, segment: Segment) {
        self.segments.push(segment);
    }

    fn first_token(&mut self, timings: FirstToken) {
        lock(&self.run.first_token).get_or_insert(timings);
    }

    fn keep_going(&mut self) -> bool {
        !self.run.is_stopped.load(Ordering::Relaxed)
    }
}
