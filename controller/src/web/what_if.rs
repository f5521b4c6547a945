//! What would be done with other policies: a plan of the world as it is, that nobody carries out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hush_contract::admin::code;
use hush_core::{Memory, Plan, Policy, PolicyName, step};
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::Web;
use super::actions::may_act;
use super::address::{About, OfPolicy};
use super::error::Refusal;
use super::portray::{gpus, models, selected};
use super::view::{EditedView, ProblemView, WhatIfView};
use crate::control_loop::{LoopRequest as Request, LoopSnapshot as Snapshot};
use crate::policies;

const BODY_LIMIT_BYTES: usize = 256 << 10;
/// Each in dry run is a plan of the whole world.
const POLICIES_MAX: usize = 100;
const PATIENCE: Duration = Duration::from_secs(10);
/// What-ifs that are read or wait, with the one that is made.
const PLACES: usize = 4;

/// How many what-ifs there may be; cheap to clone.
#[derive(Clone)]
pub struct Bounds {
    places: Arc<Semaphore>,
    /// One is made at a time, on a thread of its own.
    making: Arc<Semaphore>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(PLACES)), making: Arc::new(Semaphore::new(1)) }
    }
}

/// Held until the work has ended, also when the request was given up.
struct Turn {
    _place: OwnedSemaphorePermit,
    _making: OwnedSemaphorePermit,
}

/// A policy in force, as YAML.
pub async fn policy(State(web): State<Web>, About(of): About<OfPolicy>) -> Result<Response, Refusal> {
    let snapshot = web.snapshot();
    let policy = find(&snapshot, &of.policy)?;
    let text = policies::yaml(policy).map_err(|error| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            code::INTERNAL,
            format!("the policy cannot be written: {error}"),
        )
    })?;
    Ok(([(header::CONTENT_TYPE, "application/yaml")], text).into_response())
}

/// `name` as [`hush_core::PolicyName`] is written.
pub fn find<'a>(snapshot: &'a Snapshot, name: &str) -> Result<&'a Policy, Refusal> {
    snapshot.policies.iter().find(|policy| policy.name.to_string() == name).ok_or_else(|| {
        let message = format!("there is no policy `{name}`; it must be namespace/name, or /name of the cluster kind");
        Refusal::new(StatusCode::NOT_FOUND, code::NOT_FOUND, message)
    })
}

/// The policies of the body take the place of those of the same name, or are added; all others stay.
pub async fn plan(State(web): State<Web>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    may_act(&web, &headers).await?;
    let busy = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "other plans are being made; try again");
    let place = Arc::clone(&web.what_ifs.places).try_acquire_owned().map_err(|_| busy())?;
    let text = read(body).await?;
    let making = tokio::time::timeout(PATIENCE, Arc::clone(&web.what_ifs.making).acquire_owned()).await;
    let turn = Turn { _place: place, _making: making.map_err(|_| busy())?.map_err(|_| Refusal::stopping())? };

    let (turn, edited) = aside(turn, move || parse(text)).await?;
    let edited = edited?;
    let memory = remembered(&web).await?;
    let snapshot = web.snapshot();
    let (_, answer) = aside(turn, move || serde_json::to_vec(&imagine(&snapshot, memory, edited))).await?;
    let answer = answer.map_err(|error| failed(&error))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

/// Does work that takes time on a thread of its own. The request waits for so long; the turn is held to the end.
async fn aside<T: Send + 'static>(turn: Turn, work: impl FnOnce() -> T + Send + 'static) -> Result<(Turn, T), Refusal> {
    let working = tokio::task::spawn_blocking(move || {
        let done = work();
        (turn, done)
    });
    let late = |_| Refusal::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "the plan takes too long; try fewer policies");
    tokio::time::timeout(PATIENCE, working).await.map_err(late)?.map_err(|error| failed(&error))
}

fn failed(error: &dyn std::error::Error) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL, format!("the plan cannot be made: {error}"))
}

fn parse(text: Vec<u8>) -> Result<Vec<Policy>, Refusal> {
    let text = String::from_utf8(text).map_err(|_| Refusal::invalid("the body must be YAML in UTF-8"))?;
    policies::parse_at_most(&text, POLICIES_MAX).map_err(|problems| {
        let view = |problem: policies::Problem| ProblemView { line: problem.line, message: problem.message };
        Refusal::yaml(problems.into_iter().map(view).collect())
    })
}

/// The whole body, within bounds.
pub async fn read(body: Body) -> Result<Vec<u8>, Refusal> {
    let read = tokio::time::timeout(PATIENCE, axum::body::to_bytes(body, BODY_LIMIT_BYTES)).await;
    let late = || Refusal::new(StatusCode::REQUEST_TIMEOUT, code::INVALID_REQUEST, "the body did not come in time");
    let large = || {
        let message = format!("the body broke off or is larger than {BODY_LIMIT_BYTES} bytes");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, code::BODY_TOO_LARGE, message)
    };
    read.map_err(|_| late())?.map(Into::into).map_err(|_| large())
}

async fn remembered(web: &Web) -> Result<Memory, Refusal> {
    let (to, answer) = oneshot::channel();
    web.requests.send(Request::Memory(to)).await.map_err(|_| Refusal::stopping())?;
    tokio::time::timeout(PATIENCE, answer).await.map_err(|_| Refusal::stopping())?.map_err(|_| Refusal::stopping())
}

fn imagine(snapshot: &Snapshot, mut memory: Memory, edited: Vec<Policy>) -> WhatIfView {
    let before: BTreeMap<&PolicyName, &Policy> =
        snapshot.policies.iter().map(|policy| (&policy.name, policy)).collect();
    let is = |policy: &Policy| match before.get(&policy.name) {
        None => "new",
        Some(other) if *other == policy => "same",
        Some(_) => "changed",
    };
    let names: Vec<_> = edited.iter().map(|policy| (policy.name.to_string(), is(policy))).collect();
    // What is paused stays so, unless it is what was edited.
    let mut policies = snapshot.in_force();
    let replaced: BTreeSet<PolicyName> = edited.iter().map(|policy| policy.name.clone()).collect();
    policies.retain(|policy| !replaced.contains(&policy.name));
    policies.extend(edited);
    let plan: Plan = step(&mut memory, snapshot.at, &snapshot.world, &policies);
    let counts = selected(&plan);
    let view = |(name, is): (String, &'static str)| {
        let models = counts.get(name.as_str()).copied().unwrap_or(0);
        EditedView { name, is, models }
    };
    WhatIfView {
        at: Timestamp::now(),
        policies: names.into_iter().map(view).collect(),
        gpus: gpus(snapshot, snapshot.at, &plan),
        models: models(snapshot, snapshot.at, &plan),
        decisions: plan.decisions,
    }
}
