//! One task per runner: reads its frames, watches its signs of life, ends it, and reaps it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::frames::{FrameReader, FrameWriter};
use super::process::{Ending, JobEvent, LoadTimings, Notify, RunnerEvent, Settings};
use super::spawn::Spawner;
use super::wire::{FailureKind, FromRunner, JobId, LoadSpec, Message, ToRunner, VERSION};
use crate::audio::Span;
use crate::job::Work;
use hush_residency::{LossCause, RunnerLoss as Loss};

/// Between the end of a socket and the end of its process.
const REAP_PATIENCE: Duration = Duration::from_secs(1);

pub(super) enum Command {
    Load {
        spec: LoadSpec,
        notify: Notify,
    },
    Work {
        id: JobId,
        work: Work,
        audio: (File, Span),
        request: Option<String>,
        events: mpsc::UnboundedSender<JobEvent>,
    },
    Cancel {
        id: JobId,
    },
    Stop,
    Kill,
}

pub(super) async fn run(
    settings: Arc<Settings>,
    spawner: Arc<Spawner>,
    mut inbox: mpsc::UnboundedReceiver<Command>,
    ending: Arc<OnceLock<Ending>>,
) {
    let spawned_at = Instant::now();
    let started = spawner.spawn(settings.clone()).await.and_then(|spawned| {
        let (read, write) = UnixStream::from_std(spawned.socket)?.into_split();
        Ok((spawned.child, read, write))
    });
    let (mut child, read, write) = match started {
        Ok(started) => started,
        Err(error) => return refuse(&settings, &error, &mut inbox, &ending).await,
    };
    let mut state = Supervised {
        pid: child.id().unwrap_or_default(),
        settings,
        frames: FrameWriter::new(write),
        notify: None,
        load: None,
        hello: None,
        spawned_at,
        jobs: HashMap::new(),
        unanswered: HashSet::new(),
        busy: HashMap::new(),
        last_sign: spawned_at,
        stop_by: None,
        told: false,
    };
    let mut reader = FrameReader::new(read);
    let end = state.watch(&mut child, &mut reader, &mut inbox).await;
    state.finish(child, end, inbox, &ending).await;
}

/// The process could not even be started: whoever wants a model from it is told, once it is asked for.
async fn refuse(
    settings: &Settings,
    error: &io::Error,
    inbox: &mut mpsc::UnboundedReceiver<Command>,
    ending: &OnceLock<Ending>,
) {
    let message = format!("could not start `{}`: {error}", settings.program.display());
    tracing::error!("{message}");
    let loss = Loss { cause: LossCause::Exited, detail: message.clone() };
    let _ = ending.set(Ending::Lost(loss));
    // A spare is not taken once its ending is set; one that was taken before has its order under way.
    while let Some(command) = inbox.recv().await {
        if let Command::Load { notify, .. } = command {
            notify(RunnerEvent::LoadFailed { cause: message, out_of_memory: false });
            notify(RunnerEvent::Exited);
            return;
        }
    }
}

/// `None` where the server has no log whose level can change, as in tests.
async fn next_log_level(changes: &mut Option<hush_log::LogLevelChanges>) -> Option<String> {
    match changes {
        Some(changes) => Some(changes.next().await),
        None => None,
    }
}

/// How the watching ended.
enum End {
    /// We wanted it to end.
    Wanted,
    /// It is gone, or its socket is.
    Gone,
    /// It must go.
    Condemned(Loss),
}

struct Load {
    since: Instant,
    deadline: Option<Instant>,
}

enum Busy {
    Until(Instant),
    /// It was cancelled; the runner must let go of it by then.
    LetGo(Instant),
}

struct Supervised {
    pid: u32,
    settings: Arc<Settings>,
    frames: FrameWriter,
    notify: Option<Notify>,
    load: Option<Load>,
    /// When it said hello, and the time its libraries took.
    hello: Option<(Instant, Duration)>,
    spawned_at: Instant,
    jobs: HashMap<JobId, mpsc::UnboundedSender<JobEvent>>,
    /// Jobs that it has not finished, also those that nobody waits for any more.
    unanswered: HashSet<JobId>,
    /// With [`Settings::busy_timeout`], by when each job must end.
    busy: HashMap<JobId, Busy>,
    last_sign: Instant,
    stop_by: Option<Instant>,
    told: bool,
}

impl Supervised {
    async fn watch(
        &mut self,
        child: &mut Child,
        reader: &mut FrameReader,
        inbox: &mut mpsc::UnboundedReceiver<Command>,
    ) -> End {
        let mut abandoned = false;
        let mut log_level = hush_log::follow_log_level();
        loop {
            let wake = self.deadline();
            tokio::select! {
                frame = reader.next() => match frame {
                    Ok(Some(message)) => {
                        self.last_sign = Instant::now();
                        if let Err(loss) = self.hear(message) {
                            return End::Condemned(loss);
                        }
                    }
                    Ok(None) => return if self.stop_by.is_some() { End::Wanted } else { End::Gone },
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return End::Gone,
                    Err(error) => {
                        let detail = format!("the runner's answers make no sense: {error}");
                        return End::Condemned(Loss { cause: LossCause::Exited, detail });
                    }
                },
                command = inbox.recv(), if !abandoned => match command {
                    Some(Command::Kill) => return End::Wanted,
                    Some(Command::Stop) => self.ask_to_exit(),
                    Some(command) => self.obey(command),
                    None => {
                        abandoned = true;
                        self.ask_to_exit();
                    }
                },
                _ = child.wait() => {
                    // What it said before is still in the socket.
                    let rest = timeout(REAP_PATIENCE, self.drain(reader)).await;
                    return match rest.ok().flatten() {
                        _ if self.stop_by.is_some() => End::Wanted,
                        Some(loss) => End::Condemned(loss),
                        None => End::Gone,
                    };
                }
                Some(filter) = next_log_level(&mut log_level) => self.say(&ToRunner::LogLevel { filter }),
                () = self.frames.flush(), if self.frames.is_waiting() => {}
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    if let Some(end) = self.overdue() {
                        return end;
                    }
                }
            }
        }
    }

    /// Hears what a dead runner said last.
    async fn drain(&mut self, reader: &mut FrameReader) -> Option<Loss> {
        while let Ok(Some(message)) = reader.next().await {
            if let Err(loss) = self.hear(message) {
                return Some(loss);
            }
        }
        None
    }

    fn deadline(&self) -> Option<Instant> {
        let load = self.load.as_ref().and_then(|load| load.deadline);
        let busy = self.busy.values().map(|busy| match busy {
            Busy::Until(at) | Busy::LetGo(at) => *at,
        });
        [self.stop_by, load, self.stall_deadline()].into_iter().flatten().chain(busy).min()
    }

    fn stall_deadline(&self) -> Option<Instant> {
        let works = self.load.is_some() && !self.unanswered.is_empty();
        let loading = self.load.as_ref().is_some_and(|load| load.deadline.is_some());
        (works && !loading).then(|| self.last_sign + self.settings.stall_timeout)
    }

    fn overdue(&mut self) -> Option<End> {
        let now = Instant::now();
        if self.stop_by.is_some_and(|by| now >= by) {
            tracing::warn!(pid = self.pid, "runner did not exit when asked; killing it");
            return Some(End::Wanted);
        }
        if self.load.as_ref().and_then(|load| load.deadline).is_some_and(|by| now >= by) {
            let detail = format!("not loaded within {} s", self.settings.load_timeout.as_secs_f64());
            return Some(End::Condemned(Loss { cause: LossCause::LoadTimeout, detail }));
        }
        if self.stall_deadline().is_some_and(|by| now >= by) {
            let detail = format!("no sign of life for {} s while working", self.settings.stall_timeout.as_secs_f64());
            return Some(End::Condemned(Loss { cause: LossCause::Hung, detail }));
        }
        self.end_overdue_jobs(now).err().map(End::Condemned)
    }

    /// Cancels what has worked for too long; an error if the runner does not let go of what was cancelled before.
    fn end_overdue_jobs(&mut self, now: Instant) -> Result<(), Loss> {
        let mut overdue = Vec::new();
        for (id, busy) in &mut self.busy {
            match busy {
                Busy::LetGo(by) if now >= *by => {
                    let seconds = self.settings.let_go_timeout.as_secs_f64();
                    let detail = format!("it went on for {seconds} s with a request that had been ended");
                    return Err(Loss { cause: LossCause::Hung, detail });
                }
                Busy::Until(until) if now >= *until => {
                    *busy = Busy::LetGo(now + self.settings.let_go_timeout);
                    overdue.push(*id);
                }
                _ => {}
            }
        }
        for id in overdue {
            let after = self.settings.busy_timeout.unwrap_or_default();
            tracing::warn!(pid = self.pid, job = id, "ending a request that has worked for {} s", after.as_secs_f64());
            self.pass(id, JobEvent::Overdue { after });
            self.cancel(id);
        }
        Ok(())
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Load { spec, notify } => {
                notify(RunnerEvent::Started { pids: vec![self.pid] });
                self.notify = Some(notify);
                let now = Instant::now();
                self.load = Some(Load { since: now, deadline: Some(now + self.settings.load_timeout) });
                self.say(&ToRunner::Load(spec));
            }
            Command::Work { id, work, audio, request, events } => {
                if self.unanswered.is_empty() {
                    self.last_sign = Instant::now();
                }
                let (file, audio) = audio;
                match (ToRunner::Work { id, work, audio, request }).encode() {
                    Ok(bytes) => {
                        self.unanswered.insert(id);
                        if let Some(timeout) = self.settings.busy_timeout {
                            self.busy.insert(id, Busy::Until(Instant::now() + timeout));
                        }
                        self.jobs.insert(id, events);
                        self.frames.push(bytes, Some(file));
                    }
                    Err(error) => {
                        let failed = JobEvent::Failed { kind: FailureKind::Invalid, message: error.to_string() };
                        let _ = events.send(failed);
                    }
                }
            }
            Command::Cancel { id } => {
                self.busy.remove(&id);
                self.cancel(id);
            }
            Command::Stop | Command::Kill => {}
        }
    }

    fn cancel(&mut self, id: JobId) {
        self.jobs.remove(&id);
        if self.unanswered.contains(&id) {
            self.say(&ToRunner::Cancel { id });
        }
    }

    fn ask_to_exit(&mut self) {
        self.stop_by.get_or_insert(Instant::now() + self.settings.exit_timeout);
        self.say(&ToRunner::Exit);
    }

    fn say(&mut self, message: &ToRunner) {
        match message.encode() {
            Ok(bytes) => self.frames.push(bytes, None),
            Err(error) => tracing::error!(pid = self.pid, "a message to the runner was not sent: {error}"),
        }
    }

    fn hear(&mut self, message: FromRunner) -> Result<(), Loss> {
        let nonsense = |detail: String| Loss { cause: LossCause::Exited, detail };
        match message {
            FromRunner::Hello { version, runtime, libraries_seconds, .. } => {
                if version != VERSION {
                    let detail = format!("the runner speaks protocol {version}, this server {VERSION}: restart it");
                    return Err(nonsense(detail));
                }
                let libraries = Duration::try_from_secs_f64(libraries_seconds).unwrap_or_default();
                self.hello = Some((Instant::now(), libraries));
                tracing::debug!(pid = self.pid, ?libraries, runtime, "runner started");
            }
            FromRunner::Loaded { sessions_seconds } => {
                let Some(load) = &mut self.load else { return Err(nonsense("loaded without an order".to_owned())) };
                load.deadline = None;
                let timings = timings(load, self.hello, self.spawned_at, sessions_seconds);
                self.tell(RunnerEvent::Loaded(timings));
            }
            FromRunner::Settled { seconds } => {
                self.tell(RunnerEvent::Settled(Duration::try_from_secs_f64(seconds).unwrap_or_default()));
            }
            FromRunner::LoadFailed { kind, message: cause } => {
                if let Some(load) = &mut self.load {
                    load.deadline = None;
                }
                self.told = true;
                self.tell(RunnerEvent::LoadFailed { cause, out_of_memory: kind == FailureKind::OutOfMemory });
            }
            FromRunner::Segment { id, segment } => self.pass(id, JobEvent::Segment(segment)),
            FromRunner::Progress { id, done_seconds, total_seconds } => {
                self.pass(id, JobEvent::Progress { done_seconds, total_seconds });
            }
            FromRunner::FirstToken { id, timings } => self.pass(id, JobEvent::FirstToken { timings }),
            FromRunner::Beat => {}
            FromRunner::LogLinesDropped { count } => hush_log::count_dropped_lines(count),
            FromRunner::Done { id, outcome } => self.end_job(id, JobEvent::Done(outcome)),
            // CUDA fails every later call of the process too. The job is lost with the runner, and is tried once more.
            FromRunner::Failed { kind: FailureKind::DeviceLost, message, .. } => {
                return Err(Loss { cause: LossCause::Exited, detail: format!("the GPU failed: {message}") });
            }
            FromRunner::Failed { id, kind, message } => {
                if kind == FailureKind::OutOfMemory {
                    self.tell(RunnerEvent::OutOfMemory(message.clone()));
                }
                self.end_job(id, JobEvent::Failed { kind, message });
            }
        }
        Ok(())
    }

    fn tell(&self, event: RunnerEvent) {
        if let Some(notify) = &self.notify {
            notify(event);
        }
    }

    /// To a job that was dropped nothing matters any more.
    fn pass(&self, id: JobId, event: JobEvent) {
        if let Some(job) = self.jobs.get(&id) {
            let _ = job.send(event);
        }
    }

    fn end_job(&mut self, id: JobId, event: JobEvent) {
        self.unanswered.remove(&id);
        self.busy.remove(&id);
        if let Some(job) = self.jobs.remove(&id) {
            let _ = job.send(event);
        }
    }

    /// Makes sure that nothing is left of the process; the owner hears of a loss before the jobs do.
    async fn finish(
        mut self,
        mut child: Child,
        end: End,
        mut inbox: mpsc::UnboundedReceiver<Command>,
        ending: &OnceLock<Ending>,
    ) {
        if !matches!(end, End::Gone) || timeout(REAP_PATIENCE, child.wait()).await.is_err() {
            // Fails only when it has been reaped already.
            let _ = child.start_kill();
        }
        let ended = match end {
            End::Wanted => Ending::Stopped,
            End::Gone if self.told => Ending::Stopped,
            End::Gone => Ending::Lost(self.post_mortem(&mut child).await),
            End::Condemned(loss) => Ending::Lost(loss),
        };
        if let Ending::Lost(loss) = &ended {
            tracing::warn!(pid = self.pid, cause = loss.cause.as_str(), "runner lost: {loss}");
        }
        let _ = ending.set(ended.clone());
        // The owner first: whoever loses its job here asks for a runner again, and must not be given this one.
        let loss = match ended {
            Ending::Lost(loss) => Some(loss),
            Ending::Stopped => None,
        };
        self.tell_loss(loss.as_ref());
        inbox.close();
        while let Ok(command) = inbox.try_recv() {
            // A spare that died just before it was wanted.
            if let Command::Load { notify, .. } = command {
                self.notify = Some(notify);
                self.tell_loss(loss.as_ref());
            }
        }
        self.jobs.clear();
        if let Err(error) = child.wait().await {
            tracing::error!(pid = self.pid, "reaping the runner failed: {error}");
        }
        self.tell(RunnerEvent::Exited);
    }

    fn tell_loss(&self, loss: Option<&Loss>) {
        if let Some(loss) = loss {
            self.tell(RunnerEvent::Lost(loss.clone()));
        }
    }

    async fn post_mortem(&self, child: &mut Child) -> Loss {
        match timeout(REAP_PATIENCE, child.wait()).await {
            Ok(Ok(status)) => of_status(status),
            Ok(Err(error)) => Loss { cause: LossCause::Exited, detail: format!("it ended; waiting failed: {error}") },
            Err(_) => Loss { cause: LossCause::Exited, detail: "it closed its socket and would not end".to_owned() },
        }
    }
}

fn of_status(status: ExitStatus) -> Loss {
    match status.signal() {
        Some(9) => Loss {
            cause: LossCause::Killed,
            detail: "killed by signal 9 (the kernel does so when memory is short)".to_owned(),
        },
        Some(signal) => Loss { cause: LossCause::Killed, detail: format!("killed by signal {signal}") },
        None => Loss { cause: LossCause::Exited, detail: status.to_string() },
    }
}

fn timings(load: &Load, hello: Option<(Instant, Duration)>, spawned_at: Instant, sessions: f64) -> LoadTimings {
    let (spawn, libraries) = match hello {
        // A spare runner had this behind it before the load was ordered.
        Some((at, libraries)) if at >= load.since => {
            (at.duration_since(spawned_at).saturating_sub(libraries), libraries)
        }
        _ => (Duration::ZERO, Duration::ZERO),
    };
    let sessions = Duration::try_from_secs_f64(sessions).unwrap_or_default();
    LoadTimings { spawn, libraries, sessions, total: load.since.elapsed() }
}
