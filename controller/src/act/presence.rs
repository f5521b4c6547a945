//! Every server that this controller may act on hears of it once a minute: then it leaves memory to the controller
//! (`--memory-reclaimer`), and a credential that it does not take is known before the first command.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hush_contract::admin::{ADMIN_PATH, ErrorBody};
use hush_core::ServerName;
use hyper::StatusCode;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::credential::Credentials;
use super::executor::Gate;
use crate::http::{Client, HttpError};
use crate::metrics::Metrics;
use crate::observe::{Target, Targets};

/// A server takes a controller for gone after two minutes.
const PERIOD: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_secs(1);
/// So many calls begin per tick: a thousand servers hear of it within the period, and none waits for another.
const PER_TICK: usize = 32;
const PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_LIMIT_BYTES: usize = 8 << 20;

pub struct Presence {
    pub client: Client,
    pub credentials: Arc<dyn Credentials>,
    pub gate: Arc<dyn Gate>,
    pub metrics: Arc<Metrics>,
    pub targets: watch::Receiver<Arc<Targets>>,
}

impl Presence {
    /// Until the targets' source is gone.
    pub async fn run(mut self) {
        let (mut called, mut refusing) = (BTreeMap::<ServerName, Instant>::new(), BTreeSet::<ServerName>::new());
        let mut calls = JoinSet::new();
        while self.targets.has_changed().is_ok() {
            let targets = self.targets.borrow_and_update().clone();
            called.retain(|server, _| targets.contains_key(server));
            refusing.retain(|server| targets.contains_key(server));
            let now = Instant::now();
            let due = |server: &ServerName| called.get(server).is_none_or(|at| now.duration_since(*at) >= PERIOD);
            let due: Vec<_> = targets
                .iter()
                .filter(|(server, _)| due(server) && self.gate.check(server).is_ok())
                .take(PER_TICK)
                .map(|(server, target)| (server.clone(), target.clone()))
                .collect();
            for (server, target) in due {
                called.insert(server.clone(), now);
                let (client, credentials) = (self.client.clone(), Arc::clone(&self.credentials));
                calls.spawn(async move { (server, call(&client, credentials.as_ref(), &target).await) });
            }
            while let Some(ended) = calls.try_join_next() {
                let Ok((server, answer)) = ended else { continue };
                match answer {
                    Some(Ok(())) => drop(refusing.remove(&server)),
                    // Logged once, where the token should come from.
                    Some(Err(Refusal::NoToken)) => drop(refusing.insert(server)),
                    Some(Err(Refusal::Refused(problem))) if refusing.insert(server.clone()) => {
                        tracing::warn!(%server, "it will take no command from this controller: {problem}");
                    }
                    // Known already, or it cannot be reached, which its scrape tells.
                    Some(Err(_)) | None => {}
                }
            }
            self.metrics.targets_refusing.set(i64::try_from(refusing.len()).unwrap_or(i64::MAX));
            tokio::time::sleep(TICK).await;
        }
    }
}

/// Why a server takes no command.
enum Refusal {
    /// There is no token for it, and it was not called.
    NoToken,
    Refused(String),
}

/// `None`: nothing was learnt.
async fn call(client: &Client, credentials: &dyn Credentials, target: &Target) -> Option<Result<(), Refusal>> {
    let Ok(token) = credentials.token(target.audience.as_ref()).await else {
        return Some(Err(Refusal::NoToken));
    };
    let asked = async {
        let uri = target.url.join(&format!("{ADMIN_PATH}/models")).map_err(HttpError::from)?;
        client.get(uri, token.as_deref(), ANSWER_LIMIT_BYTES).await
    };
    let answer = tokio::time::timeout(PATIENCE, asked).await.ok()?.ok()?;
    match answer.status {
        StatusCode::OK => Some(Ok(())),
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            let body: Option<ErrorBody> = serde_json::from_slice(&answer.body).ok();
            Some(Err(Refusal::Refused(body.map_or_else(|| status.to_string(), |body| body.message))))
        }
        _ => None,
    }
}
