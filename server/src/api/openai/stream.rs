//! `stream=true`: server-sent events, one for each segment as soon as it is decoded.
//!
//! Until something is known, the status is not sent: a full queue or a failed load is an error with its own status,
//! which clients retry. After one heartbeat without news the answer begins all the same, so that no proxy takes the
//! silence of a loading model for a dead server; what goes wrong then is an event.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use hush_whisper::{Segment, Task, Transcript};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::super::speech::Speech;
use super::super::{ApiConfig, ApiState};
use super::asked::Asked;
use super::body::{Logprob, count_audio, language_of, logprobs};
use super::error::{ErrorBody, OpenAiError};
use super::text::Joiner;
use crate::format::PythonJson;
use crate::job::JobError;
use crate::recording::Recording;
use crate::request;

/// Segments that wait for a slow client here; more wait beside the job.
const WAITING: usize = 64;
/// The encoder makes one position of 20 ms of audio: what `usage` counts as audio tokens.
const AUDIO_TOKENS_PER_SECOND: f64 = 50.0;

#[derive(Serialize)]
#[serde(tag = "type")]
enum Event<'a> {
    #[serde(rename = "transcript.text.delta")]
    Delta {
        delta: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        logprobs: Option<&'a [Logprob]>,
        /// In seconds, as the end is; when they were asked for.
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
        usage: Usage,
        /// Lower-case English name, and seconds; with the times of the pieces.
        #[serde(skip_serializing_if = "Option::is_none")]
        language: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        duration: Option<f64>,
    },
    #[serde(rename = "error")]
    Error { error: ErrorBody },
}

impl Event<'_> {
    fn print(&self) -> Bytes {
        let mut line = b"data: ".to_vec();
        // Writing JSON to memory fails only for maps without text keys, and there are none.
        let _ = PythonJson::COMPACT.write(&mut line, self);
        line.extend_from_slice(b"\n\n");
        line.into()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Usage {
    r#type: &'static str,
    input_tokens: u64,
    output_tokens: u64,
    total_tokens: u64,
}

impl Usage {
    fn new(duration_seconds: f64, output_tokens: u64) -> Self {
        let input_tokens = (duration_seconds * AUDIO_TOKENS_PER_SECOND).ceil() as u64;
        Self { r#type: "tokens", input_tokens, output_tokens, total_tokens: input_tokens + output_tokens }
    }
}

/// What comes next from the model.
enum News {
    Segment(Segment),
    Ended(Result<Transcript, JobError>),
    /// Nothing for as long as a heartbeat.
    Silence,
}

/// A job that runs by itself, so that a client who does not read holds back no model. Dropping it ends the work.
struct Job {
    segments: mpsc::Receiver<Segment>,
    work: AbortOnDropHandle<Result<Transcript, JobError>>,
    heartbeat: Duration,
}

impl Job {
    fn start(model: Arc<dyn Speech>, recording: Recording, asked: &Asked, config: &ApiConfig) -> Self {
        let (to, segments) = mpsc::channel(WAITING);
        let (options, patience) = (asked.options.clone(), Some(config.cold_hold));
        let work = async move { model.stream(recording, options, patience, to).await };
        let heartbeat = config.stream_heartbeat;
        Self { segments, work: AbortOnDropHandle::new(tokio::spawn(request::carried(work))), heartbeat }
    }

    async fn next(&mut self) -> News {
        match tokio::time::timeout(self.heartbeat, self.segments.recv()).await {
            Err(_) => News::Silence,
            Ok(Some(segment)) => News::Segment(segment),
            // The work has let go of its end: it is over.
            Ok(None) => News::Ended(match (&mut self.work).await {
                Ok(ended) => ended,
                Err(panicked) => Err(JobError::Failed(panicked.to_string())),
            }),
        }
    }
}

pub async fn answer(
    state: &ApiState,
    model: Arc<dyn Speech>,
    recording: Recording,
    asked: Asked,
) -> Result<Response, OpenAiError> {
    let mut job = Job::start(Arc::clone(&model), recording, &asked, &state.config);
    let first = match job.next().await {
        News::Ended(Err(error)) => return Err(error.into()),
        news => news,
    };
    let events = Events {
        state: state.clone(),
        model,
        job,
        first: Some(first),
        text: Joiner::default(),
        output_tokens: 0,
        logprobs: asked.logprobs.then(Vec::new),
        task: asked.options.task,
        segment_times: asked.segment_times,
        ended: false,
    };
    let body = stream::unfold(events, |mut events| async move {
        let piece = events.next().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), events))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // nginx would collect the events otherwise.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

struct Events {
    state: ApiState,
    model: Arc<dyn Speech>,
    job: Job,
    first: Option<News>,
    text: Joiner,
    output_tokens: u64,
    /// Of everything so far, when they are wanted.
    logprobs: Option<Vec<Logprob>>,
    task: Task,
    segment_times: bool,
    ended: bool,
}

impl Events {
    /// `None` behind the last event.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            let news = match self.first.take() {
                Some(news) => news,
                None => self.job.next().await,
            };
            let event = match news {
                // A comment: clients skip it.
                News::Silence => Some(Bytes::from_static(b": working\n\n")),
                News::Segment(segment) => match self.delta(&segment).await {
                    Ok(event) => event,
                    Err(error) => Some(self.fail(error)),
                },
                News::Ended(Ok(transcript)) => Some(self.done(&transcript)),
                News::Ended(Err(error)) => Some(self.fail(error)),
            };
            if event.is_some() {
                return event;
            }
        }
        None
    }

    /// `None`: a segment without text.
    async fn delta(&mut self, segment: &Segment) -> Result<Option<Bytes>, JobError> {
        self.output_tokens += segment.tokens.len() as u64;
        let own = match self.logprobs {
            Some(_) => Some(logprobs(&*self.model, segment).await?),
            None => None,
        };
        let delta = self.text.push(&segment.text);
        let event = Event::Delta {
            delta: &delta,
            logprobs: own.as_deref(),
            start: self.segment_times.then_some(segment.start_seconds),
            end: self.segment_times.then_some(segment.end_seconds),
        }
        .print();
        if let (Some(all), Some(mut own)) = (&mut self.logprobs, own) {
            all.append(&mut own);
        }
        Ok((!delta.is_empty()).then_some(event))
    }

    fn done(&mut self, transcript: &Transcript) -> Bytes {
        self.ended = true;
        count_audio(&self.state, &*self.model, transcript);
        let text = std::mem::take(&mut self.text).into_text();
        let usage = Usage::new(transcript.duration_seconds, self.output_tokens);
        Event::Done {
            text: &text,
            logprobs: self.logprobs.as_deref(),
            usage,
            language: self.segment_times.then(|| language_of(self.task, transcript)),
            duration: self.segment_times.then_some(transcript.duration_seconds),
        }
        .print()
    }

    fn fail(&mut self, error: JobError) -> Bytes {
        self.ended = true;
        Event::Error { error: OpenAiError::from(error).into_body() }.print()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_bytes_of_the_real_service() {
        let print = |event: Event<'_>| String::from_utf8(event.print().to_vec()).unwrap();
        assert_eq!(
            print(Event::Delta { delta: "Grüß\n", logprobs: None, start: None, end: None }),
            "data: {\"type\":\"transcript.text.delta\",\"delta\":\"Grüß\\n\"}\n\n"
        );
        assert_eq!(
            print(Event::Done {
                text: "a",
                logprobs: Some(&[]),
                usage: Usage::new(2.01, 7),
                language: None,
                duration: None
            }),
            "data: {\"type\":\"transcript.text.done\",\"text\":\"a\",\"logprobs\":[],\"usage\":{\"type\":\"tokens\",\
             \"input_tokens\":101,\"output_tokens\":7,\"total_tokens\":108}}\n\n"
        );
        let error = OpenAiError::from(JobError::ShuttingDown).into_body();
        assert_eq!(
            print(Event::Error { error }),
            "data: {\"type\":\"error\",\"error\":{\"message\":\"the server is shutting down\",\
             \"type\":\"server_error\",\"param\":null,\"code\":\"shutting_down\"}}\n\n"
        );
    }
}
