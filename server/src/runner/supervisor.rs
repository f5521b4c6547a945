//! The task that supervises one runner: it reads the runner's frames, checks its deadlines, ends it, and reaps it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hush_residency::{LossCause, RunnerLoss};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::frames::{FrameReader, FrameWriter};
use super::process::{JobEvent, LoadTimings, OnRunnerEvent, RunnerEnding, RunnerEvent, RunnerSettings};
use super::spawn::Spawner;
use super::wire::{FailureKind, FromRunner, JobId, LoadSpec, ToRunner, VERSION, WireMessage};
use crate::audio::PcmSpan;
use crate::job::JobTask;

/// How long a process may go on after the end of its socket.
const REAP_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) enum SupervisorCommand {
    Load {
        spec: LoadSpec,
        on_event: OnRunnerEvent,
    },
    Work {
        id: JobId,
        work: JobTask,
        audio: (File, PcmSpan),
        request: Option<String>,
        events: mpsc::UnboundedSender<JobEvent>,
    },
    Cancel {
        id: JobId,
    },
    Stop,
    Kill,
}

/// Starts a runner and supervises it until it is reaped.
pub(super) async fn run(
    settings: Arc<RunnerSettings>,
    spawner: Arc<Spawner>,
    mut inbox: mpsc::UnboundedReceiver<SupervisorCommand>,
    ending: Arc<OnceLock<RunnerEnding>>,
) {
    let spawned_at = Instant::now();
    let spawned = spawner.spawn(settings.clone()).await.and_then(|spawned| {
        let (read, write) = UnixStream::from_std(spawned.socket)?.into_split();
        Ok((spawned.child, read, write))
    });
    let (mut child, read, write) = match spawned {
        Ok(spawned) => spawned,
        Err(error) => return fail_to_spawn(&settings, &error, &mut inbox, &ending).await,
    };

    let mut supervisor = Supervisor {
        pid: child.id().unwrap_or_default(),
        settings,
        frames: FrameWriter::new(write),
        on_event: None,
        load: None,
        hello: None,
        spawned_at,
        jobs: HashMap::new(),
        unfinished: HashSet::new(),
        job_deadlines: HashMap::new(),
        last_sign_at: spawned_at,
        exit_deadline: None,
        has_failed_to_load: false,
    };
    let mut reader = FrameReader::new(read);
    let end = supervisor.watch(&mut child, &mut reader, &mut inbox).await;
    supervisor.finish(child, end, inbox, &ending).await;
}

/// Reports that the process could not be started, when a model is to be loaded into it.
async fn fail_to_spawn(
    settings: &RunnerSettings,
    error: &io::Error,
    inbox: &mut mpsc::UnboundedReceiver<SupervisorCommand>,
    ending: &OnceLock<RunnerEnding>,
) {
    let message = format!("could not start `{}`: {error}", settings.program.display());
    tracing::error!("{message}");
    let loss = RunnerLoss { cause: LossCause::Exited, detail: message.clone() };
    let _ = ending.set(RunnerEnding::Lost(loss));

    // A spare runner is not taken any more once its ending is set. If it was taken before, its load is in the inbox or on
    // its way.
    while let Some(command) = inbox.recv().await {
        if let SupervisorCommand::Load { on_event, .. } = command {
            on_event(RunnerEvent::LoadFailed { cause: message, out_of_memory: false });
            on_event(RunnerEvent::Exited);
            return;
        }
    }
}

/// `None` if the process has no log whose level can change, as in tests.
async fn next_log_level(changes: &mut Option<hush_log::LogLevelChanges>) -> Option<String> {
    match changes {
        Some(changes) => Some(changes.next().await),
        None => None,
    }
}

/// Why the runner is not watched any more.
enum WatchEnd {
    /// The server has asked it to end.
    Requested,
    /// The process or its socket has ended.
    Gone,
    /// The runner does not work and must be killed.
    Condemned(RunnerLoss),
}

/// The load that the runner was told to do.
struct LoadAttempt {
    started_at: Instant,
    /// `None`: the load has ended.
    deadline: Option<Instant>,
}

/// The first message of a runner.
#[derive(Clone, Copy)]
struct Hello {
    received_at: Instant,
    /// How long it took to load the libraries.
    libraries: Duration,
}

enum JobDeadline {
    /// The job must be finished by then.
    Finish(Instant),
    /// The job was cancelled, and the runner must confirm that by then.
    Confirm(Instant),
}

struct Supervisor {
    pid: u32,
    settings: Arc<RunnerSettings>,
    frames: FrameWriter,
    on_event: Option<OnRunnerEvent>,
    load: Option<LoadAttempt>,
    hello: Option<Hello>,
    spawned_at: Instant,
    jobs: HashMap<JobId, mpsc::UnboundedSender<JobEvent>>,
    /// The jobs that the runner has not finished, including cancelled ones.
    unfinished: HashSet<JobId>,
    /// The deadline of each job, if [`RunnerSettings::busy_timeout`] is set.
    job_deadlines: HashMap<JobId, JobDeadline>,
    /// When the last frame came, or when the runner got its first job.
    last_sign_at: Instant,
    /// Set when the runner is asked to exit.
    exit_deadline: Option<Instant>,
    has_failed_to_load: bool,
}

impl Supervisor {
    async fn watch(
        &mut self,
        child: &mut Child,
        reader: &mut FrameReader,
        inbox: &mut mpsc::UnboundedReceiver<SupervisorCommand>,
    ) -> WatchEnd {
        let mut has_handles = true;
        let mut log_level = hush_log::follow_log_level();

        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                frame = reader.next() => match frame {
                    Ok(Some(message)) => {
                        self.last_sign_at = Instant::now();
                        if let Err(loss) = self.handle_message(message) {
                            return WatchEnd::Condemned(loss);
                        }
                    }
                    Ok(None) if self.exit_deadline.is_some() => return WatchEnd::Requested,
                    Ok(None) => return WatchEnd::Gone,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return WatchEnd::Gone,
                    Err(error) => {
                        let detail = format!("the runner's answers make no sense: {error}");
                        return WatchEnd::Condemned(RunnerLoss { cause: LossCause::Exited, detail });
                    }
                },
                command = inbox.recv(), if has_handles => match command {
                    Some(SupervisorCommand::Kill) => return WatchEnd::Requested,
                    Some(SupervisorCommand::Stop) => self.ask_to_exit(),
                    Some(command) => self.execute(command),
                    None => {
                        has_handles = false;
                        self.ask_to_exit();
                    }
                },
                _ = child.wait() => {
                    // The last messages of the runner may still be in the socket.
                    let drained = timeout(REAP_TIMEOUT, self.drain(reader)).await;
                    return match drained.ok().flatten() {
                        _ if self.exit_deadline.is_some() => WatchEnd::Requested,
                        Some(loss) => WatchEnd::Condemned(loss),
                        None => WatchEnd::Gone,
                    };
                }
                Some(filter) = next_log_level(&mut log_level) => self.send(&ToRunner::LogLevel { filter }),
                () = self.frames.flush(), if self.frames.is_waiting() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    if let Some(end) = self.check_deadlines() {
                        return end;
                    }
                }
            }
        }
    }

    /// Handles the last messages of a runner that has ended.
    async fn drain(&mut self, reader: &mut FrameReader) -> Option<RunnerLoss> {
        while let Ok(Some(message)) = reader.next().await {
            if let Err(loss) = self.handle_message(message) {
                return Some(loss);
            }
        }
        None
    }

    fn next_deadline(&self) -> Option<Instant> {
        let of_jobs = self.job_deadlines.values().map(|deadline| match deadline {
            JobDeadline::Finish(at) | JobDeadline::Confirm(at) => *at,
        });
        let of_runner = [self.exit_deadline, self.load_deadline(), self.stall_deadline()];
        of_runner.into_iter().flatten().chain(of_jobs).min()
    }

    fn load_deadline(&self) -> Option<Instant> {
        self.load.as_ref().and_then(|load| load.deadline)
    }

    /// When the runner counts as hung if no frame comes: only while it has jobs and its load has ended.
    fn stall_deadline(&self) -> Option<Instant> {
        let is_loaded = self.load.as_ref().is_some_and(|load| load.deadline.is_none());
        let is_working = is_loaded && !self.unfinished.is_empty();
        is_working.then(|| self.last_sign_at + self.settings.stall_timeout)
    }

    fn check_deadlines(&mut self) -> Option<WatchEnd> {
        let now = Instant::now();
        let is_over = |deadline: Option<Instant>| deadline.is_some_and(|deadline| now >= deadline);

        if is_over(self.exit_deadline) {
            tracing::warn!(pid = self.pid, "runner did not exit when asked; killing it");
            return Some(WatchEnd::Requested);
        }
        if is_over(self.load_deadline()) {
            let detail = format!("not loaded within {} s", self.settings.load_timeout.as_secs_f64());
            return Some(WatchEnd::Condemned(RunnerLoss { cause: LossCause::LoadTimeout, detail }));
        }
        if is_over(self.stall_deadline()) {
            let detail = format!("no sign of life for {} s while working", self.settings.stall_timeout.as_secs_f64());
            return Some(WatchEnd::Condemned(RunnerLoss { cause: LossCause::Hung, detail }));
        }
        self.cancel_overdue_jobs(now).err().map(WatchEnd::Condemned)
    }

    /// Cancels the jobs that have worked for too long. It is an error if the runner has not confirmed an earlier
    /// cancellation in time.
    fn cancel_overdue_jobs(&mut self, now: Instant) -> Result<(), RunnerLoss> {
        let mut overdue = Vec::new();
        for (id, deadline) in &mut self.job_deadlines {
            match deadline {
                JobDeadline::Confirm(by) if now >= *by => {
                    let seconds = self.settings.let_go_timeout.as_secs_f64();
                    let detail = format!("it went on for {seconds} s with a request that had been ended");
                    return Err(RunnerLoss { cause: LossCause::Hung, detail });
                }
                JobDeadline::Finish(by) if now >= *by => {
                    *deadline = JobDeadline::Confirm(now + self.settings.let_go_timeout);
                    overdue.push(*id);
                }
                JobDeadline::Confirm(_) | JobDeadline::Finish(_) => {}
            }
        }

        for id in overdue {
            let after = self.settings.busy_timeout.unwrap_or_default();
            tracing::warn!(pid = self.pid, job = id, "ending a request that has worked for {} s", after.as_secs_f64());
            self.forward(id, JobEvent::Overdue { after });
            self.cancel(id);
        }
        Ok(())
    }

    fn execute(&mut self, command: SupervisorCommand) {
        match command {
            SupervisorCommand::Load { spec, on_event } => {
                on_event(RunnerEvent::Started { pids: vec![self.pid] });
                self.on_event = Some(on_event);

                let now = Instant::now();
                self.load = Some(LoadAttempt { started_at: now, deadline: Some(now + self.settings.load_timeout) });
                self.send(&ToRunner::Load(spec));
            }
            SupervisorCommand::Work { id, work, audio: (file, audio), request, events } => {
                if self.unfinished.is_empty() {
                    self.last_sign_at = Instant::now();
                }

                match (ToRunner::Work { id, work, audio, request }).encode() {
                    Ok(bytes) => {
                        self.begin_job(id, events);
                        self.frames.push(bytes, Some(file));
                    }
                    Err(error) => {
                        let failed = JobEvent::Failed { kind: FailureKind::Invalid, message: error.to_string() };
                        let _ = events.send(failed);
                    }
                }
            }
            SupervisorCommand::Cancel { id } => {
                self.job_deadlines.remove(&id);
                self.cancel(id);
            }
            SupervisorCommand::Stop | SupervisorCommand::Kill => {}
        }
    }

    fn begin_job(&mut self, id: JobId, events: mpsc::UnboundedSender<JobEvent>) {
        self.unfinished.insert(id);
        self.jobs.insert(id, events);
        if let Some(busy_timeout) = self.settings.busy_timeout {
            self.job_deadlines.insert(id, JobDeadline::Finish(Instant::now() + busy_timeout));
        }
    }

    fn cancel(&mut self, id: JobId) {
        self.jobs.remove(&id);
        if self.unfinished.contains(&id) {
            self.send(&ToRunner::Cancel { id });
        }
    }

    fn ask_to_exit(&mut self) {
        self.exit_deadline.get_or_insert(Instant::now() + self.settings.exit_timeout);
        self.send(&ToRunner::Exit);
    }

    fn send(&mut self, message: &ToRunner) {
        match message.encode() {
            Ok(bytes) => self.frames.push(bytes, None),
            Err(error) => tracing::error!(pid = self.pid, "a message to the runner was not sent: {error}"),
        }
    }

    /// An error if the runner must be killed because of the message.
    fn handle_message(&mut self, message: FromRunner) -> Result<(), RunnerLoss> {
        match message {
            FromRunner::Hello { version, runtime, libraries_seconds, .. } => {
                self.handle_hello(version, runtime.as_deref(), libraries_seconds)?;
            }
            FromRunner::Loaded { sessions_seconds } => self.handle_loaded(sessions_seconds)?,
            FromRunner::FullyLoaded { seconds } => {
                let after = Duration::try_from_secs_f64(seconds).unwrap_or_default();
                self.emit(RunnerEvent::FullyLoaded(after));
            }
            FromRunner::LoadFailed { kind, message: cause } => {
                if let Some(load) = &mut self.load {
                    load.deadline = None;
                }
                self.has_failed_to_load = true;
                self.emit(RunnerEvent::LoadFailed { cause, out_of_memory: kind == FailureKind::OutOfMemory });
            }

            FromRunner::Segment { id, segment } => self.forward(id, JobEvent::Segment(segment)),
            FromRunner::Progress { id, done_seconds, total_seconds } => {
                self.forward(id, JobEvent::Progress { done_seconds, total_seconds });
            }
            FromRunner::FirstToken { id, timings } => self.forward(id, JobEvent::FirstToken { timings }),
            FromRunner::Beat => {}
            FromRunner::LogLinesDropped { count } => hush_log::count_dropped_lines(count),

            FromRunner::Done { id, outcome } => self.end_job(id, JobEvent::Done(outcome)),
            // CUDA fails every later call of the process too. The job is lost with the runner, and is tried once more.
            FromRunner::Failed { kind: FailureKind::DeviceLost, message, .. } => {
                return Err(RunnerLoss { cause: LossCause::Exited, detail: format!("the GPU failed: {message}") });
            }
            FromRunner::Failed { id, kind, message } => {
                if kind == FailureKind::OutOfMemory {
                    self.emit(RunnerEvent::OutOfMemory(message.clone()));
                }
                self.end_job(id, JobEvent::Failed { kind, message });
            }
        }
        Ok(())
    }

    fn handle_hello(&mut self, version: u32, runtime: Option<&str>, libraries_seconds: f64) -> Result<(), RunnerLoss> {
        if version != VERSION {
            let detail = format!("the runner speaks protocol {version}, this server {VERSION}: restart it");
            return Err(RunnerLoss { cause: LossCause::Exited, detail });
        }

        let libraries = Duration::try_from_secs_f64(libraries_seconds).unwrap_or_default();
        self.hello = Some(Hello { received_at: Instant::now(), libraries });
        tracing::debug!(pid = self.pid, ?libraries, runtime, "runner started");
        Ok(())
    }

    fn handle_loaded(&mut self, sessions_seconds: f64) -> Result<(), RunnerLoss> {
        let Some(load) = &mut self.load else {
            return Err(RunnerLoss { cause: LossCause::Exited, detail: "loaded without an order".to_owned() });
        };

        load.deadline = None;
        let timings = load_timings(load, self.hello, self.spawned_at, sessions_seconds);
        self.emit(RunnerEvent::Loaded(timings));
        Ok(())
    }

    fn emit(&self, event: RunnerEvent) {
        if let Some(on_event) = &self.on_event {
            on_event(event);
        }
    }

    /// Sends an event to a job, unless the job was dropped.
    fn forward(&self, id: JobId, event: JobEvent) {
        if let Some(job) = self.jobs.get(&id) {
            let _ = job.send(event);
        }
    }

    fn end_job(&mut self, id: JobId, event: JobEvent) {
        self.unfinished.remove(&id);
        self.job_deadlines.remove(&id);
        if let Some(job) = self.jobs.remove(&id) {
            let _ = job.send(event);
        }
    }

    /// Kills the process if it still runs, reports its end, and reaps it.
    async fn finish(
        mut self,
        mut child: Child,
        end: WatchEnd,
        mut inbox: mpsc::UnboundedReceiver<SupervisorCommand>,
        ending: &OnceLock<RunnerEnding>,
    ) {
        if !matches!(end, WatchEnd::Gone) || timeout(REAP_TIMEOUT, child.wait()).await.is_err() {
            // Fails only if the process is reaped already.
            let _ = child.start_kill();
        }

        let loss = match end {
            WatchEnd::Requested => None,
            WatchEnd::Gone if self.has_failed_to_load => None,
            WatchEnd::Gone => Some(self.loss_of_ended_process(&mut child).await),
            WatchEnd::Condemned(loss) => Some(loss),
        };
        if let Some(loss) = &loss {
            tracing::warn!(pid = self.pid, cause = loss.cause.as_str(), "runner lost: {loss}");
        }
        let _ = ending.set(loss.clone().map_or(RunnerEnding::Stopped, RunnerEnding::Lost));

        // The loss is reported before the jobs end: a request that loses its job asks for a runner again, and must not
        // get this one.
        self.emit_loss(loss.as_ref());
        inbox.close();
        while let Ok(command) = inbox.try_recv() {
            // A spare runner may be taken just when it ends.
            if let SupervisorCommand::Load { on_event, .. } = command {
                self.on_event = Some(on_event);
                self.emit_loss(loss.as_ref());
            }
        }
        self.jobs.clear();

        if let Err(error) = child.wait().await {
            tracing::error!(pid = self.pid, "reaping the runner failed: {error}");
        }
        self.emit(RunnerEvent::Exited);
    }

    fn emit_loss(&self, loss: Option<&RunnerLoss>) {
        if let Some(loss) = loss {
            self.emit(RunnerEvent::Lost(loss.clone()));
        }
    }

    async fn loss_of_ended_process(&self, child: &mut Child) -> RunnerLoss {
        match timeout(REAP_TIMEOUT, child.wait()).await {
            Ok(Ok(status)) => loss_of_status(status),
            Ok(Err(error)) => {
                RunnerLoss { cause: LossCause::Exited, detail: format!("it ended; waiting failed: {error}") }
            }
            Err(_) => {
                RunnerLoss { cause: LossCause::Exited, detail: "it closed its socket and would not end".to_owned() }
            }
        }
    }
}

fn loss_of_status(status: ExitStatus) -> RunnerLoss {
    match status.signal() {
        Some(9) => RunnerLoss {
            cause: LossCause::Killed,
            detail: "killed by signal 9 (the kernel does so when memory is short)".to_owned(),
        },
        Some(signal) => RunnerLoss { cause: LossCause::Killed, detail: format!("killed by signal {signal}") },
        None => RunnerLoss { cause: LossCause::Exited, detail: status.to_string() },
    }
}

fn load_timings(load: &LoadAttempt, hello: Option<Hello>, spawned_at: Instant, sessions_seconds: f64) -> LoadTimings {
    // A spare runner was started and had its libraries loaded before the load began.
    let (spawn, libraries) = match hello {
        Some(Hello { received_at, libraries }) if received_at >= load.started_at => {
            (received_at.duration_since(spawned_at).saturating_sub(libraries), libraries)
        }
        Some(_) | None => (Duration::ZERO, Duration::ZERO),
    };

    let sessions = Duration::try_from_secs_f64(sessions_seconds).unwrap_or_default();
    LoadTimings { spawn, libraries, sessions, total: load.started_at.elapsed() }
}
