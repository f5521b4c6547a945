//! The parent's side: runners, and the jobs on them.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hush_residency::RunnerLoss;
pub use hush_residency::{LoadTimings, Notify, RunnerEvent};
use hush_whisper::{FirstToken, Segment};
use tokio::sync::mpsc;

use super::spawn::Spawner;
use super::supervisor::{self, Command};
use super::wire::{FailureKind, JobId, LoadSpec};
use crate::audio::Span;
use crate::job::{Outcome, Work};
use crate::request;

#[derive(Clone, Debug)]
pub struct Settings {
    /// The program whose `args` run [`super::child::main`].
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Added to the few variables that a runner inherits.
    pub env: Vec<(OsString, OsString)>,
    /// From the order to load until the model is ready.
    pub load_timeout: Duration,
    /// The longest silence of an engine that works.
    pub stall_timeout: Duration,
    /// How long one job may work; `None`: for ever.
    pub busy_timeout: Option<Duration>,
    /// How long a runner may go on with a job that was ended for that, before it is ended itself.
    pub let_go_timeout: Duration,
    /// How long a runner may take to exit when it is asked to.
    pub exit_timeout: Duration,
    /// Keep a runner waiting with its libraries loaded and no model.
    pub spare: bool,
}

impl Settings {
    /// Runs this same program with `args` (`runner` and what belongs to it).
    pub fn this_program(args: Vec<OsString>) -> Self {
        Self {
            // Not its path: an upgrade may have put another version there.
            program: PathBuf::from("/proc/self/exe"),
            args,
            env: Vec::new(),
            load_timeout: Duration::from_secs(300),
            stall_timeout: Duration::from_secs(120),
            busy_timeout: None,
            // An encoder window on a small CPU takes some seconds, and is not interrupted.
            let_go_timeout: Duration::from_secs(15),
            exit_timeout: Duration::from_secs(5),
            spare: false,
        }
    }
}

/// Why a runner has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was told to.
    Stopped,
    Lost(RunnerLoss),
}

/// Starts runners. They end with it.
#[derive(Clone)]
pub struct Runners {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Arc<Settings>,
    spawner: Arc<Spawner>,
    spare: Mutex<Option<Runner>>,
}

impl Runners {
    /// Must be called inside a tokio runtime.
    pub fn new(settings: Settings) -> io::Result<Self> {
        let inner = Inner { settings: Arc::new(settings), spawner: Arc::new(Spawner::new()?), spare: Mutex::new(None) };
        let runners = Self { inner: Arc::new(inner) };
        runners.inner.replenish();
        Ok(runners)
    }

    /// A runner that loads `spec`, from the spare if one waits. Its life is told to `notify`.
    pub fn start(&self, spec: LoadSpec, notify: Notify) -> Runner {
        let runner = self.inner.take_spare().unwrap_or_else(|| self.inner.spawn());
        let inner = Arc::downgrade(&self.inner);
        let notify: Notify = Box::new(move |event| {
            // Not earlier: a new process would take the processor from the load that somebody waits for.
            if matches!(event, RunnerEvent::Loaded(_) | RunnerEvent::LoadFailed { .. } | RunnerEvent::Lost(_))
                && let Some(inner) = inner.upgrade()
            {
                inner.replenish();
            }
            notify(event);
        });
        runner.send(Command::Load { spec, notify });
        runner
    }

    /// Ends the spare runner and waits until it is reaped.
    pub async fn shutdown(&self) {
        if let Some(spare) = self.inner.take_spare() {
            spare.stop();
            spare.commands.closed().await;
        }
    }
}

impl Inner {
    fn spawn(&self) -> Runner {
        let (commands, inbox) = mpsc::unbounded_channel();
        let ending = Arc::new(OnceLock::new());
        let supervisor = supervisor::run(self.settings.clone(), self.spawner.clone(), inbox, ending.clone());
        tokio::spawn(supervisor);
        Runner { commands, ending, next_job: Arc::new(AtomicU64::new(1)) }
    }

    fn take_spare(&self) -> Option<Runner> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        spare.filter(|spare| !spare.commands.is_closed() && spare.ending.get().is_none())
    }

    fn replenish(&self) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = spare.as_ref().is_some_and(|spare| !spare.commands.is_closed() && spare.ending.get().is_none());
        if self.settings.spare && !alive {
            *spare = Some(self.spawn());
        }
    }
}

/// One child process. When its last handle is dropped it is asked to exit.
#[derive(Clone)]
pub struct Runner {
    commands: mpsc::UnboundedSender<Command>,
    ending: Arc<OnceLock<Ending>>,
    next_job: Arc<AtomicU64>,
}

impl Runner {
    /// Begins `work` on `audio`, see [`Pcm::to_file`](crate::audio::Pcm): the runner reads it itself.
    pub fn work(&self, work: Work, audio: (File, Span)) -> Job {
        let id = self.next_job.fetch_add(1, Ordering::Relaxed);
        let (events, inbox) = mpsc::unbounded_channel();
        let request = request::id().map(|id| id.to_string());
        self.send(Command::Work { id, work, audio, request, events });
        Job { id, events: inbox, runner: self.clone(), finished: false }
    }

    /// Asks it to exit; it is killed when it takes too long.
    pub fn stop(&self) {
        self.send(Command::Stop);
    }

    pub fn kill(&self) {
        self.send(Command::Kill);
    }

    /// To a runner that is gone every command is already done.
    fn send(&self, command: Command) {
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
    Done(Outcome),
    Failed {
        kind: FailureKind,
        message: String,
    },
    /// It took longer than [`Settings::busy_timeout`] and was cancelled.
    Overdue {
        after: Duration,
    },
}

/// Work in progress. Dropping it ends the work at the next token; the runner goes on.
pub struct Job {
    id: JobId,
    events: mpsc::UnboundedReceiver<JobEvent>,
    runner: Runner,
    finished: bool,
}

impl Job {
    /// What happens next; after `Done`, `Failed` or `Overdue` nothing does.
    pub async fn next(&mut self) -> Result<JobEvent, Ending> {
        match self.events.recv().await {
            Some(event) => {
                self.finished |=
                    matches!(event, JobEvent::Done(_) | JobEvent::Failed { .. } | JobEvent::Overdue { .. });
                Ok(event)
            }
            None => {
                self.finished = true;
                Err(self.runner.ending.get().cloned().unwrap_or(Ending::Stopped))
            }
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.finished {
            self.runner.send(Command::Cancel { id: self.id });
        }
    }
}
