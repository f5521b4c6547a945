//! How an app is ended, with all of its processes.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hush_residency::ModelRunner;
use rustix::process::Signal;

use crate::fixture::{CollectedLog, ObservedApp, PidFile, eventually, exists, is_running, kill, parent, python};

#[tokio::test]
async fn sigterm_reaches_the_whole_group() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ended");
    let mut app = ObservedApp::loaded(python(&["--term-file", file.to_str().unwrap()])).await;
    let keeper = parent(app.main.unwrap());

    let took = app.stop().await;
    assert!(took < Duration::from_secs(4), "an app that obeys is not waited for: {took:?}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "SIGTERM");
    eventually("the keeper is reaped", || !exists(keeper)).await;
}

#[tokio::test]
async fn an_app_that_ignores_sigterm_is_killed_after_the_stop_timeout() {
    let mut settings = python(&["--ignore-term"]);
    settings.stop_timeout = Duration::from_secs(1);
    let mut app = ObservedApp::loaded(settings).await;

    let took = app.stop().await;
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(4), "{took:?}");
    assert!(app.app.survivors().is_empty());
}

#[tokio::test]
async fn a_kill_does_not_wait_for_the_stop_timeout() {
    let mut settings = python(&["--ignore-term"]);
    settings.stop_timeout = Duration::from_secs(600);
    let mut app = ObservedApp::loaded(settings).await;
    app.app.stop();
    tokio::time::sleep(Duration::from_millis(200)).await;
    app.app.kill();
    app.expect_exited().await;
}

/// A freezer of the first version of control groups keeps its processes even from SIGKILL, as a driver that hangs does.
struct Freezer {
    folder: PathBuf,
}

impl Freezer {
    fn with_process(pid: u32) -> Option<Self> {
        let folder = PathBuf::from(format!("/sys/fs/cgroup/freezer/hush-test-{pid}"));
        fs::create_dir(&folder).ok()?;
        let freezer = Self { folder };
        fs::write(freezer.folder.join("cgroup.procs"), pid.to_string()).ok()?;
        freezer.set("FROZEN");
        Some(freezer)
    }

    fn set(&self, state: &str) {
        fs::write(self.folder.join("freezer.state"), state).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.set("THAWED");
        let _ = fs::remove_dir(&self.folder);
    }
}

#[tokio::test]
async fn a_process_that_cannot_be_killed_is_named_and_waited_for() {
    let log = CollectedLog::default();
    let _subscribed = log.subscribe();
    let pids = PidFile::new();
    let mut app = ObservedApp::loaded(python(&["--daemon", "--pids", &pids.path()])).await;
    let daemon = pids.pids("daemon")[0];
    let Some(freezer) = Freezer::with_process(daemon) else {
        app.stop().await;
        eprintln!("skipped: there is no freezer here");
        return;
    };

    app.app.kill();
    eventually("the survivor is named", || !app.app.survivors().is_empty()).await;
    assert_eq!(app.app.survivors().iter().map(|process| process.pid).collect::<Vec<_>>(), [daemon]);
    assert!(log.text().contains(&format!("{daemon} (python3)")), "{}", log.text());
    assert!(is_running(daemon));
    assert!(app.has_no_event(), "the app is not gone yet");

    freezer.set("THAWED");
    app.expect_exited().await;
    assert!(app.app.survivors().is_empty());
}

#[tokio::test]
async fn a_daemon_in_its_own_session_belongs_to_the_app() {
    let pids = PidFile::new();
    let mut app = ObservedApp::loaded(python(&["--daemon", "--pids", &pids.path()])).await;
    let daemon = pids.pids("daemon")[0];
    assert!(app.current.contains(&daemon), "{:?} has no {daemon}", app.current);

    let took = app.stop().await;
    assert!(!is_running(daemon));
    // It ignores SIGTERM, and is not waited for as long as the main process.
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn fifty_children_in_sessions_of_their_own_all_end() {
    let pids = PidFile::new();
    let mut app = ObservedApp::loaded(python(&["--children", "50", "--daemon", "--pids", &pids.path()])).await;
    let all = app.expect_pids(|pids| pids.len() == 52).await;
    eventually("all are written down", || pids.all().len() == 52).await;
    assert_eq!(pids.all().iter().filter(|pid| !all.contains(pid)).count(), 0);

    app.app.kill();
    app.expect_exited().await;
    assert!(pids.all().into_iter().all(|pid| !exists(pid)), "all are reaped");
}

#[tokio::test]
async fn processes_that_start_others_while_they_are_killed_do_not_get_away() {
    let mut app = ObservedApp::loaded(python(&["--respawn"])).await;
    let marker = format!("--port\0{}\0", app_port(&app));
    app.stop().await;

    let left = command_lines().into_iter().filter(|line| line.contains(&marker)).count();
    assert_eq!(left, 0, "processes with the app's command line are left");
}

/// The command lines of all processes that run.
fn command_lines() -> Vec<String> {
    let processes = procfs::process::all_processes().unwrap().flatten();
    processes
        .filter(|process| process.stat().is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X')))
        .filter_map(|process| std::fs::read(format!("/proc/{}/cmdline", process.pid())).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect()
}

fn app_port(app: &ObservedApp) -> String {
    let line = std::fs::read(format!("/proc/{}/cmdline", app.main.unwrap())).unwrap();
    let line = String::from_utf8_lossy(&line).into_owned();
    line.split("--port\0").nth(1).unwrap().split('\0').next().unwrap().to_owned()
}

#[tokio::test]
async fn children_that_start_later_are_reported() {
    let mut app = ObservedApp::loaded(python(&["--late-child-seconds", "1.5"])).await;
    assert_eq!(app.current.len(), 1);
    let pids = app.expect_pids(|pids| pids.len() == 2).await;
    kill(pids[1], Signal::KILL);
    app.expect_pids(|pids| pids.len() == 1).await;
    app.stop().await;
}

#[tokio::test]
async fn zombies_are_no_processes_and_are_reaped() {
    let mut app = ObservedApp::loaded(python(&["--zombie"])).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(app.current.len(), 1, "a zombie holds nothing");
    app.stop().await;
}

#[tokio::test]
async fn a_process_whose_first_thread_has_ended_still_is_one() {
    let mut settings = python(&["--end-first-thread", "--ignore-term"]);
    settings.stop_timeout = Duration::from_secs(1);
    let mut app = ObservedApp::loaded(settings).await;
    let main = app.main.unwrap();
    assert!(!is_running(main), "the kernel calls it a zombie");

    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(app.current, [main]);
    app.stop().await;
    assert!(!exists(main));
}

#[tokio::test]
async fn the_drop_of_the_last_handle_ends_the_app() {
    let pids = PidFile::new();
    let mut observed = ObservedApp::loaded(python(&["--daemon", "--pids", &pids.path()])).await;
    let second = observed.app.clone();

    let port_holder = observed.main.unwrap();
    drop(std::mem::replace(&mut observed.app, second.clone()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(is_running(port_holder));

    let ObservedApp { app, .. } = observed;
    drop(app);
    drop(second);
    eventually("the app ends", || pids.all().into_iter().all(|pid| !exists(pid))).await;
}

#[tokio::test]
async fn two_apps_do_not_end_each_other() {
    let mut first = ObservedApp::loaded(python(&["--daemon"])).await;
    let mut second = ObservedApp::loaded(python(&["--daemon"])).await;
    let of_second = second.expect_pids(|pids| pids.len() == 2).await;

    first.stop().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(of_second.into_iter().all(is_running));
    second.stop().await;
}
