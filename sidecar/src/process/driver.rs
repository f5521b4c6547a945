//! The task that owns one process of an app: it starts the keeper, passes what happens to the machine, and does what the
//! machine says.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use hush_residency::{OnRunnerEvent, RunnerEvent};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::AppSurvivors;
use super::cgroup::AppCgroup;
use super::exec;
use super::machine::{AppDeadlines, AppEffect, AppEvent, AppMachine};
use super::messages::{KeeperCommand, KeeperMessage, ProcessName};
use super::output::{OutputTail, log_output};
use super::port::{self, PortListeners};
use super::probe;
use super::process_table::{ProcessEntry, descendants, marked, read_processes, remaining};
use super::settings::{AppActivity, ProcessMark, ProcessSettings, ReadinessProbe};

/// How often the processes of the app are listed.
const PROCESS_INTERVAL: Duration = Duration::from_secs(1);
/// While an app without a keeper is killed.
const KILL_PAUSE: Duration = Duration::from_millis(5);
/// How often survivors of a kill without a keeper are reported.
const SURVIVOR_INTERVAL: Duration = Duration::from_secs(10);
/// A keeper whose last process is gone ends at once.
const KEEPER_END_TIME: Duration = Duration::from_secs(2);
/// The longest cause of a failed load, in characters.
const LONGEST_CAUSE: usize = 4000;

/// What a handle of an app asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AppCommand {
    Stop,
    Kill,
}

/// Runs an app until no process of it is left, and reports what becomes of it.
pub(super) async fn run(
    settings: ProcessSettings,
    activity: AppActivity,
    survivors: AppSurvivors,
    mut inbox: mpsc::UnboundedReceiver<AppCommand>,
    notify: OnRunnerEvent,
) {
    let started_at = Instant::now();
    let keeper = match check(&settings).await {
        Ok(()) => KeeperProcess::start(&settings).map_err(|error| format!("the app could not be started: {error}")),
        Err(cause) => Err(cause),
    };
    let mut keeper = match keeper {
        Ok(keeper) => keeper,
        Err(cause) => {
            tracing::warn!(app = settings.name, "{cause}");
            notify(RunnerEvent::LoadFailed { cause, out_of_memory: false });
            notify(RunnerEvent::Exited);
            return;
        }
    };

    let mut driver = AppDriver::new(settings, survivors, notify, started_at);
    driver.read_output(&mut keeper.child);
    driver.drive(&mut keeper, &activity, &mut inbox).await;
    keeper.reap(&driver.settings.name).await;
}

/// What must hold before an app is started. The error says what does not.
async fn check(settings: &ProcessSettings) -> Result<(), String> {
    if settings.command.is_empty() {
        return Err("the app has no command".to_owned());
    }
    if let Some(folder) = &settings.working_dir {
        match tokio::fs::metadata(folder).await {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(format!("the working directory {} is no directory", folder.display())),
            Err(error) => {
                return Err(format!("the working directory {} cannot be used: {error}", folder.display()));
            }
        }
    }
    match settings.port {
        0 => Ok(()),
        port => port::describe_conflict(port).await.map_or(Ok(()), Err),
    }
}

/// After its line in the log an app gives no further sign that could be missed.
const fn observed_hang_timeout(settings: &ProcessSettings) -> Option<Duration> {
    match settings.probe {
        ReadinessProbe::Http { .. } | ReadinessProbe::Tcp => settings.hang_timeout,
        ReadinessProbe::LogLine { .. } => None,
    }
}

/// The keeper as a child of the sidecar.
struct KeeperProcess {
    child: Child,
    pid: i32,
    mark: ProcessMark,
    messages: Lines<BufReader<OwnedReadHalf>>,
    commands: OwnedWriteHalf,
}

impl KeeperProcess {
    fn start(settings: &ProcessSettings) -> io::Result<Self> {
        let (socket, keeper_socket) = StdUnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let (read, commands) = UnixStream::from_std(socket)?.into_split();

        let mark = ProcessMark::new();
        let mut command = Command::new(&settings.launcher);
        command
            .arg0("hush-keeper")
            .args(exec::keeper_arguments(&settings.resolved_command()))
            .env_clear()
            .envs(settings.environment(&mark))
            .stdin(Stdio::from(OwnedFd::from(keeper_socket)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(folder) = &settings.working_dir {
            command.current_dir(folder);
        }
        // Not killed when it is dropped: the end of its socket has it end the app first.
        let child = command.spawn()?;

        let pid = child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or_default();
        Ok(Self { child, pid, mark, messages: BufReader::new(read).lines(), commands })
    }

    async fn send(&mut self, command: KeeperCommand) {
        let Ok(mut line) = serde_json::to_vec(&command) else { return };
        line.push(b'\n');
        // The end of a keeper is seen where its messages are read.
        let _ = self.commands.write_all(&line).await;
    }

    /// The next message; `None`: the keeper has ended.
    async fn next(&mut self) -> Option<KeeperMessage> {
        let line = self.messages.next_line().await.ok().flatten()?;
        serde_json::from_str(&line).ok()
    }

    async fn reap(&mut self, app: &str) {
        if timeout(KEEPER_END_TIME, self.child.wait()).await.is_err() {
            tracing::warn!(app, pid = self.pid, "the keeper of the app does not end and is killed");
            let _ = self.child.kill().await;
        }
    }
}

struct AppDriver {
    settings: ProcessSettings,
    survivors: AppSurvivors,
    notify: OnRunnerEvent,
    machine: AppMachine,
    tail: OutputTail,
    /// What the tasks of this app report.
    events: mpsc::UnboundedSender<AppEvent>,
    event_inbox: mpsc::UnboundedReceiver<AppEvent>,
    /// Both readers of the output.
    readers: JoinSet<()>,
    /// The probe, and the warm-up. They end with the driver.
    callers: JoinSet<()>,
    main: u32,
    cgroup: Option<AppCgroup>,
    /// The processes of the app when they were listed last, the main process first.
    processes: Vec<ProcessEntry>,
}

impl AppDriver {
    fn new(settings: ProcessSettings, survivors: AppSurvivors, notify: OnRunnerEvent, started_at: Instant) -> Self {
        let deadlines = AppDeadlines {
            load: settings.load_timeout,
            stop: settings.stop_timeout,
            hang: observed_hang_timeout(&settings),
            has_warm_up: settings.warm.is_some(),
        };
        let (events, event_inbox) = mpsc::unbounded_channel();
        Self {
            settings,
            survivors,
            notify,
            machine: AppMachine::new(deadlines, started_at.into_std()),
            tail: OutputTail::default(),
            events,
            event_inbox,
            readers: JoinSet::new(),
            callers: JoinSet::new(),
            main: 0,
            cgroup: None,
            processes: Vec::new(),
        }
    }

    fn read_output(&mut self, child: &mut Child) {
        let name: Arc<str> = self.settings.name.as_str().into();
        let ready_text = match &self.settings.probe {
            ReadinessProbe::LogLine { text } => Some(text.clone()),
            ReadinessProbe::Http { .. } | ReadinessProbe::Tcp => None,
        };
        let on_line = |events: mpsc::UnboundedSender<AppEvent>, ready_text: Option<String>| {
            move |line: &str| {
                if ready_text.as_ref().is_some_and(|text| line.contains(text)) {
                    let _ = events.send(AppEvent::ReadyLine);
                }
            }
        };

        if let Some(output) = child.stdout.take() {
            let on_line = on_line(self.events.clone(), ready_text.clone());
            self.readers.spawn(log_output(name.clone(), output, self.tail.clone(), on_line));
        }
        if let Some(output) = child.stderr.take() {
            let on_line = on_line(self.events.clone(), ready_text);
            self.readers.spawn(log_output(name, output, self.tail.clone(), on_line));
        }
    }

    async fn drive(
        &mut self,
        keeper: &mut KeeperProcess,
        activity: &AppActivity,
        inbox: &mut mpsc::UnboundedReceiver<AppCommand>,
    ) {
        let mut listing = interval(PROCESS_INTERVAL);
        listing.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut has_keeper, mut has_handles) = (true, true);

        while !self.machine.has_ended() {
            let deadline = self.machine.next_deadline().map(Instant::from_std);
            let event = tokio::select! {
                message = keeper.next(), if has_keeper => match message {
                    Some(message) => self.handle_message(message),
                    None => {
                        has_keeper = false;
                        Some(AppEvent::KeeperLost)
                    }
                },
                command = inbox.recv(), if has_handles => match command {
                    Some(AppCommand::Stop) => Some(AppEvent::StopRequested),
                    Some(AppCommand::Kill) => Some(AppEvent::KillRequested),
                    None => {
                        has_handles = false;
                        Some(AppEvent::StopRequested)
                    }
                },
                Some(event) = self.event_inbox.recv() => Some(event),
                Some(_) = self.readers.join_next() => self.readers.is_empty().then_some(AppEvent::OutputEnded),
                _ = listing.tick(), if self.machine.is_running() => {
                    self.list_processes(keeper.pid).await;
                    None
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    Some(AppEvent::Tick { active_at: activity.last() })
                }
            };

            if let Some(event) = event {
                self.step(event, keeper).await;
            }
        }
    }

    fn handle_message(&mut self, message: KeeperMessage) -> Option<AppEvent> {
        match message {
            KeeperMessage::Launched { main, cgroup } => {
                tracing::info!(app = self.settings.name, pid = main, cgroup, "app started");
                self.main = main;
                self.cgroup = cgroup.map(AppCgroup::at);
                (self.notify)(RunnerEvent::Started { pids: vec![main] });
                Some(AppEvent::Launched)
            }
            KeeperMessage::NotLaunched { cause } => Some(AppEvent::NotLaunched { cause }),
            KeeperMessage::MainExited(exit) => {
                tracing::info!(app = self.settings.name, pid = self.main, "the app {exit}");
                Some(AppEvent::MainExited(exit))
            }
            KeeperMessage::Surviving { processes } => {
                self.report_survivors(processes);
                None
            }
            KeeperMessage::AllGone => Some(AppEvent::AllGone),
        }
    }

    async fn step(&mut self, event: AppEvent, keeper: &mut KeeperProcess) {
        for effect in self.machine.step(Instant::now().into_std(), event) {
            self.perform(effect, keeper).await;
        }
    }

    async fn perform(&mut self, effect: AppEffect, keeper: &mut KeeperProcess) {
        match effect {
            AppEffect::BeginProbing => self.begin_probing(),
            AppEffect::BeginWarmUp => self.begin_warm_up(),
            AppEffect::TerminateGroup => keeper.send(KeeperCommand::TerminateGroup).await,
            AppEffect::TerminateRest => keeper.send(KeeperCommand::TerminateRest).await,
            AppEffect::Kill => keeper.send(KeeperCommand::Kill).await,
            AppEffect::KillWithoutKeeper => self.kill_without_keeper(&keeper.mark).await,
            AppEffect::ReportLoaded(timings) => {
                // So that the memory of all processes is accounted for from the beginning.
                self.list_processes(keeper.pid).await;
                self.warn_of_other_listener().await;
                (self.notify)(RunnerEvent::Loaded(timings));
            }
            AppEffect::ReportLoadFailure { cause, has_last_words } => self.report_load_failure(cause, has_last_words),
            AppEffect::ReportLoss(loss) => {
                tracing::warn!(app = self.settings.name, cause = loss.cause.as_str(), "app lost: {loss}");
                if let Some(line) = self.tail.out_of_memory() {
                    (self.notify)(RunnerEvent::OutOfMemory(line));
                }
                (self.notify)(RunnerEvent::Lost(loss));
            }
            AppEffect::ReportExited => {
                self.report_survivors(Vec::new());
                (self.notify)(RunnerEvent::Exited);
            }
        }
    }

    fn begin_probing(&mut self) {
        let events = self.events.clone();
        let probing = probe::probe_forever(
            self.settings.probe.clone(),
            self.settings.port,
            observed_hang_timeout(&self.settings),
            move |outcome| {
                let _ = events.send(AppEvent::Probed(outcome));
            },
        );
        self.callers.spawn(probing);
    }

    fn begin_warm_up(&mut self) {
        let Some(warm) = self.settings.warm.clone() else { return };
        let (events, port) = (self.events.clone(), self.settings.port);
        self.callers.spawn(async move {
            let event = match probe::warm_up(port, &warm).await {
                Ok(()) => AppEvent::WarmedUp,
                Err(cause) => AppEvent::WarmUpFailed { cause },
            };
            let _ = events.send(event);
        });
    }

    /// Reports the processes of the app if they are others than before.
    async fn list_processes(&mut self, keeper: i32) {
        let Ok(table) = tokio::task::spawn_blocking(read_processes).await else { return };
        let mut processes = descendants(&table, keeper);
        processes.retain(|process| !process.is_zombie);
        processes.sort_by_key(|process| (process.pid.unsigned_abs() != self.main, process.start_ticks, process.pid));

        let pids = |processes: &[ProcessEntry]| -> Vec<u32> {
            processes.iter().map(|process| process.pid.unsigned_abs()).collect()
        };
        let now = pids(&processes);
        let was = if self.processes.is_empty() { vec![self.main] } else { pids(&self.processes) };
        // Without its main process an app is about to end.
        if now.first() != Some(&self.main) {
            return;
        }
        self.processes = processes;
        if now != was {
            tracing::debug!(app = self.settings.name, pids = ?now, "the processes of the app have changed");
            (self.notify)(RunnerEvent::Started { pids: now });
        }
    }

    /// An app whose port is answered by another process was not started by its command, or shares its port.
    async fn warn_of_other_listener(&self) {
        let port = self.settings.port;
        if port == 0 {
            return;
        }
        let found = tokio::task::spawn_blocking(move || PortListeners::find(port)).await;
        let Ok(Ok(listeners)) = found else { return };

        let is_own = |name: &ProcessName| self.processes.iter().any(|process| process.pid.unsigned_abs() == name.pid);
        if let Some(other) = listeners.processes.iter().find(|listener| !is_own(listener)) {
            tracing::warn!(
                app = self.settings.name,
                "process {other} listens on port {port} and is no process of the app, so that it does not end with it"
            );
        }
    }

    fn report_load_failure(&self, cause: String, has_last_words: bool) {
        let out_of_memory = self.tail.out_of_memory();
        let mut text = cause;
        if let Some(line) = &out_of_memory {
            text = format!("{text}: {line}");
        }
        let lines = self.tail.lines();
        if has_last_words && !lines.is_empty() {
            text = format!("{text}; its last lines: {}", lines.join(" | "));
        }

        let cause = hush_log::printable(&text, LONGEST_CAUSE);
        (self.notify)(RunnerEvent::LoadFailed { cause, out_of_memory: out_of_memory.is_some() });
    }

    fn report_survivors(&self, processes: Vec<ProcessName>) {
        if !processes.is_empty() {
            let names: Vec<String> = processes.iter().map(ToString::to_string).collect();
            tracing::error!(
                app = self.settings.name,
                "these processes of the app were killed and do not end: {}. They may still hold device memory",
                names.join(", ")
            );
        }
        self.survivors.replace(processes);
    }

    /// Kills what is known of the app until nothing is left. Its main process ended with the keeper.
    async fn kill_without_keeper(&mut self, mark: &ProcessMark) {
        tracing::warn!(app = self.settings.name, "the keeper of the app has ended; killing what is left of the app");
        let mut next_report_at = Instant::now() + SURVIVOR_INTERVAL;
        loop {
            if let Some(cgroup) = &self.cgroup {
                let _ = cgroup.kill();
            }
            let (known, mark) = (self.processes.clone(), mark.assignment());
            let killed = tokio::task::spawn_blocking(move || kill_known(known, &mark)).await;
            let Ok(left) = killed else { break };
            if left.is_empty() && !self.cgroup.as_ref().is_some_and(AppCgroup::is_populated) {
                break;
            }

            if Instant::now() >= next_report_at {
                next_report_at = Instant::now() + SURVIVOR_INTERVAL;
                self.report_survivors(left.iter().map(ProcessEntry::process_name).collect());
            }
            // What these have started meanwhile is found as theirs.
            self.processes.extend(left);
            self.processes.sort_by_key(|process| (process.pid, process.start_ticks));
            self.processes.dedup();
            sleep(KILL_PAUSE).await;
        }

        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
        let _ = self.events.send(AppEvent::AllGone);
    }
}

/// Returns what was there to kill.
fn kill_known(mut known: Vec<ProcessEntry>, mark: &OsStr) -> Vec<ProcessEntry> {
    let processes = read_processes();
    known.extend(marked(&processes, mark));
    let left = remaining(&processes, &known);
    // The newest first: it is the one that is about to start another.
    for process in left.iter().rev() {
        let _ = process.signal(Signal::KILL);
    }
    left
}
