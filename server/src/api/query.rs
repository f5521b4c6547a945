//! Query parameters of `/asr` and `/detect-language`, parsed as pydantic parses them in its lax mode.
//!
//! Unknown parameters are ignored, the last value of a parameter wins, and all faults are reported at once, in the
//! order in which whisper-asr-webservice declares its parameters.

use hush_whisper::language::LanguageChoice;
use hush_whisper::{SpeechTask, TranscribeOptions, VadOptions};

use super::error::FieldError;
use crate::format::{JsonShape, SubtitleLayout, WordOutput};

/// What the query of `/asr` asks for.
#[derive(Debug, PartialEq)]
pub struct AsrQuery {
    /// `false`: the file is raw 16-bit mono samples at 16 kHz.
    pub encode: bool,
    pub options: TranscribeOptions,
    /// The layout of subtitles; `None` where the query has none.
    pub layout: Option<SubtitleLayout>,
    /// The format as given. It is also the extension of the answer's file name.
    pub output: String,
}

type QueryPairs = [(String, String)];

impl AsrQuery {
    /// Parses the query, or returns all of its faults. A parameter that is absent takes its value from `defaults`.
    /// `diarize`, `min_speakers` and `max_speakers` are checked and then ignored, as the engines of
    /// whisper-asr-webservice ignore parameters that they do not have.
    pub fn parse(pairs: &QueryPairs, defaults: TranscribeOptions) -> Result<Self, Vec<FieldError>> {
        let mut faults = Vec::new();
        let encode = boolean(pairs, "encode", true, &mut faults);
        let task = task(pairs, &mut faults);
        let language = language(pairs, &mut faults);

        let default_vad = defaults.vad.clone().unwrap_or_default();
        let vad = boolean(pairs, "vad_filter", defaults.vad.is_some(), &mut faults);
        // whisper-asr-webservice has no such parameter.
        let parallel = boolean(pairs, "vad_parallel", default_vad.parallel && vad, &mut faults);
        let vad = (vad || parallel).then_some(VadOptions { parallel, ..default_vad });

        let word_timestamps = boolean(pairs, "word_timestamps", false, &mut faults);
        boolean(pairs, "diarize", false, &mut faults);
        integer(pairs, "min_speakers", &mut faults);
        integer(pairs, "max_speakers", &mut faults);

        let layout = layout(pairs, word_timestamps, &mut faults);
        if !faults.is_empty() {
            return Err(faults);
        }

        let initial_prompt = last(pairs, "initial_prompt").filter(|prompt| !prompt.is_empty()).map(str::to_owned);
        let output = last(pairs, "output").unwrap_or("txt").to_owned();

        let options = TranscribeOptions {
            task,
            language: language.map_or(defaults.language, LanguageChoice::into_code),
            initial_prompt: initial_prompt.or(defaults.initial_prompt),
            word_timestamps,
            vad,
            ..defaults
        };
        Ok(Self { encode, options, layout, output })
    }

    /// How words are written: as the query says, otherwise as the engine of this JSON shape writes them.
    pub fn words(&self, shape: JsonShape) -> WordOutput {
        match (self.layout, shape) {
            _ if !self.options.word_timestamps => WordOutput::Without,
            (Some(layout), _) => WordOutput::LaidOut(layout),
            (None, JsonShape::OpenAiWhisper) => WordOutput::LaidOut(SubtitleLayout::WHISPER_ASR_WEBSERVICE),
            (None, JsonShape::FasterWhisper) => WordOutput::Plain,
        }
    }
}

/// The options of openai/whisper's own subtitles, which whisper-asr-webservice does not have. They need word
/// timestamps.
fn layout(pairs: &QueryPairs, word_timestamps: bool, faults: &mut Vec<FieldError>) -> Option<SubtitleLayout> {
    let layout = SubtitleLayout {
        highlight_words: boolean(pairs, "highlight_words", false, faults),
        max_line_width: positive(pairs, "max_line_width", faults),
        max_line_count: positive(pairs, "max_line_count", faults),
        max_words_per_line: positive(pairs, "max_words_per_line", faults),
    };

    if layout == SubtitleLayout::default() {
        return None;
    }

    if !word_timestamps {
        for name in ["highlight_words", "max_line_width", "max_line_count", "max_words_per_line"] {
            if let Some(given) = last(pairs, name).filter(|_| name != "highlight_words" || layout.highlight_words) {
                faults.push(FieldError::needs_words(name, given));
            }
        }
    }
    Some(layout)
}

/// Parses the only parameter of `/detect-language`.
pub fn encode(pairs: &QueryPairs) -> Result<bool, Vec<FieldError>> {
    let mut faults = Vec::new();
    let encode = boolean(pairs, "encode", true, &mut faults);
    if faults.is_empty() { Ok(encode) } else { Err(faults) }
}

fn last<'a>(pairs: &'a QueryPairs, name: &str) -> Option<&'a str> {
    pairs.iter().rfind(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn boolean(pairs: &QueryPairs, name: &'static str, default: bool, faults: &mut Vec<FieldError>) -> bool {
    let Some(given) = last(pairs, name) else { return default };
    match given.to_ascii_lowercase().as_str() {
        "1" | "true" | "t" | "yes" | "y" | "on" => true,
        "0" | "false" | "f" | "no" | "n" | "off" => false,
        _ => {
            faults.push(FieldError::bool_parsing(name, given));
            default
        }
    }
}

/// The value of a parameter that must be an integer, as text.
fn integer<'a>(pairs: &'a QueryPairs, name: &'static str, faults: &mut Vec<FieldError>) -> Option<&'a str> {
    let given = last(pairs, name)?;
    if !is_integer(given) {
        faults.push(FieldError::int_parsing(name, given));
        return None;
    }
    Some(given)
}

/// A number of at least 1. A number that does not fit into `usize` counts as no limit.
fn positive(pairs: &QueryPairs, name: &'static str, faults: &mut Vec<FieldError>) -> Option<usize> {
    let given = integer(pairs, name, faults)?;
    let whole = given.trim().split('.').next().unwrap_or_default();
    let digits: String = whole.chars().filter(char::is_ascii_digit).collect();

    let digits = digits.trim_start_matches('0');
    if digits.is_empty() || whole.starts_with('-') {
        faults.push(FieldError::at_least_one(name, given));
        return None;
    }
    Some(digits.parse().unwrap_or(usize::MAX))
}

/// Whether the text is a sign, digits with single underscores between them, and a fraction of zeros.
fn is_integer(given: &str) -> bool {
    let given = given.trim();

    let unsigned = given.strip_prefix(['+', '-']).unwrap_or(given);
    let (whole, zeros) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    let digits = |group: &str| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit());
    whole.split('_').all(digits) && !zeros.is_empty() && zeros.bytes().all(|byte| byte == b'0')
}

/// An unknown task is a fault of the caller. (whisper-asr-webservice passes it to its engine, which fails with 500.)
fn task(pairs: &QueryPairs, faults: &mut Vec<FieldError>) -> SpeechTask {
    match last(pairs, "task") {
        None | Some("transcribe") => SpeechTask::Transcribe,
        Some("translate") => SpeechTask::Translate,
        Some(given) => {
            faults.push(FieldError::task(given));
            SpeechTask::Transcribe
        }
    }
}

/// A code, a tag or an English name in any case, or `auto`. `None`: the default of the model applies, which detects the
/// language unless the operator has chosen one.
fn language(pairs: &QueryPairs, faults: &mut Vec<FieldError>) -> Option<LanguageChoice> {
    let given = last(pairs, "language").filter(|given| !given.trim().is_empty())?;
    let choice = LanguageChoice::parse(given);
    if choice.is_none() {
        faults.push(FieldError::language(given));
    }

    choice
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<AsrQuery, Vec<FieldError>> {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        AsrQuery::parse(&pairs, TranscribeOptions::default())
    }

    #[test]
    fn defaults_are_those_of_whisper_asr_webservice() {
        let query = parse(&[("zzz", "1")]).unwrap();

        let options = TranscribeOptions::default();
        assert_eq!(query, AsrQuery { encode: true, options, layout: None, output: "txt".to_owned() });
    }

    #[test]
    fn the_last_value_of_a_parameter_wins() {
        assert!(!parse(&[("encode", "maybe"), ("encode", "off")]).unwrap().encode);
        assert!(parse(&[("encode", "off"), ("encode", "maybe")]).is_err());
    }

    #[test]
    fn languages_have_codes_and_names() {
        for given in ["de", "DE", "german", "German"] {
            assert_eq!(parse(&[("language", given)]).unwrap().options.language.as_deref(), Some("de"));
        }

        for given in ["de-AT", "de_CH"] {
            assert_eq!(parse(&[("language", given)]).unwrap().options.language.as_deref(), Some("de"));
        }

        for detected in ["", " ", "auto", "Auto"] {
            assert_eq!(parse(&[("language", detected)]).unwrap().options.language, None, "{detected}");
        }

        assert_eq!(parse(&[("language", "zz")]), Err(vec![FieldError::language("zz")]));
    }

    #[test]
    fn words_are_laid_out_as_the_engine_does_it_or_as_requested() {
        assert_eq!(parse(&[]).unwrap().words(JsonShape::OpenAiWhisper), WordOutput::Without);
        let words = ("word_timestamps", "true");
        let query = parse(&[words]).unwrap();
        assert!(query.options.word_timestamps);
        assert_eq!(query.words(JsonShape::OpenAiWhisper), WordOutput::LaidOut(SubtitleLayout::WHISPER_ASR_WEBSERVICE));
        assert_eq!(query.words(JsonShape::FasterWhisper), WordOutput::Plain);

        let query =
            parse(&[words, ("max_line_width", "42"), ("max_line_count", "2"), ("highlight_words", "on")]).unwrap();

        let layout = SubtitleLayout {
            highlight_words: true,
            max_line_width: Some(42),
            max_line_count: Some(2),
            max_words_per_line: None,
        };

        for shape in [JsonShape::OpenAiWhisper, JsonShape::FasterWhisper] {
            assert_eq!(query.words(shape), WordOutput::LaidOut(layout));
        }
    }

    #[test]
    fn a_layout_needs_word_timestamps_and_positive_sizes() {
        assert_eq!(parse(&[("max_line_width", "42")]), Err(vec![FieldError::needs_words("max_line_width", "42")]));
        assert!(parse(&[("highlight_words", "false")]).is_ok());

        let words = ("word_timestamps", "1");
        for wrong in ["0", "-3", "0.0"] {
            let fault = FieldError::at_least_one("max_words_per_line", wrong);
            assert_eq!(parse(&[words, ("max_words_per_line", wrong)]), Err(vec![fault]));
        }

        assert!(parse(&[words, ("max_line_count", "two")]).is_err());
        let huge = parse(&[words, ("max_line_width", "99999999999999999999999")]).unwrap();
        assert_eq!(huge.layout.and_then(|layout| layout.max_line_width), Some(usize::MAX));
    }

    #[test]
    fn voice_activity_is_detected_when_requested() {
        assert_eq!(parse(&[("vad_filter", "true")]).unwrap().options.vad, Some(VadOptions::default()));

        assert_eq!(parse(&[("vad_filter", "0")]).unwrap().options.vad, None);
        let parallel = Some(VadOptions { parallel: true, ..VadOptions::default() });
        assert_eq!(parse(&[("vad_parallel", "1")]).unwrap().options.vad, parallel);
    }

    #[test]
    fn absent_parameters_take_the_defaults_of_the_model() {
        let defaults = TranscribeOptions {
            language: Some("de".to_owned()),
            initial_prompt: Some("Anna".to_owned()),
            beam_size: Some(5),
            vad: Some(VadOptions { parallel: true, ..VadOptions::default() }),
            ..TranscribeOptions::default()
        };

        let parse = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            AsrQuery::parse(&pairs, defaults.clone()).unwrap().options
        };

        assert_eq!(parse(&[]), defaults);
        assert_eq!(
            parse(&[("language", "fr"), ("vad_filter", "false")]),
            TranscribeOptions { language: Some("fr".to_owned()), vad: None, ..defaults.clone() }
        );
        assert_eq!(parse(&[("vad_parallel", "false")]).vad, Some(VadOptions::default()));
        assert_eq!(parse(&[("language", "")]), defaults);
        assert_eq!(parse(&[("language", "auto")]), TranscribeOptions { language: None, ..defaults.clone() });
    }

    #[test]
    fn an_empty_prompt_counts_as_absent() {
        assert_eq!(parse(&[("initial_prompt", "")]).unwrap().options.initial_prompt, None);
        assert_eq!(parse(&[("initial_prompt", "a")]).unwrap().options.initial_prompt.as_deref(), Some("a"));
    }

    /// Measured: pydantic 2.
    #[test]
    fn booleans_and_integers_are_lax() {
        for (given, expected) in [("TRUE", true), ("Y", true), ("on", true), ("no", false), ("0", false)] {
            assert_eq!(parse(&[("encode", given)]).unwrap().encode, expected);
        }

        for given in ["", "1.0", " true", "2", "maybe"] {
            assert_eq!(parse(&[("encode", given)]), Err(vec![FieldError::bool_parsing("encode", given)]));
        }

        for given in ["1", "1.0", "1_0", " 1 ", "99999999999999999999", "+3", "-3"] {
            assert!(parse(&[("min_speakers", given)]).is_ok(), "{given}");
        }

        for given in ["", "a", "1.5", "0x1", "_1", "1__0", "1.", "+"] {
            assert!(parse(&[("max_speakers", given)]).is_err(), "{given}");
        }
    }
}
