//! The forms of the two routes as OpenAPI has them. [`super::asked`] reads the fields one by one.

use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::schema::{Array, ArrayBuilder, Object};

use super::super::openapi::{language, words};
use super::body::{Json, Verbose};

/// The form of `/v1/audio/transcriptions`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a form that is read as it comes")]
pub struct TranscriptionForm {
    /// Audio, or video with sound.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// A name of `/v1/models`; names of OpenAI's own models mean the default.
    #[schema(required = false)]
    model: String,
    /// The language that is spoken: one of these codes, a tag such as `en-US`, or an English name. Without it, or with `auto`,
    /// it is detected in the first 30 seconds.
    #[schema(schema_with = language, required = false)]
    language: String,
    /// Text that comes before the audio: names and spellings that the model should know.
    #[schema(required = false)]
    prompt: String,
    #[schema(schema_with = response_format, required = false)]
    response_format: String,
    /// From 0 to 1. 0: raised by itself where the text would be poor.
    #[schema(default = 0.0, minimum = 0.0, maximum = 1.0, required = false)]
    temperature: f64,
    /// With `verbose_json`; `segment` also with `stream`: each piece of text then has its `start` and `end` in seconds.
    #[schema(rename = "timestamp_granularities[]", schema_with = granularities, required = false)]
    timestamp_granularities: Vec<String>,
    /// Server-sent events as the text is decoded; with `json` or `text`.
    #[schema(default = false, required = false)]
    stream: bool,
    /// How sure the model was of each token; with `json`.
    #[schema(rename = "include[]", schema_with = include, required = false)]
    include: Vec<String>,
    /// Leaves out what is not speech before anything is written. Needs Silero's model on the server. Not OpenAI's.
    #[schema(default = false, required = false)]
    vad_filter: bool,
    /// Beams of the search where the temperature is 0; without it, the most probable token is taken. Not OpenAI's.
    #[schema(minimum = 1, required = false)]
    beam_size: usize,
    /// Candidates where the temperature is above 0. Not OpenAI's.
    #[schema(default = 5, minimum = 1, required = false)]
    best_of: usize,
    /// Decodes without times; with `json` or `text`. Not OpenAI's.
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
    /// A name of `/v1/models`; names of OpenAI's own models mean the default.
    #[schema(required = false)]
    model: String,
    /// English text that comes before the audio.
    #[schema(required = false)]
    prompt: String,
    #[schema(schema_with = response_format, required = false)]
    response_format: String,
    /// From 0 to 1. 0: raised by itself where the text would be poor.
    #[schema(default = 0.0, minimum = 0.0, maximum = 1.0, required = false)]
    temperature: f64,
    /// Server-sent events as the text is decoded; with `json` or `text`.
    #[schema(default = false, required = false)]
    stream: bool,
}

/// An answer in JSON.
#[derive(Serialize, ToSchema)]
#[schema(as = TranscriptionAnswer)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what is written as one or the other")]
pub enum Answer<'a> {
    Json(Json),
    Verbose(Verbose<'a>),
}

fn response_format() -> Object {
    words(&["json", "text", "srt", "verbose_json", "vtt"], Some("json"))
}

fn granularities() -> Array {
    ArrayBuilder::new().items(words(&["segment", "word"], None)).build()
}

fn include() -> Array {
    ArrayBuilder::new().items(words(&["logprobs"], None)).build()
}
