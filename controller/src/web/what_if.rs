//! Plans with other policies: what would be done with them in the world as it is. Such a plan is shown and not carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hush_contract::admin::code;
use hush_core::{ModelPolicy, Plan, PolicyKey, StepMemory, step};
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::WebState;
use super::actions::check_token;
use super::address::{PolicyQuery, TargetQuery};
use super::build_view::{count_selected_models, gpus, models};
use super::error::ApiRefusal;
use super::view::{EditedView, ProblemView, WhatIfView};
use crate::control_loop::{LoopRequest, LoopSnapshot};
use crate::policies;

const BODY_LIMIT_BYTES: usize = 256 << 10;
/// Each policy in dry run costs a plan of the whole world.
const POLICIES_MAX: usize = 100;
/// For reading the body, waiting for other plans, parsing and planning, each.
const STAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that are read, wait or are planned at the same time.
const REQUESTS_MAX: usize = 4;

/// Bounds the work of plans with other policies; cheap to clone.
#[derive(Clone)]
pub struct WhatIfLimits {
    requests: Arc<Semaphore>,
    /// One plan is made at a time, on a thread of its own.
    planning: Arc<Semaphore>,
}

impl Default for WhatIfLimits {
    fn default() -> Self {
        Self { requests: Arc::new(Semaphore::new(REQUESTS_MAX)), planning: Arc::new(Semaphore::new(1)) }
    }
}

/// Held until the planning has ended, also when the request was given up before.
struct WhatIfPermit {
    _request: OwnedSemaphorePermit,
    _planning: OwnedSemaphorePermit,
}

/// Responds with a policy in force, as YAML.
pub async fn policy(
    State(web): State<WebState>,
    TargetQuery(query): TargetQuery<PolicyQuery>,
) -> Result<Response, ApiRefusal> {
    let snapshot = web.snapshot();
    let policy = find_policy(&snapshot, &query.policy)?;

    let text = policies::to_yaml(policy).map_err(|error| {
        let message = format!("the policy cannot be written: {error}");
        ApiRefusal::new(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL, message)
    })?;
    Ok(([(header::CONTENT_TYPE, "application/yaml")], text).into_response())
}

/// `name` is in the form of [`hush_core::PolicyName`].
pub fn find_policy<'a>(snapshot: &'a LoopSnapshot, name: &str) -> Result<&'a ModelPolicy, ApiRefusal> {
    snapshot.policies.iter().find(|policy| policy.name.to_string() == name).ok_or_else(|| {
        let message = format!("there is no policy `{name}`; it must be namespace/name, or /name of the cluster kind");
        ApiRefusal::new(StatusCode::NOT_FOUND, code::NOT_FOUND, message)
    })
}

/// Responds with a plan. The policies of the body replace those of the same name, or are added; all others stay.
pub async fn plan(State(web): State<WebState>, headers: HeaderMap, body: Body) -> Result<Response, ApiRefusal> {
    check_token(&web, &headers).await?;

    let busy = || {
        let message = "other plans are being made; try again";
        ApiRefusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
    };
    let request = Arc::clone(&web.what_ifs.requests).try_acquire_owned().map_err(|_| busy())?;
    let text = read_body(body).await?;
    let planning = tokio::time::timeout(STAGE_TIMEOUT, Arc::clone(&web.what_ifs.planning).acquire_owned()).await;
    let planning = planning.map_err(|_| busy())?.map_err(|_| ApiRefusal::stopping())?;
    let permit = WhatIfPermit { _request: request, _planning: planning };

    let (permit, edited) = run_blocking(permit, move || parse(text)).await?;
    let edited = edited?;

    let memory = copy_memory(&web).await?;
    let snapshot = web.snapshot();
    let build = move || serde_json::to_vec(&build_what_if(&snapshot, memory, edited));
    let (_, response) = run_blocking(permit, build).await?;
    let response = response.map_err(|error| planning_failed(&error))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], response).into_response())
}

/// Runs work that takes time on a thread of its own. The request waits up to the timeout; the permit is held until the work
/// has ended.
async fn run_blocking<T: Send + 'static>(
    permit: WhatIfPermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<(WhatIfPermit, T), ApiRefusal> {
    let timed_out = |_| {
        let message = "the plan takes too long; try fewer policies";
        ApiRefusal::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
    };

    let running = tokio::task::spawn_blocking(move || {
        let result = work();
        (permit, result)
    });
    tokio::time::timeout(STAGE_TIMEOUT, running).await.map_err(timed_out)?.map_err(|error| planning_failed(&error))
}

fn planning_failed(error: &dyn std::error::Error) -> ApiRefusal {
    let message = format!("the plan cannot be made: {error}");
    ApiRefusal::new(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL, message)
}

fn parse(text: Vec<u8>) -> Result<Vec<ModelPolicy>, ApiRefusal> {
    let text = String::from_utf8(text).map_err(|_| ApiRefusal::invalid("the body must be YAML in UTF-8"))?;

    policies::parse_at_most(&text, POLICIES_MAX).map_err(|problems| {
        let view = |problem: policies::Problem| ProblemView { line: problem.line, message: problem.message };
        ApiRefusal::yaml(problems.into_iter().map(view).collect())
    })
}

/// Reads the whole body; refuses one that is too large or comes too slowly.
pub async fn read_body(body: Body) -> Result<Vec<u8>, ApiRefusal> {
    let timed_out =
        || ApiRefusal::new(StatusCode::REQUEST_TIMEOUT, code::INVALID_REQUEST, "the body did not come in time");
    let too_large = || {
        let message = format!("the body broke off or is larger than {BODY_LIMIT_BYTES} bytes");
        ApiRefusal::new(StatusCode::PAYLOAD_TOO_LARGE, code::BODY_TOO_LARGE, message)
    };

    let read = tokio::time::timeout(STAGE_TIMEOUT, axum::body::to_bytes(body, BODY_LIMIT_BYTES)).await;
    read.map_err(|_| timed_out())?.map(Into::into).map_err(|_| too_large())
}

/// A copy of the control loop's memory.
async fn copy_memory(web: &WebState) -> Result<StepMemory, ApiRefusal> {
    let (sender, reply) = oneshot::channel();
    web.requests.send(LoopRequest::Memory(sender)).await.map_err(|_| ApiRefusal::stopping())?;

    let memory = tokio::time::timeout(STAGE_TIMEOUT, reply).await.map_err(|_| ApiRefusal::stopping())?;
    memory.map_err(|_| ApiRefusal::stopping())
}

fn build_what_if(snapshot: &LoopSnapshot, mut memory: StepMemory, edited: Vec<ModelPolicy>) -> WhatIfView {
    let before: BTreeMap<&PolicyKey, &ModelPolicy> =
        snapshot.policies.iter().map(|policy| (&policy.name, policy)).collect();
    let difference = |policy: &ModelPolicy| match before.get(&policy.name) {
        None => "new",
        Some(other) if *other == policy => "same",
        Some(_) => "changed",
    };
    let edited_names: Vec<_> = edited.iter().map(|policy| (policy.name.to_string(), difference(policy))).collect();

    // A paused policy stays paused, unless it is one of the edited policies.
    let mut policies = snapshot.in_force();
    let replaced: BTreeSet<PolicyKey> = edited.iter().map(|policy| policy.name.clone()).collect();
    policies.retain(|policy| !replaced.contains(&policy.name));
    policies.extend(edited);

    let plan: Plan = step(&mut memory, snapshot.at, &snapshot.world, &policies);
    let counts = count_selected_models(&plan);
    let edited_view = |(name, difference): (String, &str)| {
        let models = counts.get(name.as_str()).copied().unwrap_or(0);
        EditedView { name, is: difference.to_owned(), models }
    };

    WhatIfView {
        at: Timestamp::now(),
        policies: edited_names.into_iter().map(edited_view).collect(),
        gpus: gpus(snapshot, snapshot.at, &plan),
        models: models(snapshot, snapshot.at, &plan),
        decisions: plan.decisions,
    }
}
