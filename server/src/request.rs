//! What is known of the request that is being served, gathered on its way for the one line that the log has of it.
//!
//! It travels with the task, so that a layer far from HTTP can add to it and knows nothing of requests. Whoever spawns a
//! task for a request hands it on with [`carried`].

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tracing::Instrument;

tokio::task_local! {
    static CURRENT: Request;
}

/// One request. Cheap to clone.
#[derive(Clone)]
pub struct Request {
    id: Arc<str>,
    facts: Arc<Mutex<Facts>>,
}

/// `None`: it did not come to that. All times in seconds.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The name of the API key.
    pub key: Option<String>,
    pub model: Option<String>,
    /// Of the model that answered.
    pub generation: Option<u64>,
    /// Reading the body.
    pub upload_seconds: Option<f64>,
    /// Turning the file into samples.
    pub audio_decode_seconds: Option<f64>,
    /// That the audio lasts.
    pub audio_seconds: Option<f64>,
    /// Waiting for a model that was loaded.
    pub queue_seconds: Option<f64>,
    /// Waiting for a model that was not.
    pub cold_start_seconds: Option<f64>,
    /// The first window's, as the next two.
    pub mel_seconds: Option<f64>,
    pub encode_seconds: Option<f64>,
    pub prefill_seconds: Option<f64>,
    /// From the request for the model to the first token.
    pub first_token_seconds: Option<f64>,
    /// From the first token to the end.
    pub decode_seconds: Option<f64>,
    /// Runners that were lost under it.
    pub retries: Option<u64>,
    /// When each of the times above was over.
    pub phases: Vec<Phase>,
}

/// A part of a request's time.
#[derive(Clone, Debug)]
pub struct Phase {
    pub name: &'static str,
    pub ended: Instant,
    pub seconds: f64,
}

impl Facts {
    /// A phase that has just ended.
    pub fn ended(&mut self, name: &'static str, seconds: f64) {
        self.phases.push(Phase { name, ended: Instant::now(), seconds });
    }
}

impl Request {
    pub fn new(id: &str) -> Self {
        Self { id: id.into(), facts: Arc::default() }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a future on behalf of this request.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self.clone(), future)
    }

    /// Runs a closure on behalf of this request.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), work)
    }

    pub fn facts(&self) -> Facts {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The id of the request that is being served.
pub fn id() -> Option<Arc<str>> {
    CURRENT.try_with(|request| Arc::clone(&request.id)).ok()
}

/// Adds to what is known; without a request nothing happens.
pub fn note(change: impl FnOnce(&mut Facts)) {
    // Outside of any request nobody asks.
    let _ = CURRENT.try_with(|request| change(&mut request.facts.lock().unwrap_or_else(PoisonError::into_inner)));
}

/// A future that goes on serving the current request on a task of its own.
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
    async fn what_a_spawned_task_learns_is_known_of_the_request() {
        let request = Request::new("r1");
        request
            .scope(async {
                tokio::spawn(async { note(|facts| facts.generation = Some(1)) }).await.unwrap();
                assert_eq!(CURRENT.with(Request::facts).generation, None, "not carried");
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
