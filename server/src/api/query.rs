//! Query parameters of `/asr` and `/detect-language`, read as pydantic reads them in its lax mode.
//!
//! Unknown parameters are ignored, the last of several wins, and all faults are reported at once, in the order in
//! which the peer declares its parameters.

use hush_whisper::language::LanguageChoice;
use hush_whisper::{Task, TranscribeOptions, VadOptions};

use super::error::FieldError;
use crate::format::{JsonShape, Layout, Words};

/// What the query of `/asr` asks for.
#[derive(Debug, PartialEq)]
pub struct AsrQuery {
    /// `false`: the file is raw 16-bit mono 16 kHz.
    pub encode: bool,
    pub options: TranscribeOptions,
    /// How subtitles are laid out, where the query says.
    pub layout: Option<Layout>,
    /// As given: it also ends the name of the answer's file.
    pub output: String,
}

type Pairs = [(String, String)];

impl AsrQuery {
    /// All faults, or what was asked; what is not said is as in `defaults`. `diarize`, `min_speakers` and `max_speakers`
    /// are checked and then ignored, as the peer's engines ignore those that they do not have.
    pub fn parse(pairs: &Pairs, defaults: TranscribeOptions) -> Result<Self, Vec<FieldError>> {
        let mut faults = Vec::new();
        let encode = boolean(pairs, "encode", true, &mut faults);
        let task = task(pairs, &mut faults);
        let language = language(pairs, &mut faults);
        let usual = defaults.vad.clone().unwrap_or_default();
        let vad = boolean(pairs, "vad_filter", defaults.vad.is_some(), &mut faults);
        // Unknown to the peer.
        let parallel = boolean(pairs, "vad_parallel", usual.parallel && vad, &mut faults);
        let vad = (vad || parallel).then_some(VadOptions { parallel, ..usual });
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

    /// What becomes of words: as the query says, else as the peer's engine of this shape does it.
    pub fn words(&self, shape: JsonShape) -> Words {
        match (self.layout, shape) {
            _ if !self.options.word_timestamps => Words::Without,
            (Some(layout), _) => Words::LaidOut(layout),
            (None, JsonShape::OpenAiWhisper) => Words::LaidOut(Layout::PEER),
            (None, JsonShape::FasterWhisper) => Words::Plain,
        }
    }
}

/// The options of openai/whisper's own subtitles, which the peer does not have. They need words.
fn layout(pairs: &Pairs, word_timestamps: bool, faults: &mut Vec<FieldError>) -> Option<Layout> {
    let layout = Layout {
        highlight_words: boolean(pairs, "highlight_words", false, faults),
        max_line_width: positive(pairs, "max_line_width", faults),
        max_line_count: positive(pairs, "max_line_count", faults),
        max_words_per_line: positive(pairs, "max_words_per_line", faults),
    };
    if layout == Layout::default() {
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

/// The one parameter of `/detect-language`.
pub fn encode(pairs: &Pairs) -> Result<bool, Vec<FieldError>> {
    let mut faults = Vec::new();
    let encode = boolean(pairs, "encode", true, &mut faults);
    if faults.is_empty() { Ok(encode) } else { Err(faults) }
}

fn last<'a>(pairs: &'a Pairs, name: &str) -> Option<&'a str> {
    pairs.iter().rfind(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn boolean(pairs: &Pairs, name: &'static str, default: bool, faults: &mut Vec<FieldError>) -> bool {
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

/// The number as text, if it is one.
fn integer<'a>(pairs: &'a Pairs, name: &'static str, faults: &mut Vec<FieldError>) -> Option<&'a str> {
    let given = last(pairs, name)?;
    if !is_integer(given) {
        faults.push(FieldError::int_parsing(name, given));
        return None;
    }
    Some(given)
}

/// A number of at least 1. What is too large for a computer is no limit.
fn positive(pairs: &Pairs, name: &'static str, faults: &mut Vec<FieldError>) -> Option<usize> {
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

/// A sign, digits with single underscores between them, and a fraction of zeros at most.
fn is_integer(given: &str) -> bool {
    let given = given.trim();
    let unsigned = given.strip_prefix(['+', '-']).unwrap_or(given);
    let (whole, zeros) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    let digits = |group: &str| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit());
    whole.split('_').all(digits) && !zeros.is_empty() && zeros.bytes().all(|byte| byte == b'0')
}

/// The peer passes anything on to its engine, which fails: 500. Here it is the caller's mistake.
fn task(pairs: &Pairs, faults: &mut Vec<FieldError>) -> Task {
    match last(pairs, "task") {
        None | Some("transcribe") => Task::Transcribe,
        Some("translate") => Task::Translate,
        Some(given) => {
            faults.push(FieldError::task(given));
            Task::Transcribe
        }
    }
}

/// A code, a tag or an English name in any case, or `auto`; none and empty leave it to the model's default, which is to
/// detect the language where the operator has not said otherwise.
fn language(pairs: &Pairs, faults: &mut Vec<FieldError>) -> Option<LanguageChoice> {
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
    fn defaults_are_the_peers() {
        let query = parse(&[("zzz", "1")]).unwrap();
        let options = TranscribeOptions::default();
        assert_eq!(query, AsrQuery { encode: true, options, layout: None, output: "txt".to_owned() });
    }

    #[test]
    fn the_last_of_several_wins() {
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
    fn words_are_laid_out_as_the_peer_s_engines_do_it_or_as_asked() {
        assert_eq!(parse(&[]).unwrap().words(JsonShape::OpenAiWhisper), Words::Without);
        let words = ("word_timestamps", "true");
        let query = parse(&[words]).unwrap();
        assert!(query.options.word_timestamps);
        assert_eq!(query.words(JsonShape::OpenAiWhisper), Words::LaidOut(Layout::PEER));
        assert_eq!(query.words(JsonShape::FasterWhisper), Words::Plain);
        let query =
            parse(&[words, ("max_line_width", "42"), ("max_line_count", "2"), ("highlight_words", "on")]).unwrap();
        let layout = Layout {
            highlight_words: true,
            max_line_width: Some(42),
            max_line_count: Some(2),
            max_words_per_line: None,
        };
        for shape in [JsonShape::OpenAiWhisper, JsonShape::FasterWhisper] {
            assert_eq!(query.words(shape), Words::LaidOut(layout));
        }
    }

    #[test]
    fn a_layout_needs_words_and_sizes() {
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
    fn voice_activity_is_detected_when_asked() {
        assert_eq!(parse(&[("vad_filter", "true")]).unwrap().options.vad, Some(VadOptions::default()));
        assert_eq!(parse(&[("vad_filter", "0")]).unwrap().options.vad, None);
        let parallel = Some(VadOptions { parallel: true, ..VadOptions::default() });
        assert_eq!(parse(&[("vad_parallel", "1")]).unwrap().options.vad, parallel);
    }

    #[test]
    fn what_is_not_said_is_as_the_model_has_it() {
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
    fn an_empty_prompt_is_none() {
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
