//! Apps that crash, hang, or lose their keeper.

use std::time::Duration;

use hush_residency::LossCause;
use rustix::process::Signal;

use crate::fixture::{ObservedApp, PidFile, eventually, exists, is_running, kill, parent, python, settings};

#[tokio::test]
async fn a_crash_names_its_signal_and_takes_the_children_along() {
    let pids = PidFile::new();
    let mut app = ObservedApp::loaded(python(&["--daemon", "--children", "3", "--pids", &pids.path()])).await;
    app.expect_pids(|pids| pids.len() == 5).await;

    kill(app.main.unwrap(), Signal::SEGV);
    let loss = app.expect_lost().await;
    assert_eq!(loss.cause, LossCause::Killed);
    assert_eq!(loss.detail, "the app was killed by SIGSEGV");
    app.expect_exited().await;
    assert!(pids.all().into_iter().all(|pid| !exists(pid)));
}

#[tokio::test]
async fn an_app_that_ends_by_itself_is_lost_with_its_status() {
    let mut settings = settings(&["sh", "-c", "echo ready; sleep 0.5; exit 7"]);
    settings.probe = hush_sidecar::process::ReadinessProbe::LogLine { text: "ready".to_owned() };
    let mut app = ObservedApp::loaded(settings).await;
    let loss = app.expect_lost().await;
    assert_eq!((loss.cause, loss.detail.as_str()), (LossCause::Exited, "the app ended with exit status 7"));
    app.expect_exited().await;
}

#[tokio::test]
async fn an_app_that_answers_nothing_is_hung() {
    let mut settings = python(&[]);
    settings.hang_timeout = Some(Duration::from_secs(2));
    let mut app = ObservedApp::loaded(settings).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(is_running(app.main.unwrap()), "an app that answers its probe is not hung");

    kill(app.main.unwrap(), Signal::STOP);
    let loss = app.expect_lost().await;
    assert_eq!(loss.cause, LossCause::Hung);
    app.expect_exited().await;
}

#[tokio::test]
async fn an_app_whose_port_is_closed_is_hung() {
    let mut settings = python(&["--close-port-seconds", "2"]);
    settings.hang_timeout = Some(Duration::from_secs(1));
    let mut app = ObservedApp::loaded(settings).await;
    assert_eq!(app.expect_lost().await.cause, LossCause::Hung);
    app.expect_exited().await;
}

#[tokio::test]
async fn an_app_that_streams_is_not_hung() {
    let mut settings = python(&[]);
    settings.hang_timeout = Some(Duration::from_secs(1));
    let mut app = ObservedApp::loaded(settings).await;
    let main = app.main.unwrap();

    kill(main, Signal::STOP);
    for _ in 0..15 {
        app.activity.record();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(is_running(main), "answers flow through the proxy");
    assert_eq!(app.expect_lost().await.cause, LossCause::Hung);
    app.expect_exited().await;
}

#[tokio::test]
async fn a_killed_keeper_takes_the_whole_app_along() {
    let pids = PidFile::new();
    let options = ["--ignore-term", "--daemon", "--children", "5", "--pids", &pids.path()];
    let mut app = ObservedApp::loaded(python(&options)).await;
    app.expect_pids(|pids| pids.len() == 7).await;
    eventually("all are written down", || pids.all().len() == 7).await;

    kill(parent(app.main.unwrap()), Signal::KILL);
    assert_eq!(app.expect_lost().await.cause, LossCause::Killed);
    app.expect_exited().await;
    eventually("all have ended", || pids.all().into_iter().all(|pid| !is_running(pid))).await;
}

#[tokio::test]
async fn processes_that_were_never_listed_end_with_a_killed_keeper() {
    let pids = PidFile::new();
    let mut settings = python(&["--respawn", "--late-child-seconds", "0.1", "--pids", &pids.path()]);
    settings.env = vec![("TEST_APP".into(), pids.path().into())];
    let mark = format!("TEST_APP={}", pids.path());
    let mut app = ObservedApp::loaded(settings).await;

    kill(parent(app.main.unwrap()), Signal::KILL);
    assert_eq!(app.expect_lost().await.cause, LossCause::Killed);
    app.expect_exited().await;
    eventually("all have ended", || {
        let processes = procfs::process::all_processes().unwrap().flatten();
        let environments =
            processes.filter_map(|process| std::fs::read(format!("/proc/{}/environ", process.pid())).ok());
        !environments
            .into_iter()
            .any(|environment| environment.split(|byte| *byte == 0).any(|assignment| assignment == mark.as_bytes()))
    })
    .await;
}

#[tokio::test]
async fn an_app_that_is_ready_by_a_line_is_never_hung() {
    let mut settings = settings(&["sh", "-c", "echo ready; sleep 600"]);
    settings.probe = hush_sidecar::process::ReadinessProbe::LogLine { text: "ready".to_owned() };
    settings.hang_timeout = Some(Duration::from_millis(300));
    let mut app = ObservedApp::loaded(settings).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(is_running(app.main.unwrap()));
    app.stop().await;
}

#[tokio::test]
async fn signals_that_would_end_other_programs_do_not_end_the_keeper() {
    let mut app = ObservedApp::loaded(python(&[])).await;
    let (main, keeper) = (app.main.unwrap(), parent(app.main.unwrap()));
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2] {
        kill(keeper, signal);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(is_running(main) && is_running(keeper));
    app.stop().await;
}
