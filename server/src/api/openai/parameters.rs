//! The fields of the form as parameters of a transcription. Unknown fields are ignored, so that a field that OpenAI
//! adds does not break a client; a known field with a wrong value is refused.
use hush_whisper::language::LanguageChoice;
use hush_whisper::{MAX_CANDIDATES, SpeechTask, TranscribeOptions};

use super::error::OpenAiError;

/// The fields that this server reads.
const KNOWN: [&str; 16] = [
    "model",
    "language",
    "prompt",
    "response_format",
    "temperature",
    "timestamp_granularities[]",
    "timestamp_granularities",
    "stream",
    "include[]",
    "include",
    "vad_filter",
    "without_timestamps",
    "hotwords",
    "beam_size",
    "best_of",
    "chunking_strategy",
];

pub fn is_known(name: &str) -> bool {
    KNOWN.contains(&name)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFormat {
    Json,
    Text,
    Srt,
    VerboseJson,
    Vtt,
}

impl ResponseFormat {
    const ALL: [(&str, Self); 5] = [
        ("json", Self::Json),
        ("text", Self::Text),
        ("srt", Self::Srt),
        ("verbose_json", Self::VerboseJson),
        ("vtt", Self::Vtt),
    ];
}

/// What a request asks for.
#[derive(Debug, PartialEq)]
pub struct TranscriptionParameters {
    pub format: ResponseFormat,
    /// Whether `verbose_json` lists the segments.
    pub segments: bool,
    pub words: bool,
    pub stream: bool,
    /// Whether each piece of text in a stream carries its times: `timestamp_granularities` names `segment`. An
    /// extension.
    pub segment_times: bool,
    pub logprobs: bool,
    pub options: TranscribeOptions,
}

type FormFields = [(String, String)];

/// The name of the model that a form asks for; `None`: the default model.
pub fn model(fields: &FormFields) -> Option<&str> {
    given(fields, "model")
}

impl TranscriptionParameters {
    /// Parses the fields. A field that is absent takes its value from `defaults`.
    pub fn parse(task: SpeechTask, fields: &FormFields, defaults: TranscribeOptions) -> Result<Self, OpenAiError> {
        let format = format(fields)?;
        let (segments, words) = granularities(fields)?;
        let stream = boolean(fields, "stream")?.unwrap_or(false);
        let segment_times = stream && list(fields, "timestamp_granularities").any(|value| value == "segment");
        let logprobs = logprobs(fields)?;
        let vad = match boolean(fields, "vad_filter")? {
            Some(wanted) => wanted.then(|| defaults.vad.clone().unwrap_or_default()),
            None => defaults.vad.clone(),
        };

        if words && format != ResponseFormat::VerboseJson {
            let message = "timestamp_granularities with `word` needs response_format `verbose_json`.";
            return Err(OpenAiError::invalid("timestamp_granularities", "unsupported_value", message.to_owned()));
        }

        if logprobs && format != ResponseFormat::Json {
            let message = "include with `logprobs` needs response_format `json`.";
            return Err(OpenAiError::invalid("include", "unsupported_value", message.to_owned()));
        }

        if stream && !matches!(format, ResponseFormat::Json | ResponseFormat::Text) {
            let message = "A stream carries text: with `stream` the response_format is `json` or `text`.";
            return Err(OpenAiError::invalid("response_format", "unsupported_value", message.to_owned()));
        }

        let options = TranscribeOptions {
            task,
            beam_size: count(fields, "beam_size")?.or(defaults.beam_size),
            best_of: count(fields, "best_of")?.unwrap_or(defaults.best_of),
            language: language(fields)?.map_or(defaults.language, LanguageChoice::into_code),
            initial_prompt: given(fields, "prompt").map(str::to_owned).or(defaults.initial_prompt),
            temperatures: temperatures(fields)?.unwrap_or(defaults.temperatures),
            word_timestamps: words,
            vad,
            without_timestamps: boolean(fields, "without_timestamps")?.unwrap_or(false) && is_without_times(format),
            ..defaults
        };
        Ok(Self { format, segments, words, stream, segment_times, logprobs, options })
    }
}

/// Whether the format has no times.
fn is_without_times(format: ResponseFormat) -> bool {
    matches!(format, ResponseFormat::Json | ResponseFormat::Text)
}

/// The last value of a field. An empty value counts as absent.
fn given<'a>(fields: &'a FormFields, name: &str) -> Option<&'a str> {
    let last = fields.iter().rfind(|(known, _)| known == name).map(|(_, value)| value.trim());
    last.filter(|value| !value.is_empty())
}

/// The values of a list, whose name may end with brackets.
fn list<'a>(fields: &'a FormFields, name: &'a str) -> impl Iterator<Item = &'a str> {
    let is_it = move |known: &str| known.strip_suffix("[]").unwrap_or(known) == name;
    fields.iter().filter(move |(known, _)| is_it(known)).map(|(_, value)| value.trim()).filter(|v| !v.is_empty())
}

fn boolean(fields: &FormFields, name: &'static str) -> Result<Option<bool>, OpenAiError> {
    let Some(value) = given(fields, name) else { return Ok(None) };

    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(Some(true)),
        "false" | "0" | "no" | "off" => Ok(Some(false)),
        _ => {
            let message = format!("Invalid value for {name}: `{value}`. Expected `true` or `false`.");
            Err(OpenAiError::invalid(name, "invalid_value", message))
        }
    }
}

/// A number from 1 to [`MAX_CANDIDATES`].
fn count(fields: &FormFields, name: &'static str) -> Result<Option<usize>, OpenAiError> {
    let Some(value) = given(fields, name) else { return Ok(None) };

    match value.parse() {
        Ok(count) if (1..=MAX_CANDIDATES).contains(&count) => Ok(Some(count)),
        _ => {
            let message =
                format!("Invalid value for {name}: `{value}`. Expected a whole number from 1 to {MAX_CANDIDATES}.");
            Err(OpenAiError::invalid(name, "invalid_value", message))
        }
    }
}

fn format(fields: &FormFields) -> Result<ResponseFormat, OpenAiError> {
    let Some(value) = given(fields, "response_format") else { return Ok(ResponseFormat::Json) };

    let known = ResponseFormat::ALL.iter().find(|(name, _)| *name == value).map(|(_, format)| *format);
    known.ok_or_else(|| {
        let names = ResponseFormat::ALL.map(|(name, _)| format!("`{name}`")).join(", ");
        let message = format!("Invalid value for response_format: `{value}`. Supported values are {names}.");
        OpenAiError::invalid("response_format", "unsupported_value", message)
    })
}

/// Whether segments and words are parameters for. Words alone leave the segments out, as in OpenAI's service.
fn granularities(fields: &FormFields) -> Result<(bool, bool), OpenAiError> {
    let (mut segments, mut words) = (false, false);
    for value in list(fields, "timestamp_granularities") {
        match value {
            "segment" => segments = true,
            "word" => words = true,
            _ => {
                let message = format!(
                    "Invalid value for timestamp_granularities: `{value}`. Supported values are `word`, `segment`."
                );
                return Err(OpenAiError::invalid("timestamp_granularities", "invalid_value", message));
            }
        }
    }
    Ok((segments || !words, words))
}

fn logprobs(fields: &FormFields) -> Result<bool, OpenAiError> {
    let mut logprobs = false;
    for value in list(fields, "include") {
        if value != "logprobs" {
            let message = format!("Invalid value for include: `{value}`. The supported value is `logprobs`.");
            return Err(OpenAiError::invalid("include", "invalid_value", message));
        }

        logprobs = true;
    }

    Ok(logprobs)
}

/// `None`: the default of the model applies.
fn language(fields: &FormFields) -> Result<Option<LanguageChoice>, OpenAiError> {
    let Some(value) = given(fields, "language") else { return Ok(None) };
    LanguageChoice::parse(value).map(Some).ok_or_else(|| {
        let message = format!(
            "Invalid language: `{value}`. Give an ISO 639-1 code such as `en`, an English name such as `english`, or `auto`."
        );
        OpenAiError::invalid("language", "invalid_language_format", message)
    })
}

/// A temperature of zero counts as absent: the engine raises the temperature where the text is poor. Every other value
/// is fixed.
fn temperatures(fields: &FormFields) -> Result<Option<Vec<f32>>, OpenAiError> {
    let Some(value) = given(fields, "temperature") else { return Ok(None) };
    match value.parse::<f32>() {
        Ok(0.0) => Ok(None),
        Ok(temperature) if (0.0..=1.0).contains(&temperature) => Ok(Some(vec![temperature])),
        _ => {
            let message = format!("Invalid value for temperature: `{value}`. Expected a number between 0 and 1.");
            Err(OpenAiError::invalid("temperature", "invalid_value", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use hush_whisper::VadOptions;

    use super::*;

    fn parse(fields: &[(&str, &str)]) -> Result<TranscriptionParameters, OpenAiError> {
        let fields: Vec<_> = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        TranscriptionParameters::parse(SpeechTask::Transcribe, &fields, TranscribeOptions::default())
    }

    fn refused(fields: &[(&str, &str)]) -> (Option<&'static str>, Option<&'static str>) {
        let body = parse(fields).expect_err(&format!("{fields:?}")).into_body();
        (body.param, body.code)
    }

    #[test]
    fn defaults() {
        let expected = TranscriptionParameters {
            format: ResponseFormat::Json,
            segments: true,
            words: false,
            stream: false,
            segment_times: false,
            logprobs: false,
            options: TranscribeOptions::default(),
        };

        assert_eq!(parse(&[]).unwrap(), expected);

        let empty = ["model", "language", "prompt", "response_format", "temperature", "stream", "include[]"];
        assert_eq!(parse(&empty.map(|name| (name, ""))).unwrap(), expected);
        assert_eq!(parse(&[("temperature", "0"), ("hotwords", "a"), ("tomorrow[]", "x")]).unwrap(), expected);
    }

    #[test]
    fn every_field_is_read() {
        let parameters = parse(&[
            ("model", "whisper-1"),
            ("language", "German"),
            ("prompt", "Names: Anna."),
            ("temperature", "0.4"),
            ("beam_size", "5"),
            ("best_of", "3"),
            ("response_format", "verbose_json"),
            ("timestamp_granularities[]", "word"),
            ("timestamp_granularities[]", "segment"),
        ])
        .unwrap();
        assert_eq!(parameters.options.language.as_deref(), Some("de"));
        assert_eq!(parameters.options.initial_prompt.as_deref(), Some("Names: Anna."));
        assert_eq!(parameters.options.temperatures, [0.4]);
        assert_eq!((parameters.options.beam_size, parameters.options.best_of), (Some(5), 3));
        assert_eq!(
            (parameters.format, parameters.segments, parameters.words),
            (ResponseFormat::VerboseJson, true, true)
        );

        let stream = parse(&[("stream", "True"), ("include[]", "logprobs"), ("include", "logprobs")]).unwrap();
        assert!(stream.stream && stream.logprobs && !stream.segment_times);
        assert!(parse(&[("stream", "true"), ("timestamp_granularities[]", "segment")]).unwrap().segment_times);
    }

    #[test]
    fn the_last_model_name_counts() {
        let fields = [("model", "a"), ("model", " b "), ("file", "c")].map(|(name, value)| (name.into(), value.into()));
        assert_eq!(model(&fields), Some("b"));
        assert_eq!(model(&[("model".into(), " ".into())]), None);
    }

    #[test]
    fn absent_fields_take_the_defaults_of_the_model() {
        let defaults = TranscribeOptions {
            language: Some("de".to_owned()),
            beam_size: Some(4),
            best_of: 2,
            vad: Some(VadOptions { parallel: true, ..VadOptions::default() }),
            ..TranscribeOptions::default()
        };

        let parse = |fields: &[(&str, &str)]| {
            let fields: Vec<_> = fields.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            TranscriptionParameters::parse(SpeechTask::Transcribe, &fields, defaults.clone()).unwrap().options
        };

        assert_eq!(parse(&[]), defaults);

        assert_eq!(parse(&[("vad_filter", "true")]), defaults);
        assert_eq!(parse(&[("vad_filter", "false")]).vad, None);
        assert_eq!(parse(&[("language", "auto")]).language, None);
        assert_eq!(parse(&[("language", "")]).language.as_deref(), Some("de"));

        let other = parse(&[("language", "fr-CA"), ("beam_size", "1"), ("best_of", "3")]);
        assert_eq!((other.language.as_deref(), other.beam_size, other.best_of), (Some("fr"), Some(1), 3));
    }

    /// The expectations are those of speaches' tests against OpenAI's service.
    #[test]
    fn granularities_are_those_of_openai_s_service() {
        let verbose = ("response_format", "verbose_json");
        let parts = |fields: &[(&str, &str)]| {
            let parameters = parse(fields).unwrap();
            (parameters.segments, parameters.words)
        };

        assert_eq!(parts(&[verbose]), (true, false));
        assert_eq!(parts(&[verbose, ("timestamp_granularities[]", "segment")]), (true, false));
        assert_eq!(parts(&[verbose, ("timestamp_granularities[]", "word")]), (false, true));
        assert_eq!(parts(&[verbose, ("timestamp_granularities", "word")]), (false, true));
        assert_eq!(parts(&[("timestamp_granularities[]", "segment")]), (true, false), "json has no times anyway");

        let param = (Some("timestamp_granularities"), Some("unsupported_value"));
        assert_eq!(refused(&[("timestamp_granularities[]", "word")]), param);
        assert_eq!(refused(&[("response_format", "srt"), ("timestamp_granularities[]", "word")]), param);
    }

    #[test]
    fn a_wrong_value_names_its_field() {
        for (name, value, code) in [
            ("response_format", "tsv", "unsupported_value"),
            ("response_format", "diarized_json", "unsupported_value"),
            ("language", "klingon", "invalid_language_format"),
            ("temperature", "warm", "invalid_value"),
            ("temperature", "1.5", "invalid_value"),
            ("temperature", "-0.1", "invalid_value"),
            ("temperature", "NaN", "invalid_value"),
            ("stream", "maybe", "invalid_value"),
            ("vad_filter", "maybe", "invalid_value"),
            ("beam_size", "0", "invalid_value"),
            ("best_of", "many", "invalid_value"),
        ] {
            assert_eq!(refused(&[(name, value)]), (Some(name), Some(code)), "{value}");
        }

        let granularity = [("response_format", "verbose_json"), ("timestamp_granularities[]", "sentence")];
        assert_eq!(refused(&granularity), (Some("timestamp_granularities"), Some("invalid_value")));
        assert_eq!(refused(&[("include[]", "usage")]), (Some("include"), Some("invalid_value")));

        let logprobs = [("include[]", "logprobs"), ("response_format", "text")];
        assert_eq!(refused(&logprobs), (Some("include"), Some("unsupported_value")));
        let stream = [("stream", "true"), ("response_format", "srt")];
        assert_eq!(refused(&stream), (Some("response_format"), Some("unsupported_value")));
    }
}
