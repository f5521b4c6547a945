//! The parent's side: runners, and the jobs on them.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hush_residency::RunnerLoss;
pub use hush_residency::{LoadTimings, OnRunnerEvent, RunnerEvent};
use hush_whisper::{FirstToken, Segment};
use tokio::sync::mpsc;

use super::spawn::Spawner;
use super::supervisor::{self, SupervisorCommand};
use super::wire::{FailureKind, JobId, LoadSpec};
use crate::audio::PcmSpan;
use crate::job::{JobOutcome, JobTask};
use crate::request;

#[derive(Clone, Debug)]
pub struct RunnerSettings {
    /// The program that calls [`super::child::main`] if it is started with `args`.
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Variables in addition to the few that a runner inherits.
    pub env: Vec<(OsString, OsString)>,
    /// The longest time from the command to load until the model is ready.
    pub load_timeout: Duration,
    /// The longest time without a sign of life while the engine has jobs.
    pub stall_timeout: Duration,
    /// The longest time that one job may work; `None`: no limit.
    pub busy_timeout: Option<Duration>,
    /// How long a runner may go on with a job that was cancelled for working too long, before the runner is killed.
    pub let_go_timeout: Duration,
    /// How long a runner may take to exit when it is asked to.
    pub exit_timeout: Duration,
    /// Whether a spare runner waits with its libraries loaded and no model.
    pub spare: bool,
}

impl RunnerSettings {
    /// Runners are this same program, started with `args` (the subcommand `runner` and its arguments).
    pub fn this_program(args: Vec<OsString>) -> Self {
        Self {
            // At the path of the program, an upgrade may have put another version.
            program: PathBuf::from("/proc/self/exe"),
            args,
            env: Vec::new(),
            load_timeout: Duration::from_secs(300),
            stall_timeout: Duration::from_secs(120),
            busy_timeout: None,
            // The encoder takes some seconds for a window on a small CPU, and cannot be interrupted.
            let_go_timeout: Duration::from_secs(15),
            exit_timeout: Duration::from_secs(5),
            spare: false,
        }
    }
}

/// Why a runner has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunnerEnding {
    /// The server has stopped it, or it has failed to load.
    Stopped,
    Lost(RunnerLoss),
}

/// Starts runners, which end with it. Cheap to clone.
#[derive(Clone)]
pub struct Runners {
    pool: Arc<RunnerPool>,
}

struct RunnerPool {
    settings: Arc<RunnerSettings>,
    spawner: Arc<Spawner>,
    spare: Mutex<Option<RunnerHandle>>,
}

impl Runners {
    /// Starts the spare runner, if there is to be one. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If the thread that starts processes cannot be started.
    pub fn new(settings: RunnerSettings) -> io::Result<Self> {
        let spawner = Arc::new(Spawner::new()?);
        let pool = RunnerPool { settings: Arc::new(settings), spawner, spare: Mutex::new(None) };
        pool.start_spare_if_missing();
        Ok(Self { pool: Arc::new(pool) })
    }

    /// A runner that loads `spec`: the spare runner if one waits, else a new process.
    pub fn start(&self, spec: LoadSpec, on_event: OnRunnerEvent) -> RunnerHandle {
        let runner = self.pool.take_spare().unwrap_or_else(|| self.pool.spawn());

        let pool = Arc::downgrade(&self.pool);
        let on_event: OnRunnerEvent = Box::new(move |event| {
            // The next spare is started only after the load, because a new process would take the processor from the load.
            let has_load_ended =
                matches!(event, RunnerEvent::Loaded(_) | RunnerEvent::LoadFailed { .. } | RunnerEvent::Lost(_));
            if has_load_ended && let Some(pool) = pool.upgrade() {
                pool.start_spare_if_missing();
            }
            on_event(event);
        });

        runner.send(SupervisorCommand::Load { spec, on_event });
        runner
    }

    /// Ends the spare runner and waits until it is reaped.
    pub async fn shutdown(&self) {
        if let Some(spare) = self.pool.take_spare() {
            spare.stop();
            spare.commands.closed().await;
        }
    }
}

impl RunnerPool {
    fn spawn(&self) -> RunnerHandle {
        let (commands, inbox) = mpsc::unbounded_channel();
        let ending = Arc::new(OnceLock::new());
        let supervisor = supervisor::run(self.settings.clone(), self.spawner.clone(), inbox, ending.clone());
        tokio::spawn(supervisor);

        RunnerHandle { commands, ending, next_job: Arc::new(AtomicU64::new(1)) }
    }

    fn take_spare(&self) -> Option<RunnerHandle> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        spare.filter(RunnerHandle::is_alive)
    }

    fn start_spare_if_missing(&self) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let has_spare = spare.as_ref().is_some_and(RunnerHandle::is_alive);
        if self.settings.spare && !has_spare {
            *spare = Some(self.spawn());
        }
    }
}

/// A handle of one child process, which is asked to exit when its last handle is dropped.
#[derive(Clone)]
pub struct RunnerHandle {
    commands: mpsc::UnboundedSender<SupervisorCommand>,
    ending: Arc<OnceLock<RunnerEnding>>,
    next_job: Arc<AtomicU64>,
}

impl RunnerHandle {
    /// Begins `work` on `audio`, which the runner reads from the file itself, see [`Pcm::to_file`](crate::audio::Pcm).
    pub fn work(&self, work: JobTask, audio: (File, PcmSpan)) -> RunnerJob {
        let id = self.next_job.fetch_add(1, Ordering::Relaxed);
        let (events, inbox) = mpsc::unbounded_channel();
        let request = request::id().map(|id| id.to_string());

        self.send(SupervisorCommand::Work { id, work, audio, request, events });
        RunnerJob { id, events: inbox, runner: self.clone(), finished: false }
    }

    /// Asks the runner to exit. It is killed if it takes too long.
    pub fn stop(&self) {
        self.send(SupervisorCommand::Stop);
    }

    pub fn kill(&self) {
        self.send(SupervisorCommand::Kill);
    }

    fn is_alive(&self) -> bool {
        !self.commands.is_closed() && self.ending.get().is_none()
    }

    fn send(&self, command: SupervisorCommand) {
        // A runner that has ended needs no command: its jobs are ended too.
        let _ = self.commands.send(command);
    }
}

#[derive(Debug)]
pub enum JobEvent {
    Segment(Segment),
    Progress {
        done_seconds: f64,
        total_seconds: f64,
    },
    FirstToken {
        timings: FirstToken,
    },
    Done(JobOutcome),
    Failed {
        kind: FailureKind,
        message: String,
    },
    /// The job took longer than [`RunnerSettings::busy_timeout`] and was cancelled.
    Overdue {
        after: Duration,
    },
}

/// A job in progress. Dropping it ends the job at the next token; the runner goes on.
pub struct RunnerJob {
    id: JobId,
    events: mpsc::UnboundedReceiver<JobEvent>,
    runner: RunnerHandle,
    finished: bool,
}

impl RunnerJob {
    /// The next event. `Done`, `Failed` and `Overdue` are last events.
    ///
    /// # Errors
    /// If the runner has ended.
    pub async fn next(&mut self) -> Result<JobEvent, RunnerEnding> {
        match self.events.recv().await {
            Some(event) => {
                self.finished |=
                    matches!(event, JobEvent::Done(_) | JobEvent::Failed { .. } | JobEvent::Overdue { .. });
                Ok(event)
            }
            None => {
                self.finished = true;
                Err(self.runner.ending.get().cloned().unwrap_or(RunnerEnding::Stopped))
            }
        }
    }
}

impl Drop for RunnerJob {
    fn drop(&mut self) {
        if !self.finished {
            self.runner.send(SupervisorCommand::Cancel { id: self.id });
        }
    }
}
