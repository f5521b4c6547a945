//! `POST .../load` and `POST .../unload`.

use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use hush_contract::admin::{LoadOutcome, LoadRequest, LoadResponse, UnloadRequest, UnloadResponse};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::error::{AdminError, json};
use super::{AdminState, ModelName, body};
use crate::auth::Caller;
use crate::residency::{Load, Loading, ModelHandle, Unload};

const LOAD_WAIT: Duration = Duration::from_secs(60);

/// The model that a command is for, and what the command says.
async fn receive<T: DeserializeOwned + Default>(
    state: &AdminState,
    name: &str,
    request: Request,
) -> Result<(ModelHandle, T), AdminError> {
    let model = state.model(name)?;
    let (head, content) = request.into_parts();
    Ok((model, body::read(&head.headers, content).await?))
}

/// Answers when the model is in memory, or 202 when that takes longer than the caller wants to wait.
pub async fn load(
    State(state): State<AdminState>,
    Path(name): ModelName,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, AdminError> {
    let (model, request) = receive::<LoadRequest>(&state, &name, request).await?;
    let policy = request.policy.as_ref().map(|policy| policy.as_str());
    tracing::info!(model = model.name(), caller = %caller, reason = request.reason.as_str(), policy, "load ordered");
    let began = Instant::now();
    let wait = request.wait_seconds.map_or(LOAD_WAIT, Duration::from);
    let load = Load { if_generation: request.if_generation, despite_hold: request.despite_hold };
    let failed = |error| AdminError::not_loaded(model.name(), &error);
    let generation = match model.order_load(load).await.map_err(failed)? {
        Loading::Ready(generation) => Some(generation),
        Loading::Pending(load) => match tokio::time::timeout(wait, load.wait()).await {
            Ok(loaded) => Some(loaded.map_err(failed)?),
            Err(_) => None,
        },
    };
    let now = model.snapshot();
    let (status, outcome) = match generation {
        Some(_) => (StatusCode::OK, LoadOutcome::Ready),
        None => (StatusCode::ACCEPTED, LoadOutcome::Pending),
    };
    let answer = LoadResponse {
        model: now.model,
        outcome,
        state: now.state,
        generation: generation.unwrap_or(now.generation),
        waited_seconds: began.elapsed().as_secs_f64(),
    };
    Ok((status, json(&answer)).into_response())
}

/// Answers when nothing is left of the model's process. A caller that leaves early has given its order all the same.
pub async fn unload(
    State(state): State<AdminState>,
    Path(name): ModelName,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, AdminError> {
    let (model, request) = receive::<UnloadRequest>(&state, &name, request).await?;
    let policy = request.policy.as_ref().map(|policy| policy.as_str());
    let unload = Unload {
        if_generation: request.if_generation,
        if_idle: request.if_idle_seconds.map(Duration::from),
        drain: request.drain_seconds.map(Duration::from),
        hold: request.hold_seconds.map(Duration::from),
        reason: request.reason.kind(),
    };
    let reason = request.reason.as_str();
    tracing::info!(model = model.name(), caller = %caller, reason, policy, ?unload, "unload ordered");
    let report = model.unload(unload).await.map_err(|refusal| AdminError::refused(refusal, &model.snapshot()))?;
    Ok(json(&UnloadResponse {
        model: model.name().to_owned(),
        outcome: report.outcome,
        generation: report.generation,
        vram_before_bytes: report.memory.map(|memory| memory.vram_before_bytes),
        reclaimed_bytes: report.memory.map(|memory| memory.reclaimed_bytes),
        residual_bytes: report.memory.map(|memory| memory.residual_bytes),
        drain_seconds: report.drain.as_secs_f64(),
        exit_seconds: report.exit.as_secs_f64(),
        verify_seconds: report.memory.map(|_| report.settle.as_secs_f64()),
    }))
}
