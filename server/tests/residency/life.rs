//! A model is loaded for its first request and unloaded when it is idle; what its clients see of that.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use hush_contract::ModelState;
use hush_server::job::{JobError, JobOutcome, JobTask};
use hush_server::residency::{LifecycleSettings, ResidencyRule, SpeechJobs};
use hush_server::runner;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::scripted::{audio, kill, process_state, settings, until, work};
use crate::{MARK, ModelFixture, ask, idle_after};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_loads_the_model_and_idleness_unloads_it() {
    let server = ModelFixture::start("sleep=20", idle_after(150), settings());
    assert_eq!(server.model().snapshot().state, ModelState::Unloaded);

    let pid = server.ask("segments=3").await.unwrap();
    let now = server.model().snapshot();
    assert_eq!((now.state, now.generation, now.runner_pid), (ModelState::Ready, 1, Some(pid)));
    assert_eq!(server.metric("hush_model_state{model=\"tiny\",state=\"ready\"}"), 1.0);
    assert!(server.metric("hush_runner_resident_bytes{model=\"tiny\"}") > 500_000.0);

    until("the model is unloaded", || server.model().snapshot().state == ModelState::Unloaded).await;
    assert_eq!(process_state(pid), None);
    assert_eq!(server.metric("hush_model_unloads_total{model=\"tiny\",reason=\"IdleTimeout\"}"), 1.0);
    assert_eq!(server.metric("hush_runner_resident_bytes{model=\"tiny\"}"), 0.0);
    assert_ne!(server.ask("").await.unwrap(), pid);
    assert_eq!(server.metric("hush_model_generation{model=\"tiny\"}"), 2.0);
    assert_eq!(server.metric("hush_cold_start_wait_seconds_count{model=\"tiny\"}"), 2.0);

    let (outcome, _) = server.model().gather(audio(1), JobTask::DetectLanguage, None).await.unwrap();
    assert!(matches!(outcome, JobOutcome::Languages(languages) if languages[0].code == "de"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_come_while_the_work_goes_on() {
    let server = ModelFixture::new("");
    let (sender, mut receiver) = mpsc::channel(1);
    let model = server.model().clone();
    let job = tokio::spawn(async move { model.run(audio(1), work("segments=3 each=200"), sender, None).await });
    let first = receiver.recv().await.unwrap();
    assert_eq!((first.id, first.no_speech_prob), (0, 0.0), "not a number becomes one on its way");
    assert!(!job.is_finished());

    // The reader pauses, and the model is free all the same.
    until("the work ends", || server.model().snapshot().inflight == 0).await;
    assert!(!job.is_finished());
    assert_eq!(receiver.recv().await.unwrap().id, 1);
    assert_eq!(receiver.recv().await.unwrap().id, 2);
    assert!(matches!(job.await.unwrap(), Ok(JobOutcome::Transcribed(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_stops_waiting_for_a_cold_model_and_the_model_is_still_loaded() {
    let server = ModelFixture::new("sleep=1500");
    let max_cold_wait = Some(Duration::from_millis(100));
    let error = server.model().gather(audio(1), work(""), max_cold_wait).await.unwrap_err();
    assert!(matches!(&error, JobError::ColdHold { retry_after_seconds: 1..=120, .. }), "{error}");
    assert!(error.to_string().contains("still loading"), "{error}");

    until("the model is loaded for the next request", || server.model().snapshot().state == ModelState::Ready).await;

    server.model().gather(audio(1), work(""), max_cold_wait).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_request_ends_its_work_and_the_runner_is_used_again() {
    let server = ModelFixture::new("");
    let pid = server.ask("").await.unwrap();
    for script in ["segments=1 each=60000", "piece=16000 segments=1 each=60000"] {
        let job = server.model().gather(audio(600), work(script), None);
        assert!(timeout(Duration::from_millis(150), job).await.is_err());
        let dropped = Instant::now();
        assert_eq!(server.ask("").await.unwrap(), pid);
        println!("dropped -> next request answered: {:?}", dropped.elapsed());
        assert!(dropped.elapsed() < Duration::from_secs(1));
    }

    // The same while the request waits in the queue.
    let (busy, waiting) = (server.model().gather(audio(1), work("each=300"), None), server.ask(""));
    let (busy, waiting) = tokio::join!(busy, timeout(Duration::from_millis(50), waiting));
    assert!(busy.is_ok() && waiting.is_err());

    until("no request waits", || server.model().snapshot().queued == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_before_a_cold_model_is_served_and_the_queue_has_a_bound() {
    let server = ModelFixture::new("sleep=100");
    let mut jobs = JoinSet::new();
    for _ in 0..200 {
        let model = server.model().clone();
        jobs.spawn(async move { ask(&model, "").await });
    }

    let pids = jobs.join_all().await;
    assert!(pids.iter().all(|pid| pid.as_ref().ok() == pids[0].as_ref().ok()), "{pids:?}");
    assert_eq!(server.model().snapshot().generation, 1);

    let lifecycle = LifecycleSettings { queue_limit: NonZeroUsize::new(10).unwrap(), ..LifecycleSettings::default() };
    let server = ModelFixture::start("sleep=100", lifecycle, settings());
    let mut jobs = JoinSet::new();
    for _ in 0..30 {
        let model = server.model().clone();
        jobs.spawn(async move { ask(&model, "").await });
    }

    let results = jobs.join_all().await;
    let refused = results.iter().filter_map(|result| result.as_ref().err()).collect::<Vec<_>>();
    assert_eq!(refused.len(), 20);

    for error in refused {
        assert!(matches!(error, JobError::QueueFull { limit: 10, .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_demand_leaves_after_the_last_of_a_queue() {
    let lifecycle = LifecycleSettings { residency: ResidencyRule::OnDemand, ..LifecycleSettings::default() };
    // The load takes long enough for all requests to arrive, also on a busy machine.
    let server = ModelFixture::start("sleep=500", lifecycle, settings());
    let mut jobs = JoinSet::new();
    for _ in 0..5 {
        let model = server.model().clone();
        jobs.spawn(async move { ask(&model, "").await });
    }

    let pids = jobs.join_all().await;
    assert!(pids.iter().all(|pid| pid.as_ref().ok() == pids[0].as_ref().ok()), "{pids:?}");

    until("the model is unloaded", || server.model().snapshot().state == ModelState::Unloaded).await;
    assert_eq!(server.model().snapshot().generation, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spare_runner_takes_the_load_and_its_death_harms_no_request() {
    let mark = format!("spare-{}", std::process::id());
    let env = vec![(MARK.into(), mark.clone().into())];
    let spare = runner::RunnerSettings { spare: true, env, ..settings() };
    let server = ModelFixture::start("", LifecycleSettings::default(), spare);
    until("a spare", || !marked(&mark).is_empty()).await;

    tokio::time::sleep(Duration::from_millis(200)).await;
    server.ask("").await.unwrap();
    let spawn = server.metric("hush_model_load_duration_seconds_sum{model=\"tiny\",phase=\"spawn\"}");
    let total = server.metric("hush_model_load_duration_seconds_sum{model=\"tiny\",phase=\"total\"}");
    println!("load on a spare runner: {:.1} ms", total * 1e3);
    assert_eq!(spawn, 0.0);

    tokio::time::sleep(Duration::from_millis(200)).await;
    let waiting = marked(&mark).into_iter().find(|pid| *pid != server.pid()).unwrap();
    kill(waiting, Signal::KILL);
    until("the dead spare is reaped", || process_state(waiting).is_none()).await;

    server.unload().await.unwrap();
    assert_ne!(server.ask("").await.unwrap(), waiting);

    // A spare that has just died is not used, although its death has not been noticed yet.
    until("a new spare", || marked(&mark).len() == 2).await;

    tokio::time::sleep(Duration::from_millis(100)).await;
    let waiting = marked(&mark).into_iter().find(|pid| *pid != server.pid()).unwrap();
    server.unload().await.unwrap();
    kill(waiting, Signal::KILL);
    assert_ne!(server.ask("").await.unwrap(), waiting);

    server.models.shutdown(Duration::from_secs(5)).await;
    assert_eq!(marked(&mark), [0; 0]);
}

/// Processes that were started with this variable set to `mark`.
fn marked(mark: &str) -> Vec<u32> {
    let wanted = format!("{MARK}={mark}");
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let has_mark = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    };
    processes.filter(has_mark).collect()
}
