//! The runner's own side. One thread reads frames, so that an order to exit is obeyed whatever the engine does; the
//! main thread loads the model; each job has a thread of its own, of which there are as many as jobs may hold the model.

mod reader;
mod voice;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Instant;
use std::{env, fs, process, thread};

use hush_whisper::{LanguageProbability, PcmSource, Sink, TranscribeOptions, Transcript, cuda};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};

use super::wire::{FailureKind, FromRunner, LoadSpec, VERSION};
use crate::job::{Outcome, Work};
use reader::{Desks, Job, Jobs, Order, Reader};
use voice::{Report, Voice};

/// Process id of the server, so that a runner whose server is already dead does not live on.
pub const PARENT_VARIABLE: &str = "HUSH_RUNNER_PARENT";

/// A runner is worth less than its server when memory is short: it can be started again.
const OOM_SCORE: &str = "500";

/// What runs in the child. The thread that calls [`main`] makes it and is the only one that touches it.
pub trait Backend: Sized {
    type Model: Model;

    /// Loads the libraries, and nothing on a device: a spare runner waits in this state. Also says what they are.
    fn start() -> Result<(Self, String), String>;

    fn load(&mut self, spec: &LoadSpec) -> Result<Self::Model, String>;
}

/// What a backend has loaded. Several jobs use it at once, each on a thread of its own.
pub trait Model: Send + Sync + 'static {
    /// Waits until all of it is loaded: work may begin before, and fails where this does.
    fn settle(&self) -> Result<(), String> {
        Ok(())
    }

    fn transcribe(
        &self,
        audio: &mut dyn PcmSource,
        options: &TranscribeOptions,
        sink: &mut dyn Sink,
    ) -> Result<Transcript, WorkFailure>;

    fn detect_language(&self, audio: &mut dyn PcmSource) -> Result<Vec<LanguageProbability>, WorkFailure>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkFailure {
    Cancelled,
    Invalid(String),
    Engine(String),
    OutOfMemory(String),
    DeviceLost(String),
}

impl WorkFailure {
    /// A failure of the engine, by what it says. ONNX Runtime has no code of its own for a device that is full.
    pub fn of_engine(message: String) -> Self {
        if cuda::is_out_of_memory(&message) {
            Self::OutOfMemory(message)
        } else if cuda::is_device_lost(&message) {
            Self::DeviceLost(message)
        } else {
            Self::Engine(message)
        }
    }

    fn into_parts(self) -> (FailureKind, String) {
        match self {
            Self::Cancelled => (FailureKind::Cancelled, "cancelled".to_owned()),
            Self::Invalid(message) => (FailureKind::Invalid, message),
            Self::Engine(message) => (FailureKind::Engine, message),
            Self::OutOfMemory(message) => (FailureKind::OutOfMemory, message),
            Self::DeviceLost(message) => (FailureKind::DeviceLost, message),
        }
    }
}

/// Everything that `hush-server runner` does. Returns only when this is not a runner's place to be.
pub fn main<B: Backend>() -> ExitCode {
    match serve::<B>() {
        Ok(never) => match never {},
        Err(error) => {
            tracing::error!("runner: {error}");
            ExitCode::FAILURE
        }
    }
}

enum Never {}

fn serve<B: Backend>() -> io::Result<Never> {
    die_with_parent()?;
    leave_signals_to_parent()?;
    // Both only help people and the kernel; a sandbox may forbid them.
    let _ = fs::write("/proc/self/comm", "hush-runner");
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);

    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.peer_addr().map_err(|error| {
        io::Error::other(format!("standard input is no socket ({error}); the server starts runners"))
    })?;
    let (orders, inbox) = mpsc::channel();
    let jobs = Jobs::default();
    let desks = Desks::default();
    let reader = Reader { socket: socket.try_clone()?, orders, desks: desks.clone(), jobs: jobs.clone() };
    thread::Builder::new().name("frames".to_owned()).spawn(move || reader.run())?;

    let started = Instant::now();
    let voice = Arc::new(Voice::new(socket));
    let mut backend = B::start();
    voice.say(&FromRunner::Hello {
        version: VERSION,
        pid: process::id(),
        runtime: backend.as_ref().ok().map(|(_, runtime)| runtime.clone()),
        libraries_seconds: started.elapsed().as_secs_f64(),
    });
    for order in inbox {
        match order {
            Order::Load(spec) => {
                let started = Instant::now();
                let model = match &mut backend {
                    Ok((backend, _)) => backend.load(&spec),
                    Err(message) => Err(message.clone()),
                };
                match model {
                    Ok(model) => {
                        let model = Arc::new(model);
                        desks.open(open_desks(model.clone(), spec.max_batch, &voice, &jobs)?);
                        voice.say(&FromRunner::Loaded { sessions_seconds: started.elapsed().as_secs_f64() });
                        let voice = voice.clone();
                        thread::Builder::new().name("settle".to_owned()).spawn(move || match model.settle() {
                            Ok(()) => voice.say(&FromRunner::Settled { seconds: started.elapsed().as_secs_f64() }),
                            Err(message) => voice.fail_load(message),
                        })?;
                    }
                    Err(message) => voice.fail_load(message),
                }
            }
            Order::Work(job) => {
                let Some(job) = desks.take(job) else { continue };
                let problem = backend.as_ref().err().map_or("no model is loaded", String::as_str);
                voice.fail(job.id, WorkFailure::Engine(problem.to_owned()));
                jobs.forget(job.id);
            }
        }
    }
    leave()
}

/// Threads that do jobs, as many as may hold the model; further jobs wait. They end when the sender is dropped.
fn open_desks<M: Model>(model: Arc<M>, count: usize, voice: &Arc<Voice>, jobs: &Jobs) -> io::Result<mpsc::Sender<Job>> {
    let (sender, inbox) = mpsc::channel::<Job>();
    let inbox = Arc::new(Mutex::new(inbox));
    for number in 0..count.max(1) {
        let (model, inbox, voice, jobs) = (model.clone(), inbox.clone(), voice.clone(), jobs.clone());
        thread::Builder::new().name(format!("job-{number}")).spawn(move || {
            loop {
                let next = lock(&inbox).recv();
                let Ok(job) = next else { return };
                let id = job.id;
                work(&*model, job, &voice);
                jobs.forget(id);
            }
        })?;
    }
    Ok(sender)
}

fn work<M: Model>(model: &M, job: Job, voice: &Voice) {
    let Job { id, work, audio, request, cancelled } = job;
    let _request = tracing::info_span!("request", id = request).entered();
    tracing::debug!(job = id, seconds = audio.duration_seconds(), "work begins");
    voice.begin();
    let cancelled = &*cancelled;
    let result = if cancelled.load(Ordering::Relaxed) {
        Err(WorkFailure::Cancelled)
    } else {
        let mut audio = audio.source();
        let mut sink = Report { voice, cancelled, id };
        match &work {
            Work::Transcribe(options) => model.transcribe(&mut audio, options, &mut sink).map(Outcome::Transcribed),
            Work::DetectLanguage => model.detect_language(&mut audio).map(Outcome::Languages),
        }
    };
    match result {
        Ok(outcome) => voice.say(&FromRunner::Done { id, outcome }),
        // Whatever the engine makes of audio that is not coming any more.
        Err(_) if cancelled.load(Ordering::Relaxed) => voice.fail(id, WorkFailure::Cancelled),
        // The server hears of the load, and ends this process.
        Err(_) if model.settle().is_err() => {}
        Err(failure) => {
            if let WorkFailure::Engine(problem) | WorkFailure::DeviceLost(problem) = &failure {
                tracing::error!(job = id, "the engine failed: {problem}");
            }
            voice.fail(id, failure);
        }
    }
    tracing::debug!(job = id, "work ends");
}

/// The kernel ends us with the thread that started us; if that has happened already, nobody needs us.
fn die_with_parent() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let parent = env::var(PARENT_VARIABLE).ok().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    if parent.is_some() && getppid() != parent {
        return Err(io::Error::other("the server that started this runner is gone"));
    }
    Ok(())
}

/// Who stops a whole group or container means the server, and that decides how its runners end.
fn leave_signals_to_parent() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _entered = runtime.enter();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        // The handler stays for the life of the process, without anybody listening.
        drop(signal(kind)?);
    }
    Ok(())
}

/// Ends the process now. No destructor of a library runs: the kernel frees memory and device faster than they do.
fn leave() -> ! {
    let _ = kill_process(rustix::process::getpid(), Signal::KILL);
    process::abort()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
