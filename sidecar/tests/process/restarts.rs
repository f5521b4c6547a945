//! An app that runs all the time.

use std::time::Duration;

use hush_sidecar::process::{AppActivity, AppProcessStatus, SupervisedApp};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::fixture::{PATIENCE, exists, kill, python, settings};

async fn status(
    statuses: &mut watch::Receiver<AppProcessStatus>,
    condition: impl Fn(&AppProcessStatus) -> bool,
) -> AppProcessStatus {
    let found = timeout(PATIENCE, statuses.wait_for(|status| condition(status))).await;
    found.expect("the status never comes").expect("the app is supervised").clone()
}

const fn is_ready(status: &AppProcessStatus) -> bool {
    matches!(status, AppProcessStatus::Ready { .. })
}

#[tokio::test]
async fn an_app_that_dies_is_started_again_and_stops_at_shutdown() {
    let app = SupervisedApp::start(python(&[]), AppActivity::new());
    let mut statuses = app.status();
    let AppProcessStatus::Ready { pids: first } = status(&mut statuses, is_ready).await else { panic!() };

    kill(first[0], Signal::KILL);
    let waiting = status(&mut statuses, |status| matches!(status, AppProcessStatus::BackingOff { .. })).await;
    let AppProcessStatus::BackingOff { until, cause } = waiting else { panic!() };
    assert!(until <= Instant::now() + Duration::from_secs(1));
    assert!(cause.contains("SIGKILL"), "{cause}");

    let AppProcessStatus::Ready { pids: second } = status(&mut statuses, is_ready).await else { panic!() };
    assert_ne!(first, second);
    app.stop().await;
    assert_eq!(*statuses.borrow(), AppProcessStatus::Stopped { cause: None });
    assert!(!exists(second[0]));
}

#[tokio::test]
async fn an_app_that_never_starts_is_tried_with_growing_pauses() {
    let app = SupervisedApp::start(settings(&["no-such-model-server"]), AppActivity::new());
    let mut statuses = app.status();

    let mut pauses = Vec::new();
    for _ in 0..3 {
        status(&mut statuses, |status| matches!(status, AppProcessStatus::Starting { .. })).await;
        let waiting = status(&mut statuses, |status| matches!(status, AppProcessStatus::BackingOff { .. })).await;
        let AppProcessStatus::BackingOff { until, cause } = waiting else { panic!() };
        pauses.push((until - Instant::now()).as_secs_f64().round());
        assert!(cause.contains("no-such-model-server"), "{cause}");
    }
    assert_eq!(pauses, [1.0, 2.0, 4.0]);

    app.stop().await;
    assert!(matches!(&*statuses.borrow(), AppProcessStatus::Stopped { cause: Some(_) }));
}

#[tokio::test]
async fn the_drop_of_a_supervised_app_stops_it() {
    let app = SupervisedApp::start(python(&["--ignore-term"]), AppActivity::new());
    let mut statuses = app.status();
    let AppProcessStatus::Ready { pids } = status(&mut statuses, is_ready).await else { panic!() };
    drop(app);
    status(&mut statuses, |status| *status == AppProcessStatus::Stopped { cause: None }).await;
    assert!(!exists(pids[0]));
}
