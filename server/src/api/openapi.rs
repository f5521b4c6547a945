//! `GET /openapi.json`: what the public listener offers, as OpenAPI 3.1. Each route is described beside its handler
//! with the types that it answers with; what is here describes what handlers read by hand. Tests walk the document
//! against a running router, in both directions.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hush_whisper::language::LANGUAGES;
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::{IntoParams, IntoResponses, Modify, OpenApi, ToSchema};

use super::error::{Faults, Refusal};
use super::{asr, detect, health, live, openai};

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
    components(schemas(Refusal, Faults, openai::error::Envelope<'static>)),
    modifiers(&Keys),
    security((), ("bearer" = []), ("header" = [])),
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
    /// The language that is spoken: one of these codes, a tag such as `en-US`, or an English name. Without it, or with `auto`,
    /// it is detected in the first 30 seconds.
    #[param(schema_with = language, required = false)]
    language: String,
    /// Text that comes before the audio: names and spellings that the model should know.
    #[param(required = false)]
    initial_prompt: String,
    /// Leaves out what is not speech before anything is written. Needs Silero's model on the server.
    #[param(default = false, required = false)]
    vad_filter: bool,
    /// As `vad_filter`, and the pieces of a long recording are written side by side: faster, and no piece knows the text
    /// before it.
    #[param(default = false, required = false)]
    vad_parallel: bool,
    /// When each word is spoken: in JSON, and as subtitles that are made of words.
    #[param(default = false, required = false)]
    word_timestamps: bool,
    /// With words: underlines each word of a subtitle while it is spoken.
    #[param(default = false, required = false)]
    highlight_words: bool,
    /// With words: the longest line of a subtitle, in characters.
    #[param(minimum = 1, required = false)]
    max_line_width: i64,
    /// With words: lines of a subtitle.
    #[param(minimum = 1, required = false)]
    max_line_count: i64,
    /// With words: words of a line.
    #[param(minimum = 1, required = false)]
    max_words_per_line: i64,
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

/// What both routes answer where they do not do the work.
#[derive(IntoResponses)]
pub enum AudioRefusals {
    /// Not a form, not audio, or a request that the model cannot do.
    #[response(status = 400)]
    Impossible(Refusal),
    /// This server has API keys, and the request has none of them.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "`Bearer`.")))]
    NoKey(Refusal),
    /// The upload stopped in the middle, or is too slow.
    #[response(status = 408)]
    Stalled(Refusal),
    /// The upload is larger than this server takes.
    #[response(status = 413)]
    TooLarge(Refusal),
    /// The file is missing, or a parameter is wrong.
    #[response(status = 422)]
    Faults(Faults),
    /// The recording was understood, but the work failed.
    #[response(status = 500, content_type = "text/plain; charset=utf-8")]
    Failed(String),
    /// Too many requests wait, or the model cannot be loaded now.
    #[response(status = 503, headers(("Retry-After" = u64, description = "Seconds until it may work.")))]
    Unavailable(Refusal),
    /// It held the model for longer than this server allows.
    #[response(status = 504)]
    Overdue(Refusal),
    /// There is no room to store the upload or its samples.
    #[response(status = 507, headers(("Retry-After" = u64, description = "Seconds until other requests may have left room.")))]
    StorageFull(Refusal),
}

/// What the other routes of this group answer whom they do not know.
#[derive(IntoResponses)]
pub enum NoKey {
    /// This server has API keys, and the request has none of them.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "`Bearer`.")))]
    NoKey(Refusal),
}

/// The ways to show a key, which only some servers want.
struct Keys;

impl Modify for Keys {
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
