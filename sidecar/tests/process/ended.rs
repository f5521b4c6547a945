//! An app that is ended while none of its models is in memory, and started again for the next load.

use std::time::Duration;

use hush_sidecar::process::{AppActivity, AppProcessStatus, SupervisedApp};
use tokio::time::{sleep, timeout};

use crate::fixture::{PATIENCE, exists, python, settings};

async fn ready_pid(app: &SupervisedApp) -> u32 {
    let mut statuses = app.status();
    let is_ready = |status: &AppProcessStatus| matches!(status, AppProcessStatus::Ready { .. });
    let found = timeout(PATIENCE, statuses.wait_for(is_ready)).await.expect("it is never ready").unwrap();

    let AppProcessStatus::Ready { pids } = &*found else { panic!("{:?}", *found) };
    pids[0]
}

#[tokio::test]
async fn an_app_that_is_ended_stays_away_until_it_is_started() {
    let app = SupervisedApp::start(python(&[]), AppActivity::new());
    let (control, first) = (app.control(), ready_pid(&app).await);
    assert_eq!((control.is_absent(), control.start().await), (false, Ok(false)), "it runs already");

    timeout(PATIENCE, control.end()).await.expect("it does not end");
    assert!(!exists(first) && control.is_absent());
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(*app.status().borrow(), AppProcessStatus::Ended, "it is not started again like one that dies");

    assert_eq!(timeout(PATIENCE, control.start()).await.expect("it is never ready"), Ok(true));
    assert!(!control.is_absent());
    let second = ready_pid(&app).await;
    assert!(second != first && exists(second));

    app.stop().await;
    assert!(!exists(second));
}

#[tokio::test]
async fn an_app_that_ignores_sigterm_is_ended_all_the_same_and_the_supervisor_stops_while_it_is_away() {
    let app = SupervisedApp::start(python(&["--ignore-term"]), AppActivity::new());
    let (control, pid) = (app.control(), ready_pid(&app).await);

    timeout(PATIENCE, control.end()).await.expect("it does not end");
    assert!(!exists(pid));
    timeout(PATIENCE, app.stop()).await.expect("the supervisor does not stop");
    assert_eq!(control.start().await, Err("the sidecar ends".to_owned()));
}

/// A load that gives up in the middle leaves an app that is on its way; the next load waits for the same one.
#[tokio::test]
async fn a_start_that_is_given_up_can_be_taken_up_again_and_ended() {
    let app = SupervisedApp::start(python(&[]), AppActivity::new());
    let control = app.control();
    ready_pid(&app).await;
    control.end().await;

    assert!(timeout(Duration::from_millis(1), control.start()).await.is_err(), "so fast is no interpreter");
    assert!(control.is_absent(), "it was never ready");
    assert_eq!(timeout(PATIENCE, control.start()).await.expect("it is never ready"), Ok(true));

    control.end().await;
    assert!(timeout(Duration::from_millis(1), control.start()).await.is_err());
    timeout(PATIENCE, control.end()).await.expect("it does not end");
    assert_eq!(*app.status().borrow(), AppProcessStatus::Ended);
}

#[tokio::test]
async fn an_app_that_cannot_be_started_again_says_why_and_can_be_ended() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("app");
    let start = || settings(&[program.to_str().unwrap()]);
    let app = SupervisedApp::start(start(), AppActivity::new());
    let control = app.control();

    timeout(PATIENCE, control.end()).await.expect("it does not end");
    let error = timeout(PATIENCE, control.start()).await.expect("it decides nothing").unwrap_err();
    assert!(error.contains("app"), "{error}");
    timeout(PATIENCE, control.end()).await.expect("it does not end");
    assert_eq!(*app.status().borrow(), AppProcessStatus::Ended);
}
