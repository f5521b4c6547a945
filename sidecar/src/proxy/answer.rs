//! The body of an answer on its way from the app to the client.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hush_log::explain;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::idle_watch::ExchangeGuard;
use super::kept_answers::AnswerCopy;
use super::record::ProxyRequestRecord;
use crate::process::AppActivity;
use crate::upstream::AnswerBody;

/// Notes on a connection that an answer was broken off whose end is the end of the connection, as in HTTP/1.0. Then the
/// connection must be reset, so that the client does not take what it has for all.
#[derive(Clone, Debug, Default)]
pub struct BrokenOff(Arc<AtomicBool>);

impl BrokenOff {
    fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Why an answer is broken off.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("the app broke the answer off")]
    Cut(#[source] hyper::Error),
    #[error("nothing came from the app for {seconds} s")]
    Silent { seconds: u64 },
    #[error("the request took longer than {seconds} s")]
    TooLong { seconds: u64 },
}

/// The limits for an answer that is being streamed.
#[derive(Debug)]
pub struct AnswerTimers {
    between: Option<(Duration, Pin<Box<Sleep>>)>,
    whole: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl AnswerTimers {
    /// `whole`: the limit for the request, and when it ends.
    pub fn new(between: Option<Duration>, whole: Option<(Duration, Instant)>) -> Self {
        let at = |until: Instant| Box::pin(sleep_until(until));
        Self {
            between: between.map(|limit| (limit, at(Instant::now() + limit))),
            whole: whole.map(|(limit, until)| (limit, at(until))),
        }
    }

    fn restart(&mut self) {
        if let Some((limit, timer)) = &mut self.between {
            timer.as_mut().reset(Instant::now() + *limit);
        }
    }

    fn poll_elapsed(&mut self, context: &mut Context<'_>) -> Option<AnswerError> {
        let seconds = |limit: &Duration| limit.as_secs();

        if let Some((limit, timer)) = &mut self.whole
            && timer.as_mut().poll(context).is_ready()
        {
            return Some(AnswerError::TooLong { seconds: seconds(limit) });
        }
        if let Some((limit, timer)) = &mut self.between
            && timer.as_mut().poll(context).is_ready()
        {
            return Some(AnswerError::Silent { seconds: seconds(limit) });
        }
        None
    }
}

/// Streams an answer byte for byte. Its end ends the lease.
pub struct ForwardedBody {
    /// `None` after the end.
    pub body: Option<AnswerBody>,
    pub guard: ExchangeGuard,
    pub record: ProxyRequestRecord,
    pub timers: AnswerTimers,
    pub copy: Option<AnswerCopy>,
    pub activity: AppActivity,
    /// For a client that tells the end of an answer by the end of its connection.
    pub broken_off: Option<BrokenOff>,
    /// Reported with the next poll, so that what came before is sent.
    pub failure: Option<AnswerError>,
}

impl ForwardedBody {
    fn note(&mut self, frame: &Frame<Bytes>) {
        self.timers.restart();
        self.activity.record();
        let Some(data) = frame.data_ref() else { return };

        self.record.sent_bytes += data.len() as u64;
        self.copy = self.copy.take().and_then(|mut copy| copy.extend(data).then_some(copy));
    }

    fn complete(&mut self) {
        self.record.is_complete = true;
        self.body = None;
        self.guard.complete();
        if let Some(copy) = self.copy.take() {
            copy.keep();
        }
    }

    fn fail(&mut self, error: AnswerError, context: &Context<'_>) {
        let label = if matches!(error, AnswerError::Cut(_)) { "cut" } else { "timed_out" };
        self.record.note_upstream_failure(label, explain(&error));
        self.body = None;
        self.failure = Some(error);
        context.waker().wake_by_ref();
    }
}

impl HttpBody for ForwardedBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let this = &mut *self;
        if let Some(error) = this.failure.take() {
            if let Some(broken_off) = &this.broken_off {
                broken_off.set();
            }
            return Poll::Ready(Some(Err(error)));
        }
        let Some(body) = &mut this.body else { return Poll::Ready(None) };

        match Pin::new(&mut *body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let is_end = body.is_end_stream();
                this.note(&frame);
                if is_end {
                    this.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.complete();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                this.fail(AnswerError::Cut(error), context);
                Poll::Pending
            }
            Poll::Pending => {
                if let Some(error) = this.timers.poll_elapsed(context) {
                    this.fail(error, context);
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.failure.is_none() && self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl ForwardedBody {
    /// Ends what has no body at once.
    pub fn into_body(mut self) -> Body {
        if self.body.as_ref().is_none_or(HttpBody::is_end_stream) {
            self.complete();
            return Body::empty();
        }
        Body::new(self)
    }
}

/// The body of an answer that the proxy gives itself.
pub struct OwnBody {
    pub body: Body,
    pub record: ProxyRequestRecord,
}

impl OwnBody {
    pub fn into_body(mut self) -> Body {
        if self.body.is_end_stream() {
            self.record.is_complete = true;
            return Body::empty();
        }
        Body::new(self)
    }
}

impl HttpBody for OwnBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);

        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.record.sent_bytes += data.len() as u64;
        }
        self.record.is_complete |= matches!(polled, Poll::Ready(None)) || self.body.is_end_stream();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
