//! Requests that count as nothing, while the app runs and while it does not.

use hush_contract::ModelState;
use hush_sidecar::status::AppStatus;

use crate::app::RawUpstreamApp;
use crate::client::{exchange, get, post};
use crate::fixture::{Fixture, counts};

const LIST: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"data\":[\"a\"]} ";

#[tokio::test]
async fn lists_load_nothing_and_count_as_nothing() {
    let app = RawUpstreamApp::answering(LIST).await;
    let proxy = Fixture::start(app.address).await;

    let got = exchange(proxy.address, get("/v1/models")).await;
    assert_eq!((got.status, got.header("hush-kept-answer")), (200, None));
    assert_eq!(proxy.tiny().snapshot().state, ModelState::Unloaded);

    proxy.tiny().load().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    exchange(proxy.address, get("/v1/models")).await;
    assert!(proxy.tiny().snapshot().idle >= std::time::Duration::from_millis(50));
}

#[tokio::test]
async fn what_may_load_is_not_forwarded_while_the_model_is_away() {
    let app = RawUpstreamApp::answering(LIST).await;
    let proxy = Fixture::start(app.address).await;

    let away = exchange(proxy.address, get("/slots?model=big%3A7b&autoload=true")).await;
    assert_eq!((away.status, away.json()["error"]["code"].as_str()), (503, Some("model_not_loaded")));
    assert!(away.header("retry-after").is_some() && app.seen().is_empty());
    assert_eq!(exchange(proxy.address, get("/slots?model=none")).await.status, 404);

    proxy.model("big:7b").load().await.unwrap();
    assert_eq!(exchange(proxy.address, get("/slots?model=big%3A7b&autoload=true")).await.status, 200);
    assert_eq!(app.only().line(), "GET /slots?model=big%3A7b HTTP/1.1");
    assert_eq!(exchange(proxy.address, get("/slots?model=tiny")).await.status, 503);
    proxy.unload("big:7b").await;
    assert_eq!(exchange(proxy.address, get("/slots?model=big%3A7b")).await.status, 503);
    counts(&proxy.model("big:7b"), 0, 0).await;
}

#[tokio::test]
async fn the_last_good_list_is_given_while_the_app_does_not_run() {
    let app = RawUpstreamApp::answering(LIST).await;
    let proxy = Fixture::start(app.address).await;
    exchange(proxy.address, get("/v1/models")).await;

    proxy.status.send_replace(AppStatus::Stopped);
    let kept = exchange(proxy.address, get("/v1/models")).await;
    assert_eq!((kept.status, kept.text()), (200, "{\"data\":[\"a\"]} "));
    assert!(kept.header("hush-kept-answer").is_some() && kept.header("age").is_some(), "{}", kept.head);

    let mine = "GET /v1/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer other\r\n\r\n";
    let other = exchange(proxy.address, mine).await;
    assert_eq!((other.status, other.json()["error"]["code"].as_str()), (503, Some("app_not_running")));
    assert!(other.header("retry-after").is_some());
    assert_eq!(exchange(proxy.address, post("/pull", "{}")).await.status, 503);
    assert_eq!(app.seen().len(), 1);
    assert_eq!(exchange(proxy.address, get("/readyz")).await.status, 200, "a request would start it");
}

#[tokio::test]
async fn an_app_that_cannot_be_governed_gets_no_work() {
    let app = RawUpstreamApp::answering(LIST).await;
    let proxy = Fixture::start(app.address).await;
    let cause = "`--enable-sleep-mode` is not set".to_owned();
    proxy.status.send_replace(AppStatus::Unsuitable { cause: cause.clone() });

    let got = exchange(proxy.address, post("/v1/chat", "{}")).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (503, Some("app_unsuitable")));
    assert!(got.text().contains(&cause) && app.seen().is_empty());
    let ready = exchange(proxy.address, get("/readyz")).await;
    assert!(ready.status == 503 && ready.text().contains(&cause));
    assert_eq!(exchange(proxy.address, get("/healthz")).await.status, 200);
}
