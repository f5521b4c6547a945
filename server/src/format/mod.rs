//! Transcripts as text, subtitles, tables and JSON, byte for byte as the writers of openai/whisper and
//! faster-whisper print them.

mod json;
mod subtitles;
mod timestamp;

use std::io::{self, Write};

use hush_whisper::{Segment, Transcript};

pub use json::PythonJson;
pub use subtitles::Layout;
use subtitles::{Composer, Cue};
use timestamp::{Clock, milliseconds};

/// What a transcript is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One segment per line.
    Txt,
    /// WebVTT.
    Vtt,
    /// SubRip.
    Srt,
    /// Start and end in milliseconds, text.
    Tsv,
    Json(JsonShape),
}

/// Whose JSON: the two engines of whisper-asr-webservice differ in the order of keys and in where ids begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JsonShape {
    #[default]
    OpenAiWhisper,
    FasterWhisper,
}

impl JsonShape {
    /// `ASR_ENGINE` of whisper-asr-webservice.
    pub const fn engine(self) -> &'static str {
        match self {
            Self::OpenAiWhisper => "openai_whisper",
            Self::FasterWhisper => "faster_whisper",
        }
    }
}

/// What becomes of words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Words {
    /// None were asked for.
    #[default]
    Without,
    /// In JSON; a subtitle is a segment.
    Plain,
    /// In JSON, and subtitles are laid out word by word.
    LaidOut(Layout),
}

/// Writes a transcript segment by segment. JSON, whose head needs the end, comes out at [`Writer::finish`].
pub struct Writer<W> {
    out: W,
    format: Format,
    with_words: bool,
    /// Where subtitles do not follow the segments.
    composer: Option<Composer>,
    /// Subtitles so far.
    written: usize,
    /// Kept for JSON alone.
    gathered: Vec<Segment>,
}

impl<W: Write> Writer<W> {
    /// Writes the head of the format, if it has one. Words are left out.
    pub fn new(format: Format, out: W) -> io::Result<Self> {
        Self::with_words(format, Words::Without, out)
    }

    pub fn with_words(format: Format, words: Words, mut out: W) -> io::Result<Self> {
        match format {
            Format::Vtt => out.write_all(b"WEBVTT\n\n")?,
            Format::Tsv => out.write_all(b"start\tend\ttext\n")?,
            Format::Txt | Format::Srt | Format::Json(_) => {}
        }
        let composer = match (format, words) {
            (Format::Vtt | Format::Srt, Words::LaidOut(layout)) => Some(Composer::new(layout)),
            _ => None,
        };
        let with_words = words != Words::Without;
        Ok(Self { out, format, with_words, composer, written: 0, gathered: Vec::new() })
    }

    pub fn segment(&mut self, segment: Segment) -> io::Result<()> {
        if let Some(composer) = &mut self.composer {
            return composer.segment(&segment).into_iter().try_for_each(|cue| self.cue(&cue));
        }
        let text = strip(&segment.text);
        let (start, end) = (milliseconds(segment.start_seconds), milliseconds(segment.end_seconds));
        match self.format {
            Format::Txt => writeln!(self.out, "{text}"),
            Format::Vtt | Format::Srt => self.cue(&Cue { start, end, text: text.replace("-->", "->") }),
            Format::Tsv => writeln!(self.out, "{start}\t{end}\t{}", text.replace('\t', " ")),
            Format::Json(_) => {
                self.gathered.push(segment);
                Ok(())
            }
        }
    }

    fn cue(&mut self, Cue { start, end, text }: &Cue) -> io::Result<()> {
        self.written += 1;
        if self.format == Format::Vtt {
            return write!(self.out, "{} --> {}\n{text}\n\n", Clock::vtt(*start), Clock::vtt(*end));
        }
        write!(self.out, "{}\n{} --> {}\n{text}\n\n", self.written, Clock::srt(*start), Clock::srt(*end))
    }

    /// Ends the format and gives the sink back.
    pub fn finish(mut self, transcript: &Transcript) -> io::Result<W> {
        if let Some(composer) = self.composer.take() {
            composer.finish().into_iter().try_for_each(|cue| self.cue(&cue))?;
        }
        if let Format::Json(shape) = self.format {
            json::write(&mut self.out, shape, &transcript.language, &self.gathered, self.with_words)?;
        }
        Ok(self.out)
    }
}

/// Python's `str.strip`: Unicode white space and the four ASCII separators.
fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(id: usize, start_seconds: f64, end_seconds: f64, text: &str) -> Segment {
        Segment {
            id,
            seek: 0,
            start_seconds,
            end_seconds,
            text: text.to_owned(),
            tokens: vec![50364, 2425],
            temperature: 0.2,
            avg_logprob: -0.25,
            compression_ratio: 1.0,
            no_speech_prob: 1e-5,
            ..Segment::default()
        }
    }

    fn write(format: Format, segments: &[Segment]) -> String {
        let mut writer = Writer::new(format, Vec::new()).unwrap();
        for segment in segments {
            writer.segment(segment.clone()).unwrap();
        }
        let transcript =
            Transcript { language: "en".to_owned(), language_probability: Some(0.9), duration_seconds: 4000.0 };
        String::from_utf8(writer.finish(&transcript).unwrap()).unwrap()
    }

    fn golden() -> [Segment; 2] {
        [segment(0, 0.0, 2.5, " Hello\tworld --> é."), segment(1, 3661.2345, 3663.0, " Bye.")]
    }

    // The expected bytes are those of the peers' own writers (reference/whisper-asr-api.md, a.2).

    #[test]
    fn txt() {
        assert_eq!(write(Format::Txt, &golden()), "Hello\tworld --> é.\nBye.\n");
        assert_eq!(write(Format::Txt, &[]), "");
    }

    #[test]
    fn vtt() {
        let expected = "WEBVTT\n\n00:00.000 --> 00:02.500\nHello\tworld -> é.\n\n\
                        01:01:01.234 --> 01:01:03.000\nBye.\n\n";
        assert_eq!(write(Format::Vtt, &golden()), expected);
        assert_eq!(write(Format::Vtt, &[]), "WEBVTT\n\n");
    }

    #[test]
    fn srt() {
        let expected = "1\n00:00:00,000 --> 00:00:02,500\nHello\tworld -> é.\n\n\
                        2\n01:01:01,234 --> 01:01:03,000\nBye.\n\n";
        assert_eq!(write(Format::Srt, &golden()), expected);
        assert_eq!(write(Format::Srt, &[]), "");
    }

    #[test]
    fn tsv() {
        let expected = "start\tend\ttext\n0\t2500\tHello world --> é.\n3661234\t3663000\tBye.\n";
        assert_eq!(write(Format::Tsv, &golden()), expected);
        assert_eq!(write(Format::Tsv, &[]), "start\tend\ttext\n");
    }

    #[test]
    fn json_of_openai_whisper() {
        let expected = "{\"text\": \" Hello\\tworld --> \\u00e9. Bye.\", \"segments\": [\
            {\"id\": 0, \"seek\": 0, \"start\": 0.0, \"end\": 2.5, \"text\": \" Hello\\tworld --> \\u00e9.\", \
            \"tokens\": [50364, 2425], \"temperature\": 0.2, \"avg_logprob\": -0.25, \"compression_ratio\": 1.0, \
            \"no_speech_prob\": 1e-05}, \
            {\"id\": 1, \"seek\": 0, \"start\": 3661.2345, \"end\": 3663.0, \"text\": \" Bye.\", \
            \"tokens\": [50364, 2425], \"temperature\": 0.2, \"avg_logprob\": -0.25, \"compression_ratio\": 1.0, \
            \"no_speech_prob\": 1e-05}], \"language\": \"en\"}";
        assert_eq!(write(Format::Json(JsonShape::OpenAiWhisper), &golden()), expected);
        let empty = "{\"text\": \"\", \"segments\": [], \"language\": \"en\"}";
        assert_eq!(write(Format::Json(JsonShape::OpenAiWhisper), &[]), empty);
    }

    #[test]
    fn json_of_faster_whisper() {
        let expected = "{\"language\": \"en\", \"segments\": [\
            {\"id\": 1, \"seek\": 0, \"start\": 0.0, \"end\": 2.5, \"text\": \" Hello\\tworld --> \\u00e9.\", \
            \"tokens\": [50364, 2425], \"avg_logprob\": -0.25, \"compression_ratio\": 1.0, \
            \"no_speech_prob\": 1e-05, \"words\": null, \"temperature\": 0.2}, \
            {\"id\": 2, \"seek\": 0, \"start\": 3661.2345, \"end\": 3663.0, \"text\": \" Bye.\", \
            \"tokens\": [50364, 2425], \"avg_logprob\": -0.25, \"compression_ratio\": 1.0, \
            \"no_speech_prob\": 1e-05, \"words\": null, \"temperature\": 0.2}], \
            \"text\": \" Hello\\tworld --> \\u00e9. Bye.\"}";
        assert_eq!(write(Format::Json(JsonShape::FasterWhisper), &golden()), expected);
        let empty = "{\"language\": \"en\", \"segments\": [], \"text\": \"\"}";
        assert_eq!(write(Format::Json(JsonShape::FasterWhisper), &[]), empty);
    }

    #[test]
    fn text_is_stripped_as_python_strips() {
        assert_eq!(strip("\u{1c}\u{a0} a b\u{3000}\u{1f}\n"), "a b");
        assert_eq!(strip("\u{200b}a"), "\u{200b}a");
        assert_eq!(write(Format::Txt, &[segment(0, 0.0, 1.0, "  ")]), "\n");
    }
}
