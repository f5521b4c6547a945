//! What would be done with other policies: a plan of the world as it is, that nobody carries out.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hush_contract::admin::code;
use hush_core::{Memory, Plan, Policy, step};
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::Web;
use super::address::{About, OfPolicy};
use super::error::Refusal;
use super::portray::{gpus, models, selected};
use super::view::{EditedView, ProblemView, WhatIfView};
use crate::policies;
use crate::run::{Request, Snapshot};

const BODY_LIMIT_BYTES: usize = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

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
pub async fn plan(State(web): State<Web>, body: Body) -> Result<Json<WhatIfView>, Refusal> {
    let text = read(body).await?;
    let text = String::from_utf8(text).map_err(|_| Refusal::invalid("the body must be YAML in UTF-8"))?;
    let edited = policies::parse(&text).map_err(|problems| {
        let view = |problem: policies::Problem| ProblemView { line: problem.line, message: problem.message };
        Refusal::yaml(problems.into_iter().map(view).collect())
    })?;
    let thinking = tokio::time::timeout(PATIENCE, Arc::clone(&web.thinking).acquire_owned()).await;
    let busy = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "other plans are being made; try again");
    let _one_at_a_time = thinking.map_err(|_| busy())?.map_err(|_| Refusal::stopping())?;
    let memory = remembered(&web).await?;
    let snapshot = web.snapshot();
    tokio::task::spawn_blocking(move || imagine(&snapshot, memory, edited)).await.map(Json).map_err(|error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL, format!("the plan cannot be made: {error}"))
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
    let is = |policy: &Policy| match snapshot.policies.iter().find(|other| other.name == policy.name) {
        None => "new",
        Some(other) if other == policy => "same",
        Some(_) => "changed",
    };
    let names: Vec<_> = edited.iter().map(|policy| (policy.name.to_string(), is(policy))).collect();
    // What is paused stays so, unless it is what was edited.
    let mut policies = snapshot.in_force();
    policies.retain(|policy| edited.iter().all(|other| other.name != policy.name));
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
