//! JSON as Python's `json` prints it, and the two transcript formats that use it.

use std::io::{self, Write};

use hush_whisper::{Segment, Word};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::JsonShape;

/// A formatter for [`serde_json::Serializer`] with the separators, escapes and numbers of Python.
///
/// NaN and the infinities become `null`: Python's `NaN` is not JSON, so strict clients could not parse the answer.
#[derive(Clone, Copy, Debug)]
pub struct PythonJson {
    spaces: bool,
    ascii: bool,
}

impl PythonJson {
    /// `json.dump(value, file)`: separators `", "` and `": "`, ASCII only.
    pub const DEFAULT: Self = Self { spaces: true, ascii: true };
    /// FastAPI's form: `separators=(",", ":"), ensure_ascii=False`.
    pub const COMPACT: Self = Self { spaces: false, ascii: false };

    pub fn write<W: Write, T: Serialize>(self, out: W, value: &T) -> io::Result<()> {
        value.serialize(&mut Serializer::with_formatter(out, self)).map_err(io::Error::from)
    }

    fn between_items<W: ?Sized + Write>(self, out: &mut W, first: bool) -> io::Result<()> {
        match (first, self.spaces) {
            (true, _) => Ok(()),
            (false, true) => out.write_all(b", "),
            (false, false) => out.write_all(b","),
        }
    }
}

impl Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.between_items(out, first)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.between_items(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(if self.spaces { b": " } else { b":" })
    }

    fn write_f32<W: ?Sized + Write>(&mut self, out: &mut W, value: f32) -> io::Result<()> {
        out.write_all(float_repr(&format!("{value:e}")).as_bytes())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        out.write_all(float_repr(&format!("{value:e}")).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ascii || fragment.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return out.write_all(fragment.as_bytes());
        }

        let mut units = [0; 2];
        for character in fragment.chars() {
            if matches!(character, ' '..='~') {
                out.write_all(&[character as u8])?;
                continue;
            }
            for unit in character.encode_utf16(&mut units) {
                write!(out, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

/// Python's `repr` of a float, made of the shortest digits in scientific notation (`-1.5e-5`), which are the same in Python.
fn float_repr(scientific: &str) -> String {
    let (sign, rest) = match scientific.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", scientific),
    };
    let (mantissa, exponent) = rest.split_once('e').unwrap_or((rest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let digits = mantissa.replace('.', "");
    if !(-4..16).contains(&exponent) {
        let exponent_sign = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{mantissa}e{exponent_sign}{:02}", exponent.abs());
    }

    let Ok(whole) = usize::try_from(exponent) else {
        let zeros = "0".repeat(exponent.unsigned_abs() as usize - 1);
        return format!("{sign}0.{zeros}{digits}");
    };

    match digits.split_at_checked(whole + 1) {
        Some((whole, fraction)) if !fraction.is_empty() => format!("{sign}{whole}.{fraction}"),
        _ => format!("{sign}{digits}{}.0", "0".repeat(whole + 1 - digits.len())),
    }
}

/// The transcript as openai/whisper writes it. The fields are printed in the order of their declaration.
#[derive(Serialize)]
struct OpenAiTranscript<'a> {
    text: String,
    segments: Vec<OpenAiSegment<'a>>,
    language: &'a str,
}

#[derive(Serialize)]
struct OpenAiSegment<'a> {
    id: usize,
    seek: usize,
    start: f64,
    end: f64,
    text: &'a str,
    tokens: &'a [u32],
    temperature: f32,
    avg_logprob: f64,
    compression_ratio: f64,
    no_speech_prob: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    words: Option<Vec<OpenAiWord<'a>>>,
}

#[derive(Serialize)]
struct OpenAiWord<'a> {
    word: &'a str,
    start: f64,
    end: f64,
    probability: f32,
}

#[derive(Serialize)]
struct FasterWord<'a> {
    start: f64,
    end: f64,
    word: &'a str,
    probability: f32,
}

#[derive(Serialize)]
struct FasterTranscript<'a> {
    language: &'a str,
    segments: Vec<FasterSegment<'a>>,
    text: String,
}

#[derive(Serialize)]
struct FasterSegment<'a> {
    id: usize,
    seek: usize,
    start: f64,
    end: f64,
    text: &'a str,
    tokens: &'a [u32],
    avg_logprob: f64,
    compression_ratio: f64,
    no_speech_prob: f64,
    /// `null` without word timestamps.
    words: Option<Vec<FasterWord<'a>>>,
    temperature: f32,
}

fn openai_word(word: &Word) -> OpenAiWord<'_> {
    let Word { text, start_seconds, end_seconds, probability } = word;
    OpenAiWord { word: text, start: *start_seconds, end: *end_seconds, probability: *probability }
}

fn faster_word(word: &Word) -> FasterWord<'_> {
    let Word { text, start_seconds, end_seconds, probability } = word;
    FasterWord { start: *start_seconds, end: *end_seconds, word: text, probability: *probability }
}

/// Writes a transcript as the engine of `shape` writes it.
pub fn write<W: Write>(
    out: W,
    shape: JsonShape,
    language: &str,
    segments: &[Segment],
    with_words: bool,
) -> io::Result<()> {
    let text = segments.iter().map(|segment| segment.text.as_str()).collect();
    match shape {
        JsonShape::OpenAiWhisper => {
            let segments = segments.iter().enumerate().map(|(index, segment)| OpenAiSegment {
                id: index,
                seek: segment.seek,
                start: segment.start_seconds,
                end: segment.end_seconds,
                text: &segment.text,
                tokens: &segment.tokens,
                temperature: segment.temperature,
                avg_logprob: segment.avg_logprob,
                compression_ratio: segment.compression_ratio,
                no_speech_prob: segment.no_speech_prob,
                words: with_words.then(|| segment.words.iter().map(openai_word).collect()),
            });
            PythonJson::DEFAULT.write(out, &OpenAiTranscript { text, segments: segments.collect(), language })
        }
        JsonShape::FasterWhisper => {
            let segments = segments.iter().enumerate().map(|(index, segment)| FasterSegment {
                id: index + 1,
                seek: segment.seek,
                start: segment.start_seconds,
                end: segment.end_seconds,
                text: &segment.text,
                tokens: &segment.tokens,
                avg_logprob: segment.avg_logprob,
                compression_ratio: segment.compression_ratio,
                no_speech_prob: segment.no_speech_prob,
                words: with_words.then(|| segment.words.iter().map(faster_word).collect()),
                temperature: segment.temperature,
            });
            PythonJson::DEFAULT.write(out, &FasterTranscript { language, segments: segments.collect(), text })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dump<T: Serialize>(value: &T) -> String {
        let mut out = Vec::new();
        PythonJson::DEFAULT.write(&mut out, value).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn floats_are_printed_as_python_prints_them() {
        // Expected values: python3 -c 'import json; print(json.dumps([...]))'
        let cases: [(f64, &str); 18] = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-0.1234, "-0.1234"),
            (1e-5, "1e-05"),
            (1.5e-5, "1.5e-05"),
            (0.0001, "0.0001"),
            (0.00012345, "0.00012345"),
            (123_456.789, "123456.789"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (9_007_199_254_740_993.0, "9007199254740992.0"),
            (5e-324, "5e-324"),
            (1.797_693_134_862_315_7e308, "1.7976931348623157e+308"),
            (0.1 + 0.2, "0.30000000000000004"),
            (100.0, "100.0"),
            (3661.2345, "3661.2345"),
        ];
        for (value, expected) in cases {
            assert_eq!(dump(&value), expected);
        }
        assert_eq!(dump(&0.2f32), "0.2");
        assert_eq!(dump(&f64::NAN), "null");
        assert_eq!(dump(&f64::INFINITY), "null");
    }

    #[test]
    fn strings_are_ascii() {
        // Expected value: python3 -c 'import json; print(json.dumps("..."))'
        let text = "é日\u{1f600}\"\\\n\r\t\u{8}\u{c}\u{1}\u{7f}/";
        assert_eq!(dump(&text), r#""\u00e9\u65e5\ud83d\ude00\"\\\n\r\t\b\f\u0001\u007f/""#);
    }

    proptest! {
        #[test]
        fn every_float_reads_back(value in any::<f64>().prop_filter("finite", |value| value.is_finite())) {
            prop_assert_eq!(dump(&value).parse::<f64>().unwrap().to_bits(), value.to_bits());
        }

        #[test]
        fn every_string_reads_back(text in any::<String>()) {
            let dumped = dump(&text);
            prop_assert!(dumped.is_ascii());
            prop_assert_eq!(serde_json::from_str::<String>(&dumped).unwrap(), text);
        }
    }
}
