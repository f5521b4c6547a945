//! Requests that change something, with the page token: unload and load a model, pause and resume a policy.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use hush_contract::admin::code;
use hush_core::{Action, Decision, ObservedModel, PolicyKey};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::WebState;
use super::address::{ModelQuery, PolicyQuery, TargetQuery};
use super::error::ApiRefusal;
use super::view::{LoadModelRequest, PauseRequest, PausedView, ResumeRequest, ResumedView, UnloadModelRequest};
use super::what_if::{find_policy, read_body};
use crate::act::{CommandRecord, CommandResult};
use crate::control_loop::{ClaimedName, LoopRequest, PauseOrder};
use crate::option_values::parse_positive_duration;

const ACTIONS_OFF: &str = "acting and trying out policies are off: start the controller with --page-token-file FILE";
const INVALID_PAUSE_DURATION: &str = "`duration` must be a duration such as 30m or 1h30m, longer than 0";
/// The code of a refusal by which nothing was sent: this controller may not act now, another one might.
pub const WITHHELD: &str = "withheld";
pub const DRAIN_MAX_SECONDS: u64 = 600;
/// The executor gives a command this long beyond its drain.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// The control loop answers all other requests within this time.
const LOOP_TIMEOUT: Duration = Duration::from_secs(10);

pub async fn unload(
    State(web): State<WebState>,
    TargetQuery(model): TargetQuery<ModelQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<CommandRecord>, ApiRefusal> {
    check_token(&web, &headers).await?;
    let request: UnloadModelRequest = read_json(body).await?;
    if request.drain_seconds.is_some_and(|drain| drain > DRAIN_MAX_SECONDS) {
        return Err(ApiRefusal::invalid(format!("`drainSeconds` must be at most {DRAIN_MAX_SECONDS}")));
    }

    let model = find_model(&web, model)?;
    let unload = web.snapshot().plan.commanded_unload(&model);
    let decision = Decision {
        unload,
        if_generation: Some(request.if_generation),
        if_idle_seconds: request.drain_seconds.is_none().then_some(0),
        drain_seconds: request.drain_seconds,
        hold_seconds: request.hold_seconds,
        ..Decision::manual(&model, Action::Unload)
    };
    run_command(&web, decision).await
}

pub async fn load(
    State(web): State<WebState>,
    TargetQuery(model): TargetQuery<ModelQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<CommandRecord>, ApiRefusal> {
    check_token(&web, &headers).await?;
    let request: LoadModelRequest = read_json(body).await?;

    let model = find_model(&web, model)?;
    let decision = Decision { if_generation: Some(request.if_generation), ..Decision::manual(&model, Action::Load) };
    run_command(&web, decision).await
}

pub async fn pause(
    State(web): State<WebState>,
    TargetQuery(PolicyQuery { policy }): TargetQuery<PolicyQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PausedView>, ApiRefusal> {
    check_token(&web, &headers).await?;
    let request: PauseRequest = read_json(body).await?;
    let duration = request.duration.as_deref().map(parse_positive_duration).transpose();
    let duration = duration.map_err(|_| ApiRefusal::invalid(INVALID_PAUSE_DURATION))?;
    if duration.is_some() == request.until_resumed {
        return Err(ApiRefusal::invalid("give one of `duration`, such as 30m, and `untilResumed`: true"));
    }

    let claimed_by = request.claimed_by.as_deref().and_then(ClaimedName::new);
    let name = policy_name(&web, &policy)?;
    check_acting(&web)?;
    let pause = PauseOrder { span: duration, claimed_by };
    let paused = ask_loop(&web, |reply| LoopRequest::Pause(name, pause, reply), LOOP_TIMEOUT).await?;
    Ok(Json(paused.into()))
}

pub async fn resume(
    State(web): State<WebState>,
    TargetQuery(PolicyQuery { policy }): TargetQuery<PolicyQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ResumedView>, ApiRefusal> {
    check_token(&web, &headers).await?;
    let request: ResumeRequest = read_json(body).await?;

    let claimed_by = request.claimed_by.as_deref().and_then(ClaimedName::new);
    let name = policy_name(&web, &policy)?;
    check_acting(&web)?;
    let resumed = ask_loop(&web, |reply| LoopRequest::Resume(name, claimed_by, reply), LOOP_TIMEOUT).await?;
    Ok(Json(ResumedView { resumed }))
}

/// Refuses a request without the page token.
pub async fn check_token(web: &WebState, headers: &HeaderMap) -> Result<(), ApiRefusal> {
    let actions_off = || ApiRefusal::new(StatusCode::FORBIDDEN, code::FORBIDDEN, ACTIONS_OFF);
    let token = web.token.clone().ok_or_else(actions_off)?;
    let headers = headers.clone();

    // The check reads the token's file, which blocks.
    let check = tokio::task::spawn_blocking(move || token.check(&headers));
    check.await.map_err(|_| ApiRefusal::stopping())?
}

/// A pause of a policy at a controller that does not act would change nothing, and look as if it had.
fn check_acting(web: &WebState) -> Result<(), ApiRefusal> {
    if web.acting() {
        return Ok(());
    }
    let message = "this controller only observes; ask the one that acts";
    Err(ApiRefusal::new(StatusCode::CONFLICT, WITHHELD, message))
}

/// An empty body counts as an empty object.
pub(super) async fn read_json<T: DeserializeOwned>(body: Body) -> Result<T, ApiRefusal> {
    let bytes = read_body(body).await?;
    let bytes = if bytes.is_empty() { b"{}".as_slice() } else { &bytes };

    serde_json::from_slice(bytes)
        .map_err(|error| ApiRefusal::invalid(format!("the body is not what it must be: {error}")))
}

fn policy_name(web: &WebState, name: &str) -> Result<PolicyKey, ApiRefusal> {
    find_policy(&web.snapshot(), name).map(|policy| policy.name.clone())
}

fn find_model(web: &WebState, query: ModelQuery) -> Result<ObservedModel, ApiRefusal> {
    let key = query.key();
    let snapshot = web.snapshot();

    let found = snapshot.world.models.iter().find(|model| model.key == key).cloned();
    found.ok_or_else(|| {
        let message = format!("there is no model `{}` on a server `{}` (namespace/name)", key.model, key.server);
        ApiRefusal::new(StatusCode::NOT_FOUND, code::UNKNOWN_MODEL, message)
    })
}

/// The command goes on when the client does not wait for its outcome.
async fn run_command(web: &WebState, decision: Decision) -> Result<Json<CommandRecord>, ApiRefusal> {
    let timeout = COMMAND_TIMEOUT + Duration::from_secs(decision.drain_seconds.unwrap_or(0));
    let record = ask_loop(web, |reply| LoopRequest::Command(Box::new(decision), reply), timeout).await?;

    let (status, code, message) = match &record.outcome {
        CommandResult::Unloaded { .. } | CommandResult::Loading => return Ok(Json(record)),
        CommandResult::Refused { code, message } => {
            let message = format!("the server refused ({code}): {message}");
            (StatusCode::CONFLICT, "refused", message)
        }
        CommandResult::Withheld { message } => (StatusCode::CONFLICT, WITHHELD, message.clone()),
        CommandResult::Failed { code, message } => (StatusCode::BAD_GATEWAY, *code, message.clone()),
    };
    Err(ApiRefusal::new(status, code, message))
}

/// Sends a request to the control loop and waits for its reply.
async fn ask_loop<T>(
    web: &WebState,
    request: impl FnOnce(oneshot::Sender<T>) -> LoopRequest,
    timeout: Duration,
) -> Result<T, ApiRefusal> {
    let timed_out = || {
        let message = "no answer yet; the timeline will tell how it ended";
        ApiRefusal::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
    };
    let gone = || ApiRefusal::new(StatusCode::NOT_FOUND, code::NOT_FOUND, "its server is not known any more");

    let (sender, reply) = oneshot::channel();
    web.requests.send(request(sender)).await.map_err(|_| ApiRefusal::stopping())?;
    tokio::time::timeout(timeout, reply).await.map_err(|_| timed_out())?.map_err(|_| gone())
}
