//! Reads that would have the app load its model: they reach it only while the model is there, and an unload waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hush_contract::{ModelState, UnloadReason};
use hush_residency::UnloadCommand;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::app::RawUpstreamApp;
use crate::client::{Client, exchange, get, post};
use crate::fixture::Fixture;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const READERS: usize = 16;
const STORM: Duration = Duration::from_secs(3);

/// The app answers after this long.
const READ: Duration = Duration::from_millis(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_at_the_app_when_an_unload_is_complete() {
    let reading = Arc::new(AtomicUsize::new(0));
    let app = RawUpstreamApp::start({
        let reading = Arc::clone(&reading);
        move |mut connection| {
            let reading = Arc::clone(&reading);
            async move {
                while let Some(request) = connection.request().await {
                    let is_read = request.line().starts_with("GET");
                    if is_read {
                        reading.fetch_add(1, Ordering::SeqCst);
                        sleep(READ).await;
                        reading.fetch_sub(1, Ordering::SeqCst);
                    }
                    connection.send(OK).await;
                }
            }
        }
    })
    .await;
    let proxy = Arc::new(Fixture::start(app.address).await);

    let until = Instant::now() + STORM;
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        let address = proxy.address;
        readers.spawn(async move {
            let mut answered = 0_usize;
            while Instant::now() < until {
                let answer = exchange(address, get("/metrics?model=tiny")).await;
                assert!([200, 503].contains(&answer.status), "{}", answer.status);
                answered += usize::from(answer.status == 200);
            }
            answered
        });
    }

    let mut unloads = 0;
    while Instant::now() < until {
        assert_eq!(exchange(proxy.address, post("/v1/chat", r#"{"model":"tiny"}"#)).await.status, 200);
        if proxy.tiny().unload(UnloadCommand::now(UnloadReason::Manual)).await.is_ok() {
            unloads += 1;
            // Nothing loads the model before the next round, so a read that is there now would have done it.
            assert_eq!(proxy.tiny().snapshot().state, ModelState::Unloaded);
            assert_eq!(reading.load(Ordering::SeqCst), 0, "a read was at the app when its model was unloaded");
            sleep(READ).await;
            assert_eq!(reading.load(Ordering::SeqCst), 0, "a read came after the unload");
        }
    }
    let answered: usize = readers.join_all().await.into_iter().sum();
    assert!(unloads >= 20 && answered >= 100, "{unloads} unloads, {answered} reads");
}

#[tokio::test]
async fn a_read_resets_no_idle_time_and_holds_up_an_unload() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        while let Some(request) = connection.request().await {
            if request.line().starts_with("GET /slow") {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha").await;
                sleep(Duration::from_millis(600)).await;
                connection.send("lf").await;
            } else {
                connection.send(OK).await;
            }
        }
    })
    .await;
    let proxy = Fixture::start(app.address).await;
    exchange(proxy.address, post("/v1/chat", "{}")).await;
    sleep(Duration::from_millis(300)).await;

    let mut reader = Client::connect(proxy.address).await;
    reader.send(get("/slow")).await;
    reader.until("ha").await;
    let snapshot = proxy.tiny().snapshot();
    assert!(snapshot.idle >= Duration::from_millis(300), "{:?}", snapshot.idle);
    assert_eq!(snapshot.inflight, 0);

    let begun = Instant::now();
    proxy.unload("tiny").await;
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    let answer = reader.answer_to("GET").await;
    assert_eq!((answer.is_whole, answer.text()), (true, "half"));
}

#[tokio::test]
async fn a_stream_of_events_holds_up_nothing_once_it_has_begun() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        while let Some(request) = connection.request().await {
            if request.line().starts_with("GET /updates") {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
                connection.send(head).await;
                connection.send("7\r\ndata: 1\r\n").await;
                connection.closed().await;
            } else {
                connection.send(OK).await;
            }
        }
    })
    .await;
    let proxy = Fixture::start(app.address).await;
    exchange(proxy.address, post("/v1/chat", "{}")).await;

    let mut reader = Client::connect(proxy.address).await;
    reader.send(get("/updates")).await;
    reader.until("data: 1").await;
    proxy.unload("tiny").await;
    assert_eq!(exchange(proxy.address, get("/updates")).await.status, 503);
}
