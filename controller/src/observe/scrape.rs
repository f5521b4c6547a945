//! One task per server that reads its metrics again and again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hush_core::ServerName;
use hush_log::printable;
use hyper::StatusCode;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use super::sample::Sample;
use super::store::Store;
use super::target::{Target, Targets};
use crate::http::{Client, HttpError};
use crate::metrics::Metrics;

/// A thousand models have some hundred kB.
const ANSWER_LIMIT_BYTES: usize = 8 << 20;
/// Servers that answer are asked side by side, so many at a time.
const HEALTHY_AT_ONCE: usize = 64;
/// Servers that failed last time share these few places: however many hang, they keep nobody else waiting.
const FAILING_AT_ONCE: usize = 16;
/// The longest pause between two tries at a server that does not answer.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Why a server could not be observed; some of it may be its own words.
const FAILURE_MAX_CHARS: usize = 300;

/// However often somebody asks for a sample before its turn.
const NUDGES_PER_INTERVAL: u32 = 4;

#[derive(Clone, Copy, Debug)]
pub struct ScrapeSettings {
    pub interval: Duration,
    pub timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
enum ScrapeError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("it answered {0} to GET /metrics")]
    Status(StatusCode),
    #[error("the metrics are not UTF-8")]
    NotText,
    #[error(transparent)]
    Sample(#[from] super::sample::SampleError),
}

impl ScrapeError {
    const fn label(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::Http(error) => error.label(),
            Self::Status(_) => "status",
            Self::NotText | Self::Sample(_) => "malformed",
        }
    }
}

/// Everything that a scraper needs.
#[derive(Clone)]
pub struct Scraper {
    pub client: Client,
    pub settings: ScrapeSettings,
    pub store: Store,
    pub metrics: Arc<Metrics>,
}

/// Keeps one task per target until the sender of the targets is gone.
pub async fn follow(scraper: Scraper, mut targets: watch::Receiver<Arc<Targets>>) {
    let places = Places {
        healthy: Arc::new(Semaphore::new(HEALTHY_AT_ONCE)),
        failing: Arc::new(Semaphore::new(FAILING_AT_ONCE)),
    };
    let mut running: BTreeMap<ServerName, (Target, Task)> = BTreeMap::new();
    loop {
        let wanted = targets.borrow_and_update().clone();
        running.retain(|server, (target, _)| {
            // A server that moved is another server: what the old one said must not be taken for its word.
            let is_same = |now: &Target| now.url == target.url && now.audience == target.audience;
            let same = wanted.get(server).is_some_and(is_same);
            if !same {
                scraper.store.forget(server);
            }
            same
        });
        for (server, target) in wanted.iter() {
            if !running.contains_key(server) {
                let task = tokio::spawn(watch_one(scraper.clone(), places.clone(), server.clone(), target.clone()));
                running.insert(server.clone(), (target.clone(), Task(task.abort_handle())));
            }
        }
        if targets.changed().await.is_err() {
            return;
        }
    }
}

/// Ends with its owner.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Clone)]
struct Places {
    healthy: Arc<Semaphore>,
    failing: Arc<Semaphore>,
}

async fn watch_one(scraper: Scraper, places: Places, server: ServerName, target: Target) {
    let interval = scraper.settings.interval;
    // Servers that were found together must not be asked together for ever.
    tokio::time::sleep(interval.mul_f64(fastrand::f64())).await;
    let bell = scraper.store.bell(&server);
    let mut failures = 0;
    loop {
        let begun = Instant::now();
        let place = if failures == 0 { &places.healthy } else { &places.failing };
        let Ok(permit) = place.acquire().await else { return };
        let asked = Instant::now();
        let result = scrape(&scraper, &target).await;
        drop(permit);
        let took = asked.elapsed();
        match result {
            Ok(sample) => {
                scraper.metrics.scraped("success", took);
                if failures > 0 {
                    tracing::info!(%server, url = %target.url, "the server answers again");
                }
                failures = 0;
                scraper.store.succeeded(&server, asked, took, sample);
            }
            Err(error) => {
                scraper.metrics.scraped(error.label(), took);
                let failure = printable(&error.to_string(), FAILURE_MAX_CHARS);
                if failures == 0 {
                    tracing::warn!(%server, url = %target.url, "the server cannot be observed: {failure}");
                }
                failures = scraper.store.failed(&server, took, failure);
            }
        }
        let pause = interval.saturating_mul(1 << failures.min(5)).min(PAUSE_MAX.max(interval));
        let pause = pause.mul_f64(0.95 + 0.1 * fastrand::f64()).saturating_sub(begun.elapsed());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = bell.notified() => tokio::time::sleep((interval / NUDGES_PER_INTERVAL).saturating_sub(begun.elapsed())).await,
        }
    }
}

async fn scrape(scraper: &Scraper, target: &Target) -> Result<Sample, ScrapeError> {
    let timeout = scraper.settings.timeout;
    let answer = async {
        let uri = target.url.join(hush_contract::metrics::PATH).map_err(HttpError::from)?;
        Ok::<_, ScrapeError>(scraper.client.get(uri, None, ANSWER_LIMIT_BYTES).await?)
    };
    let answer = tokio::time::timeout(timeout, answer).await.map_err(|_| ScrapeError::Timeout(timeout))??;
    if answer.status != StatusCode::OK {
        return Err(ScrapeError::Status(answer.status));
    }
    let text = std::str::from_utf8(&answer.body).map_err(|_| ScrapeError::NotText)?;
    Ok(Sample::read(text)?)
}

/// One sample of each target now: for a look at the world without a loop.
pub async fn once(scraper: &Scraper, targets: &Targets) {
    let look = |(server, target): (&ServerName, &Target)| {
        let (scraper, server, target) = (scraper.clone(), server.clone(), target.clone());
        async move {
            let begun = Instant::now();
            match scrape(&scraper, &target).await {
                Ok(sample) => scraper.store.succeeded(&server, begun, begun.elapsed(), sample),
                Err(error) => {
                    let failure = printable(&error.to_string(), FAILURE_MAX_CHARS);
                    scraper.store.failed(&server, begun.elapsed(), failure);
                }
            }
        }
    };
    let mut looks = tokio::task::JoinSet::new();
    for entry in targets {
        while looks.len() >= HEALTHY_AT_ONCE {
            looks.join_next().await;
        }
        looks.spawn(look(entry));
    }
    looks.join_all().await;
}
