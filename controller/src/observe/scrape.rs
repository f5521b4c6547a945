//! Scrapes the servers: one task for each server reads its metrics again and again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hush_core::ServerName;
use hush_log::printable;
use hyper::StatusCode;
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::sample::{SampleError, ServerSample};
use super::store::ObservationStore;
use super::target::{ScrapeTarget, Targets};
use crate::http::{HttpClient, HttpError};
use crate::metrics::ControllerMetrics;

/// The longest answer of a server. The metrics of a thousand models are some hundred kB.
const ANSWER_LIMIT_BYTES: usize = 8 << 20;
/// The number of servers that are scraped at the same time, of those that answered last time.
const HEALTHY_AT_ONCE: usize = 64;
/// The same number for servers that failed last time. Their slots are separate, so that servers that hang do not delay the
/// scrapes of the others.
const FAILING_AT_ONCE: usize = 16;
/// The longest pause between two scrapes of a server that does not answer.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The longest text of a failure, which may contain what the server sent.
const FAILURE_MAX_CHARS: usize = 300;

/// The highest number of scrapes per interval, however often a sample is requested before its turn.
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
    Sample(#[from] SampleError),
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

    /// The error as a text for users, bounded and printable.
    fn text(&self) -> String {
        printable(&self.to_string(), FAILURE_MAX_CHARS)
    }
}

/// Everything that a scrape needs.
#[derive(Clone)]
pub struct Scraper {
    pub client: HttpClient,
    pub settings: ScrapeSettings,
    pub store: ObservationStore,
    pub metrics: Arc<ControllerMetrics>,
}

/// Keeps one task for each target until the sender of the targets is gone.
pub async fn scrape_continuously(scraper: Scraper, mut targets: watch::Receiver<Arc<Targets>>) {
    let slots = ScrapeSlots {
        healthy: Arc::new(Semaphore::new(HEALTHY_AT_ONCE)),
        failing: Arc::new(Semaphore::new(FAILING_AT_ONCE)),
    };
    let mut running: BTreeMap<ServerName, (ScrapeTarget, AbortOnDrop)> = BTreeMap::new();

    loop {
        let wanted = targets.borrow_and_update().clone();
        running.retain(|server, (target, _)| {
            // A target with another address is another server: the samples of the old one must not be used for it.
            let is_same = |now: &ScrapeTarget| now.url == target.url && now.audience == target.audience;
            let is_kept = wanted.get(server).is_some_and(is_same);
            if !is_kept {
                scraper.store.forget(server);
            }
            is_kept
        });

        for (server, target) in wanted.iter() {
            if !running.contains_key(server) {
                let scrapes = scrape_repeatedly(scraper.clone(), slots.clone(), server.clone(), target.clone());
                let task = AbortOnDrop(tokio::spawn(scrapes).abort_handle());
                running.insert(server.clone(), (target.clone(), task));
            }
        }

        if targets.changed().await.is_err() {
            return;
        }
    }
}

/// Aborts its task when it is dropped.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Clone)]
struct ScrapeSlots {
    healthy: Arc<Semaphore>,
    failing: Arc<Semaphore>,
}

async fn scrape_repeatedly(scraper: Scraper, slots: ScrapeSlots, server: ServerName, target: ScrapeTarget) {
    let interval = scraper.settings.interval;
    // Spreads the scrapes of servers that were discovered together.
    tokio::time::sleep(interval.mul_f64(fastrand::f64())).await;

    let nudged = scraper.store.nudges(&server);
    let mut failures = 0;

    loop {
        let begun = Instant::now();
        let slots = if failures == 0 { &slots.healthy } else { &slots.failing };
        let Ok(slot) = slots.acquire().await else { return };
        failures = scrape_once(&scraper, &server, &target, failures).await;
        drop(slot);

        let backed_off = interval.saturating_mul(1 << failures.min(5)).min(PAUSE_MAX.max(interval));
        let jittered = backed_off.mul_f64(0.95 + 0.1 * fastrand::f64());
        let pause = jittered.saturating_sub(begun.elapsed());
        let shortest_pause = || (interval / NUDGES_PER_INTERVAL).saturating_sub(begun.elapsed());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = nudged.notified() => tokio::time::sleep(shortest_pause()).await,
        }
    }
}

/// Scrapes a server and stores the result. `failures` is the number of failures in a row so far; returns the new number.
async fn scrape_once(scraper: &Scraper, server: &ServerName, target: &ScrapeTarget, failures: u32) -> u32 {
    let begun = Instant::now();
    let result = scrape(scraper, target).await;
    let took = begun.elapsed();

    match result {
        Ok(sample) => {
            scraper.metrics.record_scrape("success", took);
            if failures > 0 {
                tracing::info!(%server, url = %target.url, "the server answers again");
            }
            scraper.store.succeeded(server, begun, took, sample);
            0
        }
        Err(error) => {
            scraper.metrics.record_scrape(error.label(), took);
            let failure = error.text();
            if failures == 0 {
                tracing::warn!(%server, url = %target.url, "the server cannot be observed: {failure}");
            }
            scraper.store.failed(server, took, failure)
        }
    }
}

async fn scrape(scraper: &Scraper, target: &ScrapeTarget) -> Result<ServerSample, ScrapeError> {
    let timeout = scraper.settings.timeout;
    let request = async {
        let uri = target.url.join(hush_contract::metrics::PATH).map_err(HttpError::from)?;
        Ok::<_, ScrapeError>(scraper.client.get(uri, None, ANSWER_LIMIT_BYTES).await?)
    };
    let answer = tokio::time::timeout(timeout, request).await.map_err(|_| ScrapeError::Timeout(timeout))??;

    if answer.status != StatusCode::OK {
        return Err(ScrapeError::Status(answer.status));
    }
    let text = std::str::from_utf8(&answer.body).map_err(|_| ScrapeError::NotText)?;
    Ok(ServerSample::read(text)?)
}

/// Scrapes each target once, for a plan without a loop.
pub async fn scrape_all_once(scraper: &Scraper, targets: &Targets) {
    let scrape_one = |(server, target): (&ServerName, &ScrapeTarget)| {
        let (scraper, server, target) = (scraper.clone(), server.clone(), target.clone());
        async move {
            let begun = Instant::now();
            match scrape(&scraper, &target).await {
                Ok(sample) => scraper.store.succeeded(&server, begun, begun.elapsed(), sample),
                Err(error) => drop(scraper.store.failed(&server, begun.elapsed(), error.text())),
            }
        }
    };

    let mut scrapes = JoinSet::new();
    for entry in targets {
        while scrapes.len() >= HEALTHY_AT_ONCE {
            scrapes.join_next().await;
        }
        scrapes.spawn(scrape_one(entry));
    }
    scrapes.join_all().await;
}
