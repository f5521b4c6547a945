//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::ApiState;
use super::super::catalogue::ModelCard;
use super::super::error::json_response;
use super::error::{OpenAiError, OpenAiErrorEnvelope, OpenAiNoKey};

#[derive(Serialize, ToSchema)]
#[schema(as = ModelList)]
struct OpenAiModelList<'a> {
    object: &'static str,
    data: Vec<OpenAiModel<'a>>,
}

/// One model.
#[derive(Serialize, ToSchema)]
#[schema(as = Model)]
struct OpenAiModel<'a> {
    id: &'a str,
    object: &'static str,
    /// Unix time of its installation, in seconds.
    created: u64,
    owned_by: &'a str,
}

impl<'a> From<&'a ModelCard> for OpenAiModel<'a> {
    fn from(card: &'a ModelCard) -> Self {
        Self { id: &card.id, object: "model", created: card.created_seconds, owned_by: &card.owned_by }
    }
}

/// The models that a request may name.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses(
    (status = 200, description = "The default model first.", body = OpenAiModelList),
    OpenAiNoKey,
))]
pub async fn list(State(state): State<ApiState>) -> Response {
    let cards = state.catalogue.cards();
    json_response(
        StatusCode::OK,
        &OpenAiModelList { object: "list", data: cards.iter().map(OpenAiModel::from).collect() },
    )
}

/// One model.
///
/// An alias leads to the model; the answer has the name of the model.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "OpenAI",
    params(("id" = String, Path, description = "Name of the model; the name of a model on the hub has a slash.")),
    responses(
        (status = 200, description = "The model.", body = OpenAiModel),
        OpenAiNoKey,
        (status = 404, description = "The server has no model of this name.", body = OpenAiErrorEnvelope),
    ),
)]
pub async fn retrieve(State(state): State<ApiState>, Path(name): Path<String>) -> Result<Response, OpenAiError> {
    let cards = state.catalogue.cards();
    let found = state.catalogue.find(&name).and_then(|model| cards.iter().find(|card| card.id == model.model()));

    match found.or_else(|| cards.iter().find(|card| card.id == name)) {
        Some(card) => Ok(json_response(StatusCode::OK, &OpenAiModel::from(card))),
        None => Err(OpenAiError::model_not_found(&name, &cards)),
    }
}
