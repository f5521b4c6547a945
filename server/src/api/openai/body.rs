//! Answers that are sent when the whole transcript is decoded.

use std::io;
use std::sync::Arc;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hush_whisper::{Segment, SpeechTask, Transcript, language};
use serde::Serialize;
use utoipa::ToSchema;

use super::super::ApiState;
use super::super::error::{ApiError, json_response};
use super::super::speech::TranscriptionModel;
use super::error::OpenAiError;
use super::parameters::{ResponseFormat, TranscriptionParameters};
use super::text::SegmentJoiner;
use crate::format::{TranscriptFormat, TranscriptWriter};
use crate::job::{JobError, Transcription};
use crate::recording::Recording;

/// The answer for `response_format` `json`.
#[derive(Serialize, ToSchema)]
#[schema(as = Transcription)]
pub struct JsonTranscription {
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<Logprob>>,
    usage: AudioUsage,
}

/// Usage in seconds of audio, rounded up.
#[derive(Serialize, ToSchema)]
#[schema(as = TranscriptionUsage)]
struct AudioUsage {
    r#type: &'static str,
    seconds: u64,
}

impl AudioUsage {
    fn for_transcript(transcript: &Transcript) -> Self {
        Self { r#type: "duration", seconds: transcript.duration_seconds.ceil() as u64 }
    }
}

/// The answer for `response_format` `verbose_json`.
// The fields are in the order of OpenAI's service.
#[derive(Serialize, ToSchema)]
#[schema(as = VerboseTranscription)]
pub struct VerboseTranscription<'a> {
    task: &'static str,
    /// Lower-case English name of the language.
    language: &'a str,
    duration: f64,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    words: Option<Vec<VerboseWord<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<Vec<VerboseSegment<'a>>>,
    usage: AudioUsage,
}

#[derive(Serialize, ToSchema)]
#[schema(as = TranscriptionWord)]
struct VerboseWord<'a> {
    word: &'a str,
    start: f64,
    end: f64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = TranscriptionSegment)]
struct VerboseSegment<'a> {
    id: usize,
    /// Position of the window in mel frames of 10 ms.
    seek: usize,
    start: f64,
    end: f64,
    text: &'a str,
    tokens: &'a [u32],
    temperature: f32,
    avg_logprob: f64,
    compression_ratio: f64,
    no_speech_prob: f64,
}

impl<'a> VerboseSegment<'a> {
    fn new(id: usize, segment: &'a Segment) -> Self {
        Self {
            id,
            seek: segment.seek,
            start: segment.start_seconds,
            end: segment.end_seconds,
            text: &segment.text,
            tokens: &segment.tokens,
            temperature: segment.temperature,
            avg_logprob: segment.avg_logprob,
            compression_ratio: segment.compression_ratio,
            no_speech_prob: segment.no_speech_prob,
        }
    }
}

/// One token of text and its log probability.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Logprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// The tokens of text in a segment. A token may be a part of a character.
pub async fn logprobs(model: &dyn TranscriptionModel, segment: &Segment) -> Result<Vec<Logprob>, JobError> {
    let bytes = model.token_bytes(segment.tokens.clone()).await?;
    let tokens = bytes.into_iter().zip(&segment.token_logprobs);
    let logprob = |(bytes, logprob): (Option<Vec<u8>>, &f32)| {
        let bytes = bytes?;
        Some(Logprob { token: token_text(&bytes), logprob: *logprob, bytes })
    };

    Ok(tokens.filter_map(logprob).collect())
}

/// The text of a token. A token that is a part of a character is written as Python writes bytes, after a prefix that no
/// text has.
fn token_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("bytes:{}", bytes.escape_ascii()),
    }
}

/// Transcribes a recording and answers in the requested format.
pub async fn transcribe(
    state: &ApiState,
    model: Arc<dyn TranscriptionModel>,
    recording: Recording,
    parameters: TranscriptionParameters,
) -> Result<Response, OpenAiError> {
    let task = parameters.options.task;
    let transcribed = model.transcribe(recording, parameters.options, Some(state.config.cold_hold));
    let Transcription { transcript, segments } = transcribed.await?;
    state.metrics.record_transcript(model.model(), &transcript);
    match parameters.format {
        ResponseFormat::Json => {
            let mut all = Vec::new();
            if parameters.logprobs {
                for segment in &segments {
                    all.append(&mut logprobs(&*model, segment).await?);
                }
            }

            let logprobs = parameters.logprobs.then_some(all);
            Ok(json_response(
                StatusCode::OK,
                &JsonTranscription { text: text(&segments), logprobs, usage: AudioUsage::for_transcript(&transcript) },
            ))
        }
        ResponseFormat::VerboseJson => {
            let (words, with_segments) = (parameters.words, parameters.segments);
            Ok(json_response(StatusCode::OK, &verbose(task, words, with_segments, &transcript, &segments)))
        }
        ResponseFormat::Text => Ok(plain("text/plain; charset=utf-8", format!("{}\n", text(&segments)).into())),
        ResponseFormat::Srt => subtitles(TranscriptFormat::Srt, "text/plain; charset=utf-8", &transcript, segments),
        ResponseFormat::Vtt => subtitles(TranscriptFormat::Vtt, "text/vtt; charset=utf-8", &transcript, segments),
    }
}

/// The lower-case English name of the language that the text is written in. A translation is English, whatever is
/// spoken.
pub fn text_language(task: SpeechTask, transcript: &Transcript) -> &str {
    match task {
        SpeechTask::Transcribe => language::name(&transcript.language).unwrap_or(&transcript.language),
        SpeechTask::Translate => "english",
    }
}

fn verbose<'a>(
    task: SpeechTask,
    words: bool,
    with_segments: bool,
    transcript: &'a Transcript,
    segments: &'a [Segment],
) -> VerboseTranscription<'a> {
    let segment_words = |segment: &'a Segment| {
        segment.words.iter().map(|word| VerboseWord {
            word: word.text.trim(),
            start: word.start_seconds,
            end: word.end_seconds,
        })
    };

    let language = text_language(task, transcript);
    let task = match task {
        SpeechTask::Transcribe => "transcribe",
        SpeechTask::Translate => "translate",
    };

    let segment_list = || segments.iter().enumerate().map(|(id, segment)| VerboseSegment::new(id, segment)).collect();
    VerboseTranscription {
        task,
        language,
        duration: transcript.duration_seconds,
        text: text(segments),
        words: words.then(|| segments.iter().flat_map(segment_words).collect()),
        segments: with_segments.then(segment_list),
        usage: AudioUsage::for_transcript(transcript),
    }
}

fn text(segments: &[Segment]) -> String {
    let mut joiner = SegmentJoiner::default();
    for segment in segments {
        joiner.push(&segment.text);
    }

    joiner.into_text()
}

fn subtitles(
    format: TranscriptFormat,
    content_type: &'static str,
    transcript: &Transcript,
    segments: Vec<Segment>,
) -> Result<Response, OpenAiError> {
    let write = || {
        let mut writer = TranscriptWriter::new(format, Vec::new())?;
        for segment in segments {
            writer.segment(segment)?;
        }

        writer.finish(transcript)
    };

    let write_failed = |error: io::Error| ApiError::Internal(format!("a transcript could not be written: {error}"));
    Ok(plain(content_type, write().map_err(write_failed)?))
}

fn plain(content_type: &'static str, body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

#[cfg(test)]
mod tests {
    use hush_whisper::Word;

    use super::*;
    use crate::format::PythonJson;

    fn print<T: Serialize>(value: &T) -> String {
        let mut out = Vec::new();
        PythonJson::COMPACT.write(&mut out, value).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn transcript_of_two_segments() -> (Transcript, Vec<Segment>) {
        let word = |text: &str, start_seconds, end_seconds| Word {
            text: text.to_owned(),
            start_seconds,
            end_seconds,
            probability: 0.9,
        };

        let segment = |id, seek, start_seconds, text: &str, words| Segment {
            id,
            seek,
            start_seconds,
            end_seconds: start_seconds + 2.5,
            text: text.to_owned(),
            tokens: vec![50364, 2425],
            token_logprobs: vec![-0.1, -0.2],
            temperature: 0.2,
            avg_logprob: -0.25,
            compression_ratio: 1.5,
            no_speech_prob: 0.5,
            words,
        };

        let segments = vec![
            segment(0, 0, 0.0, " Grüß Gott.", vec![word(" Grüß", 0.0, 0.5), word(" Gott.", 0.5, 2.0)]),
            segment(1, 250, 2.5, " \"Ja\"", vec![word(" \"Ja\"", 2.5, 3.0)]),
        ];
        (
            Transcript {
                language: "de".to_owned(),
                language_probability: None,
                duration_seconds: 5.25,
                ..Transcript::default()
            },
            segments,
        )
    }

    #[test]
    fn verbose_json_with_segments() {
        let (transcript, segments) = transcript_of_two_segments();

        let expected = "{\"task\":\"transcribe\",\"language\":\"german\",\"duration\":5.25,\
            \"text\":\"Grüß Gott. \\\"Ja\\\"\",\"segments\":[\
            {\"id\":0,\"seek\":0,\"start\":0.0,\"end\":2.5,\"text\":\" Grüß Gott.\",\"tokens\":[50364,2425],\
            \"temperature\":0.2,\"avg_logprob\":-0.25,\"compression_ratio\":1.5,\"no_speech_prob\":0.5},\
            {\"id\":1,\"seek\":250,\"start\":2.5,\"end\":5.0,\"text\":\" \\\"Ja\\\"\",\"tokens\":[50364,2425],\
            \"temperature\":0.2,\"avg_logprob\":-0.25,\"compression_ratio\":1.5,\"no_speech_prob\":0.5}],\
            \"usage\":{\"type\":\"duration\",\"seconds\":6}}";
        assert_eq!(print(&verbose(SpeechTask::Transcribe, false, true, &transcript, &segments)), expected);
    }

    #[test]
    fn verbose_json_with_words_alone() {
        let (transcript, segments) = transcript_of_two_segments();
        let expected = "{\"task\":\"translate\",\"language\":\"english\",\"duration\":5.25,\
            \"text\":\"Grüß Gott. \\\"Ja\\\"\",\"words\":[\
            {\"word\":\"Grüß\",\"start\":0.0,\"end\":0.5},{\"word\":\"Gott.\",\"start\":0.5,\"end\":2.0},\
            {\"word\":\"\\\"Ja\\\"\",\"start\":2.5,\"end\":3.0}],\
            \"usage\":{\"type\":\"duration\",\"seconds\":6}}";
        assert_eq!(print(&verbose(SpeechTask::Translate, true, false, &transcript, &segments)), expected);
    }

    #[test]
    fn a_part_of_a_character_is_written_as_bytes() {
        assert_eq!(token_text("é".as_bytes()), "é");
        assert_eq!(token_text(&[0xe0, 0xa4]), "bytes:\\xe0\\xa4");
    }

    #[test]
    fn silence_is_an_empty_text_and_no_segment() {
        let transcript = Transcript {
            language: "xx".to_owned(),
            language_probability: None,
            duration_seconds: 0.0,
            ..Transcript::default()
        };
        let expected = "{\"task\":\"transcribe\",\"language\":\"xx\",\"duration\":0.0,\"text\":\"\",\"segments\":[],\
            \"usage\":{\"type\":\"duration\",\"seconds\":0}}";
        assert_eq!(print(&verbose(SpeechTask::Transcribe, false, true, &transcript, &[])), expected);
    }
}
