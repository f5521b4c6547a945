//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::ApiState;
use super::super::catalogue::ModelCard;
use super::super::error::json_response;
use super::error::{Envelope, NoKey, OpenAiError};

#[derive(Serialize, ToSchema)]
#[schema(as = ModelList)]
struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

/// One model.
#[derive(Serialize, ToSchema)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    /// Unix time of its installation, in seconds.
    created: u64,
    owned_by: &'a str,
}

impl<'a> From<&'a ModelCard> for Model<'a> {
    fn from(card: &'a ModelCard) -> Self {
        Self { id: &card.id, object: "model", created: card.created_seconds, owned_by: &card.owned_by }
    }
}

/// The models that requests may name.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses(
    (status = 200, description = "The default model first.", body = List),
    NoKey,
))]
pub async fn list(State(state): State<ApiState>) -> Response {
    let cards = state.catalogue.cards();
    json_response(StatusCode::OK, &List { object: "list", data: cards.iter().map(Model::from).collect() })
}

/// One model.
///
/// Other names of a model lead to it, and it says what it is called.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "OpenAI",
    params(("id" = String, Path, description = "Its name; one of the hub has a slash in it.")),
    responses(
        (status = 200, description = "The model.", body = Model),
        NoKey,
        (status = 404, description = "There is none of this name.", body = Envelope),
    ),
)]
pub async fn retrieve(State(state): State<ApiState>, Path(name): Path<String>) -> Result<Response, OpenAiError> {
    let cards = state.catalogue.cards();
    let found = state.catalogue.find(&name).and_then(|model| cards.iter().find(|card| card.id == model.model()));
    match found.or_else(|| cards.iter().find(|card| card.id == name)) {
        Some(card) => Ok(json_response(StatusCode::OK, &Model::from(card))),
        None => Err(OpenAiError::model_not_found(&name, &cards)),
    }
}
