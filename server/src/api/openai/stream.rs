//! `stream=true`: server-sent events, one for each segment as soon as it is decoded.
//!
//! The status is sent with the first result: a full queue or a failed load before it is an error with its own status,
//! which clients retry. After one heartbeat without a result the answer begins with 200, so that no proxy takes the
//! silence of a loading model for a dead server; a later failure is an event.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use hush_whisper::{Segment, SpeechTask, Transcript};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::super::speech::TranscriptionModel;
use super::super::{ApiConfig, ApiState};
use super::body::{Logprob, logprobs, text_language};
use super::error::{OpenAiError, OpenAiErrorBody};
use super::parameters::TranscriptionParameters;
use super::text::SegmentJoiner;
use crate::format::PythonJson;
use crate::job::JobError;
use crate::recording::Recording;
use crate::request;

/// Segments that wait here for a slow client; further segments wait with the job.
const SEGMENT_BUFFER: usize = 64;
/// The encoder makes one position of 20 ms of audio, which `usage` counts as one audio token.
const AUDIO_TOKENS_PER_SECOND: f64 = 50.0;

#[derive(Serialize)]
#[serde(tag = "type")]
enum TranscriptEvent<'a> {
    #[serde(rename = "transcript.text.delta")]
    Delta {
        delta: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        logprobs: Option<&'a [Logprob]>,
        /// Start and end of the segment in seconds, where the request asked for them.
        #[serde(skip_serializing_if = "Option::is_none")]
        start: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        end: Option<f64>,
    },
    #[serde(rename = "transcript.text.done")]
    Done {
        text: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        logprobs: Option<&'a [Logprob]>,
        usage: TokenUsage,
        /// Lower-case English name of the language; the duration is in seconds. Only with the times of the segments.
        #[serde(skip_serializing_if = "Option::is_none")]
        language: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        duration: Option<f64>,
    },
    #[serde(rename = "error")]
    Error { error: OpenAiErrorBody },
}

impl TranscriptEvent<'_> {
    fn to_bytes(&self) -> Bytes {
        let mut line = b"data: ".to_vec();
        // Writing JSON to memory fails only for maps without text keys, and there are none.
        let _ = PythonJson::COMPACT.write(&mut line, self);

        line.extend_from_slice(b"\n\n");
        line.into()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct TokenUsage {
    r#type: &'static str,
    input_tokens: u64,
    output_tokens: u64,
    total_tokens: u64,
}

impl TokenUsage {
    fn new(duration_seconds: f64, output_tokens: u64) -> Self {
        let input_tokens = (duration_seconds * AUDIO_TOKENS_PER_SECOND).ceil() as u64;
        Self { r#type: "tokens", input_tokens, output_tokens, total_tokens: input_tokens + output_tokens }
    }
}

/// The next step of a streaming transcription.
enum StreamProgress {
    Segment(Segment),
    Ended(Result<Transcript, JobError>),
    /// No result for as long as one heartbeat.
    Silent,
}

/// A transcription on a task of its own, so that a slow client does not hold back the model. Its drop cancels the work.
struct StreamingJob {
    segments: mpsc::Receiver<Segment>,
    work: AbortOnDropHandle<Result<Transcript, JobError>>,
    heartbeat: Duration,
}

impl StreamingJob {
    fn start(
        model: Arc<dyn TranscriptionModel>,
        recording: Recording,
        parameters: &TranscriptionParameters,
        config: &ApiConfig,
    ) -> Self {
        let (sender, segments) = mpsc::channel(SEGMENT_BUFFER);

        let (options, max_wait) = (parameters.options.clone(), Some(config.cold_hold));
        let work = async move { model.stream(recording, options, max_wait, sender).await };

        let heartbeat = config.stream_heartbeat;
        Self { segments, work: AbortOnDropHandle::new(tokio::spawn(request::carried(work))), heartbeat }
    }

    async fn next(&mut self) -> StreamProgress {
        match tokio::time::timeout(self.heartbeat, self.segments.recv()).await {
            Err(_) => StreamProgress::Silent,
            Ok(Some(segment)) => StreamProgress::Segment(segment),
            // The sender is dropped, so the work is over.
            Ok(None) => StreamProgress::Ended(match (&mut self.work).await {
                Ok(ended) => ended,
                Err(panicked) => Err(JobError::Failed(panicked.to_string())),
            }),
        }
    }
}

/// Transcribes a recording and streams the result.
pub async fn transcribe(
    state: &ApiState,
    model: Arc<dyn TranscriptionModel>,
    recording: Recording,
    parameters: TranscriptionParameters,
) -> Result<Response, OpenAiError> {
    let mut job = StreamingJob::start(Arc::clone(&model), recording, &parameters, &state.config);
    let first = match job.next().await {
        StreamProgress::Ended(Err(error)) => return Err(error.into()),
        progress => progress,
    };

    let events = TranscriptStream {
        state: state.clone(),
        model,
        job,
        first: Some(first),
        text: SegmentJoiner::default(),
        output_tokens: 0,
        logprobs: parameters.logprobs.then(Vec::new),
        task: parameters.options.task,
        segment_times: parameters.segment_times,
        ended: false,
    };

    let body = stream::unfold(events, |mut events| async move {
        let event = events.next().await?;
        Some((Ok::<_, std::convert::Infallible>(event), events))
    });

    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // nginx would buffer the events otherwise.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

struct TranscriptStream {
    state: ApiState,
    model: Arc<dyn TranscriptionModel>,
    job: StreamingJob,
    first: Option<StreamProgress>,
    text: SegmentJoiner,
    output_tokens: u64,
    /// Log probabilities of all segments so far, where the request asked for them.
    logprobs: Option<Vec<Logprob>>,
    task: SpeechTask,
    segment_times: bool,
    ended: bool,
}

impl TranscriptStream {
    /// The next event; `None` after the last one.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            let progress = match self.first.take() {
                Some(progress) => progress,
                None => self.job.next().await,
            };

            let event = match progress {
                // A comment, which clients skip.
                StreamProgress::Silent => Some(Bytes::from_static(b": working\n\n")),
                StreamProgress::Segment(segment) => match self.delta(&segment).await {
                    Ok(event) => event,
                    Err(error) => Some(self.fail(error)),
                },
                StreamProgress::Ended(Ok(transcript)) => Some(self.done(&transcript)),
                StreamProgress::Ended(Err(error)) => Some(self.fail(error)),
            };

            if event.is_some() {
                return event;
            }
        }

        None
    }

    /// The event of a segment; `None` for a segment without text.
    async fn delta(&mut self, segment: &Segment) -> Result<Option<Bytes>, JobError> {
        self.output_tokens += segment.tokens.len() as u64;
        let segment_logprobs = match self.logprobs {
            Some(_) => Some(logprobs(&*self.model, segment).await?),
            None => None,
        };

        let delta = self.text.push(&segment.text);
        let event = TranscriptEvent::Delta {
            delta: &delta,
            logprobs: segment_logprobs.as_deref(),
            start: self.segment_times.then_some(segment.start_seconds),
            end: self.segment_times.then_some(segment.end_seconds),
        }
        .to_bytes();

        if let (Some(all), Some(mut added)) = (&mut self.logprobs, segment_logprobs) {
            all.append(&mut added);
        }

        Ok((!delta.is_empty()).then_some(event))
    }

    fn done(&mut self, transcript: &Transcript) -> Bytes {
        self.ended = true;
        self.state.metrics.record_transcript(self.model.model(), transcript);

        let text = std::mem::take(&mut self.text).into_text();
        let usage = TokenUsage::new(transcript.duration_seconds, self.output_tokens);
        TranscriptEvent::Done {
            text: &text,
            logprobs: self.logprobs.as_deref(),
            usage,
            language: self.segment_times.then(|| text_language(self.task, transcript)),
            duration: self.segment_times.then_some(transcript.duration_seconds),
        }
        .to_bytes()
    }

    fn fail(&mut self, error: JobError) -> Bytes {
        self.ended = true;
        TranscriptEvent::Error { error: OpenAiError::from(error).into_body() }.to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_bytes_of_openai_s_service() {
        let print = |event: TranscriptEvent<'_>| String::from_utf8(event.to_bytes().to_vec()).unwrap();
        assert_eq!(
            print(TranscriptEvent::Delta { delta: "Grüß\n", logprobs: None, start: None, end: None }),
            "data: {\"type\":\"transcript.text.delta\",\"delta\":\"Grüß\\n\"}\n\n"
        );

        assert_eq!(
            print(TranscriptEvent::Done {
                text: "a",
                logprobs: Some(&[]),
                usage: TokenUsage::new(2.01, 7),
                language: None,
                duration: None
            }),
            "data: {\"type\":\"transcript.text.done\",\"text\":\"a\",\"logprobs\":[],\"usage\":{\"type\":\"tokens\",\
             \"input_tokens\":101,\"output_tokens\":7,\"total_tokens\":108}}\n\n"
        );

        let error = OpenAiError::from(JobError::ShuttingDown).into_body();
        assert_eq!(
            print(TranscriptEvent::Error { error }),
            "data: {\"type\":\"error\",\"error\":{\"message\":\"the server is shutting down\",\
             \"type\":\"server_error\",\"param\":null,\"code\":\"shutting_down\"}}\n\n"
        );
    }
}
