//! Models in real child processes, on good days and on bad ones: signals, crashes, hangs, crowds, races.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod scripted;

use std::io::{BufRead, BufReader};
use std::num::NonZeroUsize;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hush_contract::admin::UnloadOutcome;
use hush_contract::{ModelState, UnloadReason, UnloadRefusal};
use hush_server::job::{JobError, Outcome, Work};
use hush_server::metrics::Metrics;
use hush_server::residency::{LoadError, ModelHandle, ModelSettings, Models, Policy, Residency, Unload};
use hush_server::runner;
use rustix::process::Signal;
use scripted::{audio, flag, kill, process_state, settings, spec, sum, until, work, zombies};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

#[test]
fn runner_child() {
    scripted::child_entry();
}

/// Tells the runners of one test from all others.
const MARK: &str = "HUSH_TEST_MARK";

struct Server {
    models: Models,
    metrics: Arc<Metrics>,
}

impl Server {
    fn start(script: &str, policy: Policy, runners: runner::Settings) -> Self {
        let metrics = Arc::new(Metrics::new().unwrap());
        let (name, spec) = ("tiny".to_owned(), spec(script));
        let model = ModelSettings { name, spec, precision: None, policy, account: None };
        let models = Models::start(vec![model], runners, None, &metrics).unwrap();
        Self { models, metrics }
    }

    fn new(script: &str) -> Self {
        Self::start(script, Policy { residency: Residency::Idle(None), ..Policy::default() }, settings())
    }

    fn model(&self) -> &ModelHandle {
        self.models.default_model()
    }

    /// The value of one sample on `/metrics`.
    fn metric(&self, sample: &str) -> f64 {
        let text = String::from_utf8(self.metrics.encode().unwrap()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {sample} in {text}")).parse().unwrap()
    }

    /// Transcribes two seconds; gives the process that did it.
    async fn ask(&self, script: &str) -> Result<u32, JobError> {
        ask(self.model(), script).await
    }

    async fn unload(&self) -> Result<(), UnloadRefusal> {
        self.model().unload(Unload::now(UnloadReason::Manual)).await.map(|_| ())
    }

    fn pid(&self) -> u32 {
        self.model().snapshot().runner_pid.unwrap()
    }
}

async fn ask(model: &ModelHandle, script: &str) -> Result<u32, JobError> {
    let samples = audio(2);
    let (outcome, segments) = model.gather(samples.clone(), work(script), None).await?;
    assert!(matches!(outcome, Outcome::Transcribed(transcript) if transcript.duration_seconds == 2.0));
    let (pid, heard) = segments[0].text.split_once(' ').unwrap();
    assert_eq!(heard.parse::<f64>().unwrap(), sum(&samples), "every sample, once");
    Ok(pid.parse().unwrap())
}

fn idle_after(millis: u64) -> Policy {
    Policy { residency: Residency::Idle(Some(Duration::from_millis(millis))), ..Policy::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_brings_the_model_and_idleness_takes_it_away() {
    let server = Server::start("sleep=20", idle_after(150), settings());
    assert_eq!(server.model().snapshot().state, ModelState::Unloaded);
    let pid = server.ask("segments=3").await.unwrap();
    let now = server.model().snapshot();
    assert_eq!((now.state, now.generation, now.runner_pid), (ModelState::Ready, 1, Some(pid)));
    assert_eq!(server.metric("hush_model_state{model=\"tiny\",state=\"ready\"}"), 1.0);
    assert!(server.metric("hush_runner_resident_bytes{model=\"tiny\"}") > 500_000.0);
    until("the model leaves", || server.model().snapshot().state == ModelState::Unloaded).await;
    assert_eq!(process_state(pid), None);
    assert_eq!(server.metric("hush_model_unloads_total{model=\"tiny\",reason=\"IdleTimeout\"}"), 1.0);
    assert_eq!(server.metric("hush_runner_resident_bytes{model=\"tiny\"}"), 0.0);
    assert_ne!(server.ask("").await.unwrap(), pid);
    assert_eq!(server.metric("hush_model_generation{model=\"tiny\"}"), 2.0);
    assert_eq!(server.metric("hush_cold_start_wait_seconds_count{model=\"tiny\"}"), 2.0);
    let (outcome, _) = server.model().gather(audio(1), Work::DetectLanguage, None).await.unwrap();
    assert!(matches!(outcome, Outcome::Languages(languages) if languages[0].code == "de"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_come_while_the_work_goes_on() {
    let server = Server::new("");
    let (sender, mut receiver) = mpsc::channel(1);
    let model = server.model().clone();
    let job = tokio::spawn(async move { model.run(audio(1), work("segments=3 each=200"), sender, None).await });
    let first = receiver.recv().await.unwrap();
    assert_eq!((first.id, first.no_speech_prob), (0, 0.0), "not a number becomes one on its way");
    assert!(!job.is_finished());
    // The reader pauses; the model is free all the same.
    until("the work ends", || server.model().snapshot().inflight == 0).await;
    assert!(!job.is_finished());
    assert_eq!(receiver.recv().await.unwrap().id, 1);
    assert_eq!(receiver.recv().await.unwrap().id, 2);
    assert!(matches!(job.await.unwrap(), Ok(Outcome::Transcribed(_))));
}

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
    let server = Server::start("", Policy::default(), stall);
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
async fn a_load_that_never_ends_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let brief = runner::Settings { load_timeout: Duration::from_secs(2), ..settings() };
    let policy = Policy { backoff_first: Duration::from_millis(100), ..Policy::default() };
    let server = Server::start(&format!("hang_once={}", flag(dir.path(), "hung")), policy, brief);
    let error = server.ask("").await.unwrap_err();
    assert!(matches!(&error, JobError::LoadFailed { cause, .. } if cause == "not loaded within 2 s"), "{error}");
    assert_eq!(server.metric("hush_runner_restarts_total{cause=\"load_timeout\",model=\"tiny\"}"), 1.0);
    tokio::time::sleep(Duration::from_millis(120)).await;
    server.ask("").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_load_is_explained_to_everybody_and_tried_again_later() {
    let dir = tempfile::tempdir().unwrap();
    let policy = Policy { backoff_first: Duration::from_millis(300), ..Policy::default() };
    let script = format!("sleep=50 fail_once={}", flag(dir.path(), "failed"));
    let server = Server::start(&script, policy, settings());
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
    until("it failed", || server.model().snapshot().state == ModelState::Failed).await;
    assert_eq!(server.model().snapshot().failure.unwrap().cause, "the disk was away");
    assert!(matches!(server.model().load().await, Err(LoadError::Failed { .. })));
    tokio::time::sleep(Duration::from_millis(320)).await;
    server.ask("").await.unwrap();
    assert_eq!(server.metric("hush_model_loads_total{model=\"tiny\",result=\"failure\"}"), 1.0);
    assert_eq!(server.metric("hush_model_loads_total{model=\"tiny\",result=\"success\"}"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_cannot_be_started_is_a_failed_load() {
    let missing = runner::Settings { program: "/nonexistent/hush-server".into(), spare: true, ..settings() };
    let server = Server::start("", Policy::default(), missing);
    let error = server.ask("").await.unwrap_err();
    assert!(error.to_string().contains("could not start `/nonexistent/hush-server`"), "{error}");
    until("it failed", || server.model().snapshot().state == ModelState::Failed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_no_runner_is_a_failed_load() {
    let talks = ["-c", "echo 'hello, world' >&0; sleep 60"].map(Into::into).to_vec();
    let talks = runner::Settings { program: "/bin/sh".into(), args: talks, ..settings() };
    let server = Server::start("", Policy::default(), talks);
    let error = server.ask("").await.unwrap_err();
    assert!(matches!(&error, JobError::LoadFailed { cause, .. } if cause.contains("make no sense")), "{error}");
    let ends = runner::Settings { program: "/bin/false".into(), args: Vec::new(), ..settings() };
    let server = Server::start("", Policy::default(), ends);
    let error = server.ask("").await.unwrap_err();
    assert!(matches!(&error, JobError::LoadFailed { cause, .. } if cause.contains("exit status: 1")), "{error}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_without_enough_memory_is_tried_once_more() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::new(&format!("full_once={}", flag(dir.path(), "full")));
    server.ask("").await.unwrap();
    assert_eq!(server.model().snapshot().generation, 2);
    assert_eq!(server.metric("hush_model_out_of_memory_total{model=\"tiny\"}"), 1.0);
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
async fn patience_with_a_cold_model_ends_and_the_model_still_comes() {
    let server = Server::new("sleep=1500");
    let patience = Some(Duration::from_millis(100));
    let error = server.model().gather(audio(1), work(""), patience).await.unwrap_err();
    assert!(matches!(&error, JobError::ColdHold { retry_after_seconds: 1..=120, .. }), "{error}");
    assert!(error.to_string().contains("still loading"), "{error}");
    until("it is loaded for whoever comes next", || server.model().snapshot().state == ModelState::Ready).await;
    server.model().gather(audio(1), work(""), patience).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_request_ends_its_work_and_the_runner_is_used_again() {
    let server = Server::new("");
    let pid = server.ask("").await.unwrap();
    for script in ["segments=1 each=60000", "piece=16000 segments=1 each=60000"] {
        let job = server.model().gather(audio(600), work(script), None);
        assert!(timeout(Duration::from_millis(150), job).await.is_err());
        let dropped = Instant::now();
        assert_eq!(server.ask("").await.unwrap(), pid);
        println!("dropped -> next request answered: {:?}", dropped.elapsed());
        assert!(dropped.elapsed() < Duration::from_secs(1));
    }
    // Also while it waits in the queue.
    let (busy, waiting) = (server.model().gather(audio(1), work("each=300"), None), server.ask(""));
    let (busy, waiting) = tokio::join!(busy, timeout(Duration::from_millis(50), waiting));
    assert!(busy.is_ok() && waiting.is_err());
    until("nobody waits", || server.model().snapshot().queued == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_before_a_cold_model_is_served_and_the_queue_has_a_bound() {
    let server = Server::new("sleep=100");
    let mut jobs = JoinSet::new();
    for _ in 0..200 {
        let model = server.model().clone();
        jobs.spawn(async move { ask(&model, "").await });
    }
    let pids = jobs.join_all().await;
    assert!(pids.iter().all(|pid| pid.as_ref().ok() == pids[0].as_ref().ok()), "{pids:?}");
    assert_eq!(server.model().snapshot().generation, 1);

    let policy = Policy { queue_limit: NonZeroUsize::new(10).unwrap(), ..Policy::default() };
    let server = Server::start("sleep=100", policy, settings());
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
async fn an_unload_is_conditional_and_fast() {
    let server = Server::new("");
    let now = Unload::now(UnloadReason::Manual);
    let conditional = Unload { if_generation: Some(0), ..now };
    assert_eq!(server.model().unload(conditional).await, Err(UnloadRefusal::NotLoaded));
    assert_eq!(server.model().unload(now).await.unwrap().outcome, UnloadOutcome::AlreadyUnloaded);
    let mut took = Vec::new();
    for generation in 1..=20 {
        assert_eq!(server.model().load().await.unwrap(), generation);
        let pid = server.pid();
        let old = Unload { if_generation: Some(generation + 1), ..now };
        assert_eq!(server.model().unload(old).await, Err(UnloadRefusal::GenerationChanged));
        let early = Unload { if_idle: Some(Duration::from_secs(300)), ..now };
        assert_eq!(server.model().unload(early).await, Err(UnloadRefusal::NotIdle));
        let exact = Unload { if_generation: Some(generation), if_idle: Some(Duration::ZERO), ..now };
        let asked = Instant::now();
        let report = server.model().unload(exact).await.unwrap();
        took.push(asked.elapsed());
        assert_eq!((report.generation, process_state(pid)), (generation, None));
    }
    took.sort();
    println!("unload, request -> reaped: median {:?}, worst {:?}", took[took.len() / 2], took[took.len() - 1]);

    server.model().load().await.unwrap();
    let busy = server.model().clone();
    let job = tokio::spawn(async move { ask(&busy, "each=400").await });
    until("it works", || server.model().snapshot().inflight == 1).await;
    let polite = Unload { if_idle: Some(Duration::ZERO), ..now };
    assert_eq!(server.model().unload(polite).await, Err(UnloadRefusal::Busy));
    let report = server.model().unload(now).await.unwrap();
    assert!(report.drain > Duration::from_millis(100), "it waited for what was in flight");
    job.await.unwrap().unwrap();
    assert_eq!(server.metric("hush_model_unload_refused_total{model=\"tiny\",reason=\"busy\"}"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_outlasts_a_drain_is_done_again_elsewhere() {
    let server = Server::new("");
    let first = server.ask("").await.unwrap();
    let busy = server.model().clone();
    let job = tokio::spawn(async move { ask(&busy, "segments=5 each=150").await });
    until("it works", || server.model().snapshot().inflight == 1).await;
    let impatient = Unload { drain: Some(Duration::from_millis(50)), ..Unload::now(UnloadReason::HardPressure) };
    server.model().unload(impatient).await.unwrap();
    assert_ne!(job.await.unwrap().unwrap(), first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_demand_leaves_after_the_last_of_a_queue() {
    let policy = Policy { residency: Residency::OnDemand, ..Policy::default() };
    let server = Server::start("", policy, settings());
    let mut jobs = JoinSet::new();
    for _ in 0..5 {
        let model = server.model().clone();
        jobs.spawn(async move { ask(&model, "").await });
    }
    let pids = jobs.join_all().await;
    assert!(pids.iter().all(|pid| pid.as_ref().ok() == pids[0].as_ref().ok()), "{pids:?}");
    until("it leaves", || server.model().snapshot().state == ModelState::Unloaded).await;
    assert_eq!(server.model().snapshot().generation, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unloads_and_arrivals_race_and_no_request_is_lost() {
    const REQUESTS: usize = 4000;
    let spare = runner::Settings { spare: true, ..settings() };
    let server = Server::start("", Policy::default(), spare);
    let answered = Arc::new(AtomicUsize::new(0));
    let mut jobs = JoinSet::new();
    for client in 0..8 {
        let (model, answered) = (server.model().clone(), answered.clone());
        jobs.spawn(async move {
            for n in 0..REQUESTS / 8 {
                if n % 7 == client {
                    // Some clients leave.
                    let _ = timeout(Duration::from_micros(n as u64 * 13 % 5000), ask(&model, "")).await;
                }
                ask(&model, "").await.unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let (model, count) = (server.model().clone(), answered.clone());
    let unloader = tokio::spawn(async move {
        let (mut tried, mut done) = (0, 0);
        while count.load(Ordering::Relaxed) < REQUESTS {
            let idle = (tried % 2 == 0).then_some(Duration::ZERO);
            let drain = (tried % 5 == 1).then_some(Duration::ZERO);
            let unload = Unload { if_idle: idle, drain, ..Unload::now(UnloadReason::SoftPressure) };
            done += usize::from(model.unload(unload).await.is_ok());
            tried += 1;
            tokio::time::sleep(Duration::from_micros(tried % 17 * 100)).await;
        }
        (tried, done)
    });
    while let Some(result) = timeout(Duration::from_secs(240), jobs.join_next()).await.unwrap() {
        result.unwrap();
    }
    let (tried, done) = unloader.await.unwrap();
    let now = server.model().snapshot();
    println!("{REQUESTS} requests, {tried} unload commands, {done} unloads, {} loads", now.generation);
    assert!(done > 20);
    assert_eq!(answered.load(Ordering::Relaxed), REQUESTS);
    assert_eq!((now.inflight, now.queued), (0, 0));
    server.models.shutdown(Duration::from_secs(5)).await;
    until("nothing is left", || zombies().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spare_runner_takes_the_load_and_its_death_harms_nobody() {
    let mark = format!("spare-{}", std::process::id());
    let env = vec![(MARK.into(), mark.clone().into())];
    let spare = runner::Settings { spare: true, env, ..settings() };
    let server = Server::start("", Policy::default(), spare);
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
    // Dead, and nobody has had time to notice.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_serves_what_has_arrived_then_stops() {
    let server = Server::new("sleep=100");
    let mut jobs = JoinSet::new();
    for _ in 0..3 {
        let model = server.model().clone();
        jobs.spawn(async move { ask(&model, "each=50").await });
    }
    until("all have arrived", || server.model().snapshot().queued == 3).await;
    let pid = {
        until("the runner starts", || server.model().snapshot().runner_pid.is_some()).await;
        server.pid()
    };
    server.models.shutdown(Duration::from_secs(10)).await;
    assert_eq!(process_state(pid), None);
    assert!(jobs.join_all().await.iter().all(Result::is_ok));
    assert!(matches!(server.ask("").await, Err(JobError::ShuttingDown)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_waits_for_nobody_after_its_deadline() {
    let server = Server::new("");
    let pid = server.ask("").await.unwrap();
    let model = server.model().clone();
    let job = tokio::spawn(async move { ask(&model, "each=60000").await });
    until("it works", || server.model().snapshot().inflight == 1).await;
    let asked = Instant::now();
    server.models.shutdown(Duration::from_millis(300)).await;
    assert!(asked.elapsed() < Duration::from_millis(900), "{:?}", asked.elapsed());
    assert_eq!(process_state(pid), None);
    assert!(matches!(job.await.unwrap(), Err(JobError::ShuttingDown)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_leaves_signals_to_its_server() {
    let server = Server::new("");
    let pid = server.ask("").await.unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill(pid, signal);
    }
    assert_eq!(server.ask("").await.unwrap(), pid);
    let adjustment = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(adjustment.trim(), "500");
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim(), "hush-runner");
    let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    assert!(!environment.contains("CARGO"), "only what a runner needs: {environment}");
}

/// The server of the next test: prints the process of its runner and waits to be killed.
#[test]
fn server_process() {
    if std::env::var_os("HUSH_TEST_SERVER").is_none() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let server = Server::new("");
        println!("\nrunner {}", server.ask("").await.unwrap());
        std::future::pending::<()>().await;
    });
}

#[test]
fn a_killed_server_takes_its_runner_along() {
    for stop_runner in [false, true] {
        let mut server = Command::new("/proc/self/exe")
            .args(["--exact", "server_process", "--nocapture", "--test-threads=1"])
            .env("HUSH_TEST_SERVER", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let pid = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("runner ")?.parse::<u32>().ok());
        let pid = pid.unwrap();
        if stop_runner {
            // It cannot see its socket end now: only the kernel can end it.
            kill(pid, Signal::STOP);
        }
        kill(server.id(), Signal::KILL);
        server.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        // Whoever inherits it may be slow to reap it.
        while !matches!(process_state(pid), None | Some('Z' | 'X')) {
            assert!(Instant::now() < deadline, "the runner outlived its server");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn busy_timeout(busy: u64, let_go: u64) -> runner::Settings {
    runner::Settings {
        busy_timeout: Some(Duration::from_millis(busy)),
        let_go_timeout: Duration::from_millis(let_go),
        ..settings()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_takes_too_long_is_ended_and_the_runner_goes_on() {
    let policy = Policy { residency: Residency::Idle(None), ..Policy::default() };
    let server = Server::start("", policy, busy_timeout(3000, 60_000));
    let pid = server.ask("").await.unwrap();
    let error = server.ask("each=3600000").await.unwrap_err();
    assert!(matches!(error, JobError::Overdue { after } if after == Duration::from_secs(3)), "{error}");
    assert!(error.to_string().contains("--busy-timeout"), "{error}");
    assert_eq!(server.ask("").await.unwrap(), pid, "the same runner");
    assert_eq!(server.model().snapshot().generation, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_does_not_let_go_is_replaced_and_others_are_served() {
    let policy = Policy { residency: Residency::Idle(None), ..Policy::default() };
    let server = Server::start("", policy, busy_timeout(3000, 300));
    let pid = server.ask("").await.unwrap();
    let model = server.model().clone();
    let stuck = tokio::spawn(async move { ask(&model, "hang").await });
    until("it works", || server.model().snapshot().inflight == 1).await;
    // Waits for its turn; served beside the job that does not listen, or by the next runner.
    server.ask("").await.unwrap();
    assert!(matches!(stuck.await.unwrap(), Err(JobError::Overdue { .. })));
    until("the runner is gone", || process_state(pid).is_none()).await;
    assert_ne!(server.ask("").await.unwrap(), pid);
    assert_eq!(server.metric("hush_runner_restarts_total{cause=\"hung\",model=\"tiny\"}"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_left_does_not_make_its_request_overdue() {
    let policy = Policy { residency: Residency::Idle(None), ..Policy::default() };
    let server = Server::start("", policy, busy_timeout(1500, 1));
    let pid = server.ask("").await.unwrap();
    let model = server.model().clone();
    let left = tokio::spawn(async move { ask(&model, "each=3600000").await });
    until("it works", || server.model().snapshot().inflight == 1).await;
    left.abort();
    tokio::time::sleep(Duration::from_millis(2000)).await;
    assert_eq!(server.ask("").await.unwrap(), pid);
}
