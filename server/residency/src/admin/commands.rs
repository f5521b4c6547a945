//! `POST .../load` and `POST .../unload`.

use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use hush_contract::admin::{LoadOutcome, LoadRequest, LoadResponse, UnloadRequest, UnloadResponse};
use hush_listener::Caller;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::error::{AdminError, json};
use super::{AdminState, ModelName, body};
use crate::machine::{LoadCommand, UnloadCommand};
use crate::model_handle::{LoadProgress, ModelHandle};
use crate::runner::RunnerFactory;

/// How long a load is waited for where the command does not say.
const LOAD_WAIT: Duration = Duration::from_secs(60);

/// The model that a command is for, and the command.
async fn receive<F: RunnerFactory, T: DeserializeOwned + Default>(
    state: &AdminState<F>,
    name: &str,
    request: Request,
) -> Result<(ModelHandle<F>, T), AdminError> {
    let model = state.model(name)?;
    let (head, content) = request.into_parts();

    Ok((model, body::read(&head.headers, content).await?))
}

/// Answers when the model is in memory, or with 202 when that takes longer than the caller wants to wait.
pub async fn load<F: RunnerFactory>(
    State(state): State<AdminState<F>>,
    Path(name): ModelName,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, AdminError> {
    let (model, request) = receive::<F, LoadRequest>(&state, &name, request).await?;
    let policy = request.policy.as_ref().map(|policy| policy.as_str());
    tracing::info!(model = model.name(), caller = %caller, reason = request.reason.as_str(), policy, "load ordered");

    let began = Instant::now();
    let wait = request.wait_seconds.map_or(LOAD_WAIT, Duration::from);
    let load = LoadCommand { if_generation: request.if_generation, despite_hold: request.despite_hold };
    let refused = |error| AdminError::not_loaded(model.name(), &error);
    let generation = match model.order_load(load).await.map_err(refused)? {
        LoadProgress::Ready(generation) => Some(generation),
        LoadProgress::Pending(load) => match tokio::time::timeout(wait, load.wait()).await {
            Ok(loaded) => Some(loaded.map_err(refused)?),
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

/// Answers when the model's runner is reaped and its memory is seen to be back. The command stands even when the caller
/// leaves early.
pub async fn unload<F: RunnerFactory>(
    State(state): State<AdminState<F>>,
    Path(name): ModelName,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, AdminError> {
    let (model, request) = receive::<F, UnloadRequest>(&state, &name, request).await?;
    let policy = request.policy.as_ref().map(|policy| policy.as_str());
    let unload = UnloadCommand {
        if_generation: request.if_generation,
        if_idle: request.if_idle_seconds.map(Duration::from),
        drain: request.drain_seconds.map(Duration::from),
        hold: request.hold_seconds.map(Duration::from),
        method: request.unload,
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
        process: report.process,
        drain_seconds: report.drain.as_secs_f64(),
        exit_seconds: report.exit.as_secs_f64(),
        verify_seconds: report.memory.map(|_| report.reclaim.as_secs_f64()),
    }))
}
