//! One connection to the app.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::response::Parts;
use http::{Request, StatusCode};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::pool::UpstreamPool;

/// The most header lines of an answer.
const HEADERS_MAX: usize = 256;

type TransportError = Box<dyn std::error::Error + Send + Sync>;

/// The head of an answer, and its body as a stream.
pub struct UpstreamAnswer {
    pub head: Parts,
    pub body: AnswerBody,
}

/// Learns over which connection a request is sent, so that the end of that connection can be waited for after the
/// request itself was given up.
#[derive(Clone, Debug, Default)]
pub struct ConnectionWatch {
    closed: Arc<Mutex<Option<CancellationToken>>>,
}

impl ConnectionWatch {
    fn set(&self, closed: CancellationToken) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = Some(closed);
    }

    /// Completes when the connection is closed; at once where there never was one.
    pub async fn closed(&self) {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner).clone();

        if let Some(closed) = closed {
            closed.cancelled().await;
        }
    }
}

/// A connection that no request uses.
pub(super) struct UpstreamConnection {
    sender: http1::SendRequest<Body>,
    closed: CancellationToken,
    pool: UpstreamPool,
}

/// Why a request got no answer on a connection.
pub(super) enum SendFailure {
    /// The connection was closed before any byte of the request was written.
    Unsent(Box<Request<Body>>),
    Broken(TransportError),
}

impl SendFailure {
    pub(super) fn into_error(self) -> TransportError {
        match self {
            Self::Unsent(_) => "the app closed the connection at once".into(),
            Self::Broken(error) => error,
        }
    }
}

impl UpstreamConnection {
    pub(super) async fn open(stream: TcpStream, pool: UpstreamPool) -> Result<Self, TransportError> {
        let mut builder = http1::Builder::new();
        builder.max_headers(HEADERS_MAX);
        let (sender, connection) = builder.handshake::<_, Body>(TokioIo::new(stream)).await?;

        let closed = CancellationToken::new();
        let guard = closed.clone().drop_guard();
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to the app ended");
            }
            drop(guard);
        });
        Ok(Self { sender, closed, pool })
    }

    pub(super) fn is_usable(&self) -> bool {
        self.sender.is_ready() && !self.closed.is_cancelled()
    }

    pub(super) async fn send(
        mut self,
        request: Request<Body>,
        watch: &ConnectionWatch,
    ) -> Result<UpstreamAnswer, SendFailure> {
        watch.set(self.closed.clone());

        match self.sender.try_send_request(request).await {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let connection = (head.status != StatusCode::SWITCHING_PROTOCOLS).then_some(self);
                let mut body = AnswerBody { body, connection };
                body.recycle_at_end();
                Ok(UpstreamAnswer { head, body })
            }
            Err(mut failed) => Err(match failed.take_message() {
                Some(request) => SendFailure::Unsent(Box::new(request)),
                None => SendFailure::Broken(Box::new(failed.into_error())),
            }),
        }
    }

    /// Gives the connection back when it is ready for the next request; closes it where that never happens.
    async fn recycle(mut self) {
        if self.sender.ready().await.is_ok() {
            let pool = self.pool.clone();
            pool.put(self);
        }
    }
}

/// The body of an answer. Its end gives the connection back; its drop before the end closes the connection.
pub struct AnswerBody {
    body: Incoming,
    /// `None` after the end, and for an answer that changes the protocol.
    connection: Option<UpstreamConnection>,
}

impl AnswerBody {
    fn recycle_at_end(&mut self) {
        if hyper::body::Body::is_end_stream(&self.body)
            && let Some(connection) = self.connection.take()
        {
            tokio::spawn(connection.recycle());
        }
    }
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);

        match &polled {
            Poll::Ready(None) => {
                if let Some(connection) = self.connection.take() {
                    tokio::spawn(connection.recycle());
                }
            }
            Poll::Ready(Some(Ok(_))) => self.recycle_at_end(),
            Poll::Ready(Some(Err(_))) => self.connection = None,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
