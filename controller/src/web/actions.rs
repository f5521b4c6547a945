//! What people may do, with the token: unload and load a model, pause and resume a policy.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use hush_contract::admin::code;
use hush_core::{Action, Decision, Model, PolicyName, Reason};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::Web;
use super::address::{About, OfModel, OfPolicy};
use super::error::Refusal;
use super::view::{LoadRequest, PauseRequest, PausedView, ResumeRequest, UnloadRequest};
use super::what_if::{find, read};
use crate::act::{CommandRecord as Record, CommandResult as Outcome};
use crate::control_loop::{ClaimedName, LoopRequest as Request, PauseOrder as Pause};

const OFF: &str = "acting and trying out policies are off: start the controller with --page-token-file FILE";
/// The code of a refusal by which nothing was sent: this controller may not act now, another one might.
pub const WITHHELD: &str = "withheld";
/// A drain, and what the executor gives an unload beyond it.
pub const DRAIN_MAX_SECONDS: u64 = 600;
const BEYOND_DRAIN: Duration = Duration::from_secs(60);
const LOOP_PATIENCE: Duration = Duration::from_secs(10);

pub async fn unload(
    State(web): State<Web>,
    About(model): About<OfModel>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Record>, Refusal> {
    may_act(&web, &headers).await?;
    let request: UnloadRequest = json(body).await?;
    if request.drain_seconds.is_some_and(|drain| drain > DRAIN_MAX_SECONDS) {
        return Err(Refusal::invalid(format!("`drainSeconds` must be at most {DRAIN_MAX_SECONDS}")));
    }
    let model = known(&web, model)?;
    let decision = Decision {
        if_generation: Some(request.if_generation),
        if_idle_seconds: request.drain_seconds.is_none().then_some(0),
        drain_seconds: request.drain_seconds,
        hold_seconds: request.hold_seconds,
        ..manual(&model, Action::Unload)
    };
    command(&web, decision).await
}

pub async fn load(
    State(web): State<Web>,
    About(model): About<OfModel>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Record>, Refusal> {
    may_act(&web, &headers).await?;
    let request: LoadRequest = json(body).await?;
    let model = known(&web, model)?;
    let decision = Decision { if_generation: Some(request.if_generation), ..manual(&model, Action::Load) };
    command(&web, decision).await
}

pub async fn pause(
    State(web): State<Web>,
    About(OfPolicy { policy }): About<OfPolicy>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PausedView>, Refusal> {
    may_act(&web, &headers).await?;
    let request: PauseRequest = json(body).await?;
    let span = |text: &String| {
        let span = hush_crds::parse_duration(text).filter(|span| !span.is_zero());
        span.ok_or_else(|| Refusal::invalid("`duration` must be a duration such as 30m or 1h30m, longer than nothing"))
    };
    let span = request.duration.as_ref().map(span).transpose()?;
    if span.is_some() == request.until_resumed {
        return Err(Refusal::invalid("give one of `duration`, such as 30m, and `untilResumed`: true"));
    }
    let claimed_by = request.claimed_by.as_deref().and_then(ClaimedName::new);
    let name = policy_name(&web, &policy)?;
    leads(&web)?;
    let paused = ask(&web, |to| Request::Pause(name, Pause { span, claimed_by }, to), LOOP_PATIENCE).await?;
    Ok(Json(paused.into()))
}

/// Answers whether it was paused.
pub async fn resume(
    State(web): State<Web>,
    About(OfPolicy { policy }): About<OfPolicy>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<serde_json::Value>, Refusal> {
    may_act(&web, &headers).await?;
    let request: ResumeRequest = json(body).await?;
    let claimed_by = request.claimed_by.as_deref().and_then(ClaimedName::new);
    let name = policy_name(&web, &policy)?;
    leads(&web)?;
    let was = ask(&web, |to| Request::Resume(name, claimed_by, to), LOOP_PATIENCE).await?;
    Ok(Json(serde_json::json!({ "resumed": was })))
}

pub async fn may_act(web: &Web, headers: &HeaderMap) -> Result<(), Refusal> {
    let token = web.token.clone().ok_or_else(|| Refusal::new(StatusCode::FORBIDDEN, code::FORBIDDEN, OFF))?;
    let headers = headers.clone();
    // It reads a file.
    tokio::task::spawn_blocking(move || token.check(&headers)).await.map_err(|_| Refusal::stopping())?
}

/// To pause a policy where nobody acts by it would change nothing, and look as if it had.
fn leads(web: &Web) -> Result<(), Refusal> {
    let message = "this controller only observes; ask the one that acts";
    let observes = || Refusal::new(StatusCode::CONFLICT, WITHHELD, message);
    if web.acting() { Ok(()) } else { Err(observes()) }
}

pub(super) async fn json<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let bytes = read(body).await?;
    let bytes = if bytes.is_empty() { b"{}".as_slice() } else { &bytes };
    serde_json::from_slice(bytes).map_err(|error| Refusal::invalid(format!("the body is not what it must be: {error}")))
}

fn policy_name(web: &Web, name: &str) -> Result<PolicyName, Refusal> {
    find(&web.snapshot(), name).map(|policy| policy.name.clone())
}

fn known(web: &Web, about: OfModel) -> Result<Model, Refusal> {
    let key = about.key();
    let snapshot = web.snapshot();
    let found = snapshot.world.models.iter().find(|model| model.key == key).cloned();
    found.ok_or_else(|| {
        let message = format!("there is no model `{}` on a server `{}` (namespace/name)", key.model, key.server);
        Refusal::new(StatusCode::NOT_FOUND, code::UNKNOWN_MODEL, message)
    })
}

fn manual(model: &Model, action: Action) -> Decision {
    Decision {
        server: model.key.server.clone(),
        model: model.key.model.clone(),
        gpu: model.gpu.clone(),
        action,
        reason: Reason::Manual,
        policy: String::new(),
        if_generation: None,
        if_idle_seconds: None,
        drain_seconds: None,
        hold_seconds: None,
        vram_bytes: model.vram_bytes,
        dry_run: false,
    }
}

/// Goes on although the person who asked does not wait for it.
async fn command(web: &Web, decision: Decision) -> Result<Json<Record>, Refusal> {
    let patience = BEYOND_DRAIN + Duration::from_secs(decision.drain_seconds.unwrap_or(0));
    let record = ask(web, |to| Request::Command(Box::new(decision), to), patience).await?;
    let (status, code, message) = match &record.outcome {
        Outcome::Unloaded { .. } | Outcome::Loading => return Ok(Json(record)),
        Outcome::Refused { code, message } => {
            let message = format!("the server refused ({code}): {message}");
            (StatusCode::CONFLICT, "refused", message)
        }
        Outcome::Withheld { message } => (StatusCode::CONFLICT, WITHHELD, message.clone()),
        Outcome::Failed { code, message } => (StatusCode::BAD_GATEWAY, *code, message.clone()),
    };
    Err(Refusal::new(status, code, message))
}

async fn ask<T>(
    web: &Web,
    request: impl FnOnce(oneshot::Sender<T>) -> Request,
    patience: Duration,
) -> Result<T, Refusal> {
    let (to, answer) = oneshot::channel();
    web.requests.send(request(to)).await.map_err(|_| Refusal::stopping())?;
    let late =
        || Refusal::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "no answer yet; the timeline will tell how it ended");
    let gone = || Refusal::new(StatusCode::NOT_FOUND, code::NOT_FOUND, "its server is not known any more");
    tokio::time::timeout(patience, answer).await.map_err(|_| late())?.map_err(|_| gone())
}
