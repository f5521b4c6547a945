//! HTTP/1.1 connections to the app.

use crate::app::{AppAnswer, AppRequest};

/// The app's listener. Cheap to clone; clones share the idle connections.
#[derive(Clone, Debug)]
pub struct Upstream {
    _private: (),
}

/// Why the app gives no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// Nothing listens there: the app does not run, or has not come up yet.
    #[error("{address} does not accept connections")]
    Refused { address: String, source: std::io::Error },
    #[error("no answer after {seconds} s")]
    TimedOut { seconds: f64 },
    #[error("the answer is larger than {limit_bytes} bytes")]
    TooLarge { limit_bytes: usize },
    #[error("the connection broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Upstream {
    /// Sends a request of the sidecar's own, with the app's credential, and reads the whole answer.
    ///
    /// # Errors
    /// If the app does not answer in time, or with more than 16 MiB.
    pub async fn call(&self, _request: &AppRequest) -> Result<AppAnswer, UpstreamError> {
        todo!()
    }
}
