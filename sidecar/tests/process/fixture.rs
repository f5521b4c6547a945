//! Apps that are real processes, and what is observed of them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hush_residency::{LoadTimings, ModelRunner, RunnerEvent, RunnerLoss};
use hush_sidecar::process::{AppActivity, AppProcess, ProcessSettings};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// On a machine with other work a process may take long to start.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn free_port() -> u16 {
    hush_listener::free_port().unwrap()
}

pub fn python_app() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/process/app.py")
}

/// Settings with the built program as launcher and short times.
pub fn settings(command: &[&str]) -> ProcessSettings {
    let command: Vec<OsString> = command.iter().map(OsString::from).collect();
    let mut settings = ProcessSettings::new("test-app", command, free_port());
    settings.launcher = env!("CARGO_BIN_EXE_hush-sidecar").into();
    settings.load_timeout = PATIENCE;
    settings.stop_timeout = Duration::from_secs(5);
    settings
}

/// The model server of `app.py` with these options.
pub fn python(options: &[&str]) -> ProcessSettings {
    let app = python_app();
    let mut command = vec!["python3", app.to_str().unwrap(), "--port", "{port}"];
    command.extend_from_slice(options);
    settings(&command)
}

/// An app and the events that it has reported.
pub struct ObservedApp {
    pub app: AppProcess,
    pub activity: AppActivity,
    inbox: mpsc::UnboundedReceiver<RunnerEvent>,
    /// All processes that were ever reported.
    pub pids: BTreeSet<u32>,
    pub main: Option<u32>,
    /// The last list.
    pub current: Vec<u32>,
}

impl ObservedApp {
    pub fn start(settings: ProcessSettings) -> Self {
        let (events, inbox) = mpsc::unbounded_channel();
        let activity = AppActivity::new();
        let notify = Box::new(move |event| {
            let _ = events.send(event);
        });
        let app = AppProcess::start_with(settings, activity.clone(), notify);
        Self { app, activity, inbox, pids: BTreeSet::new(), main: None, current: Vec::new() }
    }

    pub async fn loaded(settings: ProcessSettings) -> Self {
        let mut app = Self::start(settings);
        app.expect_loaded().await;
        app
    }

    /// The next event that is not about processes. `None`: the app has no more.
    pub async fn next(&mut self) -> Option<RunnerEvent> {
        loop {
            match timeout(PATIENCE, self.inbox.recv()).await.expect("the app reports nothing") {
                Some(RunnerEvent::Started { pids }) => {
                    self.main.get_or_insert(pids[0]);
                    assert_eq!(self.main, Some(pids[0]), "the main process comes first");
                    self.pids.extend(&pids);
                    self.current = pids;
                }
                other => return other,
            }
        }
    }

    /// Whether nothing is reported at the moment but lists of processes.
    pub fn has_no_event(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(RunnerEvent::Started { .. }) => {}
                other => return matches!(other, Err(mpsc::error::TryRecvError::Empty)),
            }
        }
    }

    /// Waits for a list of processes that meets the condition.
    pub async fn expect_pids(&mut self, condition: impl Fn(&[u32]) -> bool) -> Vec<u32> {
        let deadline = Instant::now() + PATIENCE;
        while !condition(&self.current) {
            assert!(Instant::now() < deadline, "the processes remain {:?}", self.current);
            if let Ok(Some(event)) = timeout(Duration::from_millis(100), self.inbox.recv()).await {
                match event {
                    RunnerEvent::Started { pids } => self.current = pids,
                    other => panic!("unexpected {other:?}"),
                }
            }
        }
        self.current.clone()
    }

    pub async fn expect_loaded(&mut self) -> LoadTimings {
        match self.next().await {
            Some(RunnerEvent::Loaded(timings)) => timings,
            other => panic!("expected Loaded, got {other:?}"),
        }
    }

    pub async fn expect_load_failed(&mut self) -> (String, bool) {
        match self.next().await {
            Some(RunnerEvent::LoadFailed { cause, out_of_memory }) => (cause, out_of_memory),
            other => panic!("expected LoadFailed, got {other:?}"),
        }
    }

    pub async fn expect_lost(&mut self) -> RunnerLoss {
        match self.next().await {
            Some(RunnerEvent::Lost(loss)) => loss,
            other => panic!("expected Lost, got {other:?}"),
        }
    }

    /// The last event. At its time no process of the app may be left.
    pub async fn expect_exited(&mut self) {
        match self.next().await {
            Some(RunnerEvent::Exited) => {}
            other => panic!("expected Exited, got {other:?}"),
        }
        for pid in &self.pids {
            assert!(!is_running(*pid), "process {pid} is left after Exited");
        }
        assert!(self.next().await.is_none(), "an event after Exited");
    }

    /// Stops the app and waits until it is gone. Returns how long that took.
    pub async fn stop(&mut self) -> Duration {
        let started_at = Instant::now();
        self.app.stop();
        self.expect_exited().await;
        started_at.elapsed()
    }
}

/// A process that has ended and is not reaped yet does not run.
pub fn is_running(pid: u32) -> bool {
    let stat = procfs::process::Process::new(pid.cast_signed()).and_then(|process| process.stat());
    stat.is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Whether the process exists at all, also as a zombie.
pub fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The keeper of an app: the parent of its main process.
pub fn parent(pid: u32) -> u32 {
    let stat = procfs::process::Process::new(pid.cast_signed()).unwrap().stat().unwrap();
    stat.ppid.cast_unsigned()
}

pub fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Waits until the condition holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A file in which the processes of an app write down themselves.
pub struct PidFile {
    folder: TempDir,
}

impl PidFile {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> String {
        self.folder.path().join("pids").to_str().unwrap().to_owned()
    }

    pub fn pids(&self, kind: &str) -> Vec<u32> {
        let text = std::fs::read_to_string(self.path()).unwrap_or_default();
        text.lines().filter_map(|line| line.strip_prefix(kind)?.trim().parse().ok()).collect()
    }

    pub fn all(&self) -> Vec<u32> {
        let text = std::fs::read_to_string(self.path()).unwrap_or_default();
        text.lines().filter_map(|line| line.split_once(' ')?.1.parse().ok()).collect()
    }
}

/// Collects the log of this test program.
#[derive(Clone, Default)]
pub struct CollectedLog {
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl CollectedLog {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    pub fn subscribe(&self) -> tracing::subscriber::DefaultGuard {
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::set_default(subscriber)
    }
}

impl std::io::Write for CollectedLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
