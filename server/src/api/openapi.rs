//! `GET /openapi.json`: the routes of the public listener as an OpenAPI 3.1 document. Each route is described beside its
//! handler with the types of its answers; this file describes the parameters that handlers parse by hand. Tests compare the
//! document with a running router, in both directions.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hush_whisper::language::LANGUAGES;
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::{IntoParams, IntoResponses, Modify, OpenApi, ToSchema};

use super::error::{DetailBody, ValidationErrorBody};
use super::{asr, detect, health, live, openai};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Hush",
        description = "SpeechModel to text with Whisper. The routes under *whisper-asr-webservice* and *OpenAI* have the \
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
    components(schemas(DetailBody, ValidationErrorBody, openai::error::OpenAiErrorEnvelope<'static>)),
    modifiers(&ApiKeySchemes),
    security((), ("bearer" = []), ("header" = [])),
    tags(
        (name = "whisper-asr-webservice", description = "Compatible with clients of that server."),
        (name = "OpenAI", description = "Compatible with clients of OpenAI's audio API."),
        (name = "Models", description = "The states of the models."),
        (name = "Health", description = "For probes."),
    ),
)]
struct ApiDocument;

/// The OpenAPI document.
pub fn document() -> utoipa::openapi::OpenApi {
    ApiDocument::openapi()
}

/// The document as JSON, as it is served and committed as `docs/openapi.json`.
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
    /// Whether the file has a container or codec (anything that ffmpeg reads). `false`: the file is raw 16-bit little-endian mono
    /// samples at 16 kHz.
    #[param(default = true, required = false)]
    encode: bool,
    /// `translate` writes English text for speech of another language.
    #[param(schema_with = task, required = false)]
    task: String,
    /// The spoken language: one of these codes, a tag such as `en-US`, or an English name. Without this parameter, or with `auto`,
    /// the server detects the language in the first 30 seconds.
    #[param(schema_with = language, required = false)]
    language: String,
    /// Text that precedes the audio: names and spellings that the model should know.
    #[param(required = false)]
    initial_prompt: String,
    /// Skip audio that is not speech. Needs Silero's model on the server.
    #[param(default = false, required = false)]
    vad_filter: bool,
    /// As `vad_filter`, and transcribe the parts of a long recording in parallel: faster, but no part knows the text before it.
    #[param(default = false, required = false)]
    vad_parallel: bool,
    /// Add the times of each word: in JSON, and as word-by-word subtitles.
    #[param(default = false, required = false)]
    word_timestamps: bool,
    /// With word timestamps: underline each word of a subtitle while it is spoken.
    #[param(default = false, required = false)]
    highlight_words: bool,
    /// With word timestamps: the longest line of a subtitle, in characters.
    #[param(minimum = 1, required = false)]
    max_line_width: i64,
    /// With word timestamps: the most lines of a subtitle.
    #[param(minimum = 1, required = false)]
    max_line_count: i64,
    /// With word timestamps: the most words of a line.
    #[param(minimum = 1, required = false)]
    max_words_per_line: i64,
    /// Accepted without an effect.
    #[param(default = false, required = false)]
    diarize: bool,
    /// Accepted without an effect.
    #[param(required = false)]
    min_speakers: i64,
    /// Accepted without an effect.
    #[param(required = false)]
    max_speakers: i64,
    /// An unknown value means `txt`.
    #[param(schema_with = output, required = false)]
    output: String,
}

/// The error answers of both audio routes.
#[derive(IntoResponses)]
pub enum AudioRefusals {
    /// The body is not a form, the file is not audio, or the model cannot do the task.
    #[response(status = 400)]
    Impossible(DetailBody),
    /// The server requires an API key, and the request has no valid one.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "`Bearer`.")))]
    NoKey(DetailBody),
    /// The upload stalled or is too slow.
    #[response(status = 408)]
    Stalled(DetailBody),
    /// The upload is larger than the limit of this server.
    #[response(status = 413)]
    TooLarge(DetailBody),
    /// The file is missing, or a parameter is wrong.
    #[response(status = 422)]
    Faults(ValidationErrorBody),
    /// The recording was read, but its transcription failed.
    #[response(status = 500, content_type = "text/plain; charset=utf-8")]
    Failed(String),
    /// Too many requests are waiting, or the model cannot be loaded now.
    #[response(status = 503, headers(("Retry-After" = u64, description = "Seconds until a retry may succeed.")))]
    Unavailable(DetailBody),
    /// The request held the model for longer than this server allows.
    #[response(status = 504)]
    Overdue(DetailBody),
    /// The server has no room to store the upload or its samples.
    #[response(status = 507, headers(("Retry-After" = u64, description = "Seconds until other requests may have released room.")))]
    StorageFull(DetailBody),
}

/// The error answer of the other routes of this group to requests without a valid API key.
#[derive(IntoResponses)]
pub enum AsrNoKey {
    /// The server requires an API key, and the request has no valid one.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "`Bearer`.")))]
    NoKey(DetailBody),
}

/// The ways to send an API key, which only some servers require.
struct ApiKeySchemes;

impl Modify for ApiKeySchemes {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        let header = ApiKeyValue::new("X-API-Key");
        components.add_security_scheme("header", SecurityScheme::ApiKey(ApiKey::Header(header)));
    }
}

/// The query of `/detect-language`.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes a parameter that is read by hand")]
pub struct DetectParameters {
    /// Whether the file has a container or codec. `false`: the file is raw 16-bit little-endian mono samples at 16 kHz.
    #[param(default = true, required = false)]
    encode: bool,
}

/// The form of both routes.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a form that is read as it comes")]
pub struct AudioForm {
    /// Audio, or video with sound.
    #[schema(value_type = String, format = Binary)]
    audio_file: Vec<u8>,
}

fn task() -> Object {
    string_enum(&["transcribe", "translate"], Some("transcribe"))
}

fn output() -> Object {
    string_enum(&["txt", "vtt", "srt", "tsv", "json"], Some("txt"))
}

/// The language codes, sorted as whisper-asr-webservice lists them. Names are accepted too.
pub fn language() -> Object {
    let mut codes = LANGUAGES.map(|(code, _)| code);
    codes.sort_unstable();
    string_enum(&codes, None)
}

/// The schema of a string with these values.
pub fn string_enum(values: &[&str], default: Option<&str>) -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::String))
        .enum_values(Some(values.iter().copied()))
        .default(default.map(Into::into))
        .build()
}
