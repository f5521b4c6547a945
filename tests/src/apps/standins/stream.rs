//! Answers that come piece by piece.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use tokio::sync::mpsc;

use super::work::Work;

/// What a client sees of an answer whose model is taken away.
#[derive(Clone, Debug)]
pub enum CutStyle {
    /// The connection breaks off.
    Abort,
    /// The chunks end as if the answer were complete, without its last words.
    CleanEnd,
    /// These are its last words.
    LastWords(Bytes),
}

pub struct StreamPlan {
    pub content_type: &'static str,
    pub tokens: usize,
    pub pause: Duration,
    /// The bytes of one token.
    pub piece: Box<dyn Fn(usize) -> Bytes + Send>,
    pub end: Bytes,
    pub cut: CutStyle,
}

/// What a cut connection reports to hyper.
#[derive(Debug, thiserror::Error)]
#[error("the answer is cut")]
struct Broken;

impl StreamPlan {
    pub fn answer(self, work: Work) -> Response {
        let (pieces, receiver) = mpsc::channel(1);
        let content_type = self.content_type;
        tokio::spawn(self.write(work, pieces));

        let body = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<Result<Bytes, Broken>>| {
            let piece = receiver.recv().await?;
            Some((piece, receiver))
        });
        let mut response = Response::new(Body::from_stream(Box::pin(body)));
        response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
        response
    }

    async fn write(self, mut work: Work, pieces: mpsc::Sender<Result<Bytes, Broken>>) {
        for index in 0..self.tokens {
            let is_there = tokio::select! {
                is_there = work.last(self.pause) => is_there,
                // The client has left: dropping the work says so.
                () = pieces.closed() => return,
            };
            if !is_there {
                let last = match self.cut {
                    CutStyle::Abort => Err(Broken),
                    CutStyle::CleanEnd => return,
                    CutStyle::LastWords(words) => Ok(words),
                };
                // Fails only when the client has left.
                let _ = pieces.send(last).await;
                return;
            }
            if pieces.send(Ok((self.piece)(index))).await.is_err() {
                return;
            }
        }
        if pieces.send(Ok(self.end)).await.is_ok() {
            work.finish();
        }
    }
}
