//! `--busy-timeout`.

use std::time::Duration;

use hush_server::job::JobError;
use hush_server::residency::{LifecycleSettings, ResidencyRule};
use hush_server::runner;

use crate::scripted::{process_state, settings, until};
use crate::{ModelFixture, ask};

fn busy_timeout(busy: u64, let_go: u64) -> runner::RunnerSettings {
    runner::RunnerSettings {
        busy_timeout: Some(Duration::from_millis(busy)),
        let_go_timeout: Duration::from_millis(let_go),
        ..settings()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_takes_too_long_is_ended_and_the_runner_goes_on() {
    let lifecycle = LifecycleSettings { residency: ResidencyRule::Idle(None), ..LifecycleSettings::default() };
    let server = ModelFixture::start("", lifecycle, busy_timeout(3000, 60_000));
    let pid = server.ask("").await.unwrap();
    let error = server.ask("each=3600000").await.unwrap_err();
    assert!(matches!(error, JobError::Overdue { after } if after == Duration::from_secs(3)), "{error}");
    assert!(error.to_string().contains("--busy-timeout"), "{error}");
    assert_eq!(server.ask("").await.unwrap(), pid, "the same runner");
    assert_eq!(server.model().snapshot().generation, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_does_not_let_go_is_replaced_and_others_are_served() {
    let lifecycle = LifecycleSettings { residency: ResidencyRule::Idle(None), ..LifecycleSettings::default() };
    let server = ModelFixture::start("", lifecycle, busy_timeout(3000, 300));
    let pid = server.ask("").await.unwrap();
    let model = server.model().clone();
    let stuck = tokio::spawn(async move { ask(&model, "hang").await });
    until("the request is at work", || server.model().snapshot().inflight == 1).await;

    // The next request waits for its turn. It is served beside the job that hangs, or by the next runner.
    server.ask("").await.unwrap();
    assert!(matches!(stuck.await.unwrap(), Err(JobError::Overdue { .. })));

    until("the runner is gone", || process_state(pid).is_none()).await;
    assert_ne!(server.ask("").await.unwrap(), pid);
    assert_eq!(server.metric("hush_runner_restarts_total{cause=\"hung\",model=\"tiny\"}"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_left_does_not_make_its_request_overdue() {
    let lifecycle = LifecycleSettings { residency: ResidencyRule::Idle(None), ..LifecycleSettings::default() };
    let server = ModelFixture::start("", lifecycle, busy_timeout(1500, 1));
    let pid = server.ask("").await.unwrap();
    let model = server.model().clone();
    let left = tokio::spawn(async move { ask(&model, "each=3600000").await });
    until("the request is at work", || server.model().snapshot().inflight == 1).await;

    left.abort();
    tokio::time::sleep(Duration::from_millis(2000)).await;
    assert_eq!(server.ask("").await.unwrap(), pid);
}
