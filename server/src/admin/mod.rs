//! The admin API on the operations listener: what models there are, load and unload under conditions, changes as they
//! happen. Its requests and answers are `hush_contract::admin`.

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
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hush_contract::admin::{ErrorBody, ModelList};
use hush_listener::{Refusal, ShapeErrors, shape_errors};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use access::Access;

use crate::metrics::Metrics;
use crate::residency::{Governor, ModelHandle, Models};
use crate::serve;
use error::{AdminError, json};

/// Everything that the routes share; cheap to clone.
#[derive(Clone)]
pub struct AdminState {
    models: Arc<Models>,
    access: Arc<Access>,
    refusals: Arc<access::RefusalLog>,
    governor: Governor,
    /// Ends the event streams, which would otherwise outlive the server's patience.
    stop: CancellationToken,
    event_readers: Arc<Semaphore>,
}

impl AdminState {
    pub fn new(models: Arc<Models>, access: Access, stop: CancellationToken) -> Self {
        let event_readers = Arc::new(Semaphore::new(events::READERS_MAX));
        Self {
            models,
            access: Arc::new(access),
            refusals: Arc::default(),
            governor: Governor::default(),
            stop,
            event_readers,
        }
    }

    /// Whoever is let in is noted there.
    #[must_use]
    pub fn noting(self, governor: Governor) -> Self {
        Self { governor, ..self }
    }

    fn model(&self, name: &str) -> Result<ModelHandle, AdminError> {
        let known: Vec<ModelHandle> = self.models.iter().collect();
        self.models.get(name).ok_or_else(|| AdminError::unknown_model(name, known.iter().map(ModelHandle::name)))
    }
}

/// How errors look that no handler writes.
pub fn error_shape(refusal: &Refusal<'_>) -> String {
    let (code, message) = (refusal.code.to_owned(), refusal.message.to_owned());
    serde_json::to_string(&ErrorBody { code, message, field: None }).unwrap_or_default()
}

/// Every route asks [`Access`] first. To be merged with [`crate::ops::router`], which is open.
pub fn router(state: AdminState, metrics: Arc<Metrics>) -> Router {
    let recorder = serve::Recorder { metrics, panicked: |_| AdminError::panicked().into_response() };
    let guarded = middleware::from_fn_with_state(state.clone(), access::guard);
    Router::new()
        .route("/admin/v1/models", get(models))
        .route("/admin/v1/models/{model}/load", post(commands::load))
        .route("/admin/v1/models/{model}/unload", post(commands::unload))
        .route("/admin/v1/events", get(events::events))
        .route("/admin/v1/log-level", get(log_level::get).put(log_level::put))
        .fallback(async || AdminError::not_found())
        .method_not_allowed_fallback(async || AdminError::method_not_allowed())
        .layer(middleware::from_fn_with_state(ShapeErrors { shape: error_shape, server_errors: true }, shape_errors))
        .layer(guarded)
        .layer(middleware::from_fn_with_state(recorder, serve::record))
        .with_state(state)
}

async fn models(State(state): State<AdminState>) -> Response {
    // Before the models are looked at: they may only be newer.
    let event_id = state.models.feed().last_id();
    json(&ModelList { models: state.listing(), event_id })
}

/// The name of a model in a path; a slash in it is written `%2F`.
type ModelName = Path<String>;
