//! The threads that run jobs on the loaded model.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::{io, thread};

use hush_whisper::{FirstToken, Segment, TranscriptSink};

use super::frame_sender::FrameSender;
use super::{LoadedModel, WorkFailure, lock};
use crate::audio::Pcm;
use crate::job::{JobOutcome, JobTask};
use crate::runner::wire::{FromRunner, JobId};

pub(super) struct RunnableJob {
    pub(super) id: JobId,
    pub(super) work: JobTask,
    pub(super) audio: Pcm,
    /// The id of the request, for the log.
    pub(super) request: Option<String>,
    pub(super) is_cancelled: Arc<AtomicBool>,
}

/// The unfinished jobs, which a cancellation may still reach.
#[derive(Clone, Default)]
pub(super) struct JobCancellations {
    flags: Arc<Mutex<HashMap<JobId, Arc<AtomicBool>>>>,
}

impl JobCancellations {
    pub(super) fn register(&self, id: JobId) -> Arc<AtomicBool> {
        let is_cancelled = Arc::new(AtomicBool::new(false));
        lock(&self.flags).insert(id, is_cancelled.clone());
        is_cancelled
    }

    /// Has no effect on a job that has ended in the meantime.
    pub(super) fn cancel(&self, id: JobId) {
        if let Some(is_cancelled) = lock(&self.flags).get(&id) {
            is_cancelled.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn remove(&self, id: JobId) {
        lock(&self.flags).remove(&id);
    }
}

/// The queue of the worker threads, which are started when the model is loaded.
#[derive(Clone, Default)]
pub(super) struct WorkerPool {
    queue: Arc<OnceLock<mpsc::Sender<RunnableJob>>>,
}

impl WorkerPool {
    /// Starts `count` threads; more jobs than that wait in the queue. A runner loads one model in its life: only the first
    /// call has an effect on [`Self::submit`].
    pub(super) fn start<M: LoadedModel>(
        &self,
        model: &Arc<M>,
        count: usize,
        sender: &Arc<FrameSender>,
        cancellations: &JobCancellations,
    ) -> io::Result<()> {
        let (queue, inbox) = mpsc::channel::<RunnableJob>();
        let inbox = Arc::new(Mutex::new(inbox));

        for number in 0..count.max(1) {
            let model = model.clone();
            let inbox = inbox.clone();
            let sender = sender.clone();
            let cancellations = cancellations.clone();
            thread::Builder::new().name(format!("job-{number}")).spawn(move || {
                run_jobs(&*model, &inbox, &sender, &cancellations);
            })?;
        }

        let _ = self.queue.set(queue);
        Ok(())
    }

    /// Returns the job if no worker can take it: no model is loaded, or all threads have ended.
    pub(super) fn submit(&self, job: RunnableJob) -> Option<RunnableJob> {
        match self.queue.get() {
            Some(queue) => queue.send(job).err().map(|mpsc::SendError(job)| job),
            None => Some(job),
        }
    }
}

/// Runs jobs until the sending side of the queue is dropped.
fn run_jobs<M: LoadedModel>(
    model: &M,
    inbox: &Mutex<mpsc::Receiver<RunnableJob>>,
    sender: &FrameSender,
    cancellations: &JobCancellations,
) {
    loop {
        // The lock is held only for this statement, so that other workers take jobs while this one works.
        let next = lock(inbox).recv();
        let Ok(job) = next else { return };
        let id = job.id;
        run_job(model, job, sender);
        cancellations.remove(id);
    }
}

fn run_job<M: LoadedModel>(model: &M, job: RunnableJob, sender: &FrameSender) {
    let RunnableJob { id, work, audio, request, is_cancelled } = job;
    let _request = tracing::info_span!("request", id = request).entered();
    tracing::debug!(job = id, seconds = audio.duration_seconds(), "work begins");
    sender.delay_beat();

    let is_cancelled = &*is_cancelled;
    let result = if is_cancelled.load(Ordering::Relaxed) {
        Err(WorkFailure::Cancelled)
    } else {
        let mut audio = audio.source();
        let mut sink = JobSink { sender, is_cancelled, id };
        match &work {
            JobTask::Transcribe(options) => {
                model.transcribe(&mut audio, options, &mut sink).map(JobOutcome::Transcribed)
            }
            JobTask::DetectLanguage => model.detect_language(&mut audio).map(JobOutcome::Languages),
        }
    };

    match result {
        Ok(outcome) => sender.send(&FromRunner::Done { id, outcome }),
        // The engine may report any error when the audio of a cancelled job ends early.
        Err(_) if is_cancelled.load(Ordering::Relaxed) => sender.send_failure(id, WorkFailure::Cancelled),
        // The load has failed. The thread that waits for its end reports that, and the server ends this process.
        Err(_) if model.wait_until_loaded().is_err() => {}
        Err(failure) => {
            if let WorkFailure::Engine(problem) | WorkFailure::DeviceLost(problem) = &failure {
                tracing::error!(job = id, "the engine failed: {problem}");
            }
            sender.send_failure(id, failure);
        }
    }
    tracing::debug!(job = id, "work ends");
}

/// Sends to the server what the engine produces for one job.
struct JobSink<'a> {
    sender: &'a FrameSender,
    is_cancelled: &'a AtomicBool,
    id: JobId,
}

impl TranscriptSink for JobSink<'_> {
    fn segment(&mut self, mut segment: Segment) {
        // JSON cannot hold infinite numbers and NaN.
        for number in [&mut segment.avg_logprob, &mut segment.compression_ratio, &mut segment.no_speech_prob] {
            if !number.is_finite() {
                *number = if number.is_nan() { 0.0 } else { number.clamp(f64::MIN, f64::MAX) };
            }
        }
        self.sender.send(&FromRunner::Segment { id: self.id, segment });
    }

    fn first_token(&mut self, timings: FirstToken) {
        self.sender.send(&FromRunner::FirstToken { id: self.id, timings });
    }

    fn progress(&mut self, done_seconds: f64, total_seconds: f64) {
        self.sender.send(&FromRunner::Progress { id: self.id, done_seconds, total_seconds });
    }

    fn keep_going(&mut self) -> bool {
        self.sender.send_beat_if_due();
        !self.is_cancelled.load(Ordering::Relaxed)
    }
}
