//! The fields of the form as a wish. What OpenAI may add tomorrow is ignored; what is known and wrong is refused.

use hush_whisper::language::LanguageChoice;
use hush_whisper::{MOST_CANDIDATES, Task, TranscribeOptions};

use super::error::OpenAiError;

/// Fields that are read here.
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

/// What a request wants.
#[derive(Debug, PartialEq)]
pub struct Asked {
    pub format: ResponseFormat,
    /// Of `verbose_json`.
    pub segments: bool,
    pub words: bool,
    pub stream: bool,
    /// In a stream, each piece of text with its times: `segment` was asked for by name. An extension.
    pub segment_times: bool,
    pub logprobs: bool,
    pub options: TranscribeOptions,
}

type Fields = [(String, String)];

/// The name of the model that a form asks for; `None`: the default.
pub fn model(fields: &Fields) -> Option<&str> {
    given(fields, "model")
}

impl Asked {
    /// What is not said is as in `defaults`.
    pub fn parse(task: Task, fields: &Fields, defaults: TranscribeOptions) -> Result<Self, OpenAiError> {
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
            without_timestamps: boolean(fields, "without_timestamps")?.unwrap_or(false) && is_plain(format),
            ..defaults
        };
        Ok(Self { format, segments, words, stream, segment_times, logprobs, options })
    }
}

/// Whether nobody sees the times.
fn is_plain(format: ResponseFormat) -> bool {
    matches!(format, ResponseFormat::Json | ResponseFormat::Text)
}

/// The last of several counts; an empty field is as good as none.
fn given<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    let last = fields.iter().rfind(|(known, _)| known == name).map(|(_, value)| value.trim());
    last.filter(|value| !value.is_empty())
}

/// A list, with and without brackets behind its name.
fn list<'a>(fields: &'a Fields, name: &'a str) -> impl Iterator<Item = &'a str> {
    let is_it = move |known: &str| known.strip_suffix("[]").unwrap_or(known) == name;
    fields.iter().filter(move |(known, _)| is_it(known)).map(|(_, value)| value.trim()).filter(|v| !v.is_empty())
}

fn boolean(fields: &Fields, name: &'static str) -> Result<Option<bool>, OpenAiError> {
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

/// From 1 to as many as the engine takes.
fn count(fields: &Fields, name: &'static str) -> Result<Option<usize>, OpenAiError> {
    let Some(value) = given(fields, name) else { return Ok(None) };
    match value.parse() {
        Ok(count) if (1..=MOST_CANDIDATES).contains(&count) => Ok(Some(count)),
        _ => {
            let message =
                format!("Invalid value for {name}: `{value}`. Expected a whole number from 1 to {MOST_CANDIDATES}.");
            Err(OpenAiError::invalid(name, "invalid_value", message))
        }
    }
}

fn format(fields: &Fields) -> Result<ResponseFormat, OpenAiError> {
    let Some(value) = given(fields, "response_format") else { return Ok(ResponseFormat::Json) };
    let known = ResponseFormat::ALL.iter().find(|(name, _)| *name == value).map(|(_, format)| *format);
    known.ok_or_else(|| {
        let names = ResponseFormat::ALL.map(|(name, _)| format!("`{name}`")).join(", ");
        let message = format!("Invalid value for response_format: `{value}`. Supported values are {names}.");
        OpenAiError::invalid("response_format", "unsupported_value", message)
    })
}

/// Segments and words. Words alone leave the segments out, as the real service does.
fn granularities(fields: &Fields) -> Result<(bool, bool), OpenAiError> {
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

fn logprobs(fields: &Fields) -> Result<bool, OpenAiError> {
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

/// `None`: as the model has it.
fn language(fields: &Fields) -> Result<Option<LanguageChoice>, OpenAiError> {
    let Some(value) = given(fields, "language") else { return Ok(None) };
    LanguageChoice::parse(value).map(Some).ok_or_else(|| {
        let message = format!(
            "Invalid language: `{value}`. Give an ISO 639-1 code such as `en`, an English name such as `english`, or `auto`."
        );
        OpenAiError::invalid("language", "invalid_language_format", message)
    })
}

/// Zero, as good as none, lets the engine raise it where it must; any other is used as it is.
fn temperatures(fields: &Fields) -> Result<Option<Vec<f32>>, OpenAiError> {
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

    fn parse(fields: &[(&str, &str)]) -> Result<Asked, OpenAiError> {
        let fields: Vec<_> = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Asked::parse(Task::Transcribe, &fields, TranscribeOptions::default())
    }

    fn refused(fields: &[(&str, &str)]) -> (Option<&'static str>, Option<&'static str>) {
        let body = parse(fields).expect_err(&format!("{fields:?}")).into_body();
        (body.param, body.code)
    }

    #[test]
    fn defaults() {
        let expected = Asked {
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
        let asked = parse(&[
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
        assert_eq!(asked.options.language.as_deref(), Some("de"));
        assert_eq!(asked.options.initial_prompt.as_deref(), Some("Names: Anna."));
        assert_eq!(asked.options.temperatures, [0.4]);
        assert_eq!((asked.options.beam_size, asked.options.best_of), (Some(5), 3));
        assert_eq!((asked.format, asked.segments, asked.words), (ResponseFormat::VerboseJson, true, true));
        let stream = parse(&[("stream", "True"), ("include[]", "logprobs"), ("include", "logprobs")]).unwrap();
        assert!(stream.stream && stream.logprobs && !stream.segment_times);
        assert!(parse(&[("stream", "true"), ("timestamp_granularities[]", "segment")]).unwrap().segment_times);
    }

    #[test]
    fn the_model_is_the_last_that_is_named() {
        let fields = [("model", "a"), ("model", " b "), ("file", "c")].map(|(name, value)| (name.into(), value.into()));
        assert_eq!(model(&fields), Some("b"));
        assert_eq!(model(&[("model".into(), " ".into())]), None);
    }

    #[test]
    fn what_is_not_said_is_as_the_model_has_it() {
        let defaults = TranscribeOptions {
            language: Some("de".to_owned()),
            beam_size: Some(4),
            best_of: 2,
            vad: Some(VadOptions { parallel: true, ..VadOptions::default() }),
            ..TranscribeOptions::default()
        };
        let parse = |fields: &[(&str, &str)]| {
            let fields: Vec<_> = fields.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            Asked::parse(Task::Transcribe, &fields, defaults.clone()).unwrap().options
        };
        assert_eq!(parse(&[]), defaults);
        assert_eq!(parse(&[("vad_filter", "true")]), defaults);
        assert_eq!(parse(&[("vad_filter", "false")]).vad, None);
        assert_eq!(parse(&[("language", "auto")]).language, None);
        assert_eq!(parse(&[("language", "")]).language.as_deref(), Some("de"));
        let other = parse(&[("language", "fr-CA"), ("beam_size", "1"), ("best_of", "3")]);
        assert_eq!((other.language.as_deref(), other.beam_size, other.best_of), (Some("fr"), Some(1), 3));
    }

    /// What speaches' tests assert of the real service.
    #[test]
    fn granularities_are_those_of_the_real_service() {
        let verbose = ("response_format", "verbose_json");
        let parts = |fields: &[(&str, &str)]| {
            let asked = parse(fields).unwrap();
            (asked.segments, asked.words)
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
    fn what_is_wrong_names_its_field() {
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
