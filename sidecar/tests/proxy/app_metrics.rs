//! The app's own metrics, as the operations listener serves them.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use hush_contract::ModelState;
use hush_residency::ResidencyRule;
use hush_sidecar::app::App;
use hush_sidecar::status::AppStatus;
use hush_sidecar::upstream::UpstreamCredential;
use tokio::time::{Instant, sleep};

use crate::app::RawUpstreamApp;
use crate::client::LONG;
use crate::fixture::Fixture;

const METRICS: &str = "# HELP tokens_total Tokens,  with \"quotes\".\n# TYPE tokens_total counter\n\
                       tokens_total{model=\"a\\\\b\"}  1.0e+03\n\nlast 7";

fn with_metrics() -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{METRICS}", METRICS.len())
}

struct AppScrape {
    status: u16,
    content_type: String,
    text: String,
}

impl AppScrape {
    async fn of(proxy: &Fixture, query: Option<&str>) -> Self {
        let answer = proxy.proxy.scrape_app(query).await;
        let (head, body) = answer.into_parts();

        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Self {
            status: head.status.as_u16(),
            content_type: head.headers["content-type"].to_str().unwrap().to_owned(),
            text: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// Prometheus finds no series in it.
    fn is_empty(&self) -> bool {
        self.status == 200 && self.text.lines().all(|line| line.starts_with('#'))
    }
}

#[tokio::test]
async fn they_arrive_unchanged_and_are_asked_for_with_the_apps_credential() {
    let app = RawUpstreamApp::answering(with_metrics()).await;
    let key = tempfile::NamedTempFile::new().unwrap();
    fs::write(key.path(), "secret\n").unwrap();
    let vllm = Arc::new(App::find("vllm").unwrap());
    let credential = UpstreamCredential::from_file(key.path().to_owned(), &vllm).unwrap();
    let proxy = Fixture::with(app.address, |options| options.credential = Some(credential)).await;
    proxy.tiny().load().await.unwrap();

    let scrape = AppScrape::of(&proxy, Some("autoload=true&model=tiny&x=%2F")).await;
    assert_eq!((scrape.status, scrape.text.as_str()), (200, METRICS));
    assert!(scrape.content_type.starts_with("text/plain; version=0.0.4"), "{}", scrape.content_type);

    let seen = app.only();
    assert_eq!(
        (seen.line(), seen.header("authorization")),
        ("GET /metrics?model=tiny&x=%2F HTTP/1.1", Some("Bearer secret"))
    );
    assert_eq!(proxy.tiny().snapshot().inflight, 0);
}

#[tokio::test]
async fn there_are_none_while_the_model_is_away_and_the_app_is_not_asked() {
    let app = RawUpstreamApp::answering(with_metrics()).await;
    let proxy = Fixture::start(app.address).await;
    proxy.model("big:7b").load().await.unwrap();

    for query in [None, Some(""), Some("model=tiny"), Some("model=tiny&autoload=true")] {
        let scrape = AppScrape::of(&proxy, query).await;
        assert!(scrape.is_empty(), "{query:?}: {} {}", scrape.status, scrape.text);
    }
    let unknown = AppScrape::of(&proxy, Some("model=none")).await;
    assert_eq!(unknown.status, 404, "{}", unknown.text);

    proxy.status.send_replace(AppStatus::Stopped);
    assert!(AppScrape::of(&proxy, Some("model=big:7b")).await.is_empty());
    proxy.status.send_replace(AppStatus::Unreachable { cause: "it has ended".to_owned() });
    let unreachable = AppScrape::of(&proxy, Some("model=big:7b")).await;
    assert_eq!((unreachable.status, unreachable.text.as_str()), (503, "it has ended\n"));

    assert!(app.seen().is_empty(), "{:?}", app.seen());
    let tiny = proxy.tiny().snapshot();
    assert_eq!((tiny.state, tiny.generation), (ModelState::Unloaded, 0));
}

#[tokio::test]
async fn scrapes_do_not_keep_a_model_in_memory() {
    let app = RawUpstreamApp::answering(with_metrics()).await;
    let proxy = Fixture::with(app.address, |options| {
        options.lifecycle.residency = ResidencyRule::Idle(Some(Duration::from_millis(600)));
    })
    .await;
    proxy.tiny().load().await.unwrap();

    let begun = Instant::now();
    while proxy.tiny().snapshot().state != ModelState::Unloaded {
        assert!(begun.elapsed() < LONG, "it stays");
        let _ = AppScrape::of(&proxy, Some("model=tiny")).await;
        sleep(Duration::from_millis(20)).await;
    }

    assert!(app.seen().len() > 3, "{} scrapes reached the app", app.seen().len());
    assert!(AppScrape::of(&proxy, Some("model=tiny")).await.is_empty());
}

#[tokio::test]
async fn an_app_that_fails_is_a_bad_gateway() {
    for (answer, status, said) in [
        (
            "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 5\r\n\r\noh no",
            502,
            "500 Internal Server Error: oh no",
        ),
        ("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", 502, "401 Unauthorized"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 50\r\nConnection: close\r\n\r\ncut", 502, ""),
        ("garbage\r\n\r\n", 502, ""),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone", 404, "none"),
    ] {
        let app = RawUpstreamApp::start(move |mut connection| async move {
            connection.request().await;
            connection.send(answer).await;
        })
        .await;
        let proxy = Fixture::start(app.address).await;
        proxy.tiny().load().await.unwrap();

        let scrape = AppScrape::of(&proxy, Some("model=tiny")).await;
        assert_eq!(scrape.status, status, "{answer:?}: {}", scrape.text);
        assert!(scrape.text.contains(said) && !scrape.text.is_empty(), "{answer:?}: {}", scrape.text);
    }
}
