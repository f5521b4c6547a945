//! `/v1/hush/`: what the page sees of the models.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hush_contract::ModelState;
use hush_server::api::{ApiConfig, LiveFeed, ModelSnapshots};
use hush_server::residency::{FailedLoad, ModelSnapshot, ResidencyRule};
use hush_server::serve::ServeOptions;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{ApiFixture, FakeModel, golden};

/// Models in the hands of the test.
struct FakeSnapshots(Mutex<Vec<ModelSnapshot>>);

impl ModelSnapshots for FakeSnapshots {
    fn snapshots(&self) -> Vec<ModelSnapshot> {
        self.0.lock().unwrap().clone()
    }
}

fn snapshot(model: &str) -> ModelSnapshot {
    ModelSnapshot {
        model: model.to_owned(),
        device: "cuda:0".to_owned(),
        precision: Some("fp16".to_owned()),
        state: ModelState::Unloaded,
        generation: 0,
        inflight: 0,
        queued: 0,
        idle: Duration::ZERO,
        loaded_for: Duration::ZERO,
        hold: None,
        last_load: None,
        runner_pid: None,
        residency: ResidencyRule::Idle(Some(Duration::from_secs(300))),
        failure: None,
        demand_bytes: None,
        memory: None,
    }
}

async fn start(models: Vec<ModelSnapshot>) -> (ApiFixture, Arc<FakeSnapshots>, CancellationToken) {
    let board = Arc::new(FakeSnapshots(Mutex::new(models)));
    let shutdown = CancellationToken::new();
    let live = LiveFeed::new(board.clone(), shutdown.clone());
    let server =
        ApiFixture::showing(live, FakeModel::answering(golden()), ApiConfig::default(), ServeOptions::default()).await;
    (server, board, shutdown)
}

#[tokio::test]
async fn models_are_shown_without_private_fields() {
    let failed = ModelSnapshot {
        state: ModelState::Failed,
        residency: ResidencyRule::Resident,
        runner_pid: Some(7),
        failure: Some(FailedLoad {
            cause: "/models/secret is missing".to_owned(),
            retry_after: Duration::from_secs(4),
        }),
        ..snapshot("large")
    };
    let (server, _, _) = start(vec![snapshot("tiny"), failed]).await;
    let answer = server.get("/v1/hush/models").await;
    assert_eq!(answer.status, "200 OK");
    let expected = json!({"models": [
        {"name": "tiny", "state": "unloaded", "residency": "idle", "idle_seconds": 0.0, "idle_timeout_seconds": 300.0,
         "inflight_requests": 0, "queued_requests": 0},
        {"name": "large", "state": "failed", "residency": "resident", "idle_seconds": 0.0, "idle_timeout_seconds": null,
         "inflight_requests": 0, "queued_requests": 0, "retry_after_seconds": 4.0},
    ], "max_upload_bytes": 4_u64 << 30});
    assert_eq!(serde_json::from_str::<Value>(&answer.body).unwrap(), expected);
}

#[tokio::test]
async fn each_change_is_an_event_until_the_server_ends() {
    let (server, board, shutdown) = start(vec![snapshot("tiny")]).await;
    let mut client = server.connect().await;
    client.write(b"GET /v1/hush/events HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!((head.status.as_str(), head.headers["content-type"].as_str()), ("200 OK", "text/event-stream"));
    assert_eq!(head.headers["cache-control"], "no-cache");
    for (state, word) in
        [(ModelState::Unloaded, "unloaded"), (ModelState::Loading, "loading"), (ModelState::Ready, "ready")]
    {
        board.0.lock().unwrap()[0].state = state;
        let event = client.chunk().await.unwrap();
        let data = event.trim_end().strip_prefix("event: models\ndata: ").unwrap_or_else(|| panic!("{event:?}"));
        let view: Value = serde_json::from_str(data).unwrap();
        assert_eq!(view["models"][0]["state"], word);
    }
    shutdown.cancel();
    assert_eq!(client.chunk().await, None);
}

#[tokio::test]
async fn streams_are_bounded() {
    let (server, _, _) = start(vec![snapshot("tiny")]).await;
    let mut open = Vec::new();
    for _ in 0..256 {
        let mut client = server.connect().await;
        client.write(b"GET /v1/hush/events HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert_eq!(client.head().await.status, "200 OK");
        open.push(client);
    }
    let refused = server.get("/v1/hush/events").await;
    assert_eq!((refused.status.as_str(), refused.headers["retry-after"].as_str()), ("503 Service Unavailable", "30"));
    assert_eq!(refused.body, r#"{"detail":"too many streams of events are open"}"#);
    // One that leaves makes room.
    open.pop();
    let mut again = server.connect().await;
    loop {
        again.write(b"GET /v1/hush/events HTTP/1.1\r\nHost: h\r\n\r\n").await;
        if again.head().await.status == "200 OK" {
            return;
        }
        again = server.connect().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
