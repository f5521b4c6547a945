//! The admin API: which models there are, load and unload under conditions, changes as they happen. Its requests and
//! answers are those of `hush_contract::admin`.

mod access;
mod body;
mod commands;
mod error;
mod events;
mod log_level;
mod status;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::middleware;
use axum::response::Response;
use axum::routing::{get, post};
use hush_contract::admin::{AdminErrorBody, ModelList};
use hush_listener::{FormatErrors, ListenerRefusal, format_errors};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use access::AdminAccess;
pub use error::AdminError;

use crate::controller_presence::ControllerPresence;
use crate::model_handle::ModelHandle;
use crate::models::Models;
use crate::runner::RunnerFactory;
use error::json;

/// Everything that the routes share. Cheap to clone.
pub struct AdminState<F: RunnerFactory> {
    models: Arc<Models<F>>,
    access: Arc<AdminAccess>,
    refusals: Arc<access::RefusalLog>,
    presence: ControllerPresence,
    /// Ends the event streams, which would otherwise last longer than the shutdown waits.
    stop: CancellationToken,
    event_readers: Arc<Semaphore>,
}

impl<F: RunnerFactory> Clone for AdminState<F> {
    fn clone(&self) -> Self {
        Self {
            models: Arc::clone(&self.models),
            access: Arc::clone(&self.access),
            refusals: Arc::clone(&self.refusals),
            presence: self.presence.clone(),
            stop: self.stop.clone(),
            event_readers: Arc::clone(&self.event_readers),
        }
    }
}

impl<F: RunnerFactory> AdminState<F> {
    pub fn new(models: Arc<Models<F>>, access: AdminAccess, stop: CancellationToken) -> Self {
        Self {
            models,
            access: Arc::new(access),
            refusals: Arc::default(),
            presence: ControllerPresence::default(),
            stop,
            event_readers: Arc::new(Semaphore::new(events::READERS_MAX)),
        }
    }

    /// The same, recording each authorised request in `presence`.
    #[must_use]
    pub fn with_controller_presence(self, presence: ControllerPresence) -> Self {
        Self { presence, ..self }
    }

    fn model(&self, name: &str) -> Result<ModelHandle<F>, AdminError> {
        let known: Vec<ModelHandle<F>> = self.models.iter().collect();

        self.models.get(name).ok_or_else(|| AdminError::unknown_model(name, known.iter().map(ModelHandle::name)))
    }
}

/// The body of errors that no handler writes.
pub fn error_body(refusal: &ListenerRefusal<'_>) -> String {
    let (code, message) = (refusal.code.to_owned(), refusal.message.to_owned());

    serde_json::to_string(&AdminErrorBody { code, message, field: None }).unwrap_or_default()
}

/// The routes of the admin API. Each of them asks [`AdminAccess`] first.
pub fn router<F: RunnerFactory>(state: AdminState<F>) -> Router {
    let guarded = middleware::from_fn_with_state(state.clone(), access::guard::<F>);
    let format = FormatErrors { format_error: error_body, server_errors: true };

    Router::new()
        .route("/admin/v1/models", get(models::<F>))
        .route("/admin/v1/models/{model}/load", post(commands::load::<F>))
        .route("/admin/v1/models/{model}/unload", post(commands::unload::<F>))
        .route("/admin/v1/events", get(events::events::<F>))
        .route("/admin/v1/log-level", get(log_level::get).put(log_level::put))
        .fallback(async || AdminError::not_found())
        .method_not_allowed_fallback(async || AdminError::method_not_allowed())
        .layer(middleware::from_fn_with_state(format, format_errors))
        .layer(guarded)
        .with_state(state)
}

async fn models<F: RunnerFactory>(State(state): State<AdminState<F>>) -> Response {
    // Read before the models: they may only be newer than the id.
    let event_id = state.models.feed().last_id();

    json(&ModelList { models: state.model_statuses(), event_id })
}

/// The name of a model in a path; a slash in it is written `%2F`.
type ModelName = Path<String>;
