//! `GET /openapi.json`: what the public listener offers, as OpenAPI 3.1. Each route is described beside its handler
//! with the types that it answers with; what is here describes what handlers read by hand. Tests walk the document
//! against a running router, in both directions.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hush_whisper::language::LANGUAGES;
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::{asr, detect, error, health, live, openai};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Hush",
        description = "Speech to text with Whisper. The routes under *whisper-asr-webservice* and *OpenAI* have the \
                       parameters and the answers of those.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        asr::asr,
        detect::detect_language,
        health::status,
        openai::transcriptions,
        openai::translations,
        openai::models::list,
        openai::models::retrieve,
        live::models,
        live::events,
        health::healthz,
        health::readyz,
    ),
    components(schemas(error::Refusal, error::Faults)),
    tags(
        (name = "whisper-asr-webservice", description = "As that server, for its clients."),
        (name = "OpenAI", description = "As OpenAI's audio API, for its clients."),
        (name = "Models", description = "What the models are doing."),
        (name = "Health", description = "For probes."),
    ),
)]
struct Document;

/// The document itself.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// As it is served, and committed as `docs/openapi.json`.
pub fn text() -> Result<String, serde_json::Error> {
    document().to_pretty_json().map(|text| text + "\n")
}

pub async fn openapi() -> Response {
    match text() {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the OpenAPI document could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The query of `/asr`, as [`super::query::AsrQuery`] reads it.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes parameters that are read one by one")]
pub struct AsrParameters {
    /// Whether the file is in a format of its own (anything that ffmpeg knows). `false`: it is raw 16-bit
    /// little-endian mono samples at 16 kHz.
    #[param(default = true, required = false)]
    encode: bool,
    /// `translate` writes in English what is said in another language.
    #[param(schema_with = task, required = false)]
    task: String,
    /// The language that is spoken; without it, it is heard from the first 30 seconds.
    #[param(schema_with = language, required = false)]
    language: String,
    /// Text that comes before the audio: names and spellings that the model should know.
    #[param(required = false)]
    initial_prompt: String,
    /// Accepted; changes nothing.
    #[param(default = false, required = false)]
    vad_filter: bool,
    /// Accepted; changes nothing.
    #[param(default = false, required = false)]
    word_timestamps: bool,
    /// Accepted; changes nothing.
    #[param(default = false, required = false)]
    diarize: bool,
    /// Accepted; changes nothing.
    #[param(required = false)]
    min_speakers: i64,
    /// Accepted; changes nothing.
    #[param(required = false)]
    max_speakers: i64,
    /// Anything else is `txt`.
    #[param(schema_with = output, required = false)]
    output: String,
}

/// The query of `/detect-language`.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes a parameter that is read by hand")]
pub struct DetectParameters {
    /// Whether the file is in a format of its own. `false`: it is raw 16-bit little-endian mono samples at 16 kHz.
    #[param(default = true, required = false)]
    encode: bool,
}

/// The form of both.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a form that is read as it comes")]
pub struct AudioForm {
    /// Audio, or video with sound.
    #[schema(value_type = String, format = Binary)]
    audio_file: Vec<u8>,
}

fn task() -> Object {
    words(&["transcribe", "translate"], Some("transcribe"))
}

fn output() -> Object {
    words(&["txt", "vtt", "srt", "tsv", "json"], Some("txt"))
}

/// The codes alone, sorted, as the peer lists them; names are understood too.
pub fn language() -> Object {
    let mut codes = LANGUAGES.map(|(code, _)| code);
    codes.sort_unstable();
    words(&codes, None)
}

pub fn words(words: &[&str], default: Option<&str>) -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::String))
        .enum_values(Some(words.iter().copied()))
        .default(default.map(Into::into))
        .build()
}
