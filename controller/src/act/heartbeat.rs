//! A heartbeat to every server that this controller may act on, once a minute.
//!
//! While it arrives, the server leaves its memory to the controller (`--memory-reclaimer`). It also shows before the first
//! command whether the server accepts the controller's credential.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hush_contract::admin::{ADMIN_PATH, AdminErrorBody};
use hush_core::ServerName;
use hyper::StatusCode;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::credential::ServerCredentials;
use super::gate::Gate;
use crate::http::{HttpClient, HttpError};
use crate::metrics::ControllerMetrics;
use crate::observe::{ScrapeTarget, Targets};

/// Half of the two minutes after which a server takes the controller for gone.
const PERIOD: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_secs(1);
/// The number of calls that begin in each tick. A thousand servers are called within the period, and no call waits for
/// another.
const CALLS_PER_TICK: usize = 32;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_LIMIT_BYTES: usize = 8 << 20;

pub struct Heartbeat {
    pub client: HttpClient,
    pub credentials: Arc<dyn ServerCredentials>,
    pub gate: Arc<dyn Gate>,
    pub metrics: Arc<ControllerMetrics>,
    pub targets: watch::Receiver<Arc<Targets>>,
}

impl Heartbeat {
    /// Runs until the source of the targets is gone.
    pub async fn run(mut self) {
        let mut called_at = BTreeMap::<ServerName, Instant>::new();
        let mut refusing = BTreeSet::<ServerName>::new();
        let mut calls = JoinSet::new();

        while self.targets.has_changed().is_ok() {
            let targets = self.targets.borrow_and_update().clone();
            called_at.retain(|server, _| targets.contains_key(server));
            refusing.retain(|server| targets.contains_key(server));

            for (server, target) in self.due(&targets, &called_at) {
                called_at.insert(server.clone(), Instant::now());
                let (client, credentials) = (self.client.clone(), Arc::clone(&self.credentials));
                calls.spawn(async move { (server, call(&client, credentials.as_ref(), &target).await) });
            }

            while let Some(ended) = calls.try_join_next() {
                let Ok((server, answer)) = ended else { continue };
                record_answer(&mut refusing, server, answer);
            }
            self.metrics.targets_refusing.set(i64::try_from(refusing.len()).unwrap_or(i64::MAX));

            tokio::time::sleep(TICK).await;
        }
    }

    /// The servers to call in this tick.
    fn due(&self, targets: &Targets, called_at: &BTreeMap<ServerName, Instant>) -> Vec<(ServerName, ScrapeTarget)> {
        let now = Instant::now();
        let is_due = |server: &ServerName| called_at.get(server).is_none_or(|at| now.duration_since(*at) >= PERIOD);

        targets
            .iter()
            .filter(|(server, _)| is_due(server) && self.gate.check(server).is_ok())
            .take(CALLS_PER_TICK)
            .map(|(server, target)| (server.clone(), target.clone()))
            .collect()
    }
}

/// Why a server takes no command.
enum HeartbeatRefusal {
    /// There is no token for the server, and it was not called.
    NoToken,
    Refused(String),
}

/// Keeps `refusing` up to date, and logs a refusal once while it lasts.
fn record_answer(
    refusing: &mut BTreeSet<ServerName>,
    server: ServerName,
    answer: Option<Result<(), HeartbeatRefusal>>,
) {
    match answer {
        Some(Ok(())) => drop(refusing.remove(&server)),
        // The source of the tokens logs the problem.
        Some(Err(HeartbeatRefusal::NoToken)) => drop(refusing.insert(server)),
        Some(Err(HeartbeatRefusal::Refused(problem))) if refusing.insert(server.clone()) => {
            tracing::warn!(%server, "it will take no command from this controller: {problem}");
        }
        // Logged before, or the server cannot be reached, which its scrape reports.
        Some(Err(HeartbeatRefusal::Refused(_))) | None => {}
    }
}

/// `None`: the server gave no answer that says whether it takes commands.
async fn call(
    client: &HttpClient,
    credentials: &dyn ServerCredentials,
    target: &ScrapeTarget,
) -> Option<Result<(), HeartbeatRefusal>> {
    let Ok(token) = credentials.token(target.audience.as_ref()).await else {
        return Some(Err(HeartbeatRefusal::NoToken));
    };

    let request = async {
        let uri = target.url.join(&format!("{ADMIN_PATH}/models")).map_err(HttpError::from)?;
        client.get(uri, token.as_deref(), ANSWER_LIMIT_BYTES).await
    };
    let answer = tokio::time::timeout(CALL_TIMEOUT, request).await.ok()?.ok()?;

    match answer.status {
        StatusCode::OK => Some(Ok(())),
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            let body: Option<AdminErrorBody> = serde_json::from_slice(&answer.body).ok();
            let problem = body.map_or_else(|| status.to_string(), |body| body.message);
            Some(Err(HeartbeatRefusal::Refused(problem)))
        }
        _ => None,
    }
}
