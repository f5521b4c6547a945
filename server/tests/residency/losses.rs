//! Runners that are killed, stopped, hang or run out of memory: the work is done again where it can be.

use std::time::{Duration, Instant};

use hush_contract::ModelState;
use hush_server::job::JobError;
use hush_server::residency::{LifecycleSettings, SpeechJobs};
use hush_server::runner;
use rustix::process::Signal;
use tokio::sync::mpsc;

use crate::scripted::{audio, flag, kill, process_state, settings, until, work};
use crate::{Server, ask};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_killed_while_it_loads_costs_the_request_nothing() {
    let server = Server::new("sleep=300");
    let model = server.model().clone();
    let job = tokio::spawn(async move { ask(&model, "").await });
    until("the runner starts", || server.model().snapshot().runner_pid.is_some()).await;
    kill(server.pid(), Signal::KILL);
    job.await.unwrap().unwrap();
    assert_eq!(server.metric("hush_runner_restarts_total{cause=\"killed\",model=\"tiny\"}"), 1.0);
    assert_eq!(server.model().snapshot().generation, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_killed_at_work_is_replaced_and_the_work_done_again() {
    let server = Server::new("");
    let dir = tempfile::tempdir().unwrap();
    let first = server.ask("").await.unwrap();
    let second = server.ask(&format!("die_once={}", flag(dir.path(), "died"))).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(process_state(first), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_kills_two_runners_is_told_so_and_the_next_one_is_served() {
    let server = Server::new("");
    let error = server.ask("die").await.unwrap_err();
    assert!(matches!(&error, JobError::RunnerLost { cause, .. } if cause.contains("signal 9")), "{error}");
    server.ask("").await.unwrap();
    assert_eq!(server.metric("hush_runner_restarts_total{cause=\"killed\",model=\"tiny\"}"), 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_has_begun_is_not_started_again() {
    let server = Server::new("");
    let (sender, mut receiver) = mpsc::channel(8);
    let model = server.model().clone();
    let job =
        tokio::spawn(async move { model.run(audio(1), work("segments=9 each=30 die_after=3"), sender, None).await });
    let mut ids = Vec::new();
    while let Some(segment) = receiver.recv().await {
        ids.push(segment.id);
    }
    assert!(matches!(job.await.unwrap(), Err(JobError::RunnerLost { .. })));
    assert!(ids == [0, 1, 2] || ids == [0, 1], "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_killed_while_idle_is_noticed_at_once() {
    let server = Server::new("");
    let pid = server.ask("").await.unwrap();
    let killed = Instant::now();
    kill(pid, Signal::KILL);
    until("the loss is noticed", || server.model().snapshot().state == ModelState::Unloaded).await;
    println!("killed while idle -> noticed and reaped: {:?}", killed.elapsed());
    assert_eq!(process_state(pid), None);
    server.ask("").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_or_hanging_runner_is_killed_and_the_work_done_again() {
    let dir = tempfile::tempdir().unwrap();
    // Wide: on a machine that builds something else, a process may not run for a second.
    let stall = runner::Settings { stall_timeout: Duration::from_secs(2), ..settings() };
    let server = Server::start("", LifecycleSettings::default(), stall);
    let pid = server.ask("").await.unwrap();
    // Idle for longer than that: silence is no crime without work.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(server.ask("segments=3 each=900").await.unwrap(), pid, "slow, with signs of life");
    let again = server.ask(&format!("hang_once={}", flag(dir.path(), "hung"))).await.unwrap();
    assert_ne!(pid, again);
    kill(again, Signal::STOP);
    let third = server.ask("").await.unwrap();
    assert_ne!(again, third);
    assert_eq!((process_state(pid), process_state(again)), (None, None));
    assert_eq!(server.metric("hush_runner_restarts_total{cause=\"hung\",model=\"tiny\"}"), 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_without_enough_memory_is_done_again_on_a_fresh_runner() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::new("");
    let first = server.ask("").await.unwrap();
    let second = server.ask(&format!("full_once={}", flag(dir.path(), "full"))).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(process_state(first), None);
    assert_eq!(server.metric("hush_model_unloads_total{model=\"tiny\",reason=\"OutOfMemory\"}"), 1.0);
    let error = server.ask("full").await.unwrap_err();
    assert!(matches!(&error, JobError::RunnerLost { cause, .. } if cause.contains("out of memory")), "{error}");
    server.ask("").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_engine_refuses_is_told_and_the_runner_lives_on() {
    let server = Server::new("");
    let pid = server.ask("").await.unwrap();
    assert!(matches!(server.ask("invalid=klingon").await, Err(JobError::Invalid(message)) if message == "klingon"));
    assert!(matches!(server.ask("engine").await, Err(JobError::Failed(message)) if message == "no"));
    let long = "x".repeat(5 << 20);
    assert!(matches!(server.ask(&long).await, Err(JobError::Invalid(_))), "longer than a frame");
    assert_eq!(server.ask("").await.unwrap(), pid);
}
