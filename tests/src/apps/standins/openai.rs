//! Answers in OpenAI's shape, as most apps give them.

use axum::body::{Body, Bytes};
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

use super::incoming::Incoming;
use super::stream::{CutStyle, StreamPlan};
use super::work::Work;

pub fn json_answer(status: u16, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub fn text_answer(status: u16, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

pub fn error_answer(status: u16, message: &str) -> Response {
    json_answer(status, &json!({"error": {"code": status, "message": message, "type": "invalid_request_error"}}))
}

/// `/v1/models`.
pub fn model_list(names: &[String]) -> Response {
    let data: Vec<Value> =
        names.iter().map(|name| json!({"id": name, "object": "model", "owned_by": "standin"})).collect();
    json_answer(200, &json!({"object": "list", "data": data}))
}

/// What the answer to a request in OpenAI's shape looks like when its model is taken away.
pub struct CutAnswer {
    pub stream: CutStyle,
    /// Without a stream.
    pub whole: Response,
}

/// A chat or a completion, as a stream or at once; `word` is each of its tokens.
pub async fn complete(request: &Incoming, mut work: Work, word: &str, on_cut: CutAnswer) -> Response {
    let tokens = request.tokens();
    let pause = work.app().options.token_time();
    let model = work.model.clone();

    if request.flag("stream") != Some(true) {
        let total = pause.saturating_mul(u32::try_from(tokens).unwrap_or(u32::MAX));
        if !work.last(total).await {
            return on_cut.whole;
        }
        work.finish();
        let message = json!({"role": "assistant", "content": format!("{word} ").repeat(tokens)});
        let choice = json!({"index": 0, "finish_reason": "length", "message": message});
        return json_answer(200, &json!({"object": "chat.completion", "model": model, "choices": [choice]}));
    }

    let word = word.to_owned();
    let plan = StreamPlan {
        content_type: "text/event-stream",
        tokens,
        pause,
        piece: Box::new(move |index| event(&model, &json!({"content": format!("{word}{index} ")}), None)),
        end: [event("", &json!({}), Some("length")), Bytes::from_static(b"data: [DONE]\n\n")].concat().into(),
        cut: on_cut.stream,
    };
    plan.answer(work)
}

/// One event of a streamed chat.
pub fn event(model: &str, delta: &Value, finish_reason: Option<&str>) -> Bytes {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": finish_reason});
    format!("data: {}\n\n", json!({"object": "chat.completion.chunk", "model": model, "choices": [choice]})).into()
}
