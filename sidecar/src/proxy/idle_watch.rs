//! Leases of work that goes on in the app after its answer: they end when the app says that it has no work left.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hush_listener::open_files::FilePermit;
use hush_log::explain;
use tokio::sync::watch;
use tokio::time::sleep;

use super::models::HeldLease;
use super::routes::RequestRoutes;
use crate::app::AppRequest;
use crate::status::AppStatus;
use crate::upstream::Upstream;

const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Holds leases until the app is idle. One task per model asks the app while there are any.
pub struct AppIdleWatch {
    routes: Arc<dyn RequestRoutes>,
    upstream: Upstream,
    status: watch::Receiver<AppStatus>,
    /// By model, in the order in which they came.
    held: Mutex<HashMap<String, Vec<HeldLease>>>,
}

impl AppIdleWatch {
    pub fn new(routes: Arc<dyn RequestRoutes>, upstream: Upstream, status: watch::Receiver<AppStatus>) -> Self {
        Self { routes, upstream, status, held: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<HeldLease>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the lease until the app is idle; ends it at once where the app does not say.
    pub fn keep(self: &Arc<Self>, model: &str, lease: HeldLease) {
        let Some(request) = self.routes.busy(model) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };

        let mut held = self.lock();
        let is_watched = held.contains_key(model);
        held.entry(model.to_owned()).or_default().push(lease);
        if !is_watched {
            runtime.spawn(Arc::clone(self).poll(model.to_owned(), request));
        }
    }

    async fn poll(self: Arc<Self>, model: String, request: AppRequest) {
        let mut is_failing = false;

        loop {
            sleep(POLL_INTERVAL).await;
            // Work that comes while the app is asked may be missing in its answer.
            let before = self.lock().get(&model).map_or(0, Vec::len);

            let is_idle = match self.busy(&model, &request).await {
                Ok(busy) => {
                    is_failing = false;
                    busy == 0
                }
                // An app that is gone has no work.
                Err(_) if !self.status.borrow().is_running() => true,
                Err(problem) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(
                            model,
                            problem,
                            "the app does not say whether it is at work; its model stays held"
                        );
                    }
                    false
                }
            };
            if is_idle && self.release(&model, before) {
                return;
            }
        }
    }

    async fn busy(&self, model: &str, request: &AppRequest) -> Result<u64, String> {
        let answer = self.upstream.call(request).await.map_err(|error| explain(&error))?;

        self.routes.read_busy(model, &answer).map_err(|error| explain(&error))
    }

    /// Ends the first leases. Returns whether none is left.
    fn release(&self, model: &str, count: usize) -> bool {
        let (released, is_empty) = {
            let mut held = self.lock();
            let leases = held.entry(model.to_owned()).or_default();
            let released: Vec<HeldLease> = leases.drain(..count.min(leases.len())).collect();

            let is_empty = leases.is_empty();
            if is_empty {
                held.remove(model);
            }
            (released, is_empty)
        };

        drop(released);
        is_empty
    }
}

/// The lease of one exchange with the app.
pub struct ExchangeGuard {
    lease: Option<HeldLease>,
    connection: crate::upstream::ConnectionWatch,
    until_idle: Option<UntilIdle>,
    /// That of the connection to the app.
    file: Option<FilePermit>,
}

/// The work of an exchange ends when the app is idle.
#[derive(Clone)]
pub struct UntilIdle {
    pub watch: Arc<AppIdleWatch>,
    pub model: String,
}

/// A connection that is given up is closed at once; this is for one that is not, so that no lease lasts for ever.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

impl ExchangeGuard {
    /// `lease`: `None` for an exchange that counts as nothing.
    pub fn new(lease: Option<HeldLease>, until_idle: Option<UntilIdle>) -> Self {
        Self { lease, connection: crate::upstream::ConnectionWatch::default(), until_idle, file: None }
    }

    pub fn hold_file(&mut self, file: FilePermit) {
        self.file = Some(file);
    }

    /// Takes the file out, for a socket that keeps the connection to the app.
    pub fn take_file(&mut self) -> Option<FilePermit> {
        self.file.take()
    }

    /// For the connection over which the request goes.
    pub const fn connection(&self) -> &crate::upstream::ConnectionWatch {
        &self.connection
    }

    /// The last byte of the answer has come.
    pub fn complete(&mut self) {
        self.file = None;
        if let Some(lease) = self.lease.take() {
            end(lease, self.until_idle.take());
        }
    }

    /// Takes the lease out, for a socket that ends it by its own rule.
    pub fn take_lease(&mut self) -> Option<HeldLease> {
        self.lease.take()
    }
}

fn end(lease: HeldLease, until_idle: Option<UntilIdle>) {
    match until_idle {
        Some(UntilIdle { watch, model }) => watch.keep(&model, lease),
        None => drop(lease),
    }
}

impl Drop for ExchangeGuard {
    /// The client is gone, or the exchange failed: the lease ends when the connection to the app is closed.
    fn drop(&mut self) {
        let (Some(lease), Ok(runtime)) = (self.lease.take(), tokio::runtime::Handle::try_current()) else { return };

        let (connection, until_idle) = (self.connection.clone(), self.until_idle.take());
        runtime.spawn(async move {
            if tokio::time::timeout(CLOSE_TIMEOUT, connection.closed()).await.is_err() {
                tracing::warn!("a connection to the app that was given up is not closed");
            }
            end(lease, until_idle);
        });
    }
}
