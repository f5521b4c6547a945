//! Query parameters of `/asr` and `/detect-language`, read as pydantic reads them in its lax mode.
//!
//! Unknown parameters are ignored, the last of several wins, and all faults are reported at once, in the order in
//! which the peer declares its parameters.

use hush_whisper::{Task, TranscribeOptions, language};

use super::error::FieldError;

/// What the query of `/asr` asks for.
#[derive(Debug, PartialEq)]
pub struct AsrQuery {
    /// `false`: the file is raw 16-bit mono 16 kHz.
    pub encode: bool,
    pub options: TranscribeOptions,
    /// As given: it also ends the name of the answer's file.
    pub output: String,
}

type Pairs = [(String, String)];

impl AsrQuery {
    /// All faults, or what was asked. `vad_filter`, `word_timestamps`, `diarize`, `min_speakers` and `max_speakers`
    /// are checked and then ignored, as the peer's engines ignore those that they do not have.
    pub fn parse(pairs: &Pairs) -> Result<Self, Vec<FieldError>> {
        let mut faults = Vec::new();
        let encode = boolean(pairs, "encode", true, &mut faults);
        let task = task(pairs, &mut faults);
        let language = language(pairs, &mut faults);
        boolean(pairs, "vad_filter", false, &mut faults);
        boolean(pairs, "word_timestamps", false, &mut faults);
        boolean(pairs, "diarize", false, &mut faults);
        integer(pairs, "min_speakers", &mut faults);
        integer(pairs, "max_speakers", &mut faults);
        if !faults.is_empty() {
            return Err(faults);
        }
        let initial_prompt = last(pairs, "initial_prompt").filter(|prompt| !prompt.is_empty()).map(str::to_owned);
        let output = last(pairs, "output").unwrap_or("txt").to_owned();
        let options = TranscribeOptions { task, language, initial_prompt, ..TranscribeOptions::default() };
        Ok(Self { encode, options, output })
    }
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

fn integer(pairs: &Pairs, name: &'static str, faults: &mut Vec<FieldError>) {
    if let Some(given) = last(pairs, name)
        && !is_integer(given)
    {
        faults.push(FieldError::int_parsing(name, given));
    }
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

/// A code or an English name in any case; none and empty detect the language.
fn language(pairs: &Pairs, faults: &mut Vec<FieldError>) -> Option<String> {
    let given = last(pairs, "language").filter(|given| !given.is_empty())?;
    let code = language::code(given);
    if code.is_none() {
        faults.push(FieldError::language(given));
    }
    code.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<AsrQuery, Vec<FieldError>> {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        AsrQuery::parse(&pairs)
    }

    #[test]
    fn defaults_are_the_peers() {
        let query = parse(&[("zzz", "1")]).unwrap();
        assert_eq!(query, AsrQuery { encode: true, options: TranscribeOptions::default(), output: "txt".to_owned() });
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
        assert_eq!(parse(&[("language", "")]).unwrap().options.language, None);
        assert_eq!(parse(&[("language", "zz")]), Err(vec![FieldError::language("zz")]));
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
