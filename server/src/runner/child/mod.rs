//! The runner's own side. One thread reads commands, so that a command to exit is obeyed whatever the engine does; the
//! main thread loads the model; jobs run on as many threads as may use the model at once.

mod command_reader;
mod frame_sender;
mod worker_pool;

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Instant;
use std::{env, fs, process, thread};

use hush_whisper::{LanguageProbability, PcmSource, TranscribeOptions, Transcript, TranscriptSink, cuda};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};

use super::wire::{FailureKind, FromRunner, LoadSpec, VERSION};
use command_reader::{CommandReader, MainThreadCommand};
use frame_sender::FrameSender;
use worker_pool::{JobCancellations, WorkerPool};

/// The variable with the process id of the server: a runner whose server has already ended must end too.
pub const PARENT_VARIABLE: &str = "HUSH_RUNNER_PARENT";

/// If memory is short, the kernel kills the runner before the server: a runner can be started again.
const OOM_SCORE: &str = "500";

/// The inference library of a runner. Only the thread that calls [`main`] uses it.
pub trait RunnerBackend: Sized {
    type Model: LoadedModel;

    /// Loads the libraries, and nothing on a device, because a spare runner waits in this state. The text is the name and
    /// the version of the library.
    ///
    /// # Errors
    /// The reason for people, if the libraries cannot be loaded.
    fn start() -> Result<(Self, String), String>;

    /// # Errors
    /// The reason for people, if the model cannot be loaded.
    fn load(&mut self, spec: &LoadSpec) -> Result<Self::Model, String>;
}

/// The model of a runner. Several jobs use it at once, each on a thread of its own.
pub trait LoadedModel: Send + Sync + 'static {
    /// Waits until the model is loaded completely. Jobs may begin before, and fail if the rest of the load fails.
    ///
    /// # Errors
    /// The reason for people, if the rest of the load fails.
    fn wait_until_loaded(&self) -> Result<(), String> {
        Ok(())
    }

    fn transcribe(
        &self,
        audio: &mut dyn PcmSource,
        options: &TranscribeOptions,
        sink: &mut dyn TranscriptSink,
    ) -> Result<Transcript, WorkFailure>;

    fn detect_language(&self, audio: &mut dyn PcmSource) -> Result<Vec<LanguageProbability>, WorkFailure>;
}

/// Why a job has failed, with the reason for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkFailure {
    Cancelled,
    Invalid(String),
    Engine(String),
    OutOfMemory(String),
    DeviceLost(String),
}

impl WorkFailure {
    /// A failure of the engine, classified by its message: ONNX Runtime has no error code for a device whose memory is full.
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

/// Everything that `hush-server runner` does. Returns only if the process was not started by a server.
pub fn main<B: RunnerBackend>() -> ExitCode {
    match serve::<B>() {
        Ok(never) => match never {},
        Err(error) => {
            tracing::error!("runner: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve<B: RunnerBackend>() -> io::Result<Infallible> {
    die_with_parent()?;
    leave_signals_to_parent()?;
    // The name is for people and the score for the kernel. A sandbox may forbid both, which does no harm.
    let _ = fs::write("/proc/self/comm", "hush-runner");
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);

    let socket = server_socket()?;
    let (main_thread, inbox) = mpsc::channel();
    let cancellations = JobCancellations::default();
    let workers = WorkerPool::default();
    let reader = CommandReader {
        socket: socket.try_clone()?,
        main_thread,
        workers: workers.clone(),
        cancellations: cancellations.clone(),
    };
    thread::Builder::new().name("frames".to_owned()).spawn(move || reader.run())?;

    let started = Instant::now();
    let sender = Arc::new(FrameSender::new(socket));
    let mut backend = B::start();
    sender.send(&FromRunner::Hello {
        version: VERSION,
        pid: process::id(),
        runtime: backend.as_ref().ok().map(|(_, runtime)| runtime.clone()),
        libraries_seconds: started.elapsed().as_secs_f64(),
    });

    for command in inbox {
        match command {
            MainThreadCommand::Load(spec) => load(&mut backend, &spec, &sender, &workers, &cancellations)?,
            MainThreadCommand::RejectJob(job) => {
                // The model may have been loaded since the job came.
                let Some(job) = workers.submit(job) else { continue };
                let problem = backend.as_ref().err().map_or("no model is loaded", String::as_str);
                sender.send_failure(job.id, WorkFailure::Engine(problem.to_owned()));
                cancellations.remove(job.id);
            }
        }
    }
    end_process()
}

/// The socket of the server is standard input.
fn server_socket() -> io::Result<UnixStream> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    match socket.peer_addr() {
        Ok(_) => Ok(socket),
        Err(error) => {
            Err(io::Error::other(format!("standard input is not a socket ({error}); the server starts runners")))
        }
    }
}

/// Loads the model and starts the workers. A thread of its own waits for the end of the load, and reports it.
fn load<B: RunnerBackend>(
    backend: &mut Result<(B, String), String>,
    spec: &LoadSpec,
    sender: &Arc<FrameSender>,
    workers: &WorkerPool,
    cancellations: &JobCancellations,
) -> io::Result<()> {
    let started = Instant::now();
    let loaded = match backend {
        Ok((backend, _)) => backend.load(spec),
        Err(message) => Err(message.clone()),
    };
    let model = match loaded {
        Ok(model) => Arc::new(model),
        Err(message) => {
            sender.send_load_failure(message);
            return Ok(());
        }
    };

    workers.start(&model, spec.max_batch, sender, cancellations)?;
    sender.send(&FromRunner::Loaded { sessions_seconds: started.elapsed().as_secs_f64() });

    let sender = sender.clone();
    thread::Builder::new().name("load".to_owned()).spawn(move || match model.wait_until_loaded() {
        Ok(()) => sender.send(&FromRunner::FullyLoaded { seconds: started.elapsed().as_secs_f64() }),
        Err(message) => sender.send_load_failure(message),
    })?;
    Ok(())
}

/// The kernel kills this process when the thread that started it ends. If the server has already ended, the runner ends
/// with an error instead.
fn die_with_parent() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;

    let parent = env::var(PARENT_VARIABLE).ok().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    if parent.is_some() && getppid() != parent {
        return Err(io::Error::other("the server that started this runner is gone"));
    }
    Ok(())
}

/// Ignores the signals that end a process group or a container: they are meant for the server, which then decides how
/// its runners end.
fn leave_signals_to_parent() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _entered = runtime.enter();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        // The handler stays for the life of the process, also without a receiver.
        drop(signal(kind)?);
    }
    Ok(())
}

/// Ends the process at once. No destructor of a library runs, because the kernel frees memory and device faster.
fn end_process() -> ! {
    let _ = kill_process(rustix::process::getpid(), Signal::KILL);
    process::abort()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
