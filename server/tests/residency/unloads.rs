//! Orders to leave, and their races with requests that arrive.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hush_contract::admin::UnloadOutcome;
use hush_contract::{UnloadReason, UnloadRefusal};
use hush_server::residency::{LifecycleSettings, UnloadCommand};
use hush_server::runner;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::scripted::{process_state, settings, until, zombies};
use crate::{Server, ask};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unload_is_conditional_and_fast() {
    let server = Server::new("");
    let now = UnloadCommand::now(UnloadReason::Manual);
    let conditional = UnloadCommand { if_generation: Some(0), ..now };
    assert_eq!(server.model().unload(conditional).await, Err(UnloadRefusal::NotLoaded));
    assert_eq!(server.model().unload(now).await.unwrap().outcome, UnloadOutcome::AlreadyUnloaded);
    let mut took = Vec::new();
    for generation in 1..=20 {
        assert_eq!(server.model().load().await.unwrap(), generation);
        let pid = server.pid();
        let old = UnloadCommand { if_generation: Some(generation + 1), ..now };
        assert_eq!(server.model().unload(old).await, Err(UnloadRefusal::GenerationChanged));
        let early = UnloadCommand { if_idle: Some(Duration::from_secs(300)), ..now };
        assert_eq!(server.model().unload(early).await, Err(UnloadRefusal::NotIdle));
        let exact = UnloadCommand { if_generation: Some(generation), if_idle: Some(Duration::ZERO), ..now };
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
    let polite = UnloadCommand { if_idle: Some(Duration::ZERO), ..now };
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
    let impatient =
        UnloadCommand { drain: Some(Duration::from_millis(50)), ..UnloadCommand::now(UnloadReason::HardPressure) };
    server.model().unload(impatient).await.unwrap();
    assert_ne!(job.await.unwrap().unwrap(), first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unloads_and_arrivals_race_and_no_request_is_lost() {
    const REQUESTS: usize = 4000;
    let spare = runner::Settings { spare: true, ..settings() };
    let server = Server::start("", LifecycleSettings::default(), spare);
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
            let unload = UnloadCommand { if_idle: idle, drain, ..UnloadCommand::now(UnloadReason::SoftPressure) };
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
