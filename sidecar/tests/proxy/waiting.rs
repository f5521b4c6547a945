//! Requests that wait for their model, and what unloads do to requests.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hush_contract::{ModelState, UnloadReason};
use hush_residency::UnloadCommand;
use tokio::time::{Instant, sleep, timeout};

use crate::app::RawUpstreamApp;
use crate::client::{Client, LONG, exchange, get, post};
use crate::fixture::{Fixture, counts, soon};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn a_request_waits_for_its_model_and_then_goes_on() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::with(app.address, |options| options.can_load = false).await;

    let mut client = Client::connect(proxy.address).await;
    client.send(post("/v1/chat", "{}")).await;
    counts(&proxy.tiny(), 0, 1).await;
    sleep(Duration::from_millis(100)).await;
    assert!(app.seen().is_empty());

    proxy.gate.send_replace(true);
    assert_eq!(client.answer().await.status, 200);
    counts(&proxy.tiny(), 0, 0).await;
}

#[tokio::test]
async fn a_model_that_does_not_come_is_refused_in_time() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::with(app.address, |options| {
        options.can_load = false;
        options.settings.cold_hold = Some(Duration::from_millis(300));
    })
    .await;

    let begun = Instant::now();
    let got = exchange(proxy.address, post("/v1/chat", "{}")).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (503, Some("model_not_loaded")));
    let retry: u64 = got.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=120).contains(&retry) && begun.elapsed() >= Duration::from_millis(300));

    // The wait counts from the end of the body.
    let mut slow = Client::connect(proxy.address).await;
    slow.send("POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n").await;
    for _ in 0..8 {
        slow.send("x").await;
        sleep(Duration::from_millis(100)).await;
    }
    proxy.gate.send_replace(true);
    assert_eq!(slow.answer().await.status, 200);
}

#[tokio::test]
async fn a_route_may_wait_for_ever() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::with(app.address, |options| {
        options.can_load = false;
        options.settings.cold_hold = Some(Duration::from_millis(50));
    })
    .await;

    let mut client = Client::connect(proxy.address).await;
    client.send(post("/forever", "{}")).await;
    sleep(Duration::from_millis(500)).await;
    proxy.gate.send_replace(true);
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test]
async fn a_full_queue_is_too_many_requests() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::with(app.address, |options| {
        options.can_load = false;
        options.lifecycle.queue_limit = NonZeroUsize::new(2).unwrap();
    })
    .await;

    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(proxy.address).await;
        client.send(post("/v1/chat", "{}")).await;
        held.push(client);
    }
    counts(&proxy.tiny(), 0, 2).await;
    let got = exchange(proxy.address, post("/v1/chat", "{}")).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (429, Some("queue_full")));
    assert!(got.header("retry-after").is_some());
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_is_not_forwarded() {
    let app = RawUpstreamApp::answering(OK).await;
    let proxy = Fixture::with(app.address, |options| options.can_load = false).await;

    let mut client = Client::connect(proxy.address).await;
    client.send(post("/v1/chat", "{}")).await;
    counts(&proxy.tiny(), 0, 1).await;
    drop(client);
    counts(&proxy.tiny(), 0, 0).await;

    proxy.gate.send_replace(true);
    sleep(Duration::from_millis(100)).await;
    assert!(app.seen().is_empty());
    let gone = r#"hush_request_duration_seconds_count{code="499",route="/v1/chat"}"#;
    assert_eq!(proxy.metric(gone), Some(1.0));
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_work_and_then_the_lease() {
    // Once before the head of the answer, once within its body.
    for answer in ["", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
        let closed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&closed);
        let app = RawUpstreamApp::start(move |mut connection| {
            let count = Arc::clone(&count);
            async move {
                connection.request().await;
                connection.send(answer).await;
                connection.closed().await;
                count.fetch_add(1, Ordering::SeqCst);
            }
        })
        .await;
        let proxy = Fixture::start(app.address).await;

        let mut client = Client::connect(proxy.address).await;
        client.send(post("/v1/chat", "{}")).await;
        soon("the app has the request", || async { app.seen().len() == 1 }).await;
        if !answer.is_empty() {
            client.until("abc").await;
        }
        counts(&proxy.tiny(), 1, 0).await;

        let left = Instant::now();
        drop(client);
        counts(&proxy.tiny(), 0, 0).await;
        soon("the app's connection is closed", || async { closed.load(Ordering::SeqCst) == 1 }).await;
        assert!(left.elapsed() < Duration::from_secs(2), "{:?}", left.elapsed());
    }
}

#[tokio::test]
async fn work_that_goes_on_holds_its_model_until_the_app_is_idle() {
    let busy = Arc::new(AtomicU64::new(1));
    let shown = Arc::clone(&busy);
    let app = RawUpstreamApp::start(move |mut connection| {
        let shown = Arc::clone(&shown);
        async move {
            while let Some(request) = connection.request().await {
                let body =
                    if request.line().contains("/queue") { shown.load(Ordering::SeqCst) } else { 42 }.to_string();
                connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
            }
        }
    })
    .await;
    let proxy = Fixture::start(app.address).await;

    assert_eq!(exchange(proxy.address, post("/prompt", "{}")).await.text(), "42");
    sleep(Duration::from_millis(700)).await;
    assert_eq!(proxy.tiny().snapshot().inflight, 1, "the app is at work");
    let polls = app.seen().iter().filter(|seen| seen.line().contains("/queue")).count();
    assert!((1..=4).contains(&polls), "{polls}");

    busy.store(0, Ordering::SeqCst);
    counts(&proxy.tiny(), 0, 0).await;
}

#[tokio::test]
async fn a_storm_of_unloads_loses_no_request_and_repeats_none() {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 25;

    let app = RawUpstreamApp::start(|mut connection| async move {
        while let Some(request) = connection.request().await {
            let id = request.header("x-id").unwrap().to_owned();
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nid: \r\n").await;
            sleep(Duration::from_millis(fastrand::u64(0..15))).await;
            connection.send(format!("{:x}\r\n{id}\r\n0\r\n\r\n", id.len())).await;
        }
    })
    .await;
    let proxy = Arc::new(Fixture::start(app.address).await);

    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let address = proxy.address;
            tokio::spawn(async move {
                let mut connection = Client::connect(address).await;
                for at in 0..REQUESTS {
                    let id = format!("{client}-{at}");
                    let request =
                        post("/v1/chat", r#"{"model":"tiny"}"#).replacen("\r\n", &format!("\r\nX-Id: {id}\r\n"), 1);
                    connection.send(request).await;
                    let got = connection.answer().await;
                    assert_eq!((got.status, got.is_whole, got.text()), (200, true, format!("id: {id}").as_str()));
                }
            })
        })
        .collect();
    let storm = tokio::spawn({
        let proxy = Arc::clone(&proxy);
        async move {
            loop {
                let _ = proxy.tiny().unload(UnloadCommand::now(UnloadReason::Manual)).await;
                sleep(Duration::from_millis(3)).await;
            }
        }
    });

    for client in clients {
        timeout(3 * LONG, client).await.unwrap().unwrap();
    }
    storm.abort();
    let mut times: HashMap<String, usize> = HashMap::new();
    for seen in app.seen() {
        *times.entry(seen.header("x-id").unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!((times.len(), times.values().max()), (CLIENTS * REQUESTS, Some(&1)));
    assert!(proxy.tiny().snapshot().generation > 5, "{:?}", proxy.tiny().snapshot());
}

#[tokio::test]
async fn a_shutdown_lets_streams_end_and_takes_no_more() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        connection.request().await;
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
        sleep(Duration::from_millis(400)).await;
        connection.send("3\r\ndef\r\n0\r\n\r\n").await;
    })
    .await;
    let mut proxy = Fixture::start(app.address).await;

    let mut idle = Client::connect(proxy.address).await;
    idle.send(get("/healthz")).await;
    idle.answer().await;
    let mut client = Client::connect(proxy.address).await;
    client.send(post("/v1/chat", "{}")).await;
    client.until("abc").await;

    proxy.proxy.shut_down();
    assert!(idle.is_closed().await);
    let got = client.answer().await;
    assert_eq!((got.text(), got.is_whole), ("abcdef", true));
    timeout(LONG, &mut proxy.served).await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(proxy.address).await.is_err());
}

#[tokio::test]
async fn a_shutdown_has_an_end() {
    let app = RawUpstreamApp::start(|mut connection| async move {
        connection.request().await;
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
        connection.closed().await;
    })
    .await;
    let mut proxy =
        Fixture::with(app.address, |options| options.settings.drain_deadline = Duration::from_millis(200)).await;

    let mut client = Client::connect(proxy.address).await;
    client.send(post("/v1/chat", "{}")).await;
    client.until("abc").await;
    proxy.proxy.shut_down();

    let got = client.answer().await;
    assert!(!got.is_whole, "{got:?}");
    timeout(LONG, &mut proxy.served).await.unwrap().unwrap();
    counts(&proxy.tiny(), 0, 0).await;
    assert_eq!(proxy.tiny().snapshot().state, ModelState::Ready);
}
