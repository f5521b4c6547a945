//! The end of the sidecar, in whatever way, is the end of the app.

use std::env;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::fixture::{ObservedApp, PidFile, eventually, is_running, kill, parent, python};

const PID_FILE_VARIABLE: &str = "TEST_PID_FILE";

/// Not a test: the stand-in for a sidecar, which the tests below run as a process of its own and kill.
#[tokio::test]
#[ignore = "runs an app until it is killed, for the other tests"]
async fn run_an_app_until_killed() {
    let Some(pids) = env::var(PID_FILE_VARIABLE).ok() else { return };
    let _app = ObservedApp::loaded(python(&["--ignore-term", "--daemon", "--children", "5", "--pids", &pids])).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
}

fn start_sidecar(pids: &PidFile) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "sidecar_killed::run_an_app_until_killed", "--ignored", "--nocapture"])
        .env(PID_FILE_VARIABLE, pids.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// A sidecar with an app of seven processes: the main process, a daemon, and five children in sessions of their own.
async fn sidecar_with_app(pids: &PidFile) -> (Child, u32) {
    let sidecar = start_sidecar(pids);
    eventually("the app runs", || pids.all().len() == 7).await;
    let main = pids.pids("main")[0];
    (sidecar, main)
}

#[tokio::test]
async fn kill_9_of_the_sidecar_ends_the_whole_app() {
    let pids = PidFile::new();
    let (mut sidecar, main) = sidecar_with_app(&pids).await;
    let keeper = parent(main);

    kill(sidecar.id(), Signal::KILL);
    sidecar.wait().unwrap();
    eventually("every process of the app ends", || pids.all().into_iter().all(|pid| !is_running(pid))).await;
    eventually("the keeper ends", || !is_running(keeper)).await;
}

#[tokio::test]
async fn an_abort_of_the_sidecar_ends_the_whole_app() {
    let pids = PidFile::new();
    let (mut sidecar, _) = sidecar_with_app(&pids).await;
    kill(sidecar.id(), Signal::ABORT);
    sidecar.wait().unwrap();
    eventually("every process of the app ends", || pids.all().into_iter().all(|pid| !is_running(pid))).await;
}

/// What the documentation says of the limits: the kernel ends the main process, and no more.
#[tokio::test]
async fn kill_9_of_sidecar_and_keeper_at_once_ends_the_main_process() {
    let pids = PidFile::new();
    let (mut sidecar, main) = sidecar_with_app(&pids).await;
    let keeper = parent(main);

    // The keeper must not see the end of the sidecar first.
    kill(keeper, Signal::STOP);
    kill(sidecar.id(), Signal::KILL);
    sidecar.wait().unwrap();
    kill(keeper, Signal::KILL);
    eventually("the main process ends", || !is_running(main)).await;

    for pid in pids.all().into_iter().filter(|pid| is_running(*pid)) {
        kill(pid, Signal::KILL);
    }
}
