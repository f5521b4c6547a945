//! Facts about the request that is being served, which are collected along its way for its line in the log.
//!
//! The context belongs to the task, so that a layer without knowledge of HTTP can add facts. Code that spawns a task
//! for a request wraps its future in [`carried`].

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tracing::Instrument;

tokio::task_local! {
    static CURRENT: RequestContext;
}

/// The context of one request. Cheap to clone.
#[derive(Clone)]
pub struct RequestContext {
    id: Arc<str>,
    facts: Arc<Mutex<RequestFacts>>,
}

/// Facts about a request; `None` where the step did not happen. All times are in seconds.
#[derive(Clone, Debug, Default)]
pub struct RequestFacts {
    /// The name of the API key.
    pub key: Option<String>,
    pub model: Option<String>,
    /// Generation of the model that answered.
    pub generation: Option<u64>,
    /// Time of reading the body.
    pub upload_seconds: Option<f64>,
    /// Time of decoding the file to samples.
    pub audio_decode_seconds: Option<f64>,
    /// Duration of the audio.
    pub audio_seconds: Option<f64>,
    /// Time of waiting for a model that was loaded.
    pub queue_seconds: Option<f64>,
    /// Time of waiting for a model that was not loaded.
    pub cold_start_seconds: Option<f64>,
    /// Time of the log-mel spectrogram of the first window; the next two fields are also of the first window.
    pub mel_seconds: Option<f64>,
    pub encode_seconds: Option<f64>,
    pub prefill_seconds: Option<f64>,
    /// Time from the request for the model to the first token.
    pub first_token_seconds: Option<f64>,
    /// Time from the first token to the end.
    pub decode_seconds: Option<f64>,
    /// Number of runners that were lost during the request.
    pub retries: Option<u64>,
    /// When each step above ended.
    pub phases: Vec<TimedPhase>,
}

/// A part of the time of a request.
#[derive(Clone, Debug)]
pub struct TimedPhase {
    pub name: &'static str,
    pub ended: Instant,
    pub seconds: f64,
}

impl RequestFacts {
    /// Adds a phase that has just ended.
    pub fn ended(&mut self, name: &'static str, seconds: f64) {
        self.phases.push(TimedPhase { name, ended: Instant::now(), seconds });
    }
}

impl RequestContext {
    pub fn new(id: &str) -> Self {
        Self { id: id.into(), facts: Arc::default() }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a future in the context of this request.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self.clone(), future)
    }

    /// Runs a closure in the context of this request.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), work)
    }

    pub fn facts(&self) -> RequestFacts {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The id of the request that is being served.
pub fn id() -> Option<Arc<str>> {
    CURRENT.try_with(|request| Arc::clone(&request.id)).ok()
}

/// Adds facts to the current request; without a request nothing happens.
pub fn note(change: impl FnOnce(&mut RequestFacts)) {
    // Without a request the facts are not needed.
    let _ = CURRENT.try_with(|request| change(&mut request.facts.lock().unwrap_or_else(PoisonError::into_inner)));
}

/// Wraps a future, so that it serves the current request on a task of its own.
pub fn carried<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let request = CURRENT.try_with(Clone::clone).ok();
    async move {
        match request {
            Some(request) => request.scope(future).await,
            None => future.await,
        }
    }
    .in_current_span()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn facts_of_a_spawned_task_belong_to_the_request() {
        let request = RequestContext::new("r1");
        request
            .scope(async {
                tokio::spawn(async { note(|facts| facts.generation = Some(1)) }).await.unwrap();
                assert_eq!(CURRENT.with(RequestContext::facts).generation, None, "not carried");

                tokio::spawn(carried(async {
                    assert_eq!(id().as_deref(), Some("r1"));
                    note(|facts| facts.generation = Some(2));
                }))
                .await
                .unwrap();
            })
            .await;

        assert_eq!(request.facts().generation, Some(2));
        assert_eq!(id(), None);
    }
}
