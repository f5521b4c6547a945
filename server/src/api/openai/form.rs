//! The forms of the two audio routes for OpenAPI. [`super::parameters`] parses the fields one by one.

use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::schema::{Array, ArrayBuilder, Object};

use super::super::openapi::{language, string_enum};
use super::body::{JsonTranscription, VerboseTranscription};

/// The form of `/v1/audio/transcriptions`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a form that is read as it comes")]
pub struct TranscriptionForm {
    /// Audio, or video with sound.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// A name of `/v1/models`; the names of OpenAI's own models mean the default model.
    #[schema(required = false)]
    model: String,
    /// The spoken language: one of these codes, a tag such as `en-US`, or an English name. Without this field, or with `auto`,
    /// the server detects the language in the first 30 seconds.
    #[schema(schema_with = language, required = false)]
    language: String,
    /// Text that precedes the audio: names and spellings that the model should know.
    #[schema(required = false)]
    prompt: String,
    #[schema(schema_with = response_format, required = false)]
    response_format: String,
    /// From 0 to 1. With 0 the server raises the temperature where the text would be poor.
    #[schema(default = 0.0, minimum = 0.0, maximum = 1.0, required = false)]
    temperature: f64,
    /// With `verbose_json`; `segment` also with `stream`: each piece of text then has its `start` and `end` in seconds.
    #[schema(rename = "timestamp_granularities[]", schema_with = granularities, required = false)]
    timestamp_granularities: Vec<String>,
    /// Send the text as server-sent events while it is decoded; with `json` or `text`.
    #[schema(default = false, required = false)]
    stream: bool,
    /// `logprobs`: the log probability of each token; with `json`.
    #[schema(rename = "include[]", schema_with = include, required = false)]
    include: Vec<String>,
    /// Skip audio that is not speech. Needs Silero's model on the server. Not OpenAI's.
    #[schema(default = false, required = false)]
    vad_filter: bool,
    /// Number of beams where the temperature is 0; without it the most probable token is taken. Not OpenAI's.
    #[schema(minimum = 1, required = false)]
    beam_size: usize,
    /// Number of candidates where the temperature is above 0. Not OpenAI's.
    #[schema(default = 5, minimum = 1, required = false)]
    best_of: usize,
    /// Decode without timestamps; with `json` or `text`. Not OpenAI's.
    #[schema(default = false, required = false)]
    without_timestamps: bool,
}

/// The form of `/v1/audio/translations`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a form that is read as it comes")]
pub struct TranslationForm {
    /// Audio, or video with sound.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// A name of `/v1/models`; the names of OpenAI's own models mean the default model.
    #[schema(required = false)]
    model: String,
    /// English text that precedes the audio.
    #[schema(required = false)]
    prompt: String,
    #[schema(schema_with = response_format, required = false)]
    response_format: String,
    /// From 0 to 1. With 0 the server raises the temperature where the text would be poor.
    #[schema(default = 0.0, minimum = 0.0, maximum = 1.0, required = false)]
    temperature: f64,
    /// Send the text as server-sent events while it is decoded; with `json` or `text`.
    #[schema(default = false, required = false)]
    stream: bool,
}

/// A transcript in JSON.
#[derive(Serialize, ToSchema)]
#[schema(as = TranscriptionAnswer)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes an answer that is written in one of two forms")]
pub enum TranscriptionAnswer<'a> {
    JsonTranscription(JsonTranscription),
    VerboseTranscription(VerboseTranscription<'a>),
}

fn response_format() -> Object {
    string_enum(&["json", "text", "srt", "verbose_json", "vtt"], Some("json"))
}

fn granularities() -> Array {
    ArrayBuilder::new().items(string_enum(&["segment", "word"], None)).build()
}

fn include() -> Array {
    ArrayBuilder::new().items(string_enum(&["logprobs"], None)).build()
}
