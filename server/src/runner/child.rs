//! The runner's own side. One thread reads frames, so that an order to exit is obeyed whatever the engine does; the
//! main thread loads the model; each job has a thread of its own, of which there are as many as jobs may hold the model.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use hush_whisper::{FirstToken, LanguageProbability, PcmSource, Segment, Sink, TranscribeOptions, Transcript};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};

use super::wire::{Decoder, FailureKind, FromRunner, JobId, LoadSpec, MAX_SAMPLES, Message, ToRunner, VERSION};
use crate::job::{Outcome, Work};

/// Process id of the server, so that a runner whose server is already dead does not live on.
pub const PARENT_VARIABLE: &str = "HUSH_RUNNER_PARENT";

/// A runner is worth less than its server when memory is short: it can be started again.
const OOM_SCORE: &str = "500";

/// Signs of life are not sent more often than this.
const BEAT: Duration = Duration::from_millis(250);

/// Asked for at once, however little the engine wants: 5 s.
const BLOCK_SAMPLES: usize = 80_000;

/// What runs in the child. The thread that calls [`main`] makes it and is the only one that touches it.
pub trait Backend: Sized {
    type Model: Model;

    /// Loads the libraries, and nothing on a device: a spare runner waits in this state. Also says what they are.
    fn start() -> Result<(Self, String), String>;

    fn load(&mut self, spec: &LoadSpec) -> Result<Self::Model, String>;
}

/// What a backend has loaded. Several jobs use it at once, each on a thread of its own.
pub trait Model: Send + Sync + 'static {
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
    let reader = Reader { socket: socket.try_clone()?, orders, jobs: jobs.clone() };
    thread::Builder::new().name("frames".to_owned()).spawn(move || reader.run())?;

    let started = Instant::now();
    let voice = Arc::new(Voice { writer: Mutex::new(Writer { socket, last_frame: started }) });
    let mut backend = B::start();
    voice.say(&FromRunner::Hello {
        version: VERSION,
        pid: process::id(),
        runtime: backend.as_ref().ok().map(|(_, runtime)| runtime.clone()),
        libraries_seconds: started.elapsed().as_secs_f64(),
    });
    let mut desks: Option<mpsc::Sender<Job>> = None;
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
                        desks = Some(open_desks(Arc::new(model), spec.max_batch, &voice, &jobs)?);
                        voice.say(&FromRunner::Loaded { sessions_seconds: started.elapsed().as_secs_f64() });
                    }
                    Err(message) => voice.say(&FromRunner::LoadFailed { message }),
                }
            }
            Order::Work(job) => {
                let refused = match &desks {
                    // Fails when no desk is left.
                    Some(desks) => desks.send(job).err().map(|mpsc::SendError(job)| job),
                    None => Some(job),
                };
                let Some(job) = refused else { continue };
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
    let Job { id, work, len_samples, request, incoming, cancelled } = job;
    let _request = tracing::info_span!("request", id = request).entered();
    tracing::debug!(job = id, len_samples, "work begins");
    let cancelled = &*cancelled;
    let result = if cancelled.load(Ordering::Relaxed) {
        Err(WorkFailure::Cancelled)
    } else {
        let mut audio = RemotePcm { voice, incoming, cancelled, id, len_samples, block_offset: 0, block: Vec::new() };
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
        Err(failure) => {
            if let WorkFailure::Engine(problem) = &failure {
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

enum Order {
    Load(LoadSpec),
    Work(Job),
}

/// Work, and the reader's ways to it.
struct Job {
    id: JobId,
    work: Work,
    len_samples: u64,
    /// For the log.
    request: Option<String>,
    incoming: mpsc::Receiver<Samples>,
    cancelled: Arc<AtomicBool>,
}

enum Samples {
    Here {
        offset: u64,
        samples: Vec<f32>,
    },
    /// The job was cancelled: whoever waits should look.
    Look,
}

/// The jobs that are not done, for whom the reader gets audio and cancellations.
#[derive(Clone, Default)]
struct Jobs {
    known: Arc<Mutex<HashMap<JobId, Correspondence>>>,
}

struct Correspondence {
    samples: mpsc::Sender<Samples>,
    cancelled: Arc<AtomicBool>,
}

impl Jobs {
    fn open(&self, id: JobId, work: Work, len_samples: u64, request: Option<String>) -> Job {
        let (samples, incoming) = mpsc::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        lock(&self.known).insert(id, Correspondence { samples, cancelled: cancelled.clone() });
        Job { id, work, len_samples, request, incoming, cancelled }
    }

    /// Audio and cancellations may cross the end of their job.
    fn hand(&self, id: JobId, offset: u64, samples: Vec<f32>) {
        if let Some(job) = lock(&self.known).get(&id) {
            let _ = job.samples.send(Samples::Here { offset, samples });
        }
    }

    fn cancel(&self, id: JobId) {
        if let Some(job) = lock(&self.known).get(&id) {
            job.cancelled.store(true, Ordering::Relaxed);
            let _ = job.samples.send(Samples::Look);
        }
    }

    fn forget(&self, id: JobId) {
        lock(&self.known).remove(&id);
    }
}

struct Reader {
    socket: UnixStream,
    orders: mpsc::Sender<Order>,
    jobs: Jobs,
}

impl Reader {
    fn run(mut self) -> ! {
        let mut decoder = Decoder::default();
        let mut piece = vec![0; 256 << 10];
        loop {
            match decoder.message::<ToRunner>() {
                Ok(Some(message)) => self.obey(message),
                Ok(None) => match self.socket.read(&mut piece) {
                    Ok(0) => leave(),
                    Ok(count) => decoder.buffer().extend_from_slice(&piece[..count]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => leave(),
                },
                Err(error) => {
                    tracing::error!("runner: the server's orders make no sense: {error}");
                    leave()
                }
            }
        }
    }

    fn obey(&self, message: ToRunner) {
        // A send fails only while the process ends.
        match message {
            ToRunner::Load(spec) => drop(self.orders.send(Order::Load(spec))),
            ToRunner::Work { id, work, len_samples, request } => {
                drop(self.orders.send(Order::Work(self.jobs.open(id, work, len_samples, request))));
            }
            ToRunner::Audio { id, offset, samples } => self.jobs.hand(id, offset, samples),
            ToRunner::Cancel { id } => self.jobs.cancel(id),
            ToRunner::Exit => leave(),
        }
    }
}

/// What all jobs tell the server.
struct Voice {
    writer: Mutex<Writer>,
}

struct Writer {
    socket: UnixStream,
    last_frame: Instant,
}

impl Writer {
    fn say(&mut self, message: &FromRunner) {
        let sent = message.encode().map_err(io::Error::other).and_then(|frame| self.socket.write_all(&frame));
        if let Err(error) = sent {
            // The server is gone, or a frame that cannot be sent would leave a job waiting for ever.
            tracing::error!("runner: telling the server failed: {error}");
            leave();
        }
        self.last_frame = Instant::now();
    }
}

impl Voice {
    fn say(&self, message: &FromRunner) {
        lock(&self.writer).say(message);
    }

    fn fail(&self, id: JobId, failure: WorkFailure) {
        let (kind, message) = match failure {
            WorkFailure::Cancelled => (FailureKind::Cancelled, "cancelled".to_owned()),
            WorkFailure::Invalid(message) => (FailureKind::Invalid, message),
            WorkFailure::Engine(message) => (FailureKind::Engine, message),
        };
        self.say(&FromRunner::Failed { id, kind, message });
    }

    /// A sign of life, where the last frame was long ago.
    fn beat(&self) {
        let mut writer = lock(&self.writer);
        if writer.last_frame.elapsed() >= BEAT {
            writer.say(&FromRunner::Beat);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Audio that is in the server: a block of it is here.
struct RemotePcm<'a> {
    voice: &'a Voice,
    incoming: mpsc::Receiver<Samples>,
    cancelled: &'a AtomicBool,
    id: JobId,
    len_samples: u64,
    block_offset: u64,
    block: Vec<f32>,
}

impl RemotePcm<'_> {
    /// Has the server send the block that begins at `offset`, at least `wanted` samples of it if they fit a frame.
    fn fetch(&mut self, offset: u64, wanted: usize) -> io::Result<()> {
        let rest = usize::try_from(self.len_samples.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = wanted.clamp(BLOCK_SAMPLES, MAX_SAMPLES).min(rest);
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.voice.say(&FromRunner::NeedAudio { id: self.id, offset, samples: count });
        loop {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(io::Error::other("cancelled"));
            }
            match self.incoming.recv() {
                Ok(Samples::Here { offset: at, samples }) if at == offset => {
                    if samples.len() != count {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    self.block_offset = offset;
                    self.block = samples;
                    return Ok(());
                }
                Ok(Samples::Here { .. } | Samples::Look) => {}
                Err(mpsc::RecvError) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }

    /// Copies what the block holds from `offset` on; how much that was.
    fn copy(&self, offset: u64, out: &mut [f32]) -> usize {
        let start = offset.checked_sub(self.block_offset).and_then(|start| usize::try_from(start).ok());
        let Some(here) = start.and_then(|start| self.block.get(start..)) else { return 0 };
        let count = here.len().min(out.len());
        out[..count].copy_from_slice(&here[..count]);
        count
    }
}

impl PcmSource for RemotePcm<'_> {
    fn len(&self) -> u64 {
        self.len_samples
    }

    fn read(&mut self, offset: u64, out: &mut [f32]) -> io::Result<()> {
        let mut done = self.copy(offset, out);
        while done < out.len() {
            let at = offset + done as u64;
            self.fetch(at, out.len() - done)?;
            done += self.copy(at, &mut out[done..]);
        }
        Ok(())
    }
}

struct Report<'a> {
    voice: &'a Voice,
    cancelled: &'a AtomicBool,
    id: JobId,
}

impl Sink for Report<'_> {
    fn segment(&mut self, mut segment: Segment) {
        // JSON has no word for these.
        for number in [&mut segment.avg_logprob, &mut segment.compression_ratio, &mut segment.no_speech_prob] {
            if !number.is_finite() {
                *number = if number.is_nan() { 0.0 } else { number.clamp(f64::MIN, f64::MAX) };
            }
        }
        self.voice.say(&FromRunner::Segment { id: self.id, segment });
    }

    fn first_token(&mut self, timings: FirstToken) {
        self.voice.say(&FromRunner::FirstToken { id: self.id, timings });
    }

    fn progress(&mut self, done_seconds: f64, total_seconds: f64) {
        self.voice.say(&FromRunner::Progress { id: self.id, done_seconds, total_seconds });
    }

    fn keep_going(&mut self) -> bool {
        self.voice.beat();
        !self.cancelled.load(Ordering::Relaxed)
    }
}
