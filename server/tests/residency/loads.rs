//! Loads that fail: each waiting request is refused with the cause, and another load is tried later.

use std::time::Duration;

use hush_contract::ModelState;
use hush_server::job::JobError;
use hush_server::residency::{LifecycleSettings, LoadCommandError};
use hush_server::runner;
use tokio::task::JoinSet;

use crate::scripted::{flag, settings, until};
use crate::{ModelFixture, ask};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_never_ends_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let brief = runner::RunnerSettings { load_timeout: Duration::from_secs(2), ..settings() };
    let lifecycle = LifecycleSettings { backoff_first: Duration::from_millis(100), ..LifecycleSettings::default() };
    let server = ModelFixture::start(&format!("hang_once={}", flag(dir.path(), "hung")), lifecycle, brief);
    let error = server.ask("").await.unwrap_err();
    assert!(matches!(&error, JobError::LoadFailed { cause, .. } if cause == "not loaded within 2 s"), "{error}");
    assert_eq!(server.metric("hush_runner_restarts_total{cause=\"load_timeout\",model=\"tiny\"}"), 1.0);

    tokio::time::sleep(Duration::from_millis(120)).await;
    server.ask("").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_load_refuses_every_request_with_its_cause_and_is_tried_again_later() {
    let dir = tempfile::tempdir().unwrap();
    let lifecycle = LifecycleSettings { backoff_first: Duration::from_millis(300), ..LifecycleSettings::default() };
    let script = format!("sleep=50 fail_once={}", flag(dir.path(), "failed"));
    let server = ModelFixture::start(&script, lifecycle, settings());
    let mut jobs = JoinSet::new();
    for _ in 0..5 {
        let model = server.model().clone();
        jobs.spawn(async move { ask(&model, "").await });
    }

    while let Some(result) = jobs.join_next().await {
        let error = result.unwrap().unwrap_err();
        assert!(matches!(&error, JobError::LoadFailed { retry_after_seconds: 1, .. }), "{error}");
        assert!(error.to_string().contains("the disk was away"), "{error}");
    }

    until("the load failed", || server.model().snapshot().state == ModelState::Failed).await;
    assert_eq!(server.model().snapshot().failure.unwrap().cause, "the disk was away");
    assert!(matches!(server.model().load().await, Err(LoadCommandError::Failed { .. })));

    tokio::time::sleep(Duration::from_millis(320)).await;
    server.ask("").await.unwrap();
    assert_eq!(server.metric("hush_model_loads_total{model=\"tiny\",result=\"failure\"}"), 1.0);
    assert_eq!(server.metric("hush_model_loads_total{model=\"tiny\",result=\"success\"}"), 1.0);
}

/// On a CPU work begins while the decoder is still being opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_fails_under_its_first_work_is_a_failed_load() {
    let dir = tempfile::tempdir().unwrap();
    let server = ModelFixture::new(&format!("load_rest=200 broken_once={}", flag(dir.path(), "broken")));
    let error = server.ask("").await.unwrap_err();
    assert!(matches!(&error, JobError::LoadFailed { cause, .. } if cause == "decoder.onnx is broken"), "{error}");

    until("the runner is gone", || server.model().snapshot().state == ModelState::Failed).await;
    assert_eq!(server.metric("hush_model_loads_total{model=\"tiny\",result=\"failure\"}"), 1.0);

    // No command is needed: the next request after the pause is served.
    until("the pause is over", || server.model().snapshot().failure.is_none_or(|f| f.retry_after.is_zero())).await;

    server.ask("").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_cannot_be_started_is_a_failed_load() {
    let missing = runner::RunnerSettings { program: "/nonexistent/hush-server".into(), spare: true, ..settings() };
    let server = ModelFixture::start("", LifecycleSettings::default(), missing);
    let error = server.ask("").await.unwrap_err();
    assert!(error.to_string().contains("could not start `/nonexistent/hush-server`"), "{error}");

    until("the load failed", || server.model().snapshot().state == ModelState::Failed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_no_runner_is_a_failed_load() {
    let talks = ["-c", "echo 'hello, world' >&0; sleep 60"].map(Into::into).to_vec();
    let talks = runner::RunnerSettings { program: "/bin/sh".into(), args: talks, ..settings() };
    let server = ModelFixture::start("", LifecycleSettings::default(), talks);
    let error = server.ask("").await.unwrap_err();
    assert!(matches!(&error, JobError::LoadFailed { cause, .. } if cause.contains("make no sense")), "{error}");

    let ends = runner::RunnerSettings { program: "/bin/false".into(), args: Vec::new(), ..settings() };
    let server = ModelFixture::start("", LifecycleSettings::default(), ends);
    let error = server.ask("").await.unwrap_err();
    assert!(matches!(&error, JobError::LoadFailed { cause, .. } if cause.contains("exit status: 1")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_without_enough_memory_is_tried_once_more() {
    let dir = tempfile::tempdir().unwrap();
    let server = ModelFixture::new(&format!("full_once={}", flag(dir.path(), "full")));
    server.ask("").await.unwrap();
    assert_eq!(server.model().snapshot().generation, 2);
    assert_eq!(server.metric("hush_model_out_of_memory_total{model=\"tiny\"}"), 1.0);
}
