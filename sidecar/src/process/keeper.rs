//! The keeper of one app: a small process between the sidecar and the app. Every process of the app is its descendant,
//! also those that left the app's group and session, because the kernel gives orphans to the nearest subreaper. So the
//! kernel itself says when none is left: a keeper without children has no descendants. And the keeper ends the app when
//! the sidecar ends, in whatever way.

use std::cmp::Reverse;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process_group, set_child_subreaper, setsid, wait,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::cgroup::AppCgroup;
use super::exec;
use super::messages::{KeeperCommand, KeeperMessage, MainExit};
use super::process_table::{ProcessEntry, descendants, read_processes};

/// The keeper's name in lists of processes. By another name than the sidecar's it is not ended together with it.
const PROCESS_NAME: &str = "hush-keeper";

/// While the app is killed, its processes are looked for anew so often, because they may start others until they end.
const FIRST_KILL_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_KILL_PAUSE: Duration = Duration::from_millis(200);
/// A process that is killed ends within moments. One that waits in a driver does not, and is reported after this time.
const SURVIVOR_TIME: Duration = Duration::from_secs(5);
const SURVIVOR_INTERVAL: Duration = Duration::from_secs(10);
/// Children are reaped when the kernel signals their end. A signal that is missed costs this much time.
const REAP_INTERVAL: Duration = Duration::from_secs(1);

/// Everything that `hush-sidecar spawn-app -- COMMAND` does. Standard input is a socket to the sidecar; standard output and
/// standard error are the app's.
pub(super) fn run(command: &[OsString]) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(keep(command))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            hush_log::errorln!("the keeper of the app failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns when no process of the app is left.
async fn keep(command: &[OsString]) -> io::Result<()> {
    // A process that leads a group already has a session or a terminal of its own.
    let _ = setsid();
    // A sandbox may forbid it, which does no harm.
    let _ = fs::write("/proc/self/comm", PROCESS_NAME);
    set_child_subreaper(Some(getpid()))?;
    let _ignored = ignore_signals()?;
    let child_ended = signal(SignalKind::child())?;

    let mut keeper = AppKeeper::start(command)?;
    keeper.serve(child_ended).await;
    Ok(())
}

/// Signals that would end the keeper are received and forgotten: the sidecar tells it what to do. Handlers, unlike ignored
/// signals, are not inherited by the app.
fn ignore_signals() -> io::Result<Vec<SignalStream>> {
    let kinds = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    kinds.into_iter().map(signal).collect()
}

struct AppKeeper {
    commands: Lines<BufReader<OwnedReadHalf>>,
    messages: OwnedWriteHalf,
    main: Pid,
    /// The launcher's end of a socket, until it is known whether the app's program runs.
    launch_result: Option<UnixStream>,
    /// Told to the sidecar after the result of the launch.
    main_exit: Option<MainExit>,
    is_main_exit_told: bool,
    cgroup: Option<AppCgroup>,
    kill: Option<KillProgress>,
}

/// How far the killing of an app is.
struct KillProgress {
    next_round_at: Instant,
    pause: Duration,
    next_report_at: Instant,
    /// The newest process that was found, by its start and its process id.
    newest: (u64, i32),
}

impl KillProgress {
    /// Plans the next round: soon, while the app starts new processes. Returns whether survivors are to be reported.
    fn end_round(&mut self, now: Instant, newest: (u64, i32)) -> bool {
        let has_new = newest > self.newest;
        self.newest = self.newest.max(newest);
        self.pause = if has_new { FIRST_KILL_PAUSE } else { (self.pause * 2).min(LONGEST_KILL_PAUSE) };
        self.next_round_at = now + self.pause;

        let is_report_due = self.next_report_at <= now;
        if is_report_due {
            self.next_report_at = now + SURVIVOR_INTERVAL;
        }
        is_report_due
    }
}

impl AppKeeper {
    fn start(command: &[OsString]) -> io::Result<Self> {
        let sidecar = socket_of(io::stdin().as_fd().try_clone_to_owned()?)?;
        let (read, messages) = sidecar.into_split();

        let cgroup = AppCgroup::create();
        let (launch_result, launcher_socket) = StdUnixStream::pair()?;
        let arguments = exec::launcher_arguments(cgroup.as_ref().map(AppCgroup::folder), command);
        // On the main thread, which ends last: the app gets its parent-death signal when the thread ends that started it.
        let launcher = Command::new("/proc/self/exe")
            .args(arguments)
            .stdin(Stdio::from(OwnedFd::from(launcher_socket)))
            .spawn()?;
        let main = i32::try_from(launcher.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;

        Ok(Self {
            commands: BufReader::new(read).lines(),
            messages,
            main,
            launch_result: Some(socket_of(launch_result.into())?),
            main_exit: None,
            is_main_exit_told: false,
            cgroup,
            kill: None,
        })
    }

    async fn serve(&mut self, mut child_ended: SignalStream) {
        let mut has_sidecar = true;
        let mut next_reap_at = Instant::now();
        let mut launch_text = Vec::new();

        loop {
            let wake_at = self.kill.as_ref().map_or(next_reap_at, |kill| kill.next_round_at.min(next_reap_at));
            tokio::select! {
                line = self.commands.next_line(), if has_sidecar => match line {
                    Ok(Some(line)) => self.execute(&line),
                    Ok(None) | Err(_) => {
                        has_sidecar = false;
                        self.begin_kill();
                    }
                },
                read = read_launch_result(&mut self.launch_result, &mut launch_text) => {
                    if !matches!(read, Ok(bytes) if bytes > 0) {
                        self.launch_result = None;
                        self.report_launch(&launch_text).await;
                    }
                }
                _ = child_ended.recv() => {}
                () = sleep_until(wake_at) => {}
            }

            let has_children = self.reap();
            self.report_main_exit().await;
            if !has_children && self.launch_result.is_none() {
                break;
            }
            if Instant::now() >= next_reap_at {
                next_reap_at = Instant::now() + REAP_INTERVAL;
            }
            self.continue_kill().await;
        }

        self.send(&KeeperMessage::AllGone).await;
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
    }

    fn execute(&mut self, line: &str) {
        match serde_json::from_str(line) {
            // The group keeps its number as long as the process is not reaped.
            Ok(KeeperCommand::TerminateGroup) if self.main_exit.is_none() => {
                let _ = kill_process_group(self.main, Signal::TERM);
            }
            Ok(KeeperCommand::TerminateGroup | KeeperCommand::TerminateRest) => {
                for process in self.processes() {
                    let _ = process.signal(Signal::TERM);
                }
            }
            Ok(KeeperCommand::Kill) => self.begin_kill(),
            // Both are the same program, so that this is a defect. The app must not outlive it.
            Err(_) => self.begin_kill(),
        }
    }

    async fn report_launch(&mut self, text: &[u8]) {
        let message = if text.is_empty() {
            self.leave_unused_cgroup();
            KeeperMessage::Launched {
                main: self.main.as_raw_pid().unsigned_abs(),
                cgroup: self.cgroup.as_ref().map(|group| group.folder().to_string_lossy().into_owned()),
            }
        } else {
            self.is_main_exit_told = true;
            KeeperMessage::NotLaunched { cause: String::from_utf8_lossy(text).into_owned() }
        };
        self.send(&message).await;
    }

    /// The launcher may not have had the right to enter the group.
    fn leave_unused_cgroup(&mut self) {
        let main = self.main.as_raw_pid();
        if let Some(group) = self.cgroup.take_if(|group| !group.contains(main) && !group.is_populated()) {
            group.remove();
        }
    }

    /// Reaps every child that has ended. Returns whether there are others.
    fn reap(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                // The process id may be given again to a descendant once the main process is reaped.
                Ok(Some((pid, status))) if pid == self.main && self.main_exit.is_none() => {
                    self.main_exit = Some(main_exit(status));
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    async fn report_main_exit(&mut self) {
        if let Some(exit) = self.main_exit
            && self.launch_result.is_none()
            && !self.is_main_exit_told
        {
            self.is_main_exit_told = true;
            self.send(&KeeperMessage::MainExited(exit)).await;
        }
    }

    fn begin_kill(&mut self) {
        let now = Instant::now();
        self.kill.get_or_insert(KillProgress {
            next_round_at: now,
            pause: FIRST_KILL_PAUSE,
            next_report_at: now + SURVIVOR_TIME,
            newest: (0, 0),
        });
    }

    /// One round of the killing, if it is time for one.
    async fn continue_kill(&mut self) {
        let now = Instant::now();
        if self.kill.as_ref().is_none_or(|kill| kill.next_round_at > now) {
            return;
        }

        if let Some(cgroup) = &self.cgroup {
            let _ = cgroup.kill();
        }
        // The newest first: it is the one that is about to start another.
        let mut processes = self.processes();
        processes.sort_by_key(|process| Reverse((process.start_ticks, process.pid)));
        for process in &processes {
            // What cannot be killed is reported as a survivor.
            let _ = process.signal(Signal::KILL);
        }

        let newest = processes.first().map_or((0, 0), |process| (process.start_ticks, process.pid));
        let is_report_due = self.kill.as_mut().is_some_and(|kill| kill.end_round(now, newest));
        if is_report_due && !processes.is_empty() {
            let processes = processes.iter().map(ProcessEntry::process_name).collect();
            self.send(&KeeperMessage::Surviving { processes }).await;
        }
    }

    /// The processes of the app that have not ended.
    fn processes(&self) -> Vec<ProcessEntry> {
        let mut processes = descendants(&read_processes(), getpid().as_raw_pid());
        processes.retain(|process| !process.is_zombie);
        processes
    }

    async fn send(&mut self, message: &KeeperMessage) {
        let Ok(mut line) = serde_json::to_vec(message) else { return };
        line.push(b'\n');
        // A sidecar that has ended reads nothing; the end of its socket is handled where commands are read.
        let _ = self.messages.write_all(&line).await;
    }
}

fn socket_of(descriptor: OwnedFd) -> io::Result<UnixStream> {
    let socket = StdUnixStream::from(descriptor);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// Reads more of what the launcher says; nothing is left when it has ended or has become the app. Without a launcher it
/// waits for ever.
async fn read_launch_result(launcher: &mut Option<UnixStream>, text: &mut Vec<u8>) -> io::Result<usize> {
    match launcher {
        Some(socket) => socket.read_buf(text).await,
        None => std::future::pending().await,
    }
}

fn main_exit(status: WaitStatus) -> MainExit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => MainExit::Code(code),
        (None, Some(number)) => MainExit::Signal(number),
        (None, None) => MainExit::Code(-1),
    }
}
