//! Writes transcripts as text, subtitles, tables and JSON, byte for byte as openai/whisper and faster-whisper do.

mod json;
mod subtitles;
mod timestamp;

use std::io::{self, Write};

use hush_whisper::{Segment, Transcript};

pub use json::PythonJson;
pub use subtitles::SubtitleLayout;
use subtitles::{Cue, CueComposer};
use timestamp::{ClockTime, milliseconds};

/// The formats of a transcript.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranscriptFormat {
    /// One segment per line.
    Txt,
    /// WebVTT.
    Vtt,
    /// SubRip.
    Srt,
    /// A table of start and end in milliseconds and text.
    Tsv,
    Json(JsonShape),
}

/// The engine of whisper-asr-webservice whose JSON is written. The two engines differ in the order of keys and in the
/// first id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JsonShape {
    #[default]
    OpenAiWhisper,
    FasterWhisper,
}

impl JsonShape {
    /// The value of `ASR_ENGINE` in whisper-asr-webservice.
    pub const fn engine(self) -> &'static str {
        match self {
            Self::OpenAiWhisper => "openai_whisper",
            Self::FasterWhisper => "faster_whisper",
        }
    }
}

/// How the words of a transcript are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WordOutput {
    /// The transcript has no words.
    #[default]
    Without,
    /// In JSON alone; a subtitle is a segment.
    Plain,
    /// In JSON, and in subtitles that are laid out word by word.
    LaidOut(SubtitleLayout),
}

/// Writes a transcript segment by segment. JSON needs all segments, so [`TranscriptWriter::finish`] writes it.
pub struct TranscriptWriter<W> {
    out: W,
    format: TranscriptFormat,
    with_words: bool,
    /// Lays out subtitles where they do not follow the segments.
    composer: Option<CueComposer>,
    /// Number of subtitles that were written.
    cue_count: usize,
    /// The segments, which only JSON keeps.
    segments: Vec<Segment>,
}

impl<W: Write> TranscriptWriter<W> {
    /// Writes the header of the format, if it has one. Words are left out.
    pub fn new(format: TranscriptFormat, out: W) -> io::Result<Self> {
        Self::with_words(format, WordOutput::Without, out)
    }

    /// As [`Self::new`], with words.
    pub fn with_words(format: TranscriptFormat, words: WordOutput, mut out: W) -> io::Result<Self> {
        match format {
            TranscriptFormat::Vtt => out.write_all(b"WEBVTT\n\n")?,
            TranscriptFormat::Tsv => out.write_all(b"start\tend\ttext\n")?,
            TranscriptFormat::Txt | TranscriptFormat::Srt | TranscriptFormat::Json(_) => {}
        }

        let composer = match (format, words) {
            (TranscriptFormat::Vtt | TranscriptFormat::Srt, WordOutput::LaidOut(layout)) => {
                Some(CueComposer::new(layout))
            }
            _ => None,
        };

        let with_words = words != WordOutput::Without;
        Ok(Self { out, format, with_words, composer, cue_count: 0, segments: Vec::new() })
    }

    /// Writes a segment.
    pub fn segment(&mut self, segment: Segment) -> io::Result<()> {
        if let Some(composer) = &mut self.composer {
            return composer.segment(&segment).into_iter().try_for_each(|cue| self.cue(&cue));
        }

        let text = strip(&segment.text);
        let (start, end) = (milliseconds(segment.start_seconds), milliseconds(segment.end_seconds));
        match self.format {
            TranscriptFormat::Txt => writeln!(self.out, "{text}"),
            TranscriptFormat::Vtt | TranscriptFormat::Srt => {
                self.cue(&Cue { start, end, text: text.replace("-->", "->") })
            }
            TranscriptFormat::Tsv => writeln!(self.out, "{start}\t{end}\t{}", text.replace('\t', " ")),
            TranscriptFormat::Json(_) => {
                self.segments.push(segment);
                Ok(())
            }
        }
    }

    fn cue(&mut self, Cue { start, end, text }: &Cue) -> io::Result<()> {
        self.cue_count += 1;
        if self.format == TranscriptFormat::Vtt {
            return write!(self.out, "{} --> {}\n{text}\n\n", ClockTime::vtt(*start), ClockTime::vtt(*end));
        }

        write!(self.out, "{}\n{} --> {}\n{text}\n\n", self.cue_count, ClockTime::srt(*start), ClockTime::srt(*end))
    }

    /// Writes the rest of the transcript and returns the output.
    pub fn finish(mut self, transcript: &Transcript) -> io::Result<W> {
        if let Some(composer) = self.composer.take() {
            composer.finish().into_iter().try_for_each(|cue| self.cue(&cue))?;
        }

        if let TranscriptFormat::Json(shape) = self.format {
            json::write(&mut self.out, shape, &transcript.language, &self.segments, self.with_words)?;
        }
        Ok(self.out)
    }
}

/// Python's `str.strip`: removes Unicode white space and the four ASCII separators.
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

    fn write(format: TranscriptFormat, segments: &[Segment]) -> String {
        let mut writer = TranscriptWriter::new(format, Vec::new()).unwrap();
        for segment in segments {
            writer.segment(segment.clone()).unwrap();
        }

        let transcript = Transcript {
            language: "en".to_owned(),
            language_probability: Some(0.9),
            duration_seconds: 4000.0,
            ..Transcript::default()
        };
        String::from_utf8(writer.finish(&transcript).unwrap()).unwrap()
    }

    fn golden() -> [Segment; 2] {
        [segment(0, 0.0, 2.5, " Hello\tworld --> é."), segment(1, 3661.2345, 3663.0, " Bye.")]
    }

    // The expected bytes are those of the engines' own writers (reference/whisper-asr-api.md, a.2).

    #[test]
    fn txt() {
        assert_eq!(write(TranscriptFormat::Txt, &golden()), "Hello\tworld --> é.\nBye.\n");
        assert_eq!(write(TranscriptFormat::Txt, &[]), "");
    }

    #[test]
    fn vtt() {
        let expected = "WEBVTT\n\n00:00.000 --> 00:02.500\nHello\tworld -> é.\n\n\
                        01:01:01.234 --> 01:01:03.000\nBye.\n\n";
        assert_eq!(write(TranscriptFormat::Vtt, &golden()), expected);
        assert_eq!(write(TranscriptFormat::Vtt, &[]), "WEBVTT\n\n");
    }

    #[test]
    fn srt() {
        let expected = "1\n00:00:00,000 --> 00:00:02,500\nHello\tworld -> é.\n\n\
                        2\n01:01:01,234 --> 01:01:03,000\nBye.\n\n";
        assert_eq!(write(TranscriptFormat::Srt, &golden()), expected);
        assert_eq!(write(TranscriptFormat::Srt, &[]), "");
    }

    #[test]
    fn tsv() {
        let expected = "start\tend\ttext\n0\t2500\tHello world --> é.\n3661234\t3663000\tBye.\n";
        assert_eq!(write(TranscriptFormat::Tsv, &golden()), expected);
        assert_eq!(write(TranscriptFormat::Tsv, &[]), "start\tend\ttext\n");
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
        assert_eq!(write(TranscriptFormat::Json(JsonShape::OpenAiWhisper), &golden()), expected);
        let empty = "{\"text\": \"\", \"segments\": [], \"language\": \"en\"}";
        assert_eq!(write(TranscriptFormat::Json(JsonShape::OpenAiWhisper), &[]), empty);
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
        assert_eq!(write(TranscriptFormat::Json(JsonShape::FasterWhisper), &golden()), expected);
        let empty = "{\"language\": \"en\", \"segments\": [], \"text\": \"\"}";
        assert_eq!(write(TranscriptFormat::Json(JsonShape::FasterWhisper), &[]), empty);
    }

    #[test]
    fn text_is_stripped_as_python_strips() {
        assert_eq!(strip("\u{1c}\u{a0} a b\u{3000}\u{1f}\n"), "a b");
        assert_eq!(strip("\u{200b}a"), "\u{200b}a");
        assert_eq!(write(TranscriptFormat::Txt, &[segment(0, 0.0, 1.0, "  ")]), "\n");
    }
}
